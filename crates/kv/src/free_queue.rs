//! Order in which free blocks are reused.
//!
//! Unfindable blocks come first, the last freed one at the front. The cached ones follow, least recently freed first; a prefix hit takes
//! one out of the middle.
//!
//! Not here: reference counts, and the choice of one of the two for a freed block (`pool.rs`).

use tokens::BlockId;

use crate::rings::BlockRings;

const EMPTY: u32 = 0;
const CACHED: u32 = 1;

/// Free blocks in the order of their next use, front first.
#[derive(Debug)]
pub(crate) struct FreeBlockQueue {
    rings: BlockRings,
    num_free: usize,
}

impl FreeBlockQueue {
    /// Creates a queue of blocks `0..num_blocks`, all empty, the lowest first.
    pub(crate) fn new(num_blocks: u32) -> Self {
        let mut rings = BlockRings::new(num_blocks, 2);
        (0..num_blocks).for_each(|i| rings.push_back(EMPTY, BlockId(i)));
        Self { rings, num_free: num_blocks as usize }
    }

    pub(crate) fn len(&self) -> usize {
        self.num_free
    }

    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.rings.contains(block)
    }

    /// Returns the next block to use; `None` if every block is held.
    pub(crate) fn front(&self) -> Option<BlockId> {
        self.rings.front(EMPTY).or_else(|| self.oldest_cached())
    }

    /// Returns the next cached block to evict.
    pub(crate) fn oldest_cached(&self) -> Option<BlockId> {
        self.rings.front(CACHED)
    }

    /// Adds `block`, which can be found, where it stays longest.
    pub(crate) fn push_cached(&mut self, block: BlockId) {
        self.rings.push_back(CACHED, block);
        self.num_free += 1;
    }

    /// Adds `block`, which cannot be found, where it is used next.
    pub(crate) fn push_empty(&mut self, block: BlockId) {
        self.rings.push_front(EMPTY, block);
        self.num_free += 1;
    }

    /// Removes `block` from any position.
    ///
    /// # Panics
    /// If it is not free.
    pub(crate) fn remove(&mut self, block: BlockId) {
        self.rings.remove(block);
        self.num_free -= 1;
    }

    /// Makes the oldest cached block empty, to be used after all other empty ones; `None` if none is cached.
    pub(crate) fn empty_oldest(&mut self) -> Option<BlockId> {
        let block = self.oldest_cached()?;
        self.rings.remove(block);
        self.rings.push_back(EMPTY, block);
        Some(block)
    }

    /// Returns the findable blocks, the next one to evict first.
    pub(crate) fn iter_cached(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.rings.iter(CACHED)
    }

    /// Returns all free blocks, front first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.rings.iter(EMPTY).chain(self.rings.iter(CACHED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts with a queue of 4 held blocks. `ops`, left to right: `+3` frees block 3 cached and `^3` empty, `-3` takes it from the middle,
    /// `!` takes the front, `*` empties all.
    #[track_caller]
    fn check(ops: &str, expected: &[u32]) {
        let mut queue = FreeBlockQueue::new(4);
        (0..4).for_each(|i| queue.remove(BlockId(i)));
        for op in ops.split_whitespace() {
            let block = || BlockId(op[1..].parse().unwrap());
            match &op[..1] {
                "+" => queue.push_cached(block()),
                "^" => queue.push_empty(block()),
                "*" => while queue.empty_oldest().is_some() {},
                "-" => queue.remove(block()),
                _ => queue.front().into_iter().for_each(|front| queue.remove(front)),
            }
        }
        let order: Vec<_> = queue.iter().map(|block| block.0).collect();
        assert_eq!(order, expected);
        assert_eq!(queue.len(), expected.len());
    }

    #[test]
    fn blocks_leave_in_the_order_they_came() {
        check("+2 +1 +0 !", &[1, 0]);
    }

    #[test]
    fn a_hit_in_the_middle_keeps_the_order_of_the_rest() {
        check("+0 +1 +2 -1", &[0, 2]);
    }

    #[test]
    fn an_empty_block_leaves_before_cached_ones_and_the_last_one_first() {
        check("+0 ^2 +1 ^3", &[3, 2, 0, 1]);
    }

    #[test]
    fn emptied_blocks_keep_their_order() {
        check("+0 ^2 +1 * +3", &[2, 0, 1, 3]);
    }

    #[test]
    fn the_only_block_can_leave_and_come_back() {
        check("+3 ! ! ^3 -3 +3", &[3]);
    }

    #[test]
    #[should_panic(expected = "cannot be in the free queue")]
    fn a_held_block_cannot_be_removed() {
        check("+0 -1", &[]);
    }
}
