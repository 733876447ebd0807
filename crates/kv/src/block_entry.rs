//! Entry of a block table.

use tokens::{BlockId, BlockSize};

/// A block and the position of its first token. Positions in a table ascend, and may skip blocks that no row reads any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockEntry {
    /// Physical block.
    pub block: BlockId,
    /// Position of its first token in the sequence.
    pub position: u32,
}

impl BlockEntry {
    /// Returns the table in which `blocks` follow each other from position 0 on.
    pub fn table_of(blocks: impl IntoIterator<Item = BlockId>, block_size: BlockSize) -> Vec<Self> {
        let positions = (0..).step_by(block_size.as_usize());
        blocks.into_iter().zip(positions).map(|(block, position)| Self { block, position }).collect()
    }
}
