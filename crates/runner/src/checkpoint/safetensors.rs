//! Folders of safetensors with a `config.json`, in the layout of Hugging Face.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use kernels::cpu::GgmlType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::{Checkpoint, LayerRole, RawTensor, Role, SpecialTokens, hf_config, read_range, read_text};
use crate::LoadError;
use crate::ModelSpec;
use crate::error::{brief, shown};

pub(crate) struct SafetensorsCheckpoint {
    folder: PathBuf,
    config: String,
    tensors: HashMap<String, Place>,
    /// True if embeddings and head are one matrix, even if there are two tensors.
    is_tied: bool,
    has_post_norms: bool,
}

#[derive(Clone)]
struct Place {
    file: PathBuf,
    offset: u64,
    len: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// Files with weights, and the content of their index.
struct WeightFiles {
    files: Vec<PathBuf>,
    /// File of each tensor.
    index: Option<HashMap<String, PathBuf>>,
}

/// Headers are JSON of a hundred bytes per tensor; a longer one is invalid.
const MAX_HEADER_BYTES: u64 = 24 << 20;
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

impl SafetensorsCheckpoint {
    pub(crate) fn open(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let config = read_text(&path)?;
        let ModelSpec { tied_head: says_tied, has_post_norms, .. } = hf_config::read(&path, &config)?;
        let WeightFiles { files, index } = weight_files(folder)?;
        let mut tensors = HashMap::new();
        for file in &files {
            let is_wanted = |name: &str| index.as_ref().is_none_or(|index| index.get(name).is_some_and(|of| of == file));
            read_header(file, is_wanted, &mut tensors)?;
        }
        let is_tied = says_tied && !differ(&tensors)?;
        if is_tied
            && !tensors.contains_key(EMBEDDING)
            && let Some(head) = tensors.remove(HEAD)
        {
            // With tied weights, either tensor serves as the embedding.
            tensors.insert(EMBEDDING.to_owned(), head);
        }
        Ok(Self { folder: folder.to_owned(), config, tensors, is_tied, has_post_norms })
    }
}

/// Returns true if there is a head besides the embeddings with other elements: then both are used, regardless of the configured tying, as
/// in transformers 5.
fn differ(tensors: &HashMap<String, Place>) -> Result<bool, LoadError> {
    let (Some(embedding), Some(head)) = (tensors.get(EMBEDDING), tensors.get(HEAD)) else { return Ok(false) };
    let is_alike = embedding.dtype == head.dtype && embedding.shape == head.shape && embedding.len == head.len;
    let mut differs = !is_alike;
    for at in (0..embedding.len).step_by(COMPARED_BYTES) {
        if differs {
            break;
        }
        let len = COMPARED_BYTES.min(embedding.len - at);
        let read = |place: &Place| read_range(&place.file, place.offset + at as u64, len);
        differs = read(embedding)? != read(head)?;
    }
    if differs {
        tracing::warn!("the configuration ties {HEAD} to {EMBEDDING}, but they differ: both are used");
    }
    Ok(differs)
}

/// Bytes of two tensors that are compared at a time.
const COMPARED_BYTES: usize = 4 << 20;

/// Returns `model.safetensors`, else the shards in the index, else all other weight files: no adapter, and not the copy in another layout
/// that some publishers add.
fn weight_files(folder: &Path) -> Result<WeightFiles, LoadError> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(WeightFiles { files: vec![single], index: None });
    }
    let index = folder.join("model.safetensors.index.json");
    if index.is_file() {
        return indexed_files(folder, &index);
    }
    let io = |source| LoadError::Io { path: folder.to_owned(), source };
    let entries: Vec<_> = std::fs::read_dir(folder).and_then(Iterator::collect).map_err(io)?;
    let mut files: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).filter(|path| is_weights(path)).collect();
    files.sort();
    if files.is_empty() {
        return Err(LoadError::Corrupt { path: folder.to_owned(), reason: "it holds no safetensors of a model".into() });
    }
    Ok(WeightFiles { files, index: None })
}

fn is_weights(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_other = ["consolidated", "adapter", "optimizer", "training"].iter().any(|start| name.starts_with(start));
    name.ends_with(".safetensors") && !is_other
}

fn indexed_files(folder: &Path, path: &Path) -> Result<WeightFiles, LoadError> {
    let corrupt = |reason: String| LoadError::Corrupt { path: path.to_owned(), reason };
    let json: Value = serde_json::from_str(&read_text(path)?).map_err(|error| corrupt(brief(&error)))?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| corrupt("no weight_map".into()))?;
    let mut index = HashMap::new();
    for (tensor, file) in map {
        let name = file.as_str().ok_or_else(|| corrupt(format!("tensor {} is in no file", shown(tensor))))?;
        // A checkpoint is its folder; names that leave it are refused.
        if name.is_empty() || !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(corrupt(format!("{} is no file of the folder", shown(name))));
        }
        index.insert(tensor.clone(), folder.join(name));
    }
    let mut files: Vec<PathBuf> = index.values().cloned().collect();
    files.sort();
    files.dedup();
    match files.is_empty() {
        true => Err(corrupt("its weight_map is empty".into())),
        false => Ok(WeightFiles { files, index: Some(index) }),
    }
}

