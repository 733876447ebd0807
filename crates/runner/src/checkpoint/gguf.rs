//! GGUF files. Tensors are read one at a time, so that the file is never in memory twice.

mod part;
mod split;

use std::collections::HashMap;
use std::path::Path;

use gguf::{Array, Header, Value};
use kernels::cpu::{Activation, GgmlType, RopeLayout};

use self::part::{Part, layout};
use super::{Checkpoint, LayerRole, RawTensor, Role, SamplingKeys, SpecialTokens, read_range};
use crate::LoadError;
use crate::error::shown;
use crate::spec::{self, Architecture, GEMMA3_LOCAL_THETA, GEMMA3_PATTERN, LayerSpec, ModelSpec, RopeScaling, RopeSpec};

/// Tokenizer as described by a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary {
    /// `gpt2` (byte-level BPE) or `llama` (SPM).
    pub model: String,
    /// Name of the pre-tokenizer; empty if the file has none.
    pub pre: String,
    /// Token strings by id.
    pub tokens: Vec<String>,
    /// Scores by id, for SPM.
    pub scores: Option<Vec<f32>>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// BPE merges, best first.
    pub merges: Vec<String>,
    /// Token that begins a sequence.
    pub bos: Option<u32>,
    /// Token that ends a sequence.
    pub eos: Option<u32>,
    /// Token that ends a turn.
    pub eot: Option<u32>,
    /// Unknown token.
    pub unk: Option<u32>,
    /// Padding token.
    pub pad: Option<u32>,
    /// True if encoding starts with `bos`.
    pub add_bos: Option<bool>,
    /// True if encoding ends with `eos`.
    pub add_eos: Option<bool>,
    /// True if SPM prepends a space to the text.
    pub add_space_prefix: Option<bool>,
    /// Jinja source.
    pub chat_template: Option<String>,
}

/// One GGUF file, or the parts of one model.
pub(crate) struct GgufCheckpoint {
    parts: Vec<Part>,
    tensors: HashMap<String, Place>,
    architecture: String,
}

/// Location of a tensor.
struct Place {
    part: usize,
    ty: GgmlType,
    shape: Vec<usize>,
    /// Byte offset in its file.
    start: u64,
    len: usize,
}

