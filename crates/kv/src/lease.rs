//! Blocks held by one sequence, kept apart by the provenance of their KV, which is part of their type.
//!
//! A sequence's KV is exact up to the first span it copied from elsewhere and approximate from there on, so its block table is
//! some exact blocks followed by some approximate ones. Compaction replaces blocks of either kind by compacted ones and leaves a hole
//! after them. No block ever changes its kind.

use std::marker::PhantomData;

use tokens::BlockId;

use crate::{BlockEntry, BlockOwner};

/// One reference to a block, and its entry of the block table. `P` is the provenance of its KV.
///
/// Only the pool creates one. Only an [`ExactBlock`] can enter the prefix index, and donors are read through the index alone, so a block
/// of another kind is neither found nor copied from.
#[derive(Debug)]
pub struct LeasedBlock<P> {
    entry: BlockEntry,
    provenance: PhantomData<P>,
}

/// Provenance of KV that is, or will be, computed from exactly the tokens before it.
#[derive(Debug)]
pub enum Exact {}

/// Provenance of a block in which some KV was copied from another context, or was computed after KV that is not exact.
#[derive(Debug)]
pub enum Approximate {}

/// Provenance of a block from whose KV tokens were removed, or in which one row summarises several. Its rows are not those of its
/// positions.
#[derive(Debug)]
pub enum Compacted {}

/// Block of exact KV.
pub type ExactBlock = LeasedBlock<Exact>;
/// Block of approximate KV.
pub type ApproximateBlock = LeasedBlock<Approximate>;
/// Block of compacted KV.
pub type CompactedBlock = LeasedBlock<Compacted>;

impl<P> LeasedBlock<P> {
    pub(crate) fn new(entry: BlockEntry) -> Self {
        Self { entry, provenance: PhantomData }
    }

    /// Returns the entry of the block table.
    #[must_use]
    pub fn entry(&self) -> BlockEntry {
        self.entry
    }

    /// Returns the id of the block in the pool.
    #[must_use]
    pub fn id(&self) -> BlockId {
        self.entry.block
    }
}

/// Blocks lent to one holder. It cannot be cloned, and must be freed.
///
/// Freeing is a call and not a `Drop`, because the owner of the pool must not share it; dropping a lease that still holds blocks panics in
/// debug builds.
#[derive(Debug, Default)]
#[must_use = "a lease holds blocks of the pool: give it back with `BlockPool::free`"]
pub struct BlockLease {
    pub(crate) exact: Vec<ExactBlock>,
    pub(crate) approximate: Vec<ApproximateBlock>,
    pub(crate) compacted: Vec<CompactedBlock>,
    /// Number of leading exact blocks that need no more work in the prefix index: found there, or stored there.
    pub(crate) num_cached: usize,
    /// Position at which the next block begins.
    pub(crate) end: u32,
    /// Position of the first KV that is not exact, also if its block was freed since: nothing after it is exact.
    pub(crate) first_inexact: Option<u32>,
    /// Owner of further blocks; `None` for a lease that cannot grow.
    pub(crate) owner: Option<BlockOwner>,
}

impl BlockLease {
    /// Returns the number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.exact.len() + self.approximate.len() + self.compacted.len()
    }

    /// True if it holds no block, so that it may be dropped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of exact blocks.
    #[must_use]
    pub fn num_exact(&self) -> usize {
        self.exact.len()
    }

    /// Returns the position after the last block, where the next one begins.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Puts the approximate blocks of `kept` between the exact and the approximate ones of this lease, where
    /// [`SlotRequest::num_kept`](crate::SlotRequest::num_kept) left room for them.
    ///
    /// # Panics
    /// If `kept` has other blocks.
    pub fn with_kept(mut self, mut kept: Self) -> Self {
        assert!(kept.exact.is_empty(), "exact blocks are found, not kept");
        assert!(kept.compacted.is_empty(), "compacted blocks are not kept");
        debug_assert!(
            self.approximate.first().is_none_or(|next| next.entry.position == kept.end),
            "they fill the room left for them"
        );
        kept.approximate.append(&mut self.approximate);
        self.approximate = std::mem::take(&mut kept.approximate);
        self
    }

    /// Returns the blocks, exact ones first; those that were found are in the order of the request.
    pub fn block_ids(&self) -> impl Iterator<Item = BlockId> + '_ {
        let exact = self.exact.iter().map(LeasedBlock::id);
        exact.chain(self.approximate.iter().map(LeasedBlock::id)).chain(self.compacted.iter().map(LeasedBlock::id))
    }

    /// Returns the block table up to position `end`: the entries of all blocks that begin before it, by ascending position.
    #[must_use]
    pub fn block_table(&self, end: u32) -> Vec<BlockEntry> {
        let exact = &self.exact[..num_before(&self.exact, end)];
        let approximate = &self.approximate[..num_before(&self.approximate, end)];
        let compacted = &self.compacted[..num_before(&self.compacted, end)];
        let mut table = Vec::with_capacity(exact.len() + approximate.len() + compacted.len());
        table.extend(exact.iter().map(LeasedBlock::entry));
        table.extend(approximate.iter().map(LeasedBlock::entry));
        table.extend(compacted.iter().map(LeasedBlock::entry));
        if !compacted.is_empty() {
            table.sort_unstable_by_key(|entry| entry.position);
        }
        table
    }
}

/// Counts the leading blocks that begin before position `end`.
pub(crate) fn num_before<P>(blocks: &[LeasedBlock<P>], end: u32) -> usize {
    match blocks.last() {
        Some(last) if last.entry.position >= end => blocks.partition_point(|block| block.entry.position < end),
        _ => blocks.len(),
    }
}

impl Drop for BlockLease {
    fn drop(&mut self) {
        debug_assert!(self.is_empty() || std::thread::panicking(), "{} blocks were not given back to the pool", self.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "1 blocks were not given back")]
    fn a_dropped_lease_is_noticed() {
        let exact = vec![ExactBlock::new(BlockEntry { block: BlockId(0), position: 0 })];
        let (approximate, compacted) = (Vec::new(), Vec::new());
        drop(BlockLease { exact, approximate, compacted, num_cached: 0, end: 0, first_inexact: None, owner: None });
    }
}
