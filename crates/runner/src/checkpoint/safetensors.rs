//! Folders of safetensors with a `config.json`, as Hugging Face lays them out.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use kernels::cpu::GgmlType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::{Checkpoint, LayerRole, RawTensor, Role, SpecialTokens};
use crate::LoadError;
use crate::config::{self, ModelConfig};

pub(crate) struct SafetensorsCheckpoint {
    folder: PathBuf,
    config: String,
    tensors: HashMap<String, Place>,
}

struct Place {
    file: PathBuf,
    offset: u64,
    len: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// Headers are JSON of a few hundred bytes a tensor; more than this is no header.
const MAX_HEADER_BYTES: u64 = 100 << 20;

impl SafetensorsCheckpoint {
    pub(crate) fn open(folder: &Path) -> Result<Self, LoadError> {
        let config = read_text(&folder.join("config.json"))?;
        let mut tensors = HashMap::new();
        for file in weight_files(folder)? {
            read_header(&file, &mut tensors)?;
        }
        Ok(Self { folder: folder.to_owned(), config, tensors })
    }
}

fn read_text(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path).map_err(|source| LoadError::Io { path: path.to_owned(), source })
}

/// The shards the index names, or else every `.safetensors` file of the folder.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let index = folder.join("model.safetensors.index.json");
    let mut files: Vec<PathBuf> = if index.exists() {
        let corrupt = |reason: String| LoadError::Corrupt { path: index.clone(), reason };
        let json: Value = serde_json::from_str(&read_text(&index)?).map_err(|error| corrupt(error.to_string()))?;
        let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| corrupt("no weight_map".into()))?;
        map.values().filter_map(Value::as_str).map(|name| folder.join(name)).collect()
    } else {
        let io = |source| LoadError::Io { path: folder.to_owned(), source };
        let entries: Vec<_> = std::fs::read_dir(folder).and_then(Iterator::collect).map_err(io)?;
        entries.iter().map(std::fs::DirEntry::path).filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect()
    };
    files.sort();
    files.dedup();
    if files.is_empty() {
        return Err(LoadError::Corrupt { path: folder.to_owned(), reason: "it holds no safetensors".into() });
    }
    Ok(files)
}

fn read_header(path: &Path, tensors: &mut HashMap<String, Place>) -> Result<(), LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let corrupt = |reason: String| LoadError::Corrupt { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    let mut header = vec![0; 8];
    file.read_exact(&mut header).map_err(io)?;
    let header_len = u64::from_le_bytes(header[..8].try_into().expect("eight bytes"));
    if header_len > MAX_HEADER_BYTES.min(file_len) {
        return Err(corrupt(format!("a header of {header_len} bytes")));
    }
    file.take(header_len).read_to_end(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header[8..]).map_err(|error| corrupt(error.to_string()))?;
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let offset = 8 + header_len + start as u64;
        if 8 + header_len + end as u64 > file_len {
            return Err(LoadError::Truncated {
                path: path.to_owned(),
                tensor: name,
                end: 8 + header_len + end as u64,
                len: file_len,
            });
        }
        let place = Place { file: path.to_owned(), offset, len: end - start, dtype: info.dtype, shape: info.shape.clone() };
        tensors.insert(name, place);
    }
    Ok(())
}

impl Checkpoint for SafetensorsCheckpoint {
    fn config(&self) -> Result<ModelConfig, LoadError> {
        config::from_hf(&self.folder.join("config.json"), &self.config)
    }

    /// From `generation_config.json` where there is one, which lists all tokens that end a turn, else from `config.json`.
    fn special_tokens(&self) -> SpecialTokens {
        let generation = std::fs::read_to_string(self.folder.join("generation_config.json")).unwrap_or_default();
        let sources: Vec<Value> =
            [&generation, &self.config].into_iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
        let ids = |key: &str| {
            let value = sources.iter().find_map(|json| json.get(key).filter(|value| !value.is_null()));
            let id = |value: &Value| value.as_u64().map(|id| id as u32);
            match value {
                Some(Value::Array(many)) => many.iter().filter_map(id).collect(),
                Some(one) => id(one).into_iter().collect(),
                None => Vec::new(),
            }
        };
        SpecialTokens { bos: ids("bos_token_id").first().copied(), eos: ids("eos_token_id") }
    }

    fn name(&self, role: Role) -> String {
        let (layer, part) = match role {
            Role::Embedding => return "model.embed_tokens.weight".into(),
            Role::OutputNorm => return "model.norm.weight".into(),
            Role::Head => return "lm_head.weight".into(),
            Role::Layer(layer, part) => (layer, part),
        };
        let part = match part {
            LayerRole::AttentionNorm => "input_layernorm.weight",
            LayerRole::Query => "self_attn.q_proj.weight",
            LayerRole::Key => "self_attn.k_proj.weight",
            LayerRole::Value => "self_attn.v_proj.weight",
            LayerRole::QueryBias => "self_attn.q_proj.bias",
            LayerRole::KeyBias => "self_attn.k_proj.bias",
            LayerRole::ValueBias => "self_attn.v_proj.bias",
            LayerRole::QueryNorm => "self_attn.q_norm.weight",
            LayerRole::KeyNorm => "self_attn.k_norm.weight",
            LayerRole::Output => "self_attn.o_proj.weight",
            LayerRole::FeedForwardNorm => "post_attention_layernorm.weight",
            LayerRole::Gate => "mlp.gate_proj.weight",
            LayerRole::Up => "mlp.up_proj.weight",
            LayerRole::Down => "mlp.down_proj.weight",
        };
        format!("model.layers.{layer}.{part}")
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn read(&self, name: &str) -> Result<RawTensor, LoadError> {
        let place = self.tensors.get(name).ok_or_else(|| LoadError::MissingTensor { name: name.to_owned() })?;
        let ty = match place.dtype {
            Dtype::F32 => GgmlType::F32,
            Dtype::F16 => GgmlType::F16,
            Dtype::BF16 => GgmlType::Bf16,
            other => return Err(LoadError::unsupported(format!("tensor {name}: {other:?}"))),
        };
        let io = |source| LoadError::Io { path: place.file.clone(), source };
        let mut file = File::open(&place.file).map_err(io)?;
        file.seek(SeekFrom::Start(place.offset)).map_err(io)?;
        let mut bytes = vec![0; place.len];
        file.read_exact(&mut bytes).map_err(io)?;
        Ok(RawTensor { ty, shape: place.shape.clone(), bytes })
    }
}
