//! Random weights of any shape without a file: for speed measurements, which do not depend on weights, and for tests of exactness.

use std::path::Path;

use kernels::cpu::GgmlType;
use tokens::splitmix64;

use super::{Checkpoint, LayerRole, RawTensor, Role, SpecialTokens, hf_config};
use crate::ModelSpec;
use crate::{Architecture, LoadError};

/// Random weights for a configuration, the same for the same seed.
pub(crate) struct RandomCheckpoint {
    pub(crate) config: ModelSpec,
    pub(crate) seed: u64,
    pub(crate) dtype: RandomDtype,
}

/// Storage format of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RandomDtype {
    F32,
    /// bf16, as in checkpoints of large models.
    Bf16,
}

/// Uniform distribution around `center`, with `width` from the minimum to the maximum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) center: f32,
    pub(crate) width: f32,
}

impl RandomCheckpoint {
    /// Opens random weights in the shape of a Hugging Face `config.json`, or of the one in the folder `path`.
    ///
    /// # Errors
    /// If the file cannot be read, or names a model that is not supported.
    pub(crate) fn open(path: &Path, seed: u64) -> Result<Self, LoadError> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let json = super::read_text(&file)?;
        Ok(Self { config: hf_config::read(&file, &json)?, seed, dtype: RandomDtype::Bf16 })
    }

    /// Returns the distribution of the tensor of `role`, whose rows are `inputs` long.
    ///
    /// Norms are near one. A matrix preserves the magnitude of its input, a little less than one for each normed input of one, so that
    /// every layer adds about as much to the residual stream as any other: it grows with the square root of the number of layers, and stays
    /// finite. Attention is far from uniform at that magnitude.
    pub(crate) fn spread(role: Role, inputs: usize) -> Spread {
        match role {
            Role::OutputNorm => Spread { center: 1.0, width: 0.2 },
            Role::Layer(_, role) if role.is_norm() => Spread { center: 1.0, width: 0.2 },
            _ => Spread { center: 0.0, width: 3.0 / (inputs as f32).sqrt() },
        }
    }

    /// Returns the standard deviation of a uniformly distributed matrix whose rows are `inputs` long.
    #[cfg(feature = "cuda")]
    pub(crate) fn deviation(inputs: usize) -> f32 {
        Self::spread(Role::Embedding, inputs).width / 12f32.sqrt()
    }

    /// Returns the shape of a tensor; `None` if the architecture does not have it.
    fn role_shape(&self, role: Role) -> Option<Vec<usize>> {
        use LayerRole::{KeyBias, KeyNorm, QueryBias, QueryNorm, ValueBias};
        let is_there = match role {
            Role::Head => !self.config.tied_head,
            Role::Layer(_, QueryBias | KeyBias | ValueBias) => self.config.architecture == Architecture::Qwen2,
            Role::Layer(_, QueryNorm | KeyNorm) => {
                matches!(self.config.architecture, Architecture::Qwen3 | Architecture::Gemma3)
            }
            Role::Layer(_, role) => role.is_required(&self.config),
            Role::Embedding | Role::OutputNorm => true,
        };
        is_there.then(|| super::shape_of(&self.config, role))
    }

    /// Returns every role that has a tensor, with its shape.
    fn tensors(&self) -> impl Iterator<Item = (Role, Vec<usize>)> + '_ {
        let layers = (0..self.config.num_layers()).flat_map(|layer| LayerRole::ALL.map(|role| Role::Layer(layer, role)));
        let roles = [Role::Embedding, Role::OutputNorm, Role::Head].into_iter().chain(layers);
        roles.filter_map(|role| Some((role, self.role_shape(role)?)))
    }

    fn bytes(&self, name: &str, num_elements: usize, spread: Spread) -> Vec<u8> {
        let mut state = name.bytes().fold(self.seed, |state, byte| splitmix64(state ^ u64::from(byte)));
        let next = |_| {
            state = splitmix64(state);
            spread.center + spread.width * ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5)
        };
        let numbers = (0..num_elements).map(next);
        match self.dtype {
            RandomDtype::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
            // Upper half of an f32: rounding does not matter here.
            RandomDtype::Bf16 => numbers.flat_map(|number| ((number.to_bits() >> 16) as u16).to_le_bytes()).collect(),
        }
    }
}

