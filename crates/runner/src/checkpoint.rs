//! Reading of tensors by their role, from any supported file format.

mod fields;
mod gguf;
mod hf_config;
mod hf_rope;
mod random;
mod safetensors;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use kernels::cpu::{GgmlType, Matrix};

pub(crate) use self::gguf::GgufCheckpoint;
pub use self::gguf::GgufVocabulary;
pub(crate) use self::random::{RandomCheckpoint, RandomDtype};
pub(crate) use self::safetensors::SafetensorsCheckpoint;
use crate::{Architecture, LoadError, ModelSpec};

/// Role of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Embedding,
    OutputNorm,
    Head,
    Layer(usize, LayerRole),
}

/// Role of a tensor in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerRole {
    AttentionNorm,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    Output,
    AttentionPostNorm,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
    FeedForwardPostNorm,
}

impl LayerRole {
    /// All roles.
    pub(crate) const ALL: [Self; 16] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::QueryBias,
        Self::KeyBias,
        Self::ValueBias,
        Self::QueryNorm,
        Self::KeyNorm,
        Self::Output,
        Self::AttentionPostNorm,
        Self::FeedForwardNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::FeedForwardPostNorm,
    ];

    /// True if a layer of this kind has a tensor of this role, and cannot do without it.
    fn is_required(self, config: &ModelSpec) -> bool {
        match self {
            Self::QueryBias | Self::KeyBias | Self::ValueBias => false,
            Self::QueryNorm | Self::KeyNorm => config.architecture == Architecture::Gemma3,
            Self::AttentionPostNorm | Self::FeedForwardPostNorm => config.has_post_norms,
            _ => true,
        }
    }

    /// True if it is a vector that a norm multiplies by.
    fn is_norm(self) -> bool {
        use LayerRole::{AttentionNorm, AttentionPostNorm, FeedForwardNorm, FeedForwardPostNorm, KeyNorm, QueryNorm};
        matches!(self, AttentionNorm | QueryNorm | KeyNorm | AttentionPostNorm | FeedForwardNorm | FeedForwardPostNorm)
    }
}

/// Ids of the tokens that have a meaning to the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Token that begins a sequence.
    pub bos: Option<u32>,
    /// Tokens that end a generation.
    pub eos: Vec<u32>,
}

/// Sampling parameters that a checkpoint recommends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingKeys {
    /// Temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// Number of likeliest tokens to keep.
    pub top_k: Option<u64>,
    /// Minimum share of the likeliest token's probability.
    pub min_p: Option<f64>,
    /// Penalty of tokens that occurred before.
    pub repetition_penalty: Option<f64>,
}

/// A tensor as stored.
pub(crate) struct RawTensor {
    pub(crate) ty: GgmlType,
    /// Sizes, outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// A file or folder of weights.
pub(crate) trait Checkpoint {
    fn config(&self) -> Result<ModelSpec, LoadError>;
    /// Returns the tokens with a meaning to the engine.
    ///
    /// # Errors
    /// If one is outside the vocabulary.
    fn special_tokens(&self) -> Result<SpecialTokens, LoadError>;
    /// Returns the tensor's name in this format.
    fn name(&self, role: Role) -> String;
    /// Returns the shape of a tensor, outermost first; `None` if there is no tensor of this name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// Returns the names of all tensors, in any order.
    fn names(&self) -> Vec<String>;
    fn read(&self, name: &str) -> Result<RawTensor, LoadError>;

    /// Returns a number to add to all weights of norms: formats that store them as differences from one have 1.
    fn norm_offset(&self) -> f32 {
        0.0
    }

    /// Returns sampling parameters stored with the weights. A folder has a separate file for them, which this crate does not read.
    fn sampling(&self) -> SamplingKeys {
        SamplingKeys::default()
    }