fn read_header(path: &Path, is_wanted: impl Fn(&str) -> bool, tensors: &mut HashMap<String, Place>) -> Result<(), LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let corrupt = |reason: String| LoadError::Corrupt { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    if file_len < 8 {
        return Err(corrupt("it is shorter than the length of its header".into()));
    }
    let mut header_len = [0; 8];
    file.read_exact(&mut header_len).map_err(io)?;
    let header_len = u64::from_le_bytes(header_len);
    if header_len > MAX_HEADER_BYTES.min(file_len - 8) {
        return Err(corrupt(format!("a header of {header_len} bytes")));
    }
    let mut header = Vec::new();
    file.take(header_len).read_to_end(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| corrupt(brief(&error)))?;
    for (name, info) in metadata.tensors() {
        if !is_wanted(&name) {
            continue;
        }
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let num_elements = info.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let bits = num_elements.and_then(|num_elements| num_elements.checked_mul(info.dtype.bitsize()));
        let len = end.checked_sub(start).and_then(|len| usize::try_from(len).ok());
        let len = len.filter(|len| bits.is_some_and(|bits| bits.div_ceil(8) == *len) && *len > 0);
        let len = len.ok_or_else(|| corrupt(format!("tensor {} has another length than its shape says", shown(&name))))?;
        let file_end = end.saturating_add(8 + header_len);
        if file_end > file_len {
            return Err(LoadError::Truncated { path: path.to_owned(), tensor: shown(&name), end: file_end, len: file_len });
        }
        let place =
            Place { file: path.to_owned(), offset: 8 + header_len + start, len, dtype: info.dtype, shape: info.shape.clone() };
        if let Some(other) = tensors.insert(name.clone(), place) {
            return Err(corrupt(format!("tensor {} is in {}, too", shown(&name), other.file.display())));
        }
    }
    Ok(())
}

impl Checkpoint for SafetensorsCheckpoint {
    fn config(&self) -> Result<ModelSpec, LoadError> {
        let config = hf_config::read(&self.folder.join("config.json"), &self.config)?;
        Ok(ModelSpec { tied_head: self.is_tied, ..config })
    }

    /// Reads `generation_config.json` if it exists, since it lists all tokens that end a turn, else `config.json`.
    fn special_tokens(&self) -> Result<SpecialTokens, LoadError> {
        let [config_path, generation_path] = ["config.json", "generation_config.json"].map(|name| self.folder.join(name));
        let config = hf_config::parse(&config_path, &self.config)?;
        let generation = match generation_path.exists() {
            true => hf_config::parse(&generation_path, &read_text(&generation_path)?)?,
            false => Value::Object(serde_json::Map::new()),
        };
        let files = [(&*generation_path, &generation), (&*config_path, &config)];
        let vocab_size = self.config()?.vocab_size;
        let ids = |key: &str| hf_config::token_ids(&files, key, vocab_size);
        Ok(SpecialTokens { bos: ids("bos_token_id")?.first().copied(), eos: ids("eos_token_id")? })
    }

    /// Gemma's files hold the difference of each norm's weight from one.
    fn norm_offset(&self) -> f32 {
        if self.has_post_norms { 1.0 } else { 0.0 }
    }

