//! Placement of a model in main memory.

use std::sync::Arc;

use super::{CpuBackend, Weights, kv_format};
use crate::checkpoint::Checkpoint;
use crate::embedding_table::EmbeddingTable;
use crate::options::{CpuOptions, LoadOptions};
use crate::placed::Placed;
use crate::sizing::{num_host_blocks, size_pool};
use crate::{LoadError, ModelSpec};

/// Loads a model into main memory.
pub(crate) fn place(
    options: &LoadOptions,
    cpu: CpuOptions,
    config: &ModelSpec,
    from: &dyn Checkpoint,
    progress: &mut dyn FnMut(f32),
) -> Result<Placed, LoadError> {
    let CpuOptions { threads, kv_dtype, kv_bytes } = cpu;
    let cache_groups = config.cache_groups(kv_format(kv_dtype));
    let (num_blocks, max_model_len) = size_pool(config, &cache_groups, kv_bytes, options.max_model_len)?;
    let weights = Weights::read(config, from, progress)?;
    let weight_bytes = weights.bytes();
    let embedding = EmbeddingTable::new(Arc::clone(&weights.embedding.parts()[0]));
    let num_host_blocks = num_host_blocks(&cache_groups, options.host_kv_bytes);
    let backend = CpuBackend::new(config.clone(), weights, kv_dtype, num_blocks, max_model_len, threads)?
        .with_host_tier(num_host_blocks as usize);
    Ok(Placed {
        device: "cpu".to_owned(),
        backend: Box::new(backend),
        num_blocks,
        num_host_blocks,
        max_model_len,
        weight_bytes,
        embedding: Some(embedding),
        cache_groups,
    })
}
