//! Description of what a model computes, layer by layer.

use engine::{CacheGroup, CacheGroups, Depth, KvFormat, Retention};
use kernels::cpu::{Activation, RopeLayout};

use crate::LoadError;

/// A decoder family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama and Mistral.
    Llama,
    /// Qwen2: biases on Q, K and V.
    Qwen2,
    /// Qwen3: norms on the heads of Q and K.
    Qwen3,
    /// Gemma 3: layers with a window between layers without, norms before and after each sublayer.
    Gemma3,
}

/// Positions that a layer attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All positions up to the row's own.
    Causal,
    /// The last so many positions, the row's own among them.
    Window(u32),
}

impl Mask {
    /// Returns the number of last positions that a row attends to.
    #[must_use]
    pub fn window(self) -> u32 {
        match self {
            Self::Causal => u32::MAX,
            Self::Window(size) => size,
        }
    }
}

/// Rotation of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

impl RopeSpec {
    /// Returns the frequencies of a head of `head_dim` elements, in radians per position: `theta^(-2i/d)` with their scaling (RoFormer, Su
    /// et al. 2021, sec. 3.2.2).
    #[must_use]
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f64> {
        let base = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        match &self.scaling {
            RopeScaling::None => base.collect(),
            RopeScaling::Linear(factor) => base.map(|f| f / factor).collect(),
            RopeScaling::Factors(factors) => base.zip(factors).map(|(f, factor)| f / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => base
                .map(|f| {
                    let turns = original_max_position * f / std::f64::consts::TAU;
                    let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - keep) * f / factor + keep * f
                })
                .collect(),
        }
    }
}

/// One decoder layer, as far as it may differ from others of its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// Positions that its rows attend to.
    pub mask: Mask,
    /// Index of its rotation in [`ModelSpec::ropes`].
    pub rope: usize,
}

/// Scaling of rotary frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    None,
    /// All frequencies divided by this factor.
    Linear(f64),
    /// Llama 3.1's rule: long wavelengths are divided, short ones kept, with a ramp in between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_position / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length of the unscaled model.
        original_max_position: f64,
    },
    /// Divisor of each frequency, as GGUF files store Llama 3.1's rule.
    Factors(Vec<f64>),
}

/// Shape and constants of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Model family.
    pub architecture: Architecture,
    /// The decoder layers, in order.
    pub layers: Vec<LayerSpec>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads.
    pub num_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Maximum number of positions of the model.
    pub max_position: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// Rotations that layers refer to.
    pub ropes: Vec<RopeSpec>,
    /// Pairing of elements that rotate together.
    pub rope_layout: RopeLayout,
    /// Factor of the scores of attention, usually `1 / sqrt(head_dim)`.
    pub attention_scale: f32,
    /// Factor of the embeddings.
    pub embedding_scale: f32,
    /// Activation of the feed-forward layers' gates.
    pub activation: Activation,
    /// True if each sublayer's output is normed before it is added to the residual stream.
    pub has_post_norms: bool,
    /// True if the output head is the embedding table.
    pub tied_head: bool,
}

impl ModelSpec {
    /// Returns the number of decoder layers.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Returns the number of first layers that attend within a window; 0 if all do.
    #[must_use]
    pub fn num_local_layers(&self) -> usize {
        self.layers.iter().position(|layer| layer.mask == Mask::Causal).unwrap_or(0)
    }

    /// Returns the layer whose keys and values a probe of `depth` compares.
    #[must_use]
    pub fn check_layer(&self, depth: Depth) -> usize {
        depth.layer(self.num_layers(), self.num_local_layers())
    }

    /// Returns the number of columns of the fused Q, K, V projection.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Returns the groups of layers that a pool with elements of `format` is made for.
    #[must_use]
    pub fn cache_groups(&self, format: KvFormat) -> CacheGroups {
        let Self { num_kv_heads, head_dim, .. } = *self;
        let layers = (0..self.num_layers() as u32).collect();
        CacheGroup { layers, num_kv_heads, head_dim, format, retention: Retention::All }.into()
    }

