//! Several orders of blocks, linked through one `Vec`: every operation is O(1), and nothing is allocated after `new`.
//!
//! Not here: the meaning of the rings (`free_queue.rs`, `quotas.rs`).

use tokens::BlockId;

/// Rings of blocks; a block is in one of them or in none.
///
/// Entry `i` links block `i`; each later entry closes one ring. A block that is in no ring links to itself.
#[derive(Debug)]
pub(crate) struct BlockRings {
    links: Vec<Links>,
    num_blocks: u32,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    prev: u32,
    next: u32,
}

impl BlockRings {
    /// Creates `num_rings` empty rings for blocks `0..num_blocks`.
    pub(crate) fn new(num_blocks: u32, num_rings: u32) -> Self {
        let links = (0..num_blocks + num_rings).map(|i| Links { prev: i, next: i }).collect();
        Self { links, num_blocks }
    }

    /// True if `block` is in some ring.
    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.links[block.0 as usize].next != block.0
    }

    /// Returns the first block of `ring`.
    pub(crate) fn front(&self, ring: u32) -> Option<BlockId> {
        self.iter(ring).next()
    }

    pub(crate) fn push_back(&mut self, ring: u32, block: BlockId) {
        let end = self.num_blocks + ring;
        self.link(self.links[end as usize].prev, block.0, end);
    }

    pub(crate) fn push_front(&mut self, ring: u32, block: BlockId) {
        let end = self.num_blocks + ring;
        self.link(end, block.0, self.links[end as usize].next);
    }

    /// Removes `block` from its ring.
    ///
    /// # Panics
    /// If it is in none: a count has gone wrong, and continuing would let two sequences write one block.
    pub(crate) fn remove(&mut self, block: BlockId) {
        assert!(self.contains(block), "{block:?} is held, so it cannot be in the free queue");
        let Links { prev, next } = self.links[block.0 as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[block.0 as usize] = Links { prev: block.0, next: block.0 };
    }

    /// Returns the blocks of `ring`, front first.
    pub(crate) fn iter(&self, ring: u32) -> impl Iterator<Item = BlockId> + '_ {
        let end = self.num_blocks + ring;
        let following = |&at: &u32| Some(self.links[at as usize].next);
        std::iter::successors(Some(self.links[end as usize].next), following).take_while(move |&at| at != end).map(BlockId)
    }

    fn link(&mut self, prev: u32, block: u32, next: u32) {
        assert!(!self.contains(BlockId(block)), "block {block} is in a ring already");
        self.links[prev as usize].next = block;
        self.links[block as usize] = Links { prev, next };
        self.links[next as usize].prev = block;
    }
}