impl Checkpoint for RandomCheckpoint {
    fn config(&self) -> Result<ModelSpec, LoadError> {
        Ok(self.config.clone())
    }

    fn special_tokens(&self) -> Result<SpecialTokens, LoadError> {
        Ok(SpecialTokens::default())
    }

    fn name(&self, role: Role) -> String {
        format!("{role:?}")
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors().find(|(role, _)| self.name(*role) == name).map(|(_, shape)| shape)
    }

    fn names(&self) -> Vec<String> {
        self.tensors().map(|(role, _)| self.name(role)).collect()
    }

    fn read(&self, name: &str) -> Result<RawTensor, LoadError> {
        let missing = || LoadError::MissingTensor { name: name.to_owned() };
        let (role, shape) = self.tensors().find(|(role, _)| self.name(*role) == name).ok_or_else(missing)?;
        let ty = match self.dtype {
            RandomDtype::F32 => GgmlType::F32,
            RandomDtype::Bf16 => GgmlType::Bf16,
        };
        let spread = Self::spread(role, shape[shape.len() - 1]);
        let bytes = self.bytes(name, shape.iter().product(), spread);
        Ok(RawTensor { ty, shape, bytes })
    }

    #[cfg(feature = "cuda")]
    fn random_seed(&self) -> Option<u64> {
        // Tests of exactness compare devices, so they need the same elements.
        (self.dtype == RandomDtype::Bf16).then_some(self.seed)
    }
}

#[cfg(test)]
mod tests {
    use tokens::{BlockId, BlockSize};

    use super::*;
    use crate::backend::cpu::{CpuBackend, Weights};
    use crate::testing::tiny_config;
    use crate::{Device, DeviceStep, InputBatch, KvDtype, RopeLayout};

    /// Computes logits after a few tokens, in as many layers.
    fn logits(num_layers: usize, seed: u64) -> Vec<f32> {
        let tiny = tiny_config(Architecture::Qwen2, RopeLayout::Half);
        let config = ModelSpec { layers: vec![tiny.layers[0]; num_layers], tied_head: false, ..tiny };
        let checkpoint = RandomCheckpoint { config: config.clone(), seed, dtype: RandomDtype::Bf16 };
        let weights = Weights::read(&config, &checkpoint, &mut |_| {}).unwrap();
        let mut backend = CpuBackend::new(config, weights, KvDtype::F16, 4, 128, 2).unwrap();
        let row = |position| engine::Row { token: tokens::TokenId(7 * position % 97), position };
        let sequence = engine::ScheduledSequence {
            request_id: tokens::RequestId(0),
            rows: (0..40).map(row).collect(),
            block_table: engine::BlockEntry::table_of([2, 0].map(BlockId), BlockSize::DEFAULT),
            sample: true,
            watch: Vec::new(),
            drift: Vec::new(),
        };
        let batch = InputBatch::new([&sequence], BlockSize::DEFAULT);
        backend.begin(DeviceStep { batch, ..DeviceStep::default() }).unwrap();
        backend.finish().unwrap();
        backend.logits(&[39]).to_vec()
    }

    #[test]
    fn activations_stay_finite_over_many_layers() {
        for num_layers in [1, 96] {
            let logits = logits(num_layers, 1);
            let largest = logits.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
            assert!(logits.iter().all(|logit| logit.is_finite()) && (0.1..30.0).contains(&largest), "{largest} of {num_layers}");
        }
    }

    #[test]
    fn weights_depend_on_the_seed_and_nothing_else() {
        assert_eq!(logits(2, 1), logits(2, 1));
        assert_ne!(logits(2, 1), logits(2, 2));
    }
}