impl GgufCheckpoint {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let first = Part::open(path)?;
        let corrupt = |reason: &str| LoadError::Corrupt { path: path.to_owned(), reason: reason.to_owned() };
        let architecture = first.header.string("general.architecture").ok_or_else(|| corrupt("no general.architecture"))?;
        if architecture.len() > MAX_NAME_BYTES {
            return Err(corrupt("general.architecture is no name"));
        }
        let architecture = architecture.to_owned();
        let parts = split::all_parts(path, first)?;
        let mut tensors = HashMap::new();
        for (index, part) in parts.iter().enumerate() {
            add_tensors(index, part, &mut tensors)?;
        }
        Ok(Self { parts, tensors, architecture })
    }

    fn header(&self) -> &Header {
        &self.parts[0].header
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn missing(&self, key: &str) -> LoadError {
        LoadError::Field {
            path: self.parts[0].path.clone(),
            field: key.to_owned(),
            problem: "is missing or of another type".into(),
        }
    }

    fn size(&self, key: &str) -> Result<usize, LoadError> {
        self.optional_size(key).ok_or_else(|| self.missing(&self.key(key)))
    }

    fn optional_size(&self, key: &str) -> Option<usize> {
        self.header().unsigned(&self.key(key)).and_then(|number| usize::try_from(number).ok())
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.header().float(&self.key(key))
    }

    fn refuse(&self) -> Result<(), LoadError> {
        if self.optional_size("expert_count").is_some_and(|n| n > 0) {
            return Err(LoadError::unsupported("a mixture of experts"));
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if self.float(key).is_some_and(|cap| cap != 0.0) {
                return Err(LoadError::unsupported("logit soft-capping"));
            }
        }
        let (key, value) = (self.optional_size("attention.key_length"), self.optional_size("attention.value_length"));
        if key.is_some() && value.is_some() && key != value {
            return Err(LoadError::unsupported("keys and values of different length"));
        }
        Ok(())
    }

    /// Returns the layers. Files give the size of the window; the architecture decides which layers have one, as in llama.cpp.
    fn layers(&self, architecture: Architecture, max_position: usize) -> Result<Vec<LayerSpec>, LoadError> {
        let window = self.optional_size("attention.sliding_window").filter(|window| (1..max_position).contains(window));
        let window = window.map(|window| u32::try_from(window).unwrap_or(u32::MAX));
        match (window, architecture) {
            (Some(window), Architecture::Qwen2 | Architecture::Qwen3) => {
                Err(LoadError::unsupported(format!("a sliding window of {window} in a {architecture:?} model")))
            }
            (_, Architecture::Gemma3) => {
                let pattern = self.optional_size("attention.sliding_window_pattern").unwrap_or(GEMMA3_PATTERN).max(1);
                spec::layers(self.size("block_count")?, 2, window, |i| !(i + 1).is_multiple_of(pattern))
            }
            _ => spec::layers(self.size("block_count")?, 1, window, |_| true),
        }
    }

    /// Returns the square of the divisor of attention scores (`query_pre_attn_scalar` of `config.json`), which GGUF files lack. It is the head
    /// dimension, except in the largest Gemma 3, with 62 layers.
    fn score_divisor(&self, architecture: Architecture, head_dim: usize) -> Result<usize, LoadError> {
        const LARGEST_GEMMA3_LAYERS: usize = 62;
        match architecture {
            Architecture::Gemma3 if self.size("block_count")? == LARGEST_GEMMA3_LAYERS => {
                Ok(self.size("embedding_length")? / self.size("attention.head_count")?.max(1))
            }
            _ => Ok(head_dim),
        }
    }

    /// Returns the rotations; `scaling` is of layers without a window.
    fn ropes(&self, architecture: Architecture, scaling: RopeScaling) -> Vec<RopeSpec> {
        let is_gemma = architecture == Architecture::Gemma3;
        let theta = self.float("rope.freq_base").unwrap_or(if is_gemma { 1e6 } else { 1e4 });
        let mut ropes = vec![RopeSpec { theta, scaling }];
        if is_gemma {
            let theta = self.float("rope.freq_base_swa").unwrap_or(GEMMA3_LOCAL_THETA);
            ropes.push(RopeSpec { theta, scaling: RopeScaling::None });
        }
        ropes
    }

    fn rope_scaling(&self, head_dim: usize) -> Result<RopeScaling, LoadError> {
        if self.optional_size("rope.dimension_count").is_some_and(|n| n != head_dim) {
            return Err(LoadError::unsupported("rotary positions on a part of each head"));
        }
        // As in llama.cpp: linear if the type is missing, and 0 for a missing factor. Old files have `scale_linear`.
        let factor = match self.header().string(&self.key("rope.scaling.type")).unwrap_or("linear") {
            "none" => 1.0,
            "linear" => {
                let factor = self.float("rope.scaling.factor").or_else(|| self.float("rope.scale_linear"));
                factor.filter(|factor| *factor != 0.0).unwrap_or(1.0)
            }
            other => return Err(LoadError::unsupported(format!("rope scaling {}", shown(other)))),
        };
        if self.contains("rope_freqs.weight") {
            let factors = self.read("rope_freqs.weight")?;
            let words = factors.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let factors: Vec<f64> = words.map(|word| f64::from(word) * factor).collect();
            if factors.len() != head_dim / 2 {
                return Err(LoadError::Shape {
                    name: "rope_freqs.weight".into(),
                    found: vec![factors.len()],
                    expected: vec![head_dim / 2],
                });
            }
            return Ok(RopeScaling::Factors(factors));
        }
        Ok(if factor == 1.0 { RopeScaling::None } else { RopeScaling::Linear(factor) })
    }

    /// Returns the tokenizer and chat template stored with the weights. Moves the lists out, since they are large.
    pub(crate) fn take_vocabulary(&mut self) -> Result<GgufVocabulary, LoadError> {
        let metadata = &mut self.parts[0].header.metadata;
        let mut take = |key: &str| metadata.remove(&format!("tokenizer.ggml.{key}"));
        let strings = |value: Option<Value>| match value {
            Some(Value::Array(Array::Strings(texts))) => Some(texts),
            _ => None,
        };
        let tokens = strings(take("tokens"));
        let merges = strings(take("merges")).unwrap_or_default();
        let scores = match take("scores") {
            Some(Value::Array(Array::Floats(scores))) => Some(scores.into_iter().map(|score| score as f32).collect()),
            _ => None,
        };
        let token_types = match take("token_type") {
            Some(Value::Array(Array::Integers(types))) => types.into_iter().map(|ty| i32::try_from(ty).unwrap_or(0)).collect(),
            _ => Vec::new(),
        };
        let header = self.header();
        let get = |key: &str| header.metadata.get(&format!("tokenizer.ggml.{key}"));
        let flag = |key: &str| get(key).and_then(Value::as_bool);
        let text = |key: &str| get(key).and_then(Value::as_str).map(str::to_owned);
        Ok(GgufVocabulary {
            model: text("model").ok_or_else(|| self.missing("tokenizer.ggml.model"))?,
            pre: text("pre").unwrap_or_default(),
            tokens: tokens.ok_or_else(|| self.missing("tokenizer.ggml.tokens"))?,
            scores,
            token_types,
            merges,
            bos: self.token("bos")?,
            eos: self.token("eos")?,
            eot: self.token("eot")?,
            unk: self.token("unknown")?,
            pad: self.token("padding")?,
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            add_space_prefix: flag("add_space_prefix"),
            chat_template: header.string("tokenizer.chat_template").map(str::to_owned),
        })
    }

    /// Returns the id of the special token `name`; the tokenizer checks that it lies in the vocabulary.
    fn token(&self, name: &str) -> Result<Option<u32>, LoadError> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(value) = self.header().metadata.get(&key) else { return Ok(None) };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let wrong = || LoadError::Field {
            path: self.parts[0].path.clone(),
            field: key.clone(),
            problem: format!("is {value}, not the id of a token"),
        };
        id.map(Some).ok_or_else(wrong)
    }
}

