//! From files to a runner that is ready to execute.

use std::path::PathBuf;

use tokens::BlockSize;

use crate::backend::cpu::{CpuBackend, Weights};
use crate::checkpoint::{Checkpoint, GgufCheckpoint, GgufVocabulary, SafetensorsCheckpoint, SpecialTokens};
use crate::{KvDtype, LoadError, ModelConfig, ModelRunner};

/// Where the weights are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightFiles {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A folder with `config.json` and safetensors.
    Safetensors(PathBuf),
}

/// How to load a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Which files.
    pub weights: WeightFiles,
    /// Threads of the kernels; 0 takes one for each core.
    pub threads: usize,
    /// How the pool stores numbers.
    pub kv_dtype: KvDtype,
    /// Bytes the pool may take.
    pub kv_bytes: u64,
    /// Bytes that the host tier may take besides; 0 for none.
    pub host_kv_bytes: u64,
    /// Longest sequence; by default what the model was made for, as far as the pool holds it.
    pub max_model_len: Option<usize>,
}

/// A model ready to execute, and what others need to know of it.
pub struct LoadedModel {
    /// Executes steps.
    pub runner: ModelRunner,
    /// The checkpoint's facts.
    pub config: ModelConfig,
    /// Longest sequence it serves.
    pub max_model_len: usize,
    /// Blocks of the pool.
    pub num_blocks: usize,
    /// Blocks of the host tier.
    pub num_host_blocks: u32,
    /// Bytes of a block, all layers.
    pub block_bytes: u64,
    /// Bytes of the packed weights.
    pub weight_bytes: usize,
    /// Begin and end tokens.
    pub special_tokens: SpecialTokens,
    /// The tokenizer, for a GGUF file.
    pub vocabulary: Option<GgufVocabulary>,
}

/// Loads a model. `progress` is called with the share of the weights read, 0 to 1.
///
/// # Errors
/// If a file is unreadable, truncated or not a model this crate computes rightly, or the pool is too small to be of use.
pub fn load(options: &LoadOptions, progress: &mut dyn FnMut(f32)) -> Result<LoadedModel, LoadError> {
    match &options.weights {
        WeightFiles::Gguf(path) => {
            let checkpoint = GgufCheckpoint::open(path)?;
            let vocabulary = checkpoint.vocabulary()?;
            build(options, &checkpoint, Some(vocabulary), progress)
        }
        WeightFiles::Safetensors(folder) => build(options, &SafetensorsCheckpoint::open(folder)?, None, progress),
    }
}

fn build(
    options: &LoadOptions,
    checkpoint: &dyn Checkpoint,
    vocabulary: Option<GgufVocabulary>,
    progress: &mut dyn FnMut(f32),
) -> Result<LoadedModel, LoadError> {
    let config = checkpoint.config()?;
    let (num_blocks, max_model_len) = size_pool(&config, options)?;
    let weights = Weights::read(&config, checkpoint, progress)?;
    let weight_bytes = weights.bytes();
    let block_bytes = block_bytes(&config, options);
    let num_host_blocks = u32::try_from(options.host_kv_bytes / block_bytes).unwrap_or(u32::MAX).min(MAX_HOST_BLOCKS);
    let backend = CpuBackend::new(config.clone(), weights, options.kv_dtype, num_blocks, max_model_len, options.threads)?
        .with_host_tier(num_host_blocks as usize);
    let runner = ModelRunner::new(Box::new(backend), BlockSize::DEFAULT);
    let special_tokens = checkpoint.special_tokens();
    Ok(LoadedModel {
        runner,
        config,
        max_model_len,
        num_blocks,
        num_host_blocks,
        block_bytes,
        weight_bytes,
        special_tokens,
        vocabulary,
    })
}

fn block_bytes(config: &ModelConfig, options: &LoadOptions) -> u64 {
    config.kv_bytes_per_token(options.kv_dtype.bytes()) * u64::from(BlockSize::DEFAULT.get())
}

/// So many that a slot of one is still a number of 32 bits.
const MAX_HOST_BLOCKS: u32 = u32::MAX / BlockSize::DEFAULT.get();

/// Shortest context worth serving when the caller names none.
const MIN_MODEL_LEN: usize = 512;

/// Blocks that fit the budget, and the longest sequence they allow.
fn size_pool(config: &ModelConfig, options: &LoadOptions) -> Result<(usize, usize), LoadError> {
    let block_size = BlockSize::DEFAULT.as_usize();
    let block_bytes = block_bytes(config, options);
    let num_blocks = usize::try_from(options.kv_bytes / block_bytes).unwrap_or(usize::MAX).min(u32::MAX as usize / block_size);
    let wanted = options.max_model_len.unwrap_or(MIN_MODEL_LEN.min(config.max_position));
    if wanted > config.max_position {
        return Err(LoadError::unsupported(format!("max_model_len {wanted} on a model made for {}", config.max_position)));
    }
    // One block more than the longest sequence: a full prompt hit copies its last block before writing to it.
    let needed = BlockSize::DEFAULT.blocks_for(wanted) + 1;
    if wanted == 0 || num_blocks < needed {
        return Err(LoadError::CacheTooSmall {
            budget: options.kv_bytes,
            num_tokens: (num_blocks * block_size) as u64,
            needed: needed as u64 * block_bytes,
            min_tokens: wanted as u64,
        });
    }
    let max_model_len = options.max_model_len.unwrap_or_else(|| config.max_position.min((num_blocks - 1) * block_size));
    Ok((num_blocks, max_model_len))
}
