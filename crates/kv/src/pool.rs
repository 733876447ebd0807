//! Counts who holds each block, lends free ones, and keeps what they hold findable until they are needed for something else.
//!
//! A freed block that can be found goes to the end of the free queue, the tail of a sequence before its beginning, so that the
//! least recently used and least shareable KV is given up first. A freed block that nobody can find is used again first.
//! A tenant whose quota is full gives up a cached block of its own for each new one, and nobody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokens::{BlockId, BlockSize, TenantId, Timestamp};

use crate::free_queue::FreeBlockQueue;
use crate::prefix_index::Insertion;
use crate::quotas::Quotas;
use crate::{ApproximateBlock, BlockLease, BlockOwner, ExactBlock, HashedTokens, PrefixIndex, PrefixMatch};

/// All blocks of one device.
///
/// Invariants, see [`BlockPool::check_invariants`]: a block is in the free queue if and only if nobody holds it; free, cached and
/// active blocks add up to all.
#[derive(Debug)]
pub struct BlockPool {
    block_size: BlockSize,
    ref_counts: Vec<u32>,
    free_queue: FreeBlockQueue,
    index: PrefixIndex,
    /// Blocks of the free queue that can be found.
    num_cached: usize,
    num_evictions: u64,
    /// Who filled each block last; `None` if nobody did.
    owners: Vec<Option<BlockOwner>>,
    quotas: Quotas,
    /// When each block was last freed.
    last_used: Vec<Timestamp>,
    now: Timestamp,
    ttl: Option<Duration>,
    /// Blocks that went from one tenant to another and have not been reported.
    to_zero: BTreeSet<BlockId>,
}

/// A wish for the blocks of a new sequence.
#[derive(Clone, Copy, Debug)]
pub struct SlotRequest<'a> {
    /// Who fills the new ones.
    pub owner: BlockOwner,
    /// Leading blocks, just found by [`BlockPool::match_prefix`].
    pub shared: &'a [BlockId],
    /// New exact blocks behind them.
    pub num_exact: usize,
    /// New approximate blocks behind those.
    pub num_approximate: usize,
    /// Blocks to be left that can be allocated.
    pub headroom: usize,
    /// Blocks to be left of the owner's quota.
    pub quota_headroom: usize,
}

/// Answer to a wish for blocks. A full pool is an answer, not an error.
#[derive(Debug)]
#[must_use]
pub enum Allocation<T = BlockLease> {
    /// Done.
    Ready(T),
    /// Nothing was changed.
    CapacityExhausted {
        /// Blocks that would have to be given back first.
        short_by: usize,
    },
    /// Nothing was changed: the owner's quota is full of blocks that are held.
    QuotaExhausted {
        /// Blocks of the owner that would have to be given back first.
        short_by: usize,
    },
}

/// What to do with a block when the index holds its content already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDuplicate {
    /// Hold the indexed block in its place: saves memory, and what follows can be indexed too.
    Exchange,
    /// Keep the own block, for a sequence that must not read KV of others. What follows is not indexed.
    Keep,
}

/// How many blocks are in which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// Held by nobody and empty of anything that can be found.
    pub free: usize,
    /// Held by nobody, but found by a prefix hit until they are needed.
    pub cached: usize,
    /// Held by at least one sequence.
    pub active: usize,
    /// All.
    pub total: usize,
    /// Cached blocks given up so far because room was needed.
    pub evictions: u64,
}

/// A pool that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// No block.
    #[error("a KV pool needs at least one block")]
    NoBlocks,
    /// Block ids are 32 bits wide and one value is taken.
    #[error("a KV pool of {num_blocks} blocks is too large, at most {} are possible", u32::MAX - 1)]
    TooManyBlocks {
        /// As asked for.
        num_blocks: usize,
    },
}

impl BlockPool {
    /// `num_blocks` free blocks.
    ///
    /// # Errors
    /// If there would be none, or more than ids.
    pub fn try_new(num_blocks: usize, block_size: BlockSize) -> Result<Self, PoolError> {
        let count = u32::try_from(num_blocks).ok().filter(|&count| count < u32::MAX);
        match count.ok_or(PoolError::TooManyBlocks { num_blocks })? {
            0 => Err(PoolError::NoBlocks),
            count => Ok(Self {
                block_size,
                ref_counts: vec![0; num_blocks],
                free_queue: FreeBlockQueue::new(count),
                index: PrefixIndex::new(count, block_size),
                num_cached: 0,
                num_evictions: 0,
                owners: vec![None; num_blocks],
                quotas: Quotas::new(count, &BTreeMap::new()),
                last_used: vec![Timestamp::default(); num_blocks],
                now: Timestamp::default(),
                ttl: None,
                to_zero: BTreeSet::new(),
            }),
        }
    }

