//! Statistics of an engine.

use tokens::Timestamp;

/// State of an engine between two steps.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// Requests that hold blocks, including a running comparison.
    pub num_running: usize,
    /// Comparisons among these: one at most.
    pub num_comparing: usize,
    /// Waiting requests, including preempted ones.
    pub num_waiting: usize,
    /// Lookups of a waiting request's cached KV so far.
    pub examined_requests: u64,
    /// Arrival of the longest waiting request.
    pub oldest_waiting_arrival: Option<Timestamp>,
    /// Blocks by state, and evictions so far.
    pub blocks: kv::PoolStats,
    /// State of the host tier.
    pub host: kv::HostStats,
    /// Bandwidth from the host in bytes a second: measured, or configured before the first measurement.
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
    /// Quality of verified answers over reused KV, by class.
    pub quality: Vec<(semantic::MatchClass, semantic::ClassQuality)>,
    /// State of verification.
    pub verification: VerificationStats,
    /// Classes of traffic in mode `auto`.
    pub traffic: semantic::TrafficCounts,
}

/// Answers over reused KV that are being recorded, or wait to be compared with full computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VerificationStats {
    /// Complete answers that wait or are being compared.
    pub num_pending: usize,
    /// Bytes of these and of those that are still being recorded.
    pub num_bytes: usize,
    /// Answers dropped so far because they would have exceeded the byte limit.
    pub num_dropped: u64,
    /// Answers whose reuse could not be compared any more so far: the KV that they would have reused was evicted.
    pub num_gone: u64,
    /// Comparisons preempted so far by an arriving request; they run again later.
    pub num_put_off: u64,
    /// Answers over reused KV that were computed exactly so far and kept.
    pub num_healed: u64,
    /// Exact answers in mode `auto` whose reuse was computed so far.
    pub num_trials: u64,
}

/// Donors that gave spans, by the index that found them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FoundDonors {
    /// Donors found by the span index.
    pub by_span: u64,
    /// Donors found only by embedding.
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

/// Outcome of a search for spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpanOutcome {
    /// Spans were copied.
    Reused,
    /// No span was worth copying.
    Rejected(semantic::RejectReason),
    /// Donors had spans, but their blocks were evicted.
    NotResident,
    /// The pool had no room for the donors' blocks besides the request's own.
    NoRoom,
    /// Recent answers of the class deviated too much from full computation.
    SwitchedOff,
    /// Spans would have been copied, but the request is in shadow mode.
    Shadowed,
    /// Spans would have been copied, but the request is in mode `auto` and its traffic has not proven yet that reuse keeps its
    /// quality.
    Unproven,
    /// The measured deviation was beyond repair. Counted besides `Reused`.
    BailedOut,
    /// The policy recomputed all of it. Counted besides `Reused`.
    Recomputed,
    /// The logit margin of the first token was too small, and more was recomputed. Counted besides `Reused`.
    LowMargin,
    /// The runner found that a donor's KV disagrees with fresh computation. Counted besides `Reused`.
    FailedCheck,
}

/// Searches for spans so far, by outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SpanLookups {
    counts: [u64; SpanOutcome::ALL.len()],
}

impl SpanOutcome {
    /// All outcomes.
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

    /// Returns its name as a metric label.
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
    /// Returns the number of searches that ended with `outcome`.
    #[must_use]
    pub fn get(&self, outcome: SpanOutcome) -> u64 {
        self.counts[outcome.idx()]
    }

    /// Iterates over all outcomes with their counts, in the order of [`SpanOutcome::ALL`].
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
