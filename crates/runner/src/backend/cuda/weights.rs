//! All weights of one decoder in GPU memory: matrices in bf16, vectors in f32.

use std::sync::Arc;

use kernels::cpu::{GgmlType, Matrix};
use kernels::cuda::{CudaSlice, Device, Fill, bf16};

use super::super::cpu::refuse_unknown;
use crate::checkpoint::{self, Checkpoint, LayerRole, RandomCheckpoint, RawTensor, Role};
use crate::{LoadError, ModelSpec};

/// Weights of one decoder.
pub(crate) struct Weights {
    /// `[vocab, hidden]`; also the head if the two are tied.
    pub(crate) embedding: CudaSlice<bf16>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: CudaSlice<f32>,
    pub(crate) head: Option<CudaSlice<bf16>>,
}

/// Weights of one layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: CudaSlice<f32>,
    /// Q, K and V, stacked: `[qkv_width, hidden]`.
    pub(crate) qkv: CudaSlice<bf16>,
    /// Their biases, for Qwen2.
    pub(crate) qkv_bias: Option<CudaSlice<f32>>,
    /// Norms of the heads of Q and K, for Qwen3 and Gemma 3.
    pub(crate) qk_norm: Option<(CudaSlice<f32>, CudaSlice<f32>)>,
    pub(crate) output: CudaSlice<bf16>,
    /// Norms of the outputs of attention and of the feed-forward layer, for Gemma 3.
    pub(crate) post_norms: Option<(CudaSlice<f32>, CudaSlice<f32>)>,
    pub(crate) feed_forward_norm: CudaSlice<f32>,
    /// Gate and up, stacked.
    pub(crate) gate_up: CudaSlice<bf16>,
    pub(crate) down: CudaSlice<bf16>,
}

impl Weights {
    /// Reads all tensors. `progress` is called with the share done, 0 to 1.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or is one that this decoder does not use; if memory does not suffice.
    pub(crate) fn read(
        config: &ModelSpec,
        from: &dyn Checkpoint,
        device: &Arc<Device>,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Self, LoadError> {
        refuse_unknown(config, from)?;
        let mut reader = Reader { config, from, fill: Fill::new(device)?, device, num_random: 0 };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = reader.matrix(&[(Role::Embedding, vocab)], hidden)?;
        let head = if config.tied_head { None } else { Some(reader.matrix(&[(Role::Head, vocab)], hidden)?) };
        let mut layers = Vec::with_capacity(config.num_layers());
        for i in 0..config.num_layers() {
            progress(i as f32 / config.num_layers() as f32);
            layers.push(reader.layer(i)?);
        }
        progress(1.0);
        Ok(Self { embedding, layers, output_norm: reader.vector(Role::OutputNorm, hidden)?, head })
    }

    /// Returns the number of bytes held by matrices.
    pub(crate) fn bytes(&self) -> usize {
        let of_layer = |layer: &Layer| layer.qkv.len() + layer.output.len() + layer.gate_up.len() + layer.down.len();
        let numbers =
            self.embedding.len() + self.head.as_ref().map_or(0, CudaSlice::len) + self.layers.iter().map(of_layer).sum::<usize>();
        numbers * size_of::<bf16>()
    }
}

struct Reader<'a> {
    config: &'a ModelSpec,
    from: &'a dyn Checkpoint,
    fill: Fill,
    device: &'a Arc<Device>,
    num_random: u64,
}

impl Reader<'_> {
    fn layer(&mut self, i: usize) -> Result<Layer, LoadError> {
        use LayerRole::*;
        let config = self.config;
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let role = |role| Role::Layer(i, role);
        let biases = [(role(QueryBias), q), (role(KeyBias), kv), (role(ValueBias), kv)];
        let qk_norm = match self.optional_vector(&[(role(QueryNorm), config.head_dim)])? {
            Some(q) => Some((q, self.vector(role(KeyNorm), config.head_dim)?)),
            None => None,
        };
        let post_norms = match config.has_post_norms {
            true => Some((self.vector(role(AttentionPostNorm), hidden)?, self.vector(role(FeedForwardPostNorm), hidden)?)),
            false => None,
        };
        Ok(Layer {
            attention_norm: self.vector(role(AttentionNorm), hidden)?,
            qkv: self.matrix(&[(role(Query), q), (role(Key), kv), (role(Value), kv)], hidden)?,
            qkv_bias: self.optional_vector(&biases)?,
            qk_norm,
            output: self.matrix(&[(role(Output), hidden)], q)?,
            post_norms,
            feed_forward_norm: self.vector(role(FeedForwardNorm), hidden)?,
            gate_up: self.matrix(&[(role(Gate), wide), (role(Up), wide)], hidden)?,
            down: self.matrix(&[(role(Down), hidden)], wide)?,
        })
    }

    /// Reads matrices of `k` columns and stacks them.
    fn matrix(&mut self, parts: &[(Role, usize)], k: usize) -> Result<CudaSlice<bf16>, LoadError> {
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        if let Some(seed) = self.from.random_seed() {
            // There is no file to read: the device generates the elements.
            self.num_random += 1;
            let mut numbers = self.device.zeros(rows * k)?;
            let seed = seed.wrapping_add(self.num_random << 32);
            self.fill.uniform(&mut numbers.slice_mut(..), seed, RandomCheckpoint::deviation(k))?;
            return Ok(numbers);
        }
        let mut numbers = Vec::with_capacity(rows * k);
        for (role, rows) in parts {
            let tensor = checkpoint::tensor(self.from, *role, &[*rows, k])?;
            numbers.extend(to_bf16(&tensor, *rows, k));
        }
        Ok(self.device.upload(&numbers)?)
    }

    fn vector(&self, role: Role, len: usize) -> Result<CudaSlice<f32>, LoadError> {
        Ok(self.device.upload(&checkpoint::vector(self.from, role, len)?)?)
    }

    /// Reads vectors and concatenates them; `None` if the checkpoint lacks the first.
    fn optional_vector(&self, parts: &[(Role, usize)]) -> Result<Option<CudaSlice<f32>>, LoadError> {
        let (first, _) = parts[0];
        if !self.from.contains(&self.from.name(first)) {
            return Ok(None);
        }
        let mut numbers = Vec::new();
        for (role, len) in parts {
            numbers.extend(checkpoint::vector(self.from, *role, *len)?);
        }
        Ok(Some(self.device.upload(&numbers)?))
    }
}

/// Returns the elements of a `[rows, k]` tensor, rounded to bf16.
fn to_bf16(tensor: &RawTensor, rows: usize, k: usize) -> Vec<bf16> {
    if tensor.ty == GgmlType::Bf16 {
        return tensor.bytes.chunks_exact(2).map(|bytes| bf16::from_le_bytes([bytes[0], bytes[1]])).collect();
    }
    let matrix = Matrix::from_ggml(tensor.ty, rows, k, &tensor.bytes);
    let mut numbers = vec![bf16::ZERO; rows * k];
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let rows_each = rows.div_ceil(workers).max(1);
    std::thread::scope(|scope| {
        for (chunk, out) in numbers.chunks_mut(rows_each * k).enumerate() {
            let matrix = &matrix;
            scope.spawn(move || {
                let mut wide = vec![0f32; k];
                for (i, out) in out.chunks_exact_mut(k).enumerate() {
                    matrix.read_row(chunk * rows_each + i, &mut wide);
                    out.iter_mut().zip(&wide).for_each(|(out, wide)| *out = bf16::from_f32(*wide));
                }
            });
        }
    });
    numbers
}
