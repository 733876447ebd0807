//! GGUF files. candle parses the header; tensors are read one at a time, so that the file is never in memory twice.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use kernels::cpu::{GgmlType, RopeLayout};

use super::{Checkpoint, LayerRole, RawTensor, Role, SpecialTokens};
use crate::LoadError;
use crate::config::{Architecture, ModelConfig, RopeScaling};

/// The tokenizer as a GGUF file describes it.
#[derive(Clone, Debug, Default)]
pub struct GgufVocabulary {
    /// `gpt2` (byte-level BPE) or `llama` (SPM).
    pub model: String,
    /// Which pre-tokenizer splits text first; empty if the file does not say.
    pub pre: String,
    /// Token strings by id.
    pub tokens: Vec<String>,
    /// Scores by id, for SPM.
    pub scores: Option<Vec<f32>>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// BPE merges, best first.
    pub merges: Vec<String>,
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends a sequence.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Unknown token.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether encoding starts with `bos`.
    pub add_bos: Option<bool>,
    /// Whether encoding ends with `eos`.
    pub add_eos: Option<bool>,
    /// Whether SPM puts a space in front of the text.
    pub add_space_prefix: Option<bool>,
    /// Jinja source.
    pub chat_template: Option<String>,
}

pub(crate) struct GgufCheckpoint {
    path: PathBuf,
    content: Content,
    architecture: String,
}

impl GgufCheckpoint {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let io = |source| LoadError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let corrupt = |reason: String| LoadError::Corrupt { path: path.to_owned(), reason };
        let content = Content::read(&mut BufReader::new(file)).map_err(|error| corrupt(one_line(&error)))?;
        let architecture = string(&content, "general.architecture").ok_or_else(|| corrupt("no general.architecture".into()))?;
        let checkpoint = Self { path: path.to_owned(), content, architecture };
        checkpoint.check_length(len)?;
        Ok(checkpoint)
    }

    /// Every tensor must lie inside the file, before anything large is allocated.
    fn check_length(&self, len: u64) -> Result<(), LoadError> {
        for (name, info) in &self.content.tensor_infos {
            let bytes = (info.shape.elem_count() / info.ggml_dtype.block_size()).saturating_mul(info.ggml_dtype.type_size());
            let end = self.content.tensor_data_offset.saturating_add(info.offset).saturating_add(bytes as u64);
            if end > len {
                return Err(LoadError::Truncated { path: self.path.clone(), tensor: name.clone(), end, len });
            }
        }
        Ok(())
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Result<usize, LoadError> {
        self.optional_size(key).ok_or_else(|| LoadError::MissingKey { key: self.key(key) })
    }

    fn optional_size(&self, key: &str) -> Option<usize> {
        self.content.metadata.get(&self.key(key)).and_then(unsigned)
    }

    fn float(&self, key: &str) -> Option<f64> {
        let value = self.content.metadata.get(&self.key(key))?;
        value.to_f32().map(f64::from).or_else(|_| value.to_f64()).ok()
    }

    fn refuse(&self) -> Result<(), LoadError> {
        if self.optional_size("expert_count").is_some_and(|n| n > 0) {
            return Err(LoadError::unsupported("a mixture of experts"));
        }
        if let Some(window) = self.optional_size("attention.sliding_window").filter(|window| *window > 0) {
            return Err(LoadError::unsupported(format!("a sliding window of {window}")));
        }
        let (key, value) = (self.optional_size("attention.key_length"), self.optional_size("attention.value_length"));
        if key.is_some() && value.is_some() && key != value {
            return Err(LoadError::unsupported("keys and values of different length"));
        }
        Ok(())
    }

    fn rope_scaling(&self, head_dim: usize) -> Result<RopeScaling, LoadError> {
        if self.optional_size("rope.dimension_count").is_some_and(|n| n != head_dim) {
            return Err(LoadError::unsupported("rotary positions on a part of each head"));
        }
        if self.contains("rope_freqs.weight") {
            let factors = self.read("rope_freqs.weight")?;
            let words = factors.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let factors: Vec<f64> = words.map(f64::from).collect();
            if factors.len() != head_dim / 2 || !factors.iter().all(|factor| *factor > 0.0) {
                return Err(LoadError::Shape {
                    name: "rope_freqs.weight".into(),
                    found: vec![factors.len()],
                    expected: vec![head_dim / 2],
                });
            }
            return Ok(RopeScaling::Factors(factors));
        }
        let kind = string(&self.content, &self.key("rope.scaling.type")).unwrap_or_else(|| "none".into());
        match kind.as_str() {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear(self.float("rope.scaling.factor").unwrap_or(1.0))),
            other => Err(LoadError::unsupported(format!("rope scaling {other}"))),
        }
    }

    /// The tokenizer and chat template stored beside the weights.
    pub(crate) fn vocabulary(&self) -> Result<GgufVocabulary, LoadError> {
        let get = |key: &str| self.content.metadata.get(&format!("tokenizer.ggml.{key}"));
        let id = |key: &str| get(key).and_then(unsigned).map(|id| id as u32);
        let flag = |key: &str| get(key).and_then(|value| value.to_bool().ok());
        let strings = |key: &str| array(get(key), |value| value.to_string().ok().cloned());
        let missing = |key: &str| LoadError::MissingKey { key: format!("tokenizer.ggml.{key}") };
        Ok(GgufVocabulary {
            model: string(&self.content, "tokenizer.ggml.model").ok_or_else(|| missing("model"))?,
            pre: string(&self.content, "tokenizer.ggml.pre").unwrap_or_default(),
            tokens: strings("tokens").ok_or_else(|| missing("tokens"))?,
            scores: array(get("scores"), |value| value.to_f32().ok()),
            token_types: array(get("token_type"), |value| value.to_i32().ok()).unwrap_or_default(),
            merges: strings("merges").unwrap_or_default(),
            bos: id("bos_token_id"),
            eos: id("eos_token_id"),
            eot: id("eot_token_id"),
            unk: id("unknown_token_id"),
            pad: id("padding_token_id"),
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            add_space_prefix: flag("add_space_prefix"),
            chat_template: string(&self.content, "tokenizer.chat_template"),
        })
    }
}

