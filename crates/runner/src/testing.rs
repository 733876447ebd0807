//! Small models with random weights, made in memory, for tests of exactness.

use kernels::cpu::GgmlType;
use tokens::BlockSize;

use crate::backend::cpu::{CpuBackend, Weights};
use crate::checkpoint::{Checkpoint, LayerRole, RawTensor, Role, SpecialTokens};
use crate::{Architecture, KvDtype, LoadError, ModelConfig, ModelRunner, RopeLayout, RopeScaling};

/// A model of three layers and 97 tokens; `head_dim` 16, four query heads over two key heads.
#[must_use]
pub fn tiny_config(architecture: Architecture, rope_layout: RopeLayout) -> ModelConfig {
    ModelConfig {
        architecture,
        num_layers: 3,
        hidden_size: 64,
        intermediate_size: 96,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 97,
        max_position: 4096,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_layout,
        rope_scaling: RopeScaling::None,
        tied_head: true,
    }
}

/// A backend with random weights for `config`: the same for the same seed.
///
/// # Panics
/// If the system gives no threads.
#[must_use]
pub fn tiny_backend(config: &ModelConfig, seed: u64, kv_dtype: KvDtype, num_blocks: usize) -> CpuBackend {
    let checkpoint = RandomCheckpoint { config: config.clone(), seed };
    let weights = Weights::read(config, &checkpoint, &mut |_| {}).expect("random tensors have the right shapes");
    CpuBackend::new(config.clone(), weights, kv_dtype, num_blocks, config.max_position, 2).expect("two threads can be started")
}

/// [`tiny_backend`] as an executor.
#[must_use]
pub fn tiny_runner(config: &ModelConfig, seed: u64, kv_dtype: KvDtype, num_blocks: usize) -> ModelRunner {
    ModelRunner::new(Box::new(tiny_backend(config, seed, kv_dtype, num_blocks)), BlockSize::DEFAULT)
}

struct RandomCheckpoint {
    config: ModelConfig,
    seed: u64,
}

impl RandomCheckpoint {
    fn shape(&self, role: LayerRole) -> Option<Vec<usize>> {
        use LayerRole::*;
        let c = &self.config;
        let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
        let (is_qwen2, is_qwen3) = (c.architecture == Architecture::Qwen2, c.architecture == Architecture::Qwen3);
        Some(match role {
            AttentionNorm | FeedForwardNorm => vec![c.hidden_size],
            Query => vec![q, c.hidden_size],
            Key | Value => vec![kv, c.hidden_size],
            QueryBias if is_qwen2 => vec![q],
            KeyBias | ValueBias if is_qwen2 => vec![kv],
            QueryNorm | KeyNorm if is_qwen3 => vec![c.head_dim],
            Output => vec![c.hidden_size, q],
            Gate | Up => vec![c.intermediate_size, c.hidden_size],
            Down => vec![c.hidden_size, c.intermediate_size],
            QueryBias | KeyBias | ValueBias | QueryNorm | KeyNorm => return None,
        })
    }

    /// All tensors by name.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let c = &self.config;
        let mut tensors = vec![
            (self.name(Role::Embedding), vec![c.vocab_size, c.hidden_size]),
            (self.name(Role::OutputNorm), vec![c.hidden_size]),
        ];
        if !c.tied_head {
            tensors.push((self.name(Role::Head), vec![c.vocab_size, c.hidden_size]));
        }
        for layer in 0..c.num_layers {
            tensors.extend(
                LayerRole::ALL.into_iter().filter_map(|role| Some((self.name(Role::Layer(layer, role)), self.shape(role)?))),
            );
        }
        tensors
    }
}

impl Checkpoint for RandomCheckpoint {
    fn config(&self) -> Result<ModelConfig, LoadError> {
        Ok(self.config.clone())
    }

    fn special_tokens(&self) -> SpecialTokens {
        SpecialTokens::default()
    }

    fn name(&self, role: Role) -> String {
        format!("{role:?}")
    }

    fn contains(&self, name: &str) -> bool {
        self.names().iter().any(|known| known == name)
    }

    fn names(&self) -> Vec<String> {
        self.tensors().into_iter().map(|(name, _)| name).collect()
    }

    fn read(&self, name: &str) -> Result<RawTensor, LoadError> {
        let missing = || LoadError::MissingTensor { name: name.to_owned() };
        let (_, shape) = self.tensors().into_iter().find(|(known, _)| known == name).ok_or_else(missing)?;
        let mut state = name.bytes().fold(self.seed, |state, byte| splitmix(state ^ u64::from(byte)));
        // Norms near one, matrices scaled so that the residual stream keeps its size and attention is far from uniform.
        let (center, spread) =
            if name.contains("Norm") { (1.0, 0.2) } else { (0.0, 3.0 / (shape[shape.len() - 1] as f32).sqrt()) };
        let mut next = || {
            state = splitmix(state);
            center + spread * ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5)
        };
        let bytes = (0..shape.iter().product::<usize>()).flat_map(|_| next().to_le_bytes()).collect();
        Ok(RawTensor { ty: GgmlType::F32, shape, bytes })
    }
}

fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
