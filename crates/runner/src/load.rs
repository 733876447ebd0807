//! Loading of files into a runner that is ready to execute.

use std::path::Path;

use engine::CacheGroups;
use tokens::BlockSize;

use crate::backend::cpu;
use crate::checkpoint::{
    Checkpoint, GgufCheckpoint, GgufVocabulary, RandomCheckpoint, SafetensorsCheckpoint, SamplingKeys, SpecialTokens,
    check_shapes,
};
use crate::embedding_table::EmbeddingTable;
use crate::options::{DeviceOptions, GpuOptions, LoadOptions, WeightFiles};
use crate::placed::Placed;
use crate::{LoadError, ModelRunner, ModelSpec};

/// A model ready to execute, with its properties.
pub struct LoadedModel {
    /// Runner that executes steps.
    pub runner: ModelRunner,
    /// Model configuration.
    pub config: ModelSpec,
    /// Longest sequence it serves.
    pub max_model_len: usize,
    /// Number of blocks of the pool.
    pub num_blocks: usize,
    /// Number of blocks of the host tier.
    pub num_host_blocks: u32,
    /// Bytes of a block, all layers.
    pub block_bytes: u64,
    /// Groups of layers that the pool is made for.
    pub cache_groups: CacheGroups,
    /// Bytes of the packed weights.
    pub weight_bytes: usize,
    /// Bytes of the pool.
    pub kv_bytes: u64,
    /// Device name.
    pub device: String,
    /// Maximum number of rows of a step.
    pub max_num_batched_tokens: usize,
    /// Maximum number of sequences of a step.
    pub max_num_seqs: usize,
    /// Input embeddings, if the host has them: on the CPU they share the runner's memory.
    pub embedding: Option<EmbeddingTable>,
    /// Begin and end tokens.
    pub special_tokens: SpecialTokens,
    /// Sampling parameters stored with the weights.
    pub sampling: SamplingKeys,
    /// Tokenizer, for a GGUF file.
    pub vocabulary: Option<GgufVocabulary>,
}

/// Loads a model. `progress` is called with the share of the weights read, 0 to 1.
///
/// # Errors
/// If a file is unreadable, truncated or not a supported model, or the pool is too small to be of use.
pub fn load(options: &LoadOptions, progress: &mut dyn FnMut(f32)) -> Result<LoadedModel, LoadError> {
    match &options.weights {
        WeightFiles::Gguf(path) => {
            let mut checkpoint = GgufCheckpoint::open(path)?;
            let vocabulary = checkpoint.take_vocabulary()?;
            build(options, &checked(checkpoint)?, Some(vocabulary), progress)
        }
        WeightFiles::Safetensors(folder) => build(options, &checked(SafetensorsCheckpoint::open(folder)?)?, None, progress),
        WeightFiles::Random { config, seed } => build(options, &RandomCheckpoint::open(config, *seed)?, None, progress),
    }
}

/// Reads the vocabulary of a GGUF file without reading its weights.
///
/// # Errors
/// If the file is unreadable, or has none.
pub fn read_vocabulary(path: &Path) -> Result<GgufVocabulary, LoadError> {
    GgufCheckpoint::open(path)?.take_vocabulary()
}

/// Checks a checkpoint without reading its weights: every constant, and the shape of every tensor.
///
/// # Errors
/// As [`load`].
pub fn check_checkpoint(weights: &WeightFiles) -> Result<(), LoadError> {
    match weights {
        WeightFiles::Gguf(path) => {
            let mut checkpoint = GgufCheckpoint::open(path)?;
            checkpoint.take_vocabulary()?;
            checked(checkpoint).map(drop)
        }
        WeightFiles::Safetensors(folder) => checked(SafetensorsCheckpoint::open(folder)?).map(drop),
        WeightFiles::Random { config, seed } => RandomCheckpoint::open(config, *seed).map(drop),
    }
}

/// Returns `checkpoint` if its tensors match its configuration. Random weights need no such check.
fn checked<C: Checkpoint>(checkpoint: C) -> Result<C, LoadError> {
    check_shapes(&checkpoint.config()?, &checkpoint)?;
    checkpoint.special_tokens()?;
    Ok(checkpoint)
}

fn build(
    options: &LoadOptions,
    checkpoint: &dyn Checkpoint,
    vocabulary: Option<GgufVocabulary>,
    progress: &mut dyn FnMut(f32),
) -> Result<LoadedModel, LoadError> {
    let (config, special_tokens) = (checkpoint.config()?, checkpoint.special_tokens()?);
    let placed = match options.device {
        DeviceOptions::Cpu(cpu) => cpu::place(options, cpu, &config, checkpoint, progress)?,
        DeviceOptions::Cuda(gpu) => place_on_gpu(options, gpu, &config, checkpoint, progress)?,
    };
    let block_bytes = placed.cache_groups.block_bytes(BlockSize::DEFAULT);
    Ok(LoadedModel {
        runner: ModelRunner::new(placed.backend, BlockSize::DEFAULT),
        max_model_len: placed.max_model_len,
        num_blocks: placed.num_blocks,
        num_host_blocks: placed.num_host_blocks,
        block_bytes,
        cache_groups: placed.cache_groups,
        weight_bytes: placed.weight_bytes,
        embedding: placed.embedding,
        kv_bytes: placed.num_blocks as u64 * block_bytes,
        device: placed.device,
        max_num_batched_tokens: options.max_num_batched_tokens,
        max_num_seqs: options.max_num_seqs,
        special_tokens,
        sampling: checkpoint.sampling(),
        vocabulary,
        config,
    })
}

/// Returns true if this build can use an NVIDIA GPU and the machine has one.
#[must_use]
pub fn has_cuda_device() -> bool {
    #[cfg(feature = "cuda")]
    return crate::backend::cuda::has_device();
    #[cfg(not(feature = "cuda"))]
    false
}

#[cfg(feature = "cuda")]
fn place_on_gpu(
    options: &LoadOptions,
    gpu: GpuOptions,
    config: &ModelSpec,
    checkpoint: &dyn Checkpoint,
    progress: &mut dyn FnMut(f32),
) -> Result<Placed, LoadError> {
    crate::backend::cuda::place(options, gpu, config, checkpoint, progress)
}

#[cfg(not(feature = "cuda"))]
fn place_on_gpu(
    _: &LoadOptions,
    _: GpuOptions,
    _: &ModelSpec,
    _: &dyn Checkpoint,
    _: &mut dyn FnMut(f32),
) -> Result<Placed, LoadError> {
    Err(LoadError::NoCuda)
}
