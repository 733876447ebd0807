//! Cached KV that a waiting sequence finds.

use tokens::{RequestId, SharingMode, TenantId};

use super::Scheduler;
use crate::continuations::{Continued, KeptId, RetainedKv, Room};
use crate::sequence::Sequence;

/// Minimum share of equal tokens for copying a partly equal block: one part in four. Chosen; a copy of few tokens saves nothing,
/// and would count a common first token as a hit.
const MIN_PARTIAL_SHARE: usize = 4;

/// KV of the leading tokens of a sequence: an exact prefix, which all requests of the scope share, and perhaps the approximate KV
/// of its conversation after it.
#[derive(Clone, Debug, Default)]
pub(super) struct Hit {
    /// Exact part.
    pub(super) prefix: kv::PrefixMatch,
    /// Approximate part.
    pub(super) kept: Option<KeptHit>,
}

/// KV kept for the conversation.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeptHit {
    pub(super) id: KeptId,
    /// Number of cached tokens, including the exact prefix.
    pub(super) num_tokens: u32,
    /// Number of approximate blocks.
    pub(super) num_blocks: usize,
    pub(super) continued: Continued,
}

impl Hit {
    /// Returns the number of tokens.
    pub(super) fn end(&self) -> u32 {
        let partial = self.prefix.partial.map_or(0, |partial| partial.num_tokens);
        self.kept.map_or((self.prefix.num_tokens + partial) as u32, |kept| kept.num_tokens)
    }

    /// Returns the answered request that it continues.
    pub(super) fn kept_id(&self) -> Option<KeptId> {
        self.kept.map(|kept| kept.id)
    }

    /// Returns the number of exact leading tokens.
    pub(super) fn num_exact_tokens(&self) -> u32 {
        self.kept.map_or_else(|| self.end(), |_| self.prefix.num_tokens as u32)
    }

    /// Returns the number of leading blocks that need no allocation.
    pub(super) fn num_blocks(&self) -> usize {
        self.prefix.blocks.len() + self.num_kept()
    }

    /// Returns the number of blocks kept for the conversation that it continues.
    pub(super) fn num_kept(&self) -> usize {
        self.kept.map_or(0, |kept| kept.num_blocks)
    }
}

impl Scheduler {
    /// Finds the KV of a waiting sequence. At least its last token is left to compute: there are no cached logits.
    pub(super) fn hit(&self, sequence: &Sequence) -> Hit {
        let mut hit = Hit { prefix: self.match_prefix(sequence), kept: None };
        if let Some((kept, num_exact)) = self.kept_for(sequence, hit.prefix.blocks.len())
            && kept.num_tokens > hit.end()
        {
            hit.prefix.truncate(num_exact, self.config.block_size);
            hit.prefix.partial = None;
            hit.kept = Some(kept);
        }
        hit
    }

    /// Finds the exact prefix of a waiting sequence.
    pub(super) fn match_prefix(&self, sequence: &Sequence) -> kv::PrefixMatch {
        if sequence.sharing() == SharingMode::Off {
            return kv::PrefixMatch::default();
        }
        let min_partial = self.config.block_size.as_usize().div_ceil(MIN_PARTIAL_SHARE);
        let mut prefix = self.pool.match_prefix(sequence.hashed(), sequence.max_prefix_tokens() as usize);
        prefix.partial = prefix.partial.filter(|partial| partial.num_tokens >= min_partial);
        self.drop_unworthy(&mut prefix);
        prefix
    }

    /// Finds KV kept for its conversation after the first of `num_found` exact blocks, if it accepts approximate KV. Also returns
    /// the number of exact blocks before it.
    pub(super) fn kept_for(&self, sequence: &Sequence, num_found: usize) -> Option<(KeptHit, usize)> {
        if !sequence.sharing().copies_spans() || sequence.trial.is_some() {
            return None;
        }
        let (hashes, tokens) = (sequence.block_hashes(), sequence.token_ids());
        let (scope, readable) = (sequence.request.scope, &sequence.request.readable[..]);
        let (id, num_tokens) = self.continuations.find(scope, readable, hashes, tokens, sequence.max_prefix_tokens())?;
        let &RetainedKv { num_exact, continued, traffic, .. } = self.continuations.get(id);
        let may_continue = match sequence.sharing() {
            SharingMode::Auto => traffic.is_some_and(|class| self.verifier.is_proven(&class)),
            _ => self.verifier.allows(sequence.request.tenant, continued.class),
        };
        let num_blocks = self.config.block_size.blocks_for(num_tokens as usize).saturating_sub(num_exact);
        let is_worth_it = num_blocks > 0 && num_exact <= num_found && may_continue;
        is_worth_it.then_some((KeptHit { id, num_tokens, num_blocks, continued }, num_exact))
    }

