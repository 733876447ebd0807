//! All weights of one decoder, packed for the kernels.

use std::collections::HashSet;

use kernels::cpu::{Linear, Matrix};

use crate::checkpoint::{self, Checkpoint, LayerRole, Role};
use crate::{LoadError, ModelSpec};

/// Weights of one decoder.
pub(crate) struct Weights {
    /// `[vocab, hidden]`; also the head if the two are tied.
    pub(crate) embedding: Linear,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>,
    pub(crate) head: Option<Linear>,
    /// Key and value projection of layer 0 alone, for the check of moved spans.
    pub(crate) layer0_kv: Linear,
}

/// Weights of one layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    /// Q, K and V, concatenated.
    pub(crate) qkv: Linear,
    /// Their biases, concatenated, for Qwen2.
    pub(crate) qkv_bias: Option<Vec<f32>>,
    /// Norms of the heads of Q and K, for Qwen3 and Gemma 3.
    pub(crate) qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub(crate) output: Linear,
    /// Norms of the outputs of attention and of the feed-forward layer, for Gemma 3.
    pub(crate) post_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub(crate) feed_forward_norm: Vec<f32>,
    /// Gate and up, concatenated.
    pub(crate) gate_up: Linear,
    pub(crate) down: Linear,
}

impl Weights {
    /// Reads all tensors. `progress` is called with the share done, 0 to 1.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or is one that this decoder does not use: without it the output would be wrong.
    pub(crate) fn read(config: &ModelSpec, from: &dyn Checkpoint, progress: &mut dyn FnMut(f32)) -> Result<Self, LoadError> {
        refuse_unknown(config, from)?;
        let matrix = |role, n, k| checkpoint::matrix(from, role, n, k);
        let embedding = Linear::new(vec![matrix(Role::Embedding, config.vocab_size, config.hidden_size)?]);
        let head = if config.tied_head {
            None
        } else {
            Some(Linear::new(vec![matrix(Role::Head, config.vocab_size, config.hidden_size)?]))
        };
        let mut layers = Vec::with_capacity(config.num_layers());
        for i in 0..config.num_layers() {
            progress(i as f32 / config.num_layers() as f32);
            layers.push(read_layer(config, from, i)?);
        }
        progress(1.0);
        let output_norm = checkpoint::vector(from, Role::OutputNorm, config.hidden_size)?;
        let layer0_kv = Linear::shared(layers[0].qkv.parts()[1..].to_vec());
        Ok(Self { embedding, layers, output_norm, head, layer0_kv })
    }

    /// Returns the number of bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let layer = |layer: &Layer| layer.qkv.bytes() + layer.output.bytes() + layer.gate_up.bytes() + layer.down.bytes();
        self.embedding.bytes() + self.head.as_ref().map_or(0, Linear::bytes) + self.layers.iter().map(layer).sum::<usize>()
    }
}

fn read_layer(config: &ModelSpec, from: &dyn Checkpoint, i: usize) -> Result<Layer, LoadError> {
    let hidden = config.hidden_size;
    let (q_width, kv_width) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let matrix = |role, n, k| -> Result<Matrix, LoadError> { checkpoint::matrix(from, Role::Layer(i, role), n, k) };
    let vector = |role, len| checkpoint::vector(from, Role::Layer(i, role), len);
    let optional = |role, len| checkpoint::optional_vector(from, Role::Layer(i, role), len);
    let q_bias = optional(LayerRole::QueryBias, q_width)?;
    let qkv_bias = match q_bias {
        Some(q) => Some([q, vector(LayerRole::KeyBias, kv_width)?, vector(LayerRole::ValueBias, kv_width)?].concat()),
        None => None,
    };
    let qk_norm = match optional(LayerRole::QueryNorm, config.head_dim)? {
        Some(q) => Some((q, vector(LayerRole::KeyNorm, config.head_dim)?)),
        None => None,
    };
    let post_norms = match config.has_post_norms {
        true => Some((vector(LayerRole::AttentionPostNorm, hidden)?, vector(LayerRole::FeedForwardPostNorm, hidden)?)),
        false => None,
    };
    Ok(Layer {
        attention_norm: vector(LayerRole::AttentionNorm, hidden)?,
        qkv: Linear::new(vec![
            matrix(LayerRole::Query, q_width, hidden)?,
            matrix(LayerRole::Key, kv_width, hidden)?,
            matrix(LayerRole::Value, kv_width, hidden)?,
        ]),
        qkv_bias,
        qk_norm,
        output: Linear::new(vec![matrix(LayerRole::Output, hidden, q_width)?]),
        post_norms,
        feed_forward_norm: vector(LayerRole::FeedForwardNorm, hidden)?,
        gate_up: Linear::new(vec![
            matrix(LayerRole::Gate, config.intermediate_size, hidden)?,
            matrix(LayerRole::Up, config.intermediate_size, hidden)?,
        ]),
        down: Linear::new(vec![matrix(LayerRole::Down, hidden, config.intermediate_size)?]),
    })
}

/// Refuses unknown tensors: one that is not read (a bias, an expert, a third norm) means that the model is not the one computed here.
pub(crate) fn refuse_unknown(config: &ModelSpec, from: &dyn Checkpoint) -> Result<(), LoadError> {
    let layer_names = (0..config.num_layers()).flat_map(|i| LayerRole::ALL.map(|role| from.name(Role::Layer(i, role))));
    let known: HashSet<String> =
        [Role::Embedding, Role::OutputNorm, Role::Head].map(|role| from.name(role)).into_iter().chain(layer_names).collect();
    let derived = |name: &str| name == "rope_freqs.weight" || name.ends_with("rotary_emb.inv_freq");
    let mut unknown: Vec<String> = from.names().into_iter().filter(|name| !known.contains(name) && !derived(name)).collect();
    unknown.sort();
    match unknown.first() {
        Some(name) => Err(LoadError::unsupported(format!("tensor {name} in a {:?} model", config.architecture))),
        None => Ok(()),
    }
}
