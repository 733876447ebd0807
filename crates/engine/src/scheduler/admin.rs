//! Operator queries and erasure between two steps.

use std::time::Duration;

use semantic::{TrafficClass, TrafficQuality};
use tokens::{DonorId, TenantId, Timestamp};

use super::admission::admission_usage;
use super::hit::Hit;
use super::{OpenStep, Scheduler, target_of};
use crate::arrival::ArrivalKey;
use crate::donors::ExplainedSpans;
use crate::sequence::Sequence;
use crate::{DonorInfo, Erase, ErasedCounts, Explanation, Request, SpanOutcome};

/// Donors and blocks that expire in one step. Chosen: far more than a step leaves, and quickly done.
const MAX_EXPIRED_DONORS_PER_STEP: usize = 16;
const MAX_EXPIRED_BLOCKS_PER_STEP: usize = 1024;

impl Scheduler {
    /// Lists the donors after `after`, oldest first, at most `limit`, as of the last step.
    #[must_use]
    pub fn donors(&self, after: Option<DonorId>, limit: usize) -> Vec<DonorInfo> {
        self.donors.list(&self.pool, after, limit)
    }

    /// Returns the classes of traffic in mode `auto` of `tenant`, or of all tenants, with their quality.
    #[must_use]
    pub fn traffic(&self, tenant: Option<TenantId>) -> Vec<(TrafficClass, TrafficQuality)> {
        self.verifier.traffic(tenant)
    }

    /// Erases donors and blocks, also those in the host tier, and everything that is only reachable through them. Lookups stop
    /// finding blocks that running requests hold at once; they are freed with their holders. Erased requests that are still in
    /// the engine go on, but store nothing. An erased block is zeroed before another tenant gets it.
    ///
    /// # Panics
    /// Between `schedule` and `update_from_output`. A step that was scheduled ahead may be open.
    pub fn erase(&mut self, what: Erase) -> ErasedCounts {
        assert!(!self.open_steps.contains(&OpenStep::Chosen), "a step is open");
        let request_of_donor = match what {
            Erase::Donor(donor) => match self.donors.owner(donor) {
                Some(owner) => Some(owner.request),
                None => return ErasedCounts::default(),
            },
            _ => None,
        };
        let is_erased = |owner: &kv::BlockOwner| match what {
            Erase::Donor(_) => Some(owner.request) == request_of_donor,
            Erase::Session(tenant, session) => owner.tenant == tenant && owner.session == Some(session),
            Erase::Tenant(tenant) => owner.tenant == tenant,
            Erase::All => true,
        };
        self.put_off_verification();
        self.verifier.erase(|request| is_erased(&request.owner()));
        match what {
            Erase::Tenant(tenant) => self.verifier.erase_traffic(Some(tenant)),
            Erase::All => self.verifier.erase_traffic(None),
            Erase::Donor(_) | Erase::Session(..) => {}
        }
        for sequence in self.sequences.values_mut().filter(|sequence| is_erased(&sequence.request.owner())) {
            sequence.request.store = false;
            sequence.recorded_logprobs = None;
            sequence.shadow = None;
            self.in_flight.remove(sequence.request_id, sequence.block_hashes(), |hash| {
                self.queue.wake_block(hash);
            });
        }
        for sequence in self.sequences.values_mut() {
            sequence.may_be_continued &= !sequence.sources().iter().any(is_erased);
        }
        self.is_stuck = false;
        let gone = self.continuations.extract(|kept| kept.is_of(is_erased));
        let num_kept: usize = gone.iter().map(kv::BlockLease::len).sum();
        gone.into_iter().for_each(|lease| self.pool.free(lease));
        ErasedCounts { donors: self.donors.erase(is_erased), blocks: num_kept + self.pool.erase(is_erased) }
    }

    /// Predicts the result of admitting `request` now. Changes nothing, and reveals nothing of scopes that it may not read.
    #[must_use]
    pub fn explain(&self, request: &Request) -> Explanation {
        let mut sequence = Sequence::new(request.clone(), ArrivalKey::default(), self.config.block_size);
        sequence.similar = self.similar(&sequence.request);
        let mut hit = self.hit(&sequence);
        let Some(found) = self.explain_spans(&sequence, hit.end()) else {
            return self.explanation(&sequence, &mut hit, None, None);
        };
        let outcome = match self.outcome(&sequence, &found) {
            Ok(()) if self.has_room(&sequence, &hit, Some(&found.found)) => SpanOutcome::Reused,
            Ok(()) => SpanOutcome::NoRoom,
            Err(outcome) => outcome,
        };
        self.explanation(&sequence, &mut hit, Some(found), Some(outcome))
    }

    fn explain_spans(&self, sequence: &Sequence, from: u32) -> Option<ExplainedSpans> {
        if !sequence.sharing().searches_spans() {
            return None;
        }
        let mut found = self.donors.explain(&self.pool, target_of(sequence, from), self.fetch_gate());
        found.found.plan = self.gated(&found.found, sequence, from);
        Some(found)
    }

    /// Returns the outcome of the search apart from the check for room.
    fn outcome(&self, sequence: &Sequence, found: &ExplainedSpans) -> Result<(), SpanOutcome> {
        match found.found.plan.rejected {
            _ if !found.is_resident => Err(SpanOutcome::NotResident),
            Some(reason) => Err(SpanOutcome::Rejected(reason)),
            None => self.permission(sequence, &found.found.plan),
        }
    }

    fn explanation(
        &self,
        sequence: &Sequence,
        hit: &mut Hit,
        found: Option<ExplainedSpans>,
        outcome: Option<SpanOutcome>,
    ) -> Explanation {
        let is_reused = outcome == Some(SpanOutcome::Reused);
        if !is_reused && !self.has_room(sequence, hit, None) {
            hit.prefix.partial = None;
        }
        let (plan, matches, by_embedding) = match found {
            Some(ExplainedSpans { found, matches, .. }) => (found.plan, matches, found.by_embedding),
            None => Default::default(),
        };
        let usage = admission_usage(sequence, hit, is_reused.then_some(&plan), outcome);
        let semantic::Repair { policy, ratio, .. } = sequence.request.repair.for_plan(&plan, sequence.num_prompt_tokens());
        let policy_tokens = usage.span_tokens.min(policy.budget(ratio, sequence.num_prompt_tokens()));
        let spans = if is_reused { plan.spans } else { Vec::new() };
        let plan = semantic::ReusePlan { spans, ..plan };
        Explanation { usage, policy_tokens, plan, matches, by_embedding: by_embedding.into_iter().collect() }
    }

    /// Charges `tenant` for time spent on its query, as if it were work of its requests.
    pub fn charge(&mut self, tenant: TenantId, time: Duration) {
        self.queue.charge(tenant, time.as_micros() as u64);
    }

    /// Advances the clock, and drops some of the expired entries.
    pub(super) fn forget_expired(&mut self, now: Timestamp) {
        self.pool.advance(now);
        self.donors.advance(now);
        self.donors.expire(MAX_EXPIRED_DONORS_PER_STEP);
        self.pool.expire(MAX_EXPIRED_BLOCKS_PER_STEP);
        if let Some(ttl) = self.config.donor_ttl {
            while let Some(lease) = self.continuations.pop_expired(now, ttl) {
                self.pool.free(lease);
            }
        }
    }
}