    fn contains(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Returns the seed if the matrices are random: a device may generate others of the same spread from it.
    #[cfg(feature = "cuda")]
    fn random_seed(&self) -> Option<u64> {
        None
    }
}

/// Returns the shape of the tensor of `role`.
pub(crate) fn shape_of(config: &ModelSpec, role: Role) -> Vec<usize> {
    use LayerRole::*;
    let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    match role {
        Role::Embedding | Role::Head => vec![config.vocab_size, config.hidden_size],
        Role::OutputNorm | Role::Layer(_, AttentionNorm | AttentionPostNorm | FeedForwardNorm | FeedForwardPostNorm) => {
            vec![config.hidden_size]
        }
        Role::Layer(_, Query) => vec![q, config.hidden_size],
        Role::Layer(_, Key | Value) => vec![kv, config.hidden_size],
        Role::Layer(_, QueryBias) => vec![q],
        Role::Layer(_, KeyBias | ValueBias) => vec![kv],
        Role::Layer(_, QueryNorm | KeyNorm) => vec![config.head_dim],
        Role::Layer(_, Output) => vec![config.hidden_size, q],
        Role::Layer(_, Gate | Up) => vec![config.intermediate_size, config.hidden_size],
        Role::Layer(_, Down) => vec![config.hidden_size, config.intermediate_size],
    }
}

/// Checks that every tensor exists and has its shape, before the first is read.
///
/// # Errors
/// Names the first that does not.
pub(crate) fn check_shapes(config: &ModelSpec, checkpoint: &dyn Checkpoint) -> Result<(), LoadError> {
    let layers = (0..config.num_layers()).flat_map(|layer| LayerRole::ALL.map(|role| Role::Layer(layer, role)));
    for role in [Role::Embedding, Role::OutputNorm, Role::Head].into_iter().chain(layers) {
        let is_optional = match role {
            Role::Layer(_, role) => !role.is_required(config),
            Role::Head => config.tied_head,
            Role::Embedding | Role::OutputNorm => false,
        };
        let name = checkpoint.name(role);
        match checkpoint.shape(&name) {
            Some(found) => expect_shape(&name, &found, &shape_of(config, role))?,
            None if is_optional => {}
            None => return Err(LoadError::MissingTensor { name }),
        }
    }
    Ok(())
}

/// Reads `len` bytes of a file from `start` on.
pub(crate) fn read_range(path: &Path, start: u64, len: usize) -> Result<Vec<u8>, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    file.seek(SeekFrom::Start(start)).map_err(io)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| LoadError::OutOfMemory { bytes: len })?;
    file.take(len as u64).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() < len {
        return Err(LoadError::Corrupt { path: path.to_owned(), reason: "it became shorter while it was read".into() });
    }
    Ok(bytes)
}

/// Reads a text file of a checkpoint.
///
/// # Errors
/// If it cannot be read, or is longer than such a file can be.
pub(crate) fn read_text(path: &Path) -> Result<String, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).map_err(io)?.take(MAX_TEXT_BYTES + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_TEXT_BYTES {
        let reason = format!("it is longer than {MAX_TEXT_BYTES} bytes");
        return Err(LoadError::Corrupt { path: path.to_owned(), reason });
    }
    Ok(text)
}

/// Maximum number of bytes of a configuration or an index. Chosen: the index of a model with 100,000 tensors has 10 MB.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// Reads the tensor of `role`, of the given shape.
pub(crate) fn tensor(checkpoint: &dyn Checkpoint, role: Role, shape: &[usize]) -> Result<RawTensor, LoadError> {
    let name = checkpoint.name(role);
    let tensor = checkpoint.read(&name)?;
    expect_shape(&name, &tensor.shape, shape)?;
    Ok(tensor)
}

/// Reads the `[n, k]` matrix of `role`, packed.
pub(crate) fn matrix(checkpoint: &dyn Checkpoint, role: Role, n: usize, k: usize) -> Result<Matrix, LoadError> {
    let name = checkpoint.name(role);
    let tensor = tensor(checkpoint, role, &[n, k])?;
    if !k.is_multiple_of(tensor.ty.block_len()) {
        return Err(LoadError::unsupported(format!("tensor {name}: rows of {k} in {:?}", tensor.ty)));
    }
    Ok(Matrix::from_ggml(tensor.ty, n, k, &tensor.bytes))
}

/// Reads the vector of `role`.
pub(crate) fn vector(checkpoint: &dyn Checkpoint, role: Role, len: usize) -> Result<Vec<f32>, LoadError> {
    let name = checkpoint.name(role);
    let tensor = checkpoint.read(&name)?;
    expect_shape(&name, &tensor.shape, &[len])?;
    // Treated as a matrix of one row, so that every matrix format is read the same way.
    let mut out = vec![0.0; len];
    Matrix::from_ggml(tensor.ty, 1, len, &tensor.bytes).read_row(0, &mut out);
    let is_norm = match role {
        Role::OutputNorm => true,
        Role::Layer(_, role) => role.is_norm(),
        Role::Embedding | Role::Head => false,
    };
    let offset = checkpoint.norm_offset();
    if is_norm && offset != 0.0 {
        out.iter_mut().for_each(|weight| *weight += offset);
    }
    Ok(out)
}

/// Calls [`vector`]; returns `None` if the checkpoint has no such vector.
pub(crate) fn optional_vector(checkpoint: &dyn Checkpoint, role: Role, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
    if checkpoint.contains(&checkpoint.name(role)) { vector(checkpoint, role, len).map(Some) } else { Ok(None) }
}

fn expect_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), LoadError> {
    if found == expected {
        return Ok(());
    }
    Err(LoadError::Shape { name: name.to_owned(), found: found.to_vec(), expected: expected.to_vec() })
}
