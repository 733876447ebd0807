//! Options of loading a model.

use std::path::PathBuf;

use crate::KvDtype;

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
    Cpu(CpuOptions),
    /// An NVIDIA GPU.
    Cuda(GpuOptions),
}

/// A CPU and its memory.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Number of kernel threads; 0 takes one per core.
    pub threads: usize,
    /// Element type of the pool.
    pub kv_dtype: KvDtype,
    /// Bytes that the pool may take.
    pub kv_bytes: u64,
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
