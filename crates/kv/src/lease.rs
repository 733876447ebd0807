//! Blocks held by one sequence, exact ones and approximate ones kept apart by type.
//!
//! A sequence's KV is exact up to the first span it copied from elsewhere and approximate from there on, so its block table is
//! some exact blocks followed by some approximate ones, and no block ever changes sides.

use tokens::BlockId;

use crate::BlockOwner;

/// One reference to a block whose KV is, or will be, computed from exactly the tokens before it.
///
/// Only the pool creates one, and only such a block can enter the prefix index.
#[derive(Debug)]
pub struct ExactBlock(BlockId);

/// One reference to a block in which some KV was copied from another context, or was computed on top of such KV.
#[derive(Debug)]
pub struct ApproximateBlock(BlockId);

impl ExactBlock {
    pub(crate) fn new(id: BlockId) -> Self {
        Self(id)
    }

    /// Returns the id of the block in the pool.
    #[must_use]
    pub fn id(&self) -> BlockId {
        self.0
    }
}

impl ApproximateBlock {
    pub(crate) fn new(id: BlockId) -> Self {
        Self(id)
    }

    /// Returns the id of the block in the pool.
    #[must_use]
    pub fn id(&self) -> BlockId {
        self.0
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
    /// Number of leading exact blocks that need no more work in the prefix index: found there, or stored there.
    pub(crate) num_cached: usize,
    /// Owner of further blocks; `None` for a lease that cannot grow.
    pub(crate) owner: Option<BlockOwner>,
}

impl BlockLease {
    /// Returns the number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.exact.len() + self.approximate.len()
    }

    /// True if it holds no block, so that it may be dropped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of leading exact blocks.
    #[must_use]
    pub fn num_exact(&self) -> usize {
        self.exact.len()
    }

    /// Inserts the approximate blocks of `kept` between the exact and the approximate ones of this lease.
    ///
    /// # Panics
    /// If `kept` has an exact block.
    pub fn with_kept(mut self, mut kept: Self) -> Self {
        assert!(kept.exact.is_empty(), "exact blocks are found, not kept");
        kept.approximate.append(&mut self.approximate);
        self.approximate = std::mem::take(&mut kept.approximate);
        self
    }

    /// Returns the blocks in the order of the sequence: the block table.
    pub fn block_ids(&self) -> impl DoubleEndedIterator<Item = BlockId> + '_ {
        self.exact.iter().map(ExactBlock::id).chain(self.approximate.iter().map(ApproximateBlock::id))
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
        let exact = vec![ExactBlock::new(BlockId(0))];
        drop(BlockLease { exact, approximate: Vec::new(), num_cached: 0, owner: None });
    }
}