    fn name(&self, role: Role) -> String {
        let (layer, part) = match role {
            Role::Embedding => return EMBEDDING.into(),
            Role::OutputNorm => return "model.norm.weight".into(),
            Role::Head => return HEAD.into(),
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
            LayerRole::AttentionPostNorm => "post_attention_layernorm.weight",
            // A norm after attention takes the name that elsewhere belongs to the one before the feed-forward layer.
            LayerRole::FeedForwardNorm if self.has_post_norms => "pre_feedforward_layernorm.weight",
            LayerRole::FeedForwardNorm => "post_attention_layernorm.weight",
            LayerRole::Gate => "mlp.gate_proj.weight",
            LayerRole::Up => "mlp.up_proj.weight",
            LayerRole::Down => "mlp.down_proj.weight",
            LayerRole::FeedForwardPostNorm => "post_feedforward_layernorm.weight",
        };
        format!("model.layers.{layer}.{part}")
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|place| place.shape.clone())
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
            other => return Err(LoadError::unsupported(format!("tensor {}: {other:?}", shown(name)))),
        };
        let bytes = read_range(&place.file, place.offset, place.len)?;
        Ok(RawTensor { ty, shape: place.shape.clone(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":2,"intermediate_size":2,"num_hidden_layers":1,
        "num_attention_heads":1,"vocab_size":2,"max_position_embeddings":64,"rms_norm_eps":1e-5,"tie_word_embeddings":true}"#;

    /// Builds a file with F32 tensors of two by two, each filled with one value.
    fn safetensors(tensors: &[(&str, f32)]) -> Vec<u8> {
        let entry = |(index, (name, _)): (usize, &(&str, f32))| {
            format!(r#""{name}":{{"dtype":"F32","shape":[2,2],"data_offsets":[{},{}]}}"#, index * 16, index * 16 + 16)
        };
        let header = format!("{{{}}}", tensors.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(tensors.iter().flat_map(|(_, number)| [number.to_le_bytes(); 4]).flatten());
        bytes
    }

    fn open(files: &[(&str, &[u8])]) -> Result<SafetensorsCheckpoint, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let checkpoint = SafetensorsCheckpoint::open(folder.path())?;
        // The files are deleted afterwards, so the tensors that tests compare are read here.
        let first: Vec<_> =
            checkpoint.names().iter().map(|name| checkpoint.read(name).map(|tensor| tensor.bytes[..4].to_vec())).collect();
        assert!(first.iter().all(Result::is_ok));
        Ok(checkpoint)
    }

    /// Checks that the tensors of the files are `expected`.
    #[track_caller]
    fn check_names(files: &[(&str, &[u8])], expected: &[&str]) {
        let mut names = open(files).unwrap().names();
        names.sort();
        assert_eq!(names, expected);
    }

    #[track_caller]
    fn check_refused(files: &[(&str, &[u8])], named: &str) {
        let message = open(files).err().expect(named).to_string();
        assert!(message.contains(named) && message.len() < 400 && !message.contains('\n'), "{message}");
    }

    #[test]
    fn a_stray_file_is_not_read() {
        let (model, stray) = (safetensors(&[("a", 1.0)]), safetensors(&[("a", 2.0), ("b", 2.0)]));
        for name in ["zzz.safetensors", "consolidated.safetensors", "adapter_model.safetensors", "another.safetensors"] {
            check_names(&[("model.safetensors", &model), (name, &stray)], &["a"]);
        }
        check_names(&[("weights.safetensors", &model), ("consolidated.00.safetensors", &stray)], &["a"]);
        check_refused(&[("x.safetensors", &model), ("y.safetensors", &stray)], "tensor a is in");
        check_refused(&[("adapter_model.safetensors", &model)], "no safetensors of a model");
    }

    #[test]
    fn an_index_says_which_file_has_a_tensor() {
        let (one, two) = (safetensors(&[("a", 1.0), ("b", 1.0)]), safetensors(&[("b", 2.0)]));
        let index = br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        let name = "model.safetensors.index.json";
        check_names(&[("1.safetensors", &one), ("2.safetensors", &two), (name, index)], &["a", "b"]);
        check_refused(&[("1.safetensors", &one), (name, index)], "2.safetensors");
        check_refused(&[(name, br#"{"weight_map": {"a": "../1.safetensors"}}"#)], "no file of the folder");
        check_refused(&[(name, br#"{"weight_map": {"a": "/etc/passwd"}}"#)], "no file of the folder");
    }

    #[test]
    fn a_head_that_differs_is_used_and_an_equal_one_is_tied() {
        let tied = |head: f32| {
            let model = safetensors(&[(EMBEDDING, 1.0), (HEAD, head)]);
            open(&[("model.safetensors", &model)]).unwrap().config().unwrap().tied_head
        };
        assert!(tied(1.0) && !tied(2.0));
        let only_head = open(&[("model.safetensors", &safetensors(&[(HEAD, 3.0)]))]).unwrap();
        assert!(only_head.config().unwrap().tied_head && only_head.contains(EMBEDDING) && !only_head.contains(HEAD));
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let whole = safetensors(&[("a", 1.0)]);
        let with = |from: &str, to: &str| {
            let header = String::from_utf8(whole[8..whole.len() - 16].to_vec()).unwrap().replace(from, to);
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 16]].concat()
        };
        check_refused(&[("model.safetensors", &with("[2,2]", "[4294967296,4294967296]"))], "not a usable");
        check_refused(&[("model.safetensors", &with("[0,16]", "[16,0]"))], "not a usable");
        check_refused(&[("model.safetensors", &with("F32", &"x".repeat(5000)))], "not a usable");
        check_refused(&[("model.safetensors", &u64::MAX.to_le_bytes())], "a header of");
        check_refused(&[("model.safetensors", b"abc")], "shorter");
        check_refused(&[("model.safetensors", &whole[..whole.len() - 1])], "truncated");
    }
}