impl Checkpoint for GgufCheckpoint {
    fn config(&self) -> Result<ModelSpec, LoadError> {
        // llama.cpp's converter permutes Q and K of the llama architecture so that neighbours rotate together.
        let (architecture, rope_layout) = match self.architecture.as_str() {
            "llama" => (Architecture::Llama, RopeLayout::Interleaved),
            "qwen2" => (Architecture::Qwen2, RopeLayout::Half),
            "qwen3" => (Architecture::Qwen3, RopeLayout::Half),
            "gemma3" => (Architecture::Gemma3, RopeLayout::Half),
            other => return Err(LoadError::unsupported(format!("architecture {}", shown(other)))),
        };
        self.refuse()?;
        let (hidden_size, num_heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head_dim = self.optional_size("attention.key_length").unwrap_or(hidden_size / num_heads.max(1));
        let vocab_size = self.tensors.get("token_embd.weight").and_then(|place| place.shape.first().copied());
        let max_position = self.size("context_length")?;
        let is_gemma = architecture == Architecture::Gemma3;
        let config = ModelSpec {
            architecture,
            layers: self.layers(architecture, max_position)?,
            hidden_size,
            intermediate_size: self.size("feed_forward_length")?,
            num_heads,
            num_kv_heads: self.optional_size("attention.head_count_kv").unwrap_or(num_heads),
            head_dim,
            vocab_size: vocab_size.ok_or_else(|| LoadError::MissingTensor { name: "token_embd.weight".into() })?,
            max_position,
            rms_norm_eps: self
                .float("attention.layer_norm_rms_epsilon")
                .ok_or_else(|| self.missing(&self.key("attention.layer_norm_rms_epsilon")))? as f32,
            ropes: self.ropes(architecture, RopeScaling::None),
            rope_layout,
            attention_scale: 1.0 / (self.score_divisor(architecture, head_dim)? as f32).sqrt(),
            embedding_scale: if is_gemma { (hidden_size as f32).sqrt() } else { 1.0 },
            activation: if is_gemma { Activation::GeluTanh } else { Activation::Silu },
            has_post_norms: is_gemma,
            tied_head: !self.contains("output.weight"),
        }
        .validated()?;
        // Read after head_dim has been validated.
        let ropes = self.ropes(architecture, self.rope_scaling(head_dim)?);
        ModelSpec { ropes, ..config }.validated()
    }

    fn special_tokens(&self) -> Result<SpecialTokens, LoadError> {
        let mut eos = Vec::new();
        for name in ["eos", "eot", "eom"] {
            eos.extend(self.token(name)?);
        }
        eos.dedup();
        Ok(SpecialTokens { bos: self.token("bos")?, eos })
    }

    fn name(&self, role: Role) -> String {
        let (layer, part) = match role {
            Role::Embedding => return "token_embd.weight".into(),
            Role::OutputNorm => return "output_norm.weight".into(),
            Role::Head => return "output.weight".into(),
            Role::Layer(layer, part) => (layer, part),
        };
        let part = match part {
            LayerRole::AttentionNorm => "attn_norm.weight",
            LayerRole::Query => "attn_q.weight",
            LayerRole::Key => "attn_k.weight",
            LayerRole::Value => "attn_v.weight",
            LayerRole::QueryBias => "attn_q.bias",
            LayerRole::KeyBias => "attn_k.bias",
            LayerRole::ValueBias => "attn_v.bias",
            LayerRole::QueryNorm => "attn_q_norm.weight",
            LayerRole::KeyNorm => "attn_k_norm.weight",
            LayerRole::Output => "attn_output.weight",
            LayerRole::AttentionPostNorm => "post_attention_norm.weight",
            LayerRole::FeedForwardNorm => "ffn_norm.weight",
            LayerRole::Gate => "ffn_gate.weight",
            LayerRole::Up => "ffn_up.weight",
            LayerRole::Down => "ffn_down.weight",
            LayerRole::FeedForwardPostNorm => "post_ffw_norm.weight",
        };
        format!("blk.{layer}.{part}")
    }

    fn sampling(&self) -> SamplingKeys {
        let float = |key: &str| self.header().float(&format!("general.sampling.{key}"));
        SamplingKeys {
            temperature: float("temp"),
            top_p: float("top_p"),
            top_k: self.header().unsigned("general.sampling.top_k"),
            min_p: float("min_p"),
            repetition_penalty: float("penalty_repeat"),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|place| place.shape.clone())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn read(&self, name: &str) -> Result<RawTensor, LoadError> {
        let place = self.tensors.get(name).ok_or_else(|| LoadError::MissingTensor { name: name.to_owned() })?;
        let bytes = read_range(&self.parts[place.part].path, place.start, place.len)?;
        Ok(RawTensor { ty: place.ty, shape: place.shape.clone(), bytes })
    }
}

/// Maximum number of bytes of a tensor name that is accepted.
const MAX_NAME_BYTES: usize = 256;

fn add_tensors(index: usize, part: &Part, tensors: &mut HashMap<String, Place>) -> Result<(), LoadError> {
    for (name, tensor) in &part.header.tensors {
        let (ty, shape, bytes) = layout(name, tensor)?;
        let len = usize::try_from(bytes).map_err(|_| LoadError::unsupported(format!("tensor {}", shown(name))))?;
        let place = Place { part: index, ty, shape, start: part.header.data_start + tensor.offset, len };
        if tensors.insert(name.clone(), place).is_some() {
            let reason = format!("tensor {} is in an earlier part, too", shown(name));
            return Err(LoadError::Corrupt { path: part.path.clone(), reason });
        }
    }
    Ok(())
}
