//! Errors of making a pool.

/// Invalid description of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// No group of layers.
    #[error("a KV pool needs at least one group of layers")]
    NoGroups,
    /// The KV of a layer would be stored twice.
    #[error("layer {layer} is in two groups of a KV pool")]
    SharedLayer {
        /// Index of the layer.
        layer: u32,
    },
    /// No block.
    #[error("a KV pool needs at least one block")]
    NoBlocks,
    /// Block ids are 32 bits wide and one value is taken.
    #[error("a KV pool of {num_blocks} blocks is too large, at most {} are possible", u32::MAX - 1)]
    TooManyBlocks {
        /// Requested number.
        num_blocks: usize,
    },
}
