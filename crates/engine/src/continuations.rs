//! Approximate KV goes on with its conversation, and with nobody else.
//!
//! KV over moved spans is no prefix for others: the index of prefixes holds what is exact. But the next turn of the same conversation
//! repeats the prompt and the answer, and computing them anew costs it all that the first turn saved. So the blocks of an answered
//! request are kept for the request whose prompt goes on behind that prompt: with the answer it got, or with what its client made of it.
//! It gets the blocks themselves: a second one like it finds nothing, and what is kept never becomes a donor.

use std::collections::{BTreeMap, HashMap};

use semantic::MatchClass;
use tokens::{BlockHash, BlockSize, TenantId, Timestamp, TokenId};

/// Answered requests that are kept at the most. Chosen: far more than a pool has room for.
const MAX_KEPT: usize = 1024;

/// One part in so many of the pool, or of its tenant's quota, is kept at the most. Chosen: the rest is for what others find too.
const POOL_PARTS: usize = 4;

/// Name of an answered request.
pub(crate) type KeptId = u64;

/// Point from which on a sequence's KV is shared with its conversation only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Continued {
    /// First position behind the first prompt of the conversation: whoever goes on repeats all that stands before.
    pub(crate) answer_start: u32,
    /// Of the spans in it.
    pub(crate) class: MatchClass,
}

/// KV that an answered request leaves.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) owner: kv::BlockOwner,
    /// Those whose KV there was.
    pub(crate) tokens: Vec<TokenId>,
    /// Exact blocks in front of `lease`, which are found as a prefix or are lost.
    pub(crate) num_exact: usize,
    /// Approximate ones.
    pub(crate) lease: kv::BlockLease,
    pub(crate) continued: Continued,
    pub(crate) since: Timestamp,
}

/// Answered requests whose conversation may go on.
#[derive(Debug, Default)]
pub(crate) struct Continuations {
    /// Oldest first.
    kept: BTreeMap<KeptId, (BlockHash, Kept)>,
    /// By the last full block of the first prompt.
    by_block: HashMap<BlockHash, Vec<KeptId>>,
    num_kept: KeptId,
}

impl Continuations {
    /// Keeps what a request left whose full blocks are named `hashes`, if its first prompt fills a block. Gives back the leases that have
    /// to go.
    pub(crate) fn keep(
        &mut self,
        kept: Kept,
        hashes: &[BlockHash],
        block_size: BlockSize,
        limit: impl Fn(TenantId) -> usize,
    ) -> Vec<kv::BlockLease> {
        let name = block_size.full_blocks(kept.continued.answer_start as usize).checked_sub(1).and_then(|idx| hashes.get(idx));
        let (Some(&name), tenant) = (name, kept.owner.tenant) else { return vec![kept.lease] };
        let most = limit(tenant) / POOL_PARTS;
        if kept.lease.len() > most {
            return vec![kept.lease];
        }
        let mut given_up = Vec::new();
        while self.kept.len() >= MAX_KEPT || self.num_blocks(Some(tenant)) + kept.lease.len() > most {
            let victim = if self.num_blocks(Some(tenant)) > 0 { Some(tenant) } else { None };
            given_up.extend(self.pop(victim, None));
        }
        let id = self.num_kept;
        self.num_kept += 1;
        self.by_block.entry(name).or_default().push(id);
        self.kept.insert(id, (name, kept));
        given_up
    }

    /// The answered request that a prompt of `tokens`, whose full blocks are named `hashes`, goes on with; and how many tokens they have
    /// in common, `max_tokens` at the most. O(blocks), and the tokens of those that begin alike.
    pub(crate) fn find(&self, hashes: &[BlockHash], tokens: &[TokenId], max_tokens: u32) -> Option<(KeptId, u32)> {
        if self.kept.is_empty() {
            return None;
        }
        let ids = hashes.iter().filter_map(|hash| self.by_block.get(hash)).flatten();
        let agreeing = ids.filter_map(|&id| {
            let (_, kept) = &self.kept[&id];
            let num_equal = kept.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count() as u32;
            let num_equal = num_equal.min(max_tokens);
            (num_equal >= kept.continued.answer_start).then_some((id, num_equal))
        });
        agreeing.max_by_key(|&(id, num_equal)| (num_equal, id))
    }

    /// One that is kept.
    ///
    /// # Panics
    /// If it is not.
    pub(crate) fn get(&self, id: KeptId) -> &Kept {
        &self.kept[&id].1
    }

    /// Takes out one that is kept.
    ///
    /// # Panics
    /// If it is not.
    pub(crate) fn take(&mut self, id: KeptId) -> Kept {
        let (name, kept) = self.kept.remove(&id).expect("only what is kept is taken");
        let ids = self.by_block.get_mut(&name).expect("what is kept is found by its prompt");
        ids.retain(|&other| other != id);
        if ids.is_empty() {
            self.by_block.remove(&name);
        }
        kept
    }

    /// Gives up the oldest one of `tenant`, or of the tenant that keeps most, but for `spared`.
    pub(crate) fn pop(&mut self, tenant: Option<TenantId>, spared: Option<KeptId>) -> Option<kv::BlockLease> {
        let owners = || self.kept.values().map(|(_, kept)| kept.owner.tenant);
        let tenant = tenant.or_else(|| owners().max_by_key(|&owner| (self.num_blocks(Some(owner)), owner)))?;
        let is_victim = |(id, (_, kept)): &(&KeptId, &(BlockHash, Kept))| kept.owner.tenant == tenant && Some(**id) != spared;
        let id = *self.kept.iter().find(is_victim)?.0;
        Some(self.take(id).lease)
    }

    /// Leases kept for one tenant or for all, but for `spared`.
    pub(crate) fn leases(&self, tenant: Option<TenantId>, spared: Option<KeptId>) -> impl Iterator<Item = &kv::BlockLease> {
        let kept = self
            .kept
            .iter()
            .filter(move |&(&id, (_, kept))| Some(id) != spared && tenant.is_none_or(|tenant| kept.owner.tenant == tenant));
        kept.map(|(_, (_, kept))| &kept.lease)
    }

    /// Takes out all that `is_gone`.
    pub(crate) fn extract(&mut self, is_gone: impl Fn(&Kept) -> bool) -> Vec<kv::BlockLease> {
        let gone: Vec<_> = self.kept.iter().filter(|(_, (_, kept))| is_gone(kept)).map(|(&id, _)| id).collect();
        gone.into_iter().map(|id| self.take(id).lease).collect()
    }

    /// Blocks that are kept, of one tenant or of all.
    pub(crate) fn num_blocks(&self, tenant: Option<TenantId>) -> usize {
        self.leases(tenant, None).map(kv::BlockLease::len).sum()
    }
}
