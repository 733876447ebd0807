//! Sizes of the pool and of the host tier.

use engine::CacheGroups;
use tokens::BlockSize;

use crate::{LoadError, ModelSpec};

/// Returns the number of blocks that fit into `host_kv_bytes`.
pub(crate) fn num_host_blocks(cache_groups: &CacheGroups, host_kv_bytes: u64) -> u32 {
    let num_blocks = cache_groups.num_blocks(host_kv_bytes, BlockSize::DEFAULT);
    u32::try_from(num_blocks).unwrap_or(u32::MAX).min(MAX_HOST_BLOCKS)
}

/// Limit at which slot indices still fit into 32 bits.
const MAX_HOST_BLOCKS: u32 = u32::MAX / BlockSize::DEFAULT.get();

/// Shortest context worth serving if the caller sets none.
const MIN_MODEL_LEN: usize = 512;

/// Returns the number of blocks that fit into `kv_bytes`, and the longest sequence they allow.
pub(crate) fn size_pool(
    config: &ModelSpec,
    cache_groups: &CacheGroups,
    kv_bytes: u64,
    max_model_len: Option<usize>,
) -> Result<(usize, usize), LoadError> {
    let block_size = BlockSize::DEFAULT.as_usize();
    let num_blocks = cache_groups.num_blocks(kv_bytes, BlockSize::DEFAULT);
    let num_blocks = usize::try_from(num_blocks).unwrap_or(usize::MAX).min(u32::MAX as usize / block_size);
    let wanted = max_model_len.unwrap_or(MIN_MODEL_LEN.min(config.max_position));
    if wanted > config.max_position {
        return Err(LoadError::unsupported(format!("max_model_len {wanted} on a model made for {}", config.max_position)));
    }
    // One block more than the longest sequence: a full prompt hit copies its last block before writing to it.
    let needed = BlockSize::DEFAULT.blocks_for(wanted) + 1;
    if wanted == 0 || num_blocks < needed {
        return Err(LoadError::CacheTooSmall {
            budget: kv_bytes,
            num_blocks,
            needed_blocks: needed,
            needed: needed as u64 * cache_groups.block_bytes(BlockSize::DEFAULT),
            model_len: wanted,
        });
    }
    let max_model_len = max_model_len.unwrap_or_else(|| config.max_position.min((num_blocks - 1) * block_size));
    Ok((num_blocks, max_model_len))
}
