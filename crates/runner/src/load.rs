//! Loading of files into a runner that is ready to execute.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::CacheGroups;
use tokens::BlockSize;

use crate::backend::cpu::{CpuBackend, Weights, kv_format};
use crate::checkpoint::{
    Checkpoint, GgufCheckpoint, GgufVocabulary, RandomCheckpoint, SafetensorsCheckpoint, SamplingKeys, SpecialTokens,
    check_shapes,
};
use crate::embedding_table::EmbeddingTable;
use crate::{Backend, KvDtype, LoadError, ModelRunner, ModelSpec};

/// Source of the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightFiles {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A folder with `config.json` and safetensors.
    Safetensors(PathBuf),
    /// No file: random weights in bf16, in the shape of a configuration. The output is meaningless.
    Random {
        /// A Hugging Face `config.json`, or the folder that holds it.
        config: PathBuf,
        /// Seed; the same seed gives the same weights.
        seed: u64,
    },
}

/// Options of loading a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Files with the weights.
    pub weights: WeightFiles,
    /// Device to run on.
    pub device: DeviceOptions,
    /// Bytes of main memory that the host tier may take additionally; 0 for none.
    pub host_kv_bytes: u64,
    /// Longest sequence; by default the model's maximum, as far as the pool holds it.
    pub max_model_len: Option<usize>,
    /// Maximum number of rows of a step.
    pub max_num_batched_tokens: usize,
    /// Maximum number of sequences of a step.
    pub max_num_seqs: usize,
    /// True if the host keeps the input embeddings although the model runs on another device.
    pub keeps_embedding: bool,
}

/// A device and its memory.
#[derive(Clone, Debug)]
pub enum DeviceOptions {
    /// The CPU.
    Cpu {
        /// Number of kernel threads; 0 takes one per core.
        threads: usize,
        /// Element type of the pool.
        kv_dtype: KvDtype,
        /// Bytes that the pool may take.
        kv_bytes: u64,
    },
    /// An NVIDIA GPU.
    Cuda(GpuOptions),
}

/// A GPU and its memory.
#[derive(Clone, Copy, Debug)]
pub struct GpuOptions {
    /// GPU index, from 0.
    pub ordinal: usize,
    /// Share of its memory that weights, pool and activations may take together.
    pub memory_utilization: f64,
    /// Bytes that the pool may take; by default what the share leaves.
    pub kv_bytes: Option<u64>,
}

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
    Ok(checkpoint)
}

fn build(
    options: &LoadOptions,
    checkpoint: &dyn Checkpoint,
    vocabulary: Option<GgufVocabulary>,
    progress: &mut dyn FnMut(f32),
) -> Result<LoadedModel, LoadError> {
    let config = checkpoint.config()?;
    let placed = match options.device {
        DeviceOptions::Cpu { threads, kv_dtype, kv_bytes } => {
            let cache_groups = config.cache_groups(kv_format(kv_dtype));
            let (num_blocks, max_model_len) = size_pool(&config, &cache_groups, kv_bytes, options.max_model_len)?;
            let weights = Weights::read(&config, checkpoint, progress)?;
            let weight_bytes = weights.bytes();
            let embedding = EmbeddingTable::new(Arc::clone(&weights.embedding.parts()[0]));
            let num_host_blocks = num_host_blocks(&cache_groups, options.host_kv_bytes);
            let backend = CpuBackend::new(config.clone(), weights, kv_dtype, num_blocks, max_model_len, threads)?
                .with_host_tier(num_host_blocks as usize);
            Placed {
                backend: Box::new(backend),
                num_blocks,
                num_host_blocks,
                max_model_len,
                weight_bytes,
                embedding: Some(embedding),
                cache_groups,
                device: "cpu".to_owned(),
            }
        }
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
        special_tokens: checkpoint.special_tokens(),
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

/// A model on its device.
pub(crate) struct Placed {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) num_blocks: usize,
    pub(crate) num_host_blocks: u32,
    pub(crate) max_model_len: usize,
    pub(crate) weight_bytes: usize,
    pub(crate) embedding: Option<EmbeddingTable>,
    pub(crate) cache_groups: CacheGroups,
    pub(crate) device: String,
}

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
            num_tokens: (num_blocks * block_size) as u64,
            needed: needed as u64 * cache_groups.block_bytes(BlockSize::DEFAULT),
            min_tokens: wanted as u64,
        });
    }
    let max_model_len = max_model_len.unwrap_or_else(|| config.max_position.min((num_blocks - 1) * block_size));
    Ok((num_blocks, max_model_len))
}