    /// Validates every constant, so that nothing is allocated for an implausible one.
    pub(crate) fn validated(self) -> Result<Self, LoadError> {
        let sizes = [
            ("layers", self.num_layers(), MAX_LAYERS),
            ("hidden size", self.hidden_size, MAX_WIDTH),
            ("intermediate size", self.intermediate_size, MAX_WIDTH),
            ("query heads", self.num_heads, MAX_HEADS),
            ("key heads", self.num_kv_heads, MAX_HEADS),
            ("numbers in a head", self.head_dim, MAX_HEAD_DIM),
            ("tokens in the vocabulary", self.vocab_size, MAX_WIDTH),
            ("positions", self.max_position, MAX_POSITIONS),
        ];
        if let Some((name, size, most)) = sizes.into_iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
            return Err(LoadError::unsupported(format!("a model of {size} {name} (1 to {most} are possible)")));
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(LoadError::unsupported(format!("{} query heads over {} key heads", self.num_heads, self.num_kv_heads)));
        }
        for (name, size) in
            [("head", self.head_dim), ("hidden size", self.hidden_size), ("intermediate size", self.intermediate_size)]
        {
            if size % 2 == 1 {
                return Err(LoadError::unsupported(format!("an odd {name} of {size}")));
            }
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(LoadError::unsupported(format!("an epsilon of the norms of {}", self.rms_norm_eps)));
        }
        for rope in &self.ropes {
            if !(rope.theta >= 1.0 && rope.theta.is_finite()) {
                return Err(LoadError::unsupported(format!("a base of the rotary frequencies of {}", rope.theta)));
            }
            let mut frequencies = rope.inv_freq(self.head_dim).into_iter();
            if let Some(frequency) = frequencies.find(|frequency| !(frequency.is_normal() && *frequency > 0.0)) {
                return Err(LoadError::unsupported(format!("rope scaling that gives a frequency of {frequency}")));
            }
        }
        if !(self.attention_scale.is_normal() && self.attention_scale > 0.0) {
            return Err(LoadError::unsupported(format!("scores of attention times {}", self.attention_scale)));
        }
        if self.layers.iter().any(|layer| layer.mask == Mask::Window(0)) {
            return Err(LoadError::unsupported("a sliding window of 0"));
        }
        Ok(self)
    }
}

/// Returns the layers of a model: if `is_local(i)`, layer `i` attends within `window`, if there is one, and rotates by the last of the
/// model's `num_ropes` rotations, else by the first.
///
/// # Errors
/// If there are more layers than any model has.
pub(crate) fn layers(
    num_layers: usize,
    num_ropes: usize,
    window: Option<u32>,
    is_local: impl Fn(usize) -> bool,
) -> Result<Vec<LayerSpec>, LoadError> {
    if num_layers > MAX_LAYERS {
        return Err(LoadError::unsupported(format!("a model of {num_layers} layers (1 to {MAX_LAYERS} are possible)")));
    }
    let layer = |i| match is_local(i) {
        true => LayerSpec { mask: window.map_or(Mask::Causal, Mask::Window), rope: num_ropes - 1 },
        false => LayerSpec { mask: Mask::Causal, rope: 0 },
    };
    Ok((0..num_layers).map(layer).collect())
}

/// Number of layers of Gemma 3 of which the last one attends to all positions, unless the file says otherwise.
pub(crate) const GEMMA3_PATTERN: usize = 6;
/// Base of the frequencies of Gemma 3's layers with a window, unless the file says otherwise.
pub(crate) const GEMMA3_LOCAL_THETA: f64 = 10_000.0;

/// Bounds of a model's constants. Chosen: ten times and more what the largest published models have, and small enough that no product of
/// them exceeds 64 bits.
pub(crate) const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 24;
const MAX_HEADS: usize = 1 << 14;
const MAX_HEAD_DIM: usize = 1 << 14;
const MAX_POSITIONS: usize = 1 << 30;
