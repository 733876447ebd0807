//! What an operator asks between two steps: who left what, to erase it, and what a request would find.

use tokens::{DonorId, Timestamp};

use super::admission::prefix_end;
use super::{OpenStep, Scheduler, target_of};
use crate::queue::ArrivalKey;
use crate::sequence::Sequence;
use crate::{DonorInfo, Erase, ErasedCounts, Explanation, KvSharingMode, Request};

/// Donors and blocks that expire in one step. Chosen: far more than a step leaves behind, and soon done.
const MAX_EXPIRED_DONORS_PER_STEP: usize = 16;
const MAX_EXPIRED_BLOCKS_PER_STEP: usize = 1024;

impl Scheduler {
    /// The donors behind `after`, oldest first, at most `limit`. Time is that of the last step.
    #[must_use]
    pub fn donors(&self, after: Option<DonorId>, limit: usize) -> Vec<DonorInfo> {
        self.donors.list(&self.pool, after, limit)
    }

    /// Erases donors, and blocks, also those in the host tier, with all that can only be found through them. Blocks that running requests hold cannot be found
    /// any more at once, and are freed with their holders. Requests in the engine whose traces are erased go on, but leave nothing
    /// behind. An erased block is zeroed before another tenant gets it.
    ///
    /// # Panics
    /// Between `schedule` and `update_from_output`. A step that was chosen ahead may be open.
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
        for sequence in self.sequences.values_mut().filter(|sequence| is_erased(&sequence.request.owner())) {
            sequence.request.store = false;
            sequence.said = None;
            self.in_flight.remove(sequence.request_id, sequence.block_hashes());
        }
        ErasedCounts { donors: self.donors.erase(is_erased), blocks: self.pool.erase(is_erased) }
    }

    /// What sharing could give `request` now, as if it asked for spans at least. Nothing changes by asking, and nothing is told of scopes that
    /// it may not read.
    #[must_use]
    pub fn explain(&self, request: &Request) -> Explanation {
        let sharing = if request.sharing == KvSharingMode::Semantic { request.sharing } else { KvSharingMode::Span };
        let mut request = Request { sharing, ..request.clone() };
        request.sampling.prompt_logprobs = None;
        let mut sequence = Sequence::new(request, ArrivalKey::default(), self.config.block_size);
        sequence.similar = self.similar(&sequence.request);
        let from = if sequence.num_tokens() == 0 { 0 } else { prefix_end(&self.match_prefix(&sequence)) };
        let (found, matches) = self.donors.explain(&self.pool, target_of(&sequence, from), self.fetch_gate());
        let plan = self.gated(&found, &sequence, from);
        Explanation { prefix_tokens: from, plan, matches, by_embedding: found.by_embedding.into_iter().collect() }
    }

    /// Lets time pass, and forgets some of what was not used for too long.
    pub(super) fn forget_expired(&mut self, now: Timestamp) {
        self.pool.advance(now);
        self.donors.advance(now);
        self.donors.expire(MAX_EXPIRED_DONORS_PER_STEP);
        self.pool.expire(MAX_EXPIRED_BLOCKS_PER_STEP);
    }
}