    /// The pool, in which each tenant of `quotas` has at most so many blocks held or findable. To be called while it is unused.
    #[must_use]
    pub fn with_quotas(self, quotas: &BTreeMap<TenantId, usize>) -> Self {
        Self { quotas: Quotas::new(self.ref_counts.len() as u32, quotas), ..self }
    }

    /// The pool, in which a block that nobody held for longer than `ttl` is found no more.
    #[must_use]
    pub fn with_ttl(self, ttl: Option<Duration>) -> Self {
        Self { ttl, ..self }
    }

    /// Lets time pass; it never goes back.
    pub fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// Tokens in a block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Where to look for content.
    #[must_use]
    pub fn index(&self) -> &PrefixIndex {
        &self.index
    }

    /// What the pool holds of the first `max_tokens` tokens of `sequence`.
    #[must_use]
    pub fn match_prefix(&self, sequence: HashedTokens<'_>, max_tokens: usize) -> PrefixMatch {
        let mut found = self.index.match_prefix(sequence, max_tokens);
        found.partial = found.partial.filter(|partial| !self.is_expired(partial.block));
        let num_fresh = self.count_fresh(&found.blocks);
        if num_fresh < found.blocks.len() {
            found.blocks.truncate(num_fresh);
            found.num_tokens = num_fresh * self.block_size.as_usize();
            found.partial = None;
        }
        found
    }

    /// The leading full blocks of `sequence` that the pool holds.
    #[must_use]
    pub fn match_full_blocks(&self, sequence: HashedTokens<'_>) -> Vec<BlockId> {
        let mut blocks = self.index.match_full_blocks(sequence);
        blocks.truncate(self.count_fresh(&blocks));
        blocks
    }

    /// Who filled `block` last.
    #[must_use]
    pub fn owner(&self, block: BlockId) -> Option<BlockOwner> {
        self.owners[block.0 as usize]
    }