impl Checkpoint for GgufCheckpoint {
    fn config(&self) -> Result<ModelConfig, LoadError> {
        // llama.cpp's converter permutes Q and K of the llama architecture so that neighbours rotate together.
        let (architecture, rope_layout) = match self.architecture.as_str() {
            "llama" => (Architecture::Llama, RopeLayout::Interleaved),
            "qwen2" => (Architecture::Qwen2, RopeLayout::Half),
            "qwen3" => (Architecture::Qwen3, RopeLayout::Half),
            other => return Err(LoadError::unsupported(format!("architecture {other}"))),
        };
        self.refuse()?;
        let (hidden_size, num_heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let head_dim = self.optional_size("attention.key_length").unwrap_or(hidden_size / num_heads.max(1));
        let missing = |key: &str| LoadError::MissingKey { key: self.key(key) };
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let vocab_size = embedding.and_then(|info| info.shape.dims().first().copied());
        ModelConfig {
            architecture,
            num_layers: self.size("block_count")?,
            hidden_size,
            intermediate_size: self.size("feed_forward_length")?,
            num_heads,
            num_kv_heads: self.optional_size("attention.head_count_kv").unwrap_or(num_heads),
            head_dim,
            vocab_size: vocab_size.ok_or_else(|| LoadError::MissingTensor { name: "token_embd.weight".into() })?,
            max_position: self.size("context_length")?,
            rms_norm_eps: self
                .float("attention.layer_norm_rms_epsilon")
                .ok_or_else(|| missing("attention.layer_norm_rms_epsilon"))? as f32,
            rope_theta: self.float("rope.freq_base").unwrap_or(10_000.0),
            rope_layout,
            rope_scaling: self.rope_scaling(head_dim)?,
            tied_head: !self.contains("output.weight"),
        }
        .validated()
    }

    fn special_tokens(&self) -> SpecialTokens {
        let id = |key: &str| {
            self.content.metadata.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(unsigned).map(|id| id as u32)
        };
        let mut eos: Vec<u32> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
        eos.dedup();
        SpecialTokens { bos: id("bos"), eos }
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
            LayerRole::FeedForwardNorm => "ffn_norm.weight",
            LayerRole::Gate => "ffn_gate.weight",
            LayerRole::Up => "ffn_up.weight",
            LayerRole::Down => "ffn_down.weight",
        };
        format!("blk.{layer}.{part}")
    }

    fn contains(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    fn names(&self) -> Vec<String> {
        self.content.tensor_infos.keys().cloned().collect()
    }

    fn read(&self, name: &str) -> Result<RawTensor, LoadError> {
        let info = self.content.tensor_infos.get(name).ok_or_else(|| LoadError::MissingTensor { name: name.to_owned() })?;
        let ty =
            ggml_type(info.ggml_dtype).ok_or_else(|| LoadError::unsupported(format!("tensor {name}: {:?}", info.ggml_dtype)))?;
        let mut bytes = vec![0; info.shape.elem_count() / ty.block_len() * ty.block_bytes()];
        let io = |source| LoadError::Io { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.content.tensor_data_offset + info.offset)).map_err(io)?;
        file.read_exact(&mut bytes).map_err(io)?;
        Ok(RawTensor { ty, shape: info.shape.dims().to_vec(), bytes })
    }
}

fn ggml_type(dtype: GgmlDType) -> Option<GgmlType> {
    Some(match dtype {
        GgmlDType::F32 => GgmlType::F32,
        GgmlDType::F16 => GgmlType::F16,
        GgmlDType::BF16 => GgmlType::Bf16,
        GgmlDType::Q4_0 => GgmlType::Q4_0,
        GgmlDType::Q4_1 => GgmlType::Q4_1,
        GgmlDType::Q5_0 => GgmlType::Q5_0,
        GgmlDType::Q5_1 => GgmlType::Q5_1,
        GgmlDType::Q8_0 => GgmlType::Q8_0,
        GgmlDType::Q2K => GgmlType::Q2K,
        GgmlDType::Q3K => GgmlType::Q3K,
        GgmlDType::Q4K => GgmlType::Q4K,
        GgmlDType::Q5K => GgmlType::Q5K,
        GgmlDType::Q6K => GgmlType::Q6K,
        GgmlDType::Q8_1 | GgmlDType::Q8K => return None,
    })
}

fn string(content: &Content, key: &str) -> Option<String> {
    content.metadata.get(key).and_then(|value| value.to_string().ok()).cloned()
}

fn unsigned(value: &Value) -> Option<usize> {
    let signed = || value.to_i32().map(i64::from).or_else(|_| value.to_i64()).ok().and_then(|n| usize::try_from(n).ok());
    value.to_u64().ok().and_then(|n| usize::try_from(n).ok()).or_else(signed)
}

fn array<T>(value: Option<&Value>, item: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value?.to_vec().ok()?.iter().map(item).collect()
}

/// candle may append a backtrace to its errors; the first line says it.
fn one_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
