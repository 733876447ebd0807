//! Small models with random weights, made in memory, for tests of exactness.

use tokens::BlockSize;

use crate::LoadError;
use crate::backend::cpu::{CpuBackend, Weights};
#[cfg(feature = "cuda")]
use crate::backend::cuda::{self, CudaBackend, LargestStep};
use crate::checkpoint::{Checkpoint, RandomCheckpoint, RandomDtype, RawTensor, Role, SpecialTokens};
use crate::{Activation, Architecture, KvDtype, LayerSpec, Mask, ModelRunner, ModelSpec, RopeLayout, RopeScaling, RopeSpec};

/// Returns a model of three layers and 97 tokens; `head_dim` 16, four query heads over two key heads. Gemma 3's first and last layers
/// attend to the last 40 positions.
#[must_use]
pub fn tiny_config(architecture: Architecture, rope_layout: RopeLayout) -> ModelSpec {
    let is_gemma = architecture == Architecture::Gemma3;
    let ropes = [10_000.0, 500.0].map(|theta| RopeSpec { theta, scaling: RopeScaling::None });
    let layer = |i| match is_gemma && i != 1 {
        true => LayerSpec { mask: Mask::Window(40), rope: 1 },
        false => LayerSpec { mask: Mask::Causal, rope: 0 },
    };
    ModelSpec {
        architecture,
        layers: (0..3).map(layer).collect(),
        hidden_size: 64,
        intermediate_size: 96,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 97,
        max_position: 4096,
        rms_norm_eps: 1e-5,
        ropes: ropes[..if is_gemma { 2 } else { 1 }].to_vec(),
        rope_layout,
        attention_scale: 0.25,
        embedding_scale: if is_gemma { 8.0 } else { 1.0 },
        activation: if is_gemma { Activation::GeluTanh } else { Activation::Silu },
        has_post_norms: is_gemma,
        tied_head: true,
    }
}

/// Creates a backend with random weights for `config`: the same for the same seed.
///
/// # Panics
/// If the system gives no threads.
#[must_use]
pub fn tiny_backend(config: &ModelSpec, seed: u64, kv_dtype: KvDtype, num_blocks: usize) -> CpuBackend {
    let checkpoint = RandomCheckpoint { config: config.clone(), seed, dtype: RandomDtype::F32 };
    let weights = Weights::read(config, &checkpoint, &mut |_| {}).expect("random tensors have the right shapes");
    CpuBackend::new(config.clone(), weights, kv_dtype, num_blocks, config.max_position, 2).expect("two threads can be started")
}

/// Creates a [`tiny_backend`] with a head of its own, and a NaN embedding of `token`: rows that attend to it become NaN.
///
/// # Panics
/// If the system gives no threads.
#[must_use]
pub fn poisoned_backend(config: &ModelSpec, seed: u64, token: u32, num_blocks: usize) -> CpuBackend {
    let config = ModelSpec { tied_head: false, ..config.clone() };
    let random = RandomCheckpoint { config: config.clone(), seed, dtype: RandomDtype::F32 };
    let checkpoint = PoisonedCheckpoint { random, token };
    let weights = Weights::read(&config, &checkpoint, &mut |_| {}).expect("random tensors have the right shapes");
    CpuBackend::new(config.clone(), weights, KvDtype::F32, num_blocks, config.max_position, 2)
        .expect("two threads can be started")
}

struct PoisonedCheckpoint {
    random: RandomCheckpoint,
    token: u32,
}

impl Checkpoint for PoisonedCheckpoint {
    fn config(&self) -> Result<ModelSpec, LoadError> {
        self.random.config()
    }

    fn special_tokens(&self) -> Result<SpecialTokens, LoadError> {
        self.random.special_tokens()
    }

    fn name(&self, role: Role) -> String {
        self.random.name(role)
    }

    fn contains(&self, name: &str) -> bool {
        self.random.contains(name)
    }

    fn names(&self) -> Vec<String> {
        self.random.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.random.shape(name)
    }

    fn read(&self, name: &str) -> Result<RawTensor, LoadError> {
        let mut tensor = self.random.read(name)?;
        if name == self.name(Role::Embedding) {
            let row_bytes = tensor.shape[1] * size_of::<f32>();
            let row = &mut tensor.bytes[self.token as usize * row_bytes..][..row_bytes];
            row.chunks_exact_mut(4).for_each(|number| number.copy_from_slice(&f32::NAN.to_le_bytes()));
        }
        Ok(tensor)
    }
}

/// Creates a backend with the weights of [`tiny_backend`] on GPU 0, in bf16, with a pool of bf16: for steps of up to [`MAX_TINY_ROWS`] rows
/// and 32 sequences. head_dim must be 64 or 128.
///
/// # Errors
/// If there is no such device, or it has no memory left.
#[cfg(feature = "cuda")]
pub fn tiny_cuda_backend(config: &ModelSpec, seed: u64, num_blocks: usize) -> Result<CudaBackend, LoadError> {
    let checkpoint = RandomCheckpoint { config: config.clone(), seed, dtype: RandomDtype::F32 };
    let largest = LargestStep { num_rows: MAX_TINY_ROWS, num_sequences: 32, num_tokens: config.max_position };
    cuda::place_untuned(config, &checkpoint, num_blocks, largest)
}

/// Maximum number of rows of a step of [`tiny_cuda_backend`].
#[cfg(feature = "cuda")]
pub const MAX_TINY_ROWS: usize = 320;

/// Creates a [`tiny_backend`] as an executor.
#[must_use]
pub fn tiny_runner(config: &ModelSpec, seed: u64, kv_dtype: KvDtype, num_blocks: usize) -> ModelRunner {
    ModelRunner::new(Box::new(tiny_backend(config, seed, kv_dtype, num_blocks)), BlockSize::DEFAULT)
}