    /// Puts the blocks kept for the conversation, if `hit` has some, before the new ones of `slots`.
    pub(super) fn after_kept(&mut self, request_id: RequestId, hit: &Hit, slots: kv::Slots) -> kv::Slots {
        let Some(kept) = hit.kept else { return slots };
        let RetainedKv { owner, sources, mut lease, traffic, .. } = self.continuations.take(kept.id);
        let sequence = self.sequences.get_mut(&request_id).expect("a waiting sequence is known");
        sequence.traffic = sequence.traffic.or(traffic);
        sequence.add_sources(sources.into_iter().chain([owner]));
        self.pool.truncate(&mut lease, kept.num_tokens);
        kv::Slots { lease: slots.lease.with_kept(lease), ..slots }
    }

    /// Returns the number of blocks kept for conversations, without those of `spared`.
    pub(super) fn num_reclaimable(&self, tenant: Option<TenantId>, spared: Option<KeptId>) -> usize {
        let of_spared = spared.map(|id| self.continuations.get(id));
        let of_spared = of_spared.filter(|kept| tenant.is_none_or(|tenant| kept.owner.tenant == tenant));
        self.continuations.num_blocks(tenant) - of_spared.map_or(0, |kept| kept.lease.len())
    }

    /// Evicts the KV of a conversation: one of `tenant`, or of the tenant that keeps most. False if only `spared` is left.
    pub(super) fn reclaim(&mut self, tenant: Option<TenantId>, spared: Option<KeptId>) -> bool {
        let lease = self.continuations.pop(tenant, spared);
        let is_any = lease.is_some();
        lease.into_iter().for_each(|lease| self.pool.free(lease));
        is_any
    }

    /// Keeps the KV of a sequence that has ended for its conversation, or frees it. A client that cancels a request, or stops it
    /// at a text, may continue too.
    pub(super) fn keep_or_free(&mut self, sequence: &mut Sequence, is_sound: bool) {
        let tenant = sequence.request.tenant;
        let class = sequence.usage.and_then(|usage| usage.class);
        let is_answered = sequence.num_computed_tokens() >= sequence.num_prompt_tokens();
        let may_be_kept = sequence.request.store && sequence.may_be_continued && sequence.sharing().copies_spans();
        let is_of_use = is_sound && is_answered && may_be_kept && !sequence.is_exact();
        let (Some(class), true) = (class, is_of_use) else { return self.pool.free(sequence.reset()) };
        let num_tokens = sequence.num_computed_tokens() as usize;
        let answer_start = sequence.continued().map_or(sequence.num_prompt_tokens(), |continued| continued.answer_start);
        let tokens = sequence.token_ids()[..num_tokens].to_vec();
        let hashes = sequence.block_hashes().to_vec();
        let sources = sequence.sources().to_vec();
        let traffic = sequence.traffic;
        let mut lease = sequence.reset();
        self.pool.truncate(&mut lease, num_tokens as u32);
        let num_exact = lease.num_exact();
        self.pool.free_exact(&mut lease);
        let kept = RetainedKv {
            scope: sequence.request.scope,
            readable: sequence.request.readable.clone(),
            owner: sequence.request.owner(),
            sources,
            tokens,
            num_exact,
            lease,
            continued: Continued { answer_start, class },
            traffic,
            since: self.pool.now(),
        };
        let room = Room { of_tenant: self.config.max_blocks(tenant), of_all: self.config.num_blocks };
        let given_up = self.continuations.keep(kept, &hashes, self.config.block_size, room);
        given_up.into_iter().for_each(|lease| self.pool.free(lease));
    }
}