    /// States of all blocks.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let (total, available) = (self.ref_counts.len(), self.free_queue.len());
        PoolStats {
            free: available - self.num_cached,
            cached: self.num_cached,
            active: total - available,
            total,
            evictions: self.num_evictions,
        }
    }

    /// Whether [`BlockPool::allocate_slots`] would find room.
    pub fn check_room(&self, wish: &SlotRequest<'_>) -> Allocation<()> {
        let num_new = wish.num_exact + wish.num_approximate;
        let needed = self.num_idle(wish.shared, |_| true) + num_new + wish.headroom;
        if let Some(short_by) = self.short_by(needed) {
            return Allocation::CapacityExhausted { short_by };
        }
        let tenant = wish.owner.tenant;
        let num_kept = self.num_idle(wish.shared, |owner| owner.tenant == tenant);
        match self.quotas.short_by(tenant, num_kept, num_new + wish.quota_headroom) {
            Some(short_by) => Allocation::QuotaExhausted { short_by },
            None => Allocation::Ready(()),
        }
    }

    /// Lends the blocks of a new sequence.
    pub fn allocate_slots(&mut self, wish: &SlotRequest<'_>) -> Allocation {
        match self.check_room(wish) {
            Allocation::Ready(()) => {}
            Allocation::CapacityExhausted { short_by } => return Allocation::CapacityExhausted { short_by },
            Allocation::QuotaExhausted { short_by } => return Allocation::QuotaExhausted { short_by },
        }
        let mut lease = self.pin(wish.shared);
        lease.owner = Some(wish.owner);
        lease.exact.extend((0..wish.num_exact).map(|_| ExactBlock::new(self.take_new(wish.owner))));
        lease.approximate.extend((0..wish.num_approximate).map(|_| ApproximateBlock::new(self.take_new(wish.owner))));
        Allocation::Ready(lease)
    }

    /// Adds `num_blocks` new blocks to the end of `lease`: approximate ones if it holds such, for they follow approximate KV.
    ///
    /// # Panics
    /// If `lease` is not of [`BlockPool::allocate_slots`].
    pub fn grow(&mut self, lease: &mut BlockLease, num_blocks: usize) -> Allocation<()> {
        let owner = lease.owner.expect("only the lease of a sequence grows");
        if let Some(short_by) = self.short_by(num_blocks) {
            return Allocation::CapacityExhausted { short_by };
        }
        if let Some(short_by) = self.quotas.short_by(owner.tenant, 0, num_blocks) {
            return Allocation::QuotaExhausted { short_by };
        }
        for _ in 0..num_blocks {
            let block = self.take_new(owner);
            match lease.approximate.is_empty() {
                true => lease.exact.push(ExactBlock::new(block)),
                false => lease.approximate.push(ApproximateBlock::new(block)),
            }
        }
        Allocation::Ready(())
    }

    /// Holds the indexed `blocks`, so that they are neither evicted nor written.
    ///
    /// # Panics
    /// If one is not indexed: it was not just found.
    pub fn pin(&mut self, blocks: &[BlockId]) -> BlockLease {
        blocks.iter().for_each(|&block| self.take_indexed(block));
        let exact = blocks.iter().copied().map(ExactBlock::new).collect();
        BlockLease { exact, approximate: Vec::new(), num_cached: blocks.len(), owner: None }
    }

    /// Replaces the approximate blocks of `lease` by as many exact ones, whose content is to be computed anew.
    ///
    /// # Panics
    /// If `lease` is not of [`BlockPool::allocate_slots`].
    pub fn exchange_approximate(&mut self, lease: &mut BlockLease) {
        let owner = lease.owner.expect("only the lease of a sequence has approximate blocks");
        let given_back = std::mem::take(&mut lease.approximate);
        let num_blocks = given_back.len();
        given_back.into_iter().rev().for_each(|block| self.release(block.id()));
        lease.exact.extend((0..num_blocks).map(|_| ExactBlock::new(self.take_new(owner))));
    }

    /// Makes the exact blocks of `lease` that the first `num_computed_tokens` of `sequence` fill findable.
    pub fn cache_full_blocks(
        &mut self,
        lease: &mut BlockLease,
        sequence: HashedTokens<'_>,
        num_computed_tokens: usize,
        on_duplicate: OnDuplicate,
    ) {
        let num_full = self.block_size.full_blocks(num_computed_tokens).min(lease.exact.len());
        for idx in lease.num_cached..num_full {
            let parent = idx.checked_sub(1).map(|parent| &lease.exact[parent]);
            match self.index.insert(&lease.exact[idx], parent, sequence, idx) {
                Insertion::Stored => {}
                Insertion::Duplicate(block) if on_duplicate == OnDuplicate::Exchange => {
                    self.take_indexed(block);
                    let own = std::mem::replace(&mut lease.exact[idx], ExactBlock::new(block));
                    self.release(own.id());
                }
                Insertion::Duplicate(_) | Insertion::Refused => return,
            }
            lease.num_cached = idx + 1;
        }
    }

    /// Takes back all blocks of `lease`. What can be found stays so until its block is needed.
    pub fn free(&mut self, mut lease: BlockLease) {
        let approximate = std::mem::take(&mut lease.approximate);
        approximate.into_iter().rev().for_each(|block| self.release(block.id()));
        let exact = std::mem::take(&mut lease.exact);
        exact.into_iter().rev().for_each(|block| self.release(block.id()));
    }

    /// Forgets all content. Holders keep their blocks.
    pub fn reset_prefix_cache(&mut self) {
        self.index.clear();
        self.num_cached = 0;
        while let Some(block) = self.free_queue.empty_oldest() {
            let tenant = self.tenant_of(block);
            self.quotas.remove_idle(tenant, block);
            self.quotas.discharge(tenant);
        }
    }

    /// Forgets the content of all blocks filled by an owner that `is_erased` names, and of what can only be found through them;
    /// how many blocks they are. Holders keep theirs.
    pub fn erase(&mut self, is_erased: impl Fn(&BlockOwner) -> bool) -> usize {
        let mut num_erased = 0;
        for block in (0..self.ref_counts.len() as u32).map(BlockId) {
            if self.index.contains(block) && self.owners[block.0 as usize].as_ref().is_some_and(&is_erased) {
                num_erased += self.forget(block).num_blocks;
            }
        }
        num_erased
    }

    /// Forgets blocks that nobody held for too long, at most about `max_blocks`; how many they are.
    pub fn expire(&mut self, max_blocks: usize) -> usize {
        let mut num_expired = 0;
        while num_expired < max_blocks
            && let Some(block) = self.free_queue.oldest_cached().filter(|&block| self.is_expired(block))
        {
            num_expired += self.forget(block).num_blocks;
        }
        num_expired
    }

    /// Blocks lent since the last call that another tenant had filled before, ascending. They are to be zeroed before they are used.
    pub fn take_to_zero(&mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.to_zero).into_iter().collect()
    }

    /// Panics with a sentence if the books do not balance. Takes time in proportion to the pool.
    pub fn check_invariants(&self) {
        let mut num_cached = 0;
        for (i, &ref_count) in self.ref_counts.iter().enumerate() {
            let block = BlockId(i as u32);
            assert_eq!(self.free_queue.contains(block), ref_count == 0, "{block:?} has {ref_count} holders");
            num_cached += usize::from(ref_count == 0 && self.index.contains(block));
        }
        assert_eq!(self.free_queue.iter().count(), self.free_queue.len(), "the free queue has lost blocks");
        assert_eq!(num_cached, self.num_cached, "cached blocks were miscounted");
        let stats = self.stats();
        assert_eq!(stats.free + stats.cached + stats.active, stats.total, "blocks were lost");
        self.index.check_invariants();
        self.quotas.check_invariants(|tenant| self.count_of(tenant));
    }

    /// Blocks that `tenant` filled and that are held or can be found, and those of them that nobody holds.
    fn count_of(&self, tenant: TenantId) -> (usize, usize) {
        let ids = (0..self.ref_counts.len() as u32).map(BlockId);
        let own: Vec<_> = ids.filter(|&block| self.owner(block).is_some_and(|owner| owner.tenant == tenant)).collect();
        let num_held = own.iter().filter(|block| self.ref_counts[block.0 as usize] > 0).count();
        let num_idle = own.iter().filter(|&&block| self.is_idle(block) && self.index.contains(block)).count();
        (num_held + num_idle, num_idle)
    }

    fn is_idle(&self, block: BlockId) -> bool {
        self.ref_counts[block.0 as usize] == 0
    }

    /// Idle blocks among `blocks`, which were just found, whose owner satisfies `counts`.
    fn num_idle(&self, blocks: &[BlockId], counts: impl Fn(BlockOwner) -> bool) -> usize {
        blocks.iter().filter(|&&block| self.is_idle(block) && self.owner(block).is_some_and(&counts)).count()
    }

    /// Leading ones of `blocks` that have not expired.
    fn count_fresh(&self, blocks: &[BlockId]) -> usize {
        blocks.iter().take_while(|&&block| !self.is_expired(block)).count()
    }

    fn is_expired(&self, block: BlockId) -> bool {
        let unused_for = self.now.since(self.last_used[block.0 as usize]);
        self.is_idle(block) && self.ttl.is_some_and(|ttl| unused_for > ttl)
    }

    /// Who is charged for a block that is held or can be found.
    fn tenant_of(&self, block: BlockId) -> TenantId {
        self.owner(block).expect("what is held or found was filled by somebody").tenant
    }

    fn short_by(&self, needed: usize) -> Option<usize> {
        needed.checked_sub(self.free_queue.len()).filter(|&short_by| short_by > 0)
    }

    /// One more holder for a block that can be found.
    fn take_indexed(&mut self, block: BlockId) {
        assert!(self.index.contains(block), "{block:?} is not indexed");
        if self.is_idle(block) {
            self.free_queue.remove(block);
            self.num_cached -= 1;
            self.quotas.remove_idle(self.tenant_of(block), block);
        }
        self.ref_counts[block.0 as usize] += 1;
    }

    /// A block for `owner`, whose content is forgotten: one of its own if its quota is full, else the front of the free queue.
    fn take_new(&mut self, owner: BlockOwner) -> BlockId {
        let own = self.quotas.victim(owner.tenant);
        let block = own.or_else(|| self.free_queue.front()).expect("the caller has counted free blocks");
        if self.index.contains(block) {
            self.num_evictions += self.forget(block).num_idle as u64;
        }
        self.free_queue.remove(block);
        self.ref_counts[block.0 as usize] = 1;
        self.quotas.charge(owner.tenant);
        let before = self.owners[block.0 as usize].replace(owner);
        if before.is_some_and(|before| before.tenant != owner.tenant) {
            self.to_zero.insert(block);
        }
        block
    }

    /// Forgets the content of `block` and of everything that can only be found through it.
    fn forget(&mut self, block: BlockId) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for block in self.index.remove_subtree(block) {
            forgotten.num_blocks += 1;
            if self.is_idle(block) {
                forgotten.num_idle += 1;
                self.num_cached -= 1;
                self.free_queue.remove(block);
                self.free_queue.push_empty(block);
                let tenant = self.tenant_of(block);
                self.quotas.remove_idle(tenant, block);
                self.quotas.discharge(tenant);
            }
        }
        forgotten
    }

    /// One holder less.
    fn release(&mut self, block: BlockId) {
        let ref_count = &mut self.ref_counts[block.0 as usize];
        *ref_count = ref_count.checked_sub(1).expect("a lease holds a reference for each of its blocks");
        if *ref_count > 0 {
            return;
        }
        self.last_used[block.0 as usize] = self.now;
        let tenant = self.tenant_of(block);
        if self.index.contains(block) {
            self.free_queue.push_cached(block);
            self.num_cached += 1;
            self.quotas.insert_idle(tenant, block);
        } else {
            self.free_queue.push_empty(block);
            self.quotas.discharge(tenant);
        }
    }
}

/// Blocks whose content was forgotten.
#[derive(Clone, Copy, Debug, Default)]
struct Forgotten {
    num_blocks: usize,
    /// Those of them that nobody held.
    num_idle: usize,
}

#[cfg(test)]
mod tests;
