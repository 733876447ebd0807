//! Reading tensors by their role, from whichever file format holds them.

mod gguf;
mod random;
mod safetensors;

use kernels::cpu::{GgmlType, Matrix};

pub(crate) use self::gguf::GgufCheckpoint;
pub use self::gguf::GgufVocabulary;
pub(crate) use self::random::{RandomCheckpoint, RandomDtype};
pub(crate) use self::safetensors::SafetensorsCheckpoint;
use crate::{LoadError, ModelConfig};

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Embedding,
    OutputNorm,
    Head,
    Layer(usize, LayerRole),
}

/// What a tensor of one layer is for.
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
    FeedForwardNorm,
    Gate,
    Up,
    Down,
}

impl LayerRole {
    /// Every role.
    pub(crate) const ALL: [Self; 14] = [
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
        Self::FeedForwardNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];
}

/// Ids of the tokens that mean something to the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Each of them ends a generation.
    pub eos: Vec<u32>,
}

/// A tensor as stored.
pub(crate) struct RawTensor {
    pub(crate) ty: GgmlType,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// A file or folder of weights.
pub(crate) trait Checkpoint {
    fn config(&self) -> Result<ModelConfig, LoadError>;
    fn special_tokens(&self) -> SpecialTokens;
    /// The tensor's name in this format.
    fn name(&self, role: Role) -> String;
    fn contains(&self, name: &str) -> bool;
    /// All tensors, in any order.
    fn names(&self) -> Vec<String>;
    fn read(&self, name: &str) -> Result<RawTensor, LoadError>;

    /// If its matrices are nobody's: a device may make others of the same spread, which differ by this number.
    #[cfg(feature = "cuda")]
    fn random_seed(&self) -> Option<u64> {
        None
    }
}

/// The tensor of `role`, of the given shape.
pub(crate) fn tensor(checkpoint: &dyn Checkpoint, role: Role, shape: &[usize]) -> Result<RawTensor, LoadError> {
    let name = checkpoint.name(role);
    let tensor = checkpoint.read(&name)?;
    expect_shape(&name, &tensor.shape, shape)?;
    Ok(tensor)
}

/// The `[n, k]` matrix of `role`, packed.
pub(crate) fn matrix(checkpoint: &dyn Checkpoint, role: Role, n: usize, k: usize) -> Result<Matrix, LoadError> {
    let name = checkpoint.name(role);
    let tensor = tensor(checkpoint, role, &[n, k])?;
    if !k.is_multiple_of(tensor.ty.block_len()) {
        return Err(LoadError::unsupported(format!("tensor {name}: rows of {k} in {:?}", tensor.ty)));
    }
    Ok(Matrix::from_ggml(tensor.ty, n, k, &tensor.bytes))
}

/// The vector of `role`.
pub(crate) fn vector(checkpoint: &dyn Checkpoint, role: Role, len: usize) -> Result<Vec<f32>, LoadError> {
    let name = checkpoint.name(role);
    let tensor = checkpoint.read(&name)?;
    expect_shape(&name, &tensor.shape, &[len])?;
    // Seen as a matrix of one row, so that every format a matrix may have is read the same way.
    let mut out = vec![0.0; len];
    Matrix::from_ggml(tensor.ty, 1, len, &tensor.bytes).read_row(0, &mut out);
    Ok(out)
}

/// [`vector`], or `None` where the checkpoint has none.
pub(crate) fn optional_vector(checkpoint: &dyn Checkpoint, role: Role, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
    if checkpoint.contains(&checkpoint.name(role)) { vector(checkpoint, role, len).map(Some) } else { Ok(None) }
}

fn expect_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), LoadError> {
    if found == expected {
        return Ok(());
    }
    Err(LoadError::Shape { name: name.to_owned(), found: found.to_vec(), expected: expected.to_vec() })
}
