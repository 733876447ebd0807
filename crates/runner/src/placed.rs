//! A model placed on a device.

use engine::CacheGroups;

use crate::Device;
use crate::embedding_table::EmbeddingTable;

/// A model on its device.
pub(crate) struct Placed {
    pub(crate) backend: Box<dyn Device>,
    pub(crate) num_blocks: usize,
    pub(crate) num_host_blocks: u32,
    pub(crate) max_model_len: usize,
    pub(crate) weight_bytes: usize,
    pub(crate) embedding: Option<EmbeddingTable>,
    pub(crate) cache_groups: CacheGroups,
    pub(crate) device: String,
}
