//! What an engine says about itself.

use tokens::Timestamp;

/// State of an engine between two steps.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// Requests that hold blocks, a comparison among them.
    pub num_running: usize,
    /// Comparisons among these: one at most.
    pub num_comparing: usize,
    /// Requests that wait, preempted ones among them.
    pub num_waiting: usize,
    /// Searches for what is there of a waiting request so far.
    pub examined_requests: u64,
    /// When the longest waiting one arrived.
    pub oldest_waiting_arrival: Option<Timestamp>,
    /// Blocks by state, and evictions so far.
    pub blocks: kv::PoolStats,
    /// The host tier.
    pub host: kv::HostStats,
    /// Bandwidth from the host as measured, or as configured before that, in bytes a second.
    pub host_bandwidth: f64,
    /// Preemptions so far.
    pub preemptions: u64,
    /// Earlier prompts whose spans can be found.
    pub num_donors: usize,
    /// Rows of the last step.
    pub last_scheduled_tokens: usize,
    /// Donors that gave spans to admitted requests so far.
    pub found_donors: FoundDonors,
    /// Admissions in span mode so far, by outcome.
    pub span_lookups: SpanLookups,
    /// Tokens that requests in shadow mode would have copied so far.
    pub shadowed_tokens: u64,
    /// Verified answers over reused KV, by class.
    pub quality: Vec<(semantic::MatchClass, semantic::ClassQuality)>,
    /// Answers that are to be verified.
    pub verification: VerificationStats,
    /// Classes of traffic in mode `auto`.
    pub traffic: semantic::TrafficCounts,
}

/// Answers over reused KV that are recorded, or wait to be compared with full computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VerificationStats {
    /// Complete answers that wait or are being compared.
    pub num_pending: usize,
    /// Bytes of these and of those that are still being recorded.
    pub num_bytes: usize,
    /// Answers dropped so far because they would have taken more bytes than there may be.
    pub num_dropped: u64,
    /// Answers whose reuse could not be tried any more so far: the KV that they would have reused was gone.
    pub num_gone: u64,
    /// Comparisons dropped so far because a request arrived; they are made again.
    pub num_put_off: u64,
    /// Answers over reused KV that were computed exactly so far and kept.
    pub num_healed: u64,
    /// Exact answers in mode `auto` whose reuse was computed so far.
    pub num_trials: u64,
}

/// Donors that gave spans, by what found them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FoundDonors {
    /// Their spans were found in the index.
    pub by_span: u64,
    /// Only their embeddings led to them.
    pub by_embedding: u64,
}

impl FoundDonors {
    pub(crate) fn count(&mut self, by_embedding: bool) {
        if by_embedding {
            self.by_embedding += 1;
        } else {
            self.by_span += 1;
        }
    }
}

/// How a search for spans ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpanOutcome {
    /// Spans were copied.
    Reused,
    /// There was nothing worth copying.
    Rejected(semantic::RejectReason),
    /// Donors had spans, but their blocks were evicted.
    NotResident,
    /// There was no room to hold the donors' blocks beside the request's own.
    NoRoom,
    /// Answers of the class were too far from full computation lately.
    SwitchedOff,
    /// Spans would have been copied, but the request is in shadow mode.
    Shadowed,
    /// Spans would have been copied, but the request is in mode `auto` and its traffic has not proven yet that this is good for it.
    Unproven,
    /// What was measured was beyond repair. Counted besides `Reused`.
    BailedOut,
    /// The policy had all of it computed anew. Counted besides `Reused`.
    Recomputed,
    /// The likeliest first tokens were too near to each other, and more was recomputed. Counted besides `Reused`.
    LowMargin,
    /// The runner found that a donor's KV disagrees. Counted besides `Reused`.
    FailedCheck,
}

/// Searches for spans so far, by outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SpanLookups {
    counts: [u64; SpanOutcome::ALL.len()],
}

impl SpanOutcome {
    /// All of them.
    pub const ALL: [SpanOutcome; 16] = [
        Self::Reused,
        Self::Rejected(semantic::RejectReason::ALL[0]),
        Self::Rejected(semantic::RejectReason::ALL[1]),
        Self::Rejected(semantic::RejectReason::ALL[2]),
        Self::Rejected(semantic::RejectReason::ALL[3]),
        Self::Rejected(semantic::RejectReason::ALL[4]),
        Self::Rejected(semantic::RejectReason::ALL[5]),
        Self::NotResident,
        Self::NoRoom,
        Self::SwitchedOff,
        Self::Shadowed,
        Self::Unproven,
        Self::BailedOut,
        Self::Recomputed,
        Self::LowMargin,
        Self::FailedCheck,
    ];

    /// Its name as a metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Reused => "reused",
            Self::Rejected(reason) => reason.label(),
            Self::NotResident => "not_resident",
            Self::NoRoom => "no_room",
            Self::SwitchedOff => "switched_off",
            Self::Shadowed => "shadowed",
            Self::Unproven => "unproven",
            Self::BailedOut => "bailed_out",
            Self::Recomputed => "recomputed",
            Self::LowMargin => "low_margin",
            Self::FailedCheck => "failed_check",
        }
    }

    fn idx(self) -> usize {
        Self::ALL.iter().position(|&outcome| outcome == self).expect("ALL names every outcome")
    }
}

impl SpanLookups {
    /// How many ended with `outcome`.
    #[must_use]
    pub fn get(&self, outcome: SpanOutcome) -> u64 {
        self.counts[outcome.idx()]
    }

    /// Every outcome with its count, in the order of [`SpanOutcome::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (SpanOutcome, u64)> + '_ {
        SpanOutcome::ALL.into_iter().zip(self.counts)
    }

    pub(crate) fn count(&mut self, outcome: SpanOutcome) {
        self.counts[outcome.idx()] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_own_count_and_label() {
        let mut lookups = SpanLookups::default();
        for (i, outcome) in SpanOutcome::ALL.into_iter().enumerate() {
            (0..=i).for_each(|_| lookups.count(outcome));
        }
        assert_eq!(
            lookups.iter().map(|(_, count)| count).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
        );
        let labels: std::collections::BTreeSet<_> = SpanOutcome::ALL.map(SpanOutcome::label).into();
        assert_eq!(labels.len(), SpanOutcome::ALL.len());
        let reasons = semantic::RejectReason::ALL.map(SpanOutcome::Rejected);
        assert!(reasons.iter().all(|reason| SpanOutcome::ALL.contains(reason)));
    }
}
