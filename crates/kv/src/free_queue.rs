//! The order in which free blocks are given out again.
//!
//! A cached block waits here while nobody holds it, and a prefix hit takes it out of the middle.
//! Hence a ring threaded through one `Vec`: every operation is O(1), and nothing is allocated after `new`.
//!
//! Not here: reference counts and the choice of the end at which a block is put back (`pool.rs`).

use tokens::BlockId;

/// Free blocks in the order of their next use, front first.
///
/// Entry `i` links block `i`; the extra last entry closes the ring. A block that is not queued links to itself.
#[derive(Debug)]
pub(crate) struct FreeBlockQueue {
    links: Vec<Links>,
    num_free: usize,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    prev: u32,
    next: u32,
}

impl FreeBlockQueue {
    /// Blocks `0..num_blocks`, all free, the lowest first.
    pub(crate) fn new(num_blocks: u32) -> Self {
        let links = (0..=num_blocks).map(|i| Links { prev: i, next: i }).collect();
        let mut queue = Self { links, num_free: 0 };
        (0..num_blocks).for_each(|i| queue.push_back(BlockId(i)));
        queue
    }

    pub(crate) fn len(&self) -> usize {
        self.num_free
    }

    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.links[block.0 as usize].next != block.0
    }

    /// Takes the block to be used next; `None` when every block is held.
    pub(crate) fn pop_front(&mut self) -> Option<BlockId> {
        let front = BlockId(self.links[self.end() as usize].next);
        (front.0 != self.end()).then(|| {
            self.remove(front);
            front
        })
    }

    /// Puts `block` where it stays longest.
    pub(crate) fn push_back(&mut self, block: BlockId) {
        let last = self.links[self.end() as usize].prev;
        self.link(last, block.0, self.end());
    }

    /// Puts `block` where it is used next.
    pub(crate) fn push_front(&mut self, block: BlockId) {
        let first = self.links[self.end() as usize].next;
        self.link(self.end(), block.0, first);
    }

    /// Takes `block` out of the middle.
    ///
    /// # Panics
    /// If it is not free: a count has gone wrong, and going on would let two sequences write one block.
    pub(crate) fn remove(&mut self, block: BlockId) {
        assert!(self.contains(block), "{block:?} is held, so it cannot be in the free queue");
        let Links { prev, next } = self.links[block.0 as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[block.0 as usize] = Links { prev: block.0, next: block.0 };
        self.num_free -= 1;
    }

    /// All free blocks, front first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let following = |&at: &u32| Some(self.links[at as usize].next);
        std::iter::successors(Some(self.links[self.end() as usize].next), following)
            .take_while(|&at| at != self.end())
            .map(BlockId)
    }

    fn link(&mut self, prev: u32, block: u32, next: u32) {
        assert!(!self.contains(BlockId(block)), "block {block} is in the free queue already");
        self.links[prev as usize].next = block;
        self.links[block as usize] = Links { prev, next };
        self.links[next as usize].prev = block;
        self.num_free += 1;
    }

    fn end(&self) -> u32 {
        (self.links.len() - 1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue of 4 blocks, all held at first. `ops`, left to right: `+3` and `^3` put block 3 back and front, `-3` takes it
    /// from the middle, `!` pops.
    #[track_caller]
    fn check(ops: &str, expected: &[u32]) {
        let mut queue = FreeBlockQueue::new(4);
        while queue.pop_front().is_some() {}
        for op in ops.split_whitespace() {
            let block = || BlockId(op[1..].parse().unwrap());
            match &op[..1] {
                "+" => queue.push_back(block()),
                "^" => queue.push_front(block()),
                "-" => queue.remove(block()),
                _ => drop(queue.pop_front()),
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
    fn a_block_put_in_front_leaves_first() {
        check("+0 +1 ^3", &[3, 0, 1]);
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
