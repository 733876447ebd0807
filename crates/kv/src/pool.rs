//! Counts who holds each block, lends free ones, and keeps what they hold findable until they are needed for something else.
//!
//! A freed block that can be found goes to the end of the free queue, the tail of a sequence before its beginning, so that the
//! least recently used and least shareable KV is given up first. A freed block that nobody can find is used again first.

use tokens::{BlockId, BlockSize};

use crate::free_queue::FreeBlockQueue;
use crate::prefix_index::Insertion;
use crate::{ApproximateBlock, BlockLease, ExactBlock, HashedTokens, PrefixIndex, PrefixMatch};

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
            }),
        }
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
        self.index.match_prefix(sequence, max_tokens)
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

    /// Whether [`BlockPool::allocate_slots`] would find room for `num_new` blocks behind `shared`.
    #[must_use]
    pub fn has_room(&self, shared: &[BlockId], num_new: usize, headroom: usize) -> bool {
        self.short_by(self.num_idle(shared) + num_new + headroom).is_none()
    }

    /// Lends the blocks of a new sequence: `shared`, just found by [`BlockPool::match_prefix`], then `num_exact` and
    /// `num_approximate` new ones. Leaves at least `headroom` blocks that can be allocated.
    pub fn allocate_slots(
        &mut self,
        shared: &[BlockId],
        num_exact: usize,
        num_approximate: usize,
        headroom: usize,
    ) -> Allocation {
        let needed = self.num_idle(shared) + num_exact + num_approximate + headroom;
        if let Some(short_by) = self.short_by(needed) {
            return Allocation::CapacityExhausted { short_by };
        }
        let mut lease = self.pin(shared);
        lease.exact.extend((0..num_exact).map(|_| ExactBlock::new(self.take_new())));
        lease.approximate.extend((0..num_approximate).map(|_| ApproximateBlock::new(self.take_new())));
        Allocation::Ready(lease)
    }

    /// Adds `num_blocks` new blocks to the end of `lease`: approximate ones if it holds such, for they follow approximate KV.
    pub fn grow(&mut self, lease: &mut BlockLease, num_blocks: usize) -> Allocation<()> {
        if let Some(short_by) = self.short_by(num_blocks) {
            return Allocation::CapacityExhausted { short_by };
        }
        for _ in 0..num_blocks {
            let block = self.take_new();
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
        BlockLease { exact, approximate: Vec::new(), num_cached: blocks.len() }
    }

    /// Replaces the approximate blocks of `lease` by as many exact ones, whose content is to be computed anew.
    pub fn exchange_approximate(&mut self, lease: &mut BlockLease) {
        let given_back = std::mem::take(&mut lease.approximate);
        let num_blocks = given_back.len();
        given_back.into_iter().rev().for_each(|block| self.release(block.id()));
        lease.exact.extend((0..num_blocks).map(|_| ExactBlock::new(self.take_new())));
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
    }

    fn num_idle(&self, blocks: &[BlockId]) -> usize {
        blocks.iter().filter(|&&block| self.ref_counts[block.0 as usize] == 0).count()
    }

    fn short_by(&self, needed: usize) -> Option<usize> {
        needed.checked_sub(self.free_queue.len()).filter(|&short_by| short_by > 0)
    }

    /// One more holder for a block that can be found.
    fn take_indexed(&mut self, block: BlockId) {
        assert!(self.index.contains(block), "{block:?} is not indexed");
        let ref_count = &mut self.ref_counts[block.0 as usize];
        if *ref_count == 0 {
            self.free_queue.remove(block);
            self.num_cached -= 1;
        }
        *ref_count += 1;
    }

    /// First holder of the block at the front of the free queue, whose content is forgotten.
    fn take_new(&mut self) -> BlockId {
        let block = self.free_queue.pop_front().expect("the caller has counted free blocks");
        self.ref_counts[block.0 as usize] = 1;
        if self.index.contains(block) {
            self.num_cached -= 1;
            self.num_evictions += 1;
            self.forget(block);
        }
        block
    }

    /// Forgets the content of `block`, which was just taken, and of everything that can only be found through it.
    fn forget(&mut self, block: BlockId) {
        for orphan in self.index.remove_subtree(block).into_iter().skip(1) {
            if self.ref_counts[orphan.0 as usize] == 0 {
                self.free_queue.remove(orphan);
                self.free_queue.push_front(orphan);
                self.num_cached -= 1;
                self.num_evictions += 1;
            }
        }
    }

    /// One holder less.
    fn release(&mut self, block: BlockId) {
        let ref_count = &mut self.ref_counts[block.0 as usize];
        *ref_count = ref_count.checked_sub(1).expect("a lease holds a reference for each of its blocks");
        if *ref_count > 0 {
            return;
        }
        if self.index.contains(block) {
            self.free_queue.push_back(block);
            self.num_cached += 1;
        } else {
            self.free_queue.push_front(block);
        }
    }
}

#[cfg(test)]
mod tests;
