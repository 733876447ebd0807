//! The `config.json` of Hugging Face.
//!
//! A checkpoint that requires something this crate does not compute is refused by name here, so that no model gives wrong output.

use std::path::Path;

use kernels::cpu::{Activation, RopeLayout};
use serde_json::Value;

use super::fields::Fields;
use super::hf_rope;
use crate::LoadError;
use crate::error::{brief, shown};
use crate::spec::{self, Architecture, GEMMA3_PATTERN, LayerSpec, ModelSpec};

/// A model class of transformers, whose defaults differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma3,
}

/// Layers without a window, from the first on, of a Qwen configuration that does not say; this and the following as in transformers 5.
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;
/// Sliding window of a configuration that does not say.
const DEFAULT_WINDOW: usize = 4096;
const DEFAULT_EPSILON: f64 = 1e-6;
/// `query_pre_attn_scalar` of Gemma 3.
const GEMMA3_SCORE_DIVISOR: f64 = 256.0;

/// Reads the JSON of a checkpoint's file at `path`.
///
/// # Errors
/// If it is no JSON.
pub(super) fn parse(path: &Path, json: &str) -> Result<Value, LoadError> {
    serde_json::from_str(json).map_err(|error| LoadError::Corrupt { path: path.to_owned(), reason: brief(&error) })
}

/// Reads `config.json`.
pub(crate) fn read(path: &Path, json: &str) -> Result<ModelSpec, LoadError> {
    let content = parse(path, json)?;
    let config = Fields::of_file(path, &content)?;
    let family = Family::of(config)?;
    refuse(config)?;
    let is_gemma = family == Family::Gemma3;
    let num_heads = config.required_size("num_attention_heads")?;
    let hidden_size = config.required_size("hidden_size")?;
    let head_dim = config.size("head_dim")?.unwrap_or_else(|| family.default_head_dim(hidden_size, num_heads));
    let ropes = if is_gemma { hf_rope::gemma3_ropes(config)? } else { hf_rope::rope(config)? };
    let spec = ModelSpec {
        architecture: family.architecture(),
        layers: family.layers(config, ropes.len())?,
        hidden_size,
        intermediate_size: config.required_size("intermediate_size")?,
        num_heads,
        num_kv_heads: family.num_kv_heads(config, num_heads)?,
        head_dim,
        vocab_size: config.required_size("vocab_size")?,
        max_position: config.required_size("max_position_embeddings")?,
        rms_norm_eps: config.number("rms_norm_eps")?.unwrap_or(DEFAULT_EPSILON) as f32,
        ropes,
        rope_layout: RopeLayout::Half,
        attention_scale: 1.0 / (family.score_divisor(config, head_dim)? as f32).sqrt(),
        embedding_scale: if is_gemma { (hidden_size as f32).sqrt() } else { 1.0 },
        activation: family.activation(config)?,
        has_post_norms: is_gemma,
        tied_head: config.flag("tie_word_embeddings")?.unwrap_or(is_gemma),
    };
    spec.validated().map_err(|error| match error {
        LoadError::Unsupported { what } => LoadError::unsupported(format!("{}: {what}", path.display())),
        other => other,
    })
}

/// Returns the ids of the tokens that `key` names in the first file that has it: `generation_config.json`, then `config.json`.
///
/// # Errors
/// If an id in any of the files is outside the vocabulary.
pub(super) fn token_ids(files: &[(&Path, &Value)], key: &str, vocab_size: usize) -> Result<Vec<u32>, LoadError> {
    let mut first = Vec::new();
    for (path, content) in files {
        let ids = Fields::of_file(path, content)?.token_ids(key, vocab_size)?;
        if first.is_empty() {
            first = ids;
        }
    }
    Ok(first)
}

impl Family {
    fn of(config: Fields<'_>) -> Result<Self, LoadError> {
        let names = config.texts("architectures")?.unwrap_or_default();
        let Some(name) = names.first() else { return Err(config.error("architectures", "is missing or empty")) };
        Ok(match *name {
            "LlamaForCausalLM" => Self::Llama,
            "MistralForCausalLM" => Self::Mistral,
            "Qwen2ForCausalLM" => Self::Qwen2,
            "Qwen3ForCausalLM" => Self::Qwen3,
            "Gemma3ForCausalLM" => Self::Gemma3,
            other => return Err(config.error("architectures", format!("of {} is not supported", shown(other)))),
        })
    }

    fn architecture(self) -> Architecture {
        match self {
            Self::Llama | Self::Mistral => Architecture::Llama,
            Self::Qwen2 => Architecture::Qwen2,
            Self::Qwen3 => Architecture::Qwen3,
            Self::Gemma3 => Architecture::Gemma3,
        }
    }

    fn default_head_dim(self, hidden_size: usize, num_heads: usize) -> usize {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => hidden_size / num_heads.max(1),
            Self::Qwen3 => 128,
            Self::Gemma3 => 256,
        }
    }

    fn num_kv_heads(self, config: Fields<'_>, num_heads: usize) -> Result<usize, LoadError> {
        const KEY: &str = "num_key_value_heads";
        // Null means one for each query head in every family; an absent field does so only in Llama's.
        let default = match self {
            Self::Llama => num_heads,
            _ if config.is_null(KEY) => num_heads,
            Self::Mistral => 8,
            Self::Qwen2 | Self::Qwen3 => 32,
            Self::Gemma3 => 4,
        };
        Ok(config.size(KEY)?.unwrap_or(default))
    }

    /// Returns the square of the divisor of attention scores.
    fn score_divisor(self, config: Fields<'_>, head_dim: usize) -> Result<f64, LoadError> {
        match self {
            Self::Gemma3 => Ok(config.number("query_pre_attn_scalar")?.unwrap_or(GEMMA3_SCORE_DIVISOR)),
            _ => Ok(head_dim as f64),
        }
    }

    fn activation(self, config: Fields<'_>) -> Result<Activation, LoadError> {
        let (key, default) = match self {
            Self::Gemma3 => ("hidden_activation", "gelu_pytorch_tanh"),
            _ => ("hidden_act", "silu"),
        };
        match config.text(key)?.unwrap_or(default) {
            "silu" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => Err(config.error(key, format!("of {} is not supported", shown(other)))),
        }
    }

    /// Returns the sliding window of layers that have one; `None` if no layer does.
    fn window(self, config: Fields<'_>) -> Result<Option<usize>, LoadError> {
        let window = config.size("sliding_window")?;
        let window = if config.is_null("sliding_window") { None } else { window.or(Some(DEFAULT_WINDOW)) };
        match self {
            Self::Llama => Ok(None),
            Self::Mistral | Self::Gemma3 => Ok(window),
            // Qwen files set a window and disable it.
            Self::Qwen2 | Self::Qwen3 => {
                Ok(window.filter(|_| config.flag("use_sliding_window").is_ok_and(|used| used == Some(true))))
            }
        }
    }

    fn layers(self, config: Fields<'_>, num_ropes: usize) -> Result<Vec<LayerSpec>, LoadError> {
        let num_layers = config.required_size("num_hidden_layers")?;
        config.flag("use_sliding_window")?;
        let window = self.window(config)?;
        let types = layer_types(config, num_layers)?;
        let pattern = config.size("sliding_window_pattern")?.unwrap_or(GEMMA3_PATTERN);
        if pattern == 0 {
            return Err(config.error("sliding_window_pattern", "of 0 is not supported"));
        }
        let max_window_layers = config.size("max_window_layers")?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
        let is_local = |i: usize| match (self, &types) {
            // Their classes in transformers do not read the types of layers.
            (Self::Llama, _) => false,
            (Self::Mistral, _) => true,
            (Self::Gemma3 | Self::Qwen2 | Self::Qwen3, Some(types)) => types[i] == LOCAL,
            (Self::Gemma3, None) => !(i + 1).is_multiple_of(pattern),
            (Self::Qwen2 | Self::Qwen3, None) => window.is_some() && i >= max_window_layers,
        };
        let needs_window = matches!(self, Self::Gemma3 | Self::Qwen2 | Self::Qwen3);
        if window.is_none() && needs_window && (0..num_layers.min(spec::MAX_LAYERS)).any(is_local) {
            return Err(config.error("sliding_window", "is null or not used, but layers of type sliding_attention need it"));
        }
        // A window that spans everything is none.
        let max_position = config.required_size("max_position_embeddings")?;
        let window = window.filter(|window| *window < max_position).map(|window| u32::try_from(window).unwrap_or(u32::MAX));
        spec::layers(num_layers, num_ropes, window, is_local)
    }
}

const LOCAL: &str = "sliding_attention";

/// Returns the type of each layer, where the file lists them.
fn layer_types<'a>(config: Fields<'a>, num_layers: usize) -> Result<Option<Vec<&'a str>>, LoadError> {
    let Some(types) = config.texts("layer_types")? else { return Ok(None) };
    if types.len() != num_layers {
        return Err(config.error("layer_types", format!("has {} layers, the model {num_layers}", types.len())));
    }
    match types.iter().find(|kind| !["full_attention", LOCAL].contains(kind)) {
        Some(kind) => Err(config.error("layer_types", format!("of {} are not supported", shown(kind)))),
        None => Ok(Some(types)),
    }
}

fn refuse(config: Fields<'_>) -> Result<(), LoadError> {
    for key in ["mlp_bias", "use_bidirectional_attention"] {
        if config.flag(key)? == Some(true) {
            return Err(config.error(key, "is not supported"));
        }
    }
    for key in ["num_experts", "num_local_experts"] {
        if config.size(key)?.is_some_and(|n| n > 0) {
            return Err(config.error(key, "is not supported: a mixture of experts"));
        }
    }
    for key in ["quantization_config", "attn_logit_softcapping", "final_logit_softcapping"] {
        if config.get(key).is_some() {
            return Err(config.error(key, "is not supported"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Mask, RopeScaling, RopeSpec};

    const BASE: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":256,"max_position_embeddings":4096,"rms_norm_eps":1e-5,"rope_theta":10000.0"#;

    #[track_caller]
    fn check_refused(extra: &str, name: &str) {
        let error = read(Path::new("config.json"), &format!("{BASE},{extra}}}")).expect_err(extra);
        assert!(error.to_string().contains(name), "{error}");
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        check_refused(r#""rope_scaling":{"rope_type":"yarn","factor":4.0}"#, "yarn");
        check_refused(r#""rope_scaling":{"type":"dynamic","factor":4.0}"#, "dynamic");
        check_refused(r#""final_logit_softcapping":30.0"#, "config.json: final_logit_softcapping");
        check_refused(r#""layer_types":["full_attention","chunked_attention"]"#, "chunked_attention");
        check_refused(r#""layer_types":["full_attention"]"#, "layer_types has 1");
        check_refused(r#""num_local_experts":8"#, "experts");
        check_refused(r#""hidden_act":"gelu""#, "gelu");
        check_refused(r#""mlp_bias":true"#, "mlp_bias");
        check_refused(r#""quantization_config":{"bits":4}"#, "quantization_config");
    }

    #[test]
    fn another_architecture_is_refused_by_name() {
        let json = format!("{BASE}}}").replace("LlamaForCausalLM", "GemmaForCausalLM");
        assert!(read(Path::new("config.json"), &json).unwrap_err().to_string().contains("GemmaForCausalLM"));
    }

    #[test]
    fn constants_that_cannot_be_meant_are_refused_by_name() {
        let check = |from: &str, to: &str, named: &str| {
            let json = format!("{BASE}}}").replace(from, to);
            assert_ne!(json, format!("{BASE}}}"), "{from}");
            let message = read(Path::new("config.json"), &json).expect_err(to).to_string();
            assert!(message.contains(named) && message.len() < 300, "{message}");
        };
        check(r#""num_hidden_layers":2"#, r#""num_hidden_layers":4611686018427387904"#, "layers");
        check(r#""num_hidden_layers":2"#, r#""num_hidden_layers":0"#, "0 layers");
        check(r#""num_attention_heads":4"#, r#""num_attention_heads":0"#, "query heads");
        check(r#""num_key_value_heads":2"#, r#""num_key_value_heads":0"#, "key heads");
        check(r#""hidden_size":64"#, r#""hidden_size":18446744073709551615"#, "hidden size");
        check(r#""vocab_size":256"#, r#""vocab_size":1099511627776"#, "vocabulary");
        check(r#""max_position_embeddings":4096"#, r#""max_position_embeddings":18446744073709551615"#, "positions");
        check(r#""rms_norm_eps":1e-5"#, r#""rms_norm_eps":1e300"#, "epsilon");
        check(r#""rms_norm_eps":1e-5"#, r#""rms_norm_eps":-1"#, "epsilon");
        check(r#""rope_theta":10000.0"#, r#""rope_theta":0"#, "base of the rotary");
        let long = format!(r#""hidden_size":"{}""#, "x".repeat(5000));
        check(r#""hidden_size":64"#, &long, "config.json");
        check_refused(r#""rope_scaling":{"type":"linear","factor":1e308}"#, "frequency");
    }

    fn of_family(family: &str, extra: &str) -> Result<ModelSpec, LoadError> {
        read(Path::new("config.json"), &format!("{BASE},{extra}}}").replace("Llama", family))
    }

    #[test]
    fn windows_are_those_of_each_class() {
        let masks = |family: &str, extra: &str| {
            of_family(family, extra).unwrap().layers.iter().map(|layer| layer.mask).collect::<Vec<_>>()
        };
        let (all, last) = (Mask::Causal, Mask::Window(1024));
        let types = r#""sliding_window":1024,"layer_types":["full_attention","sliding_attention"]"#;
        assert_eq!(masks("Llama", r#""sliding_window":1024"#), [all, all]);
        assert_eq!(masks("Llama", types), [all, all]);
        assert_eq!(masks("Mistral", r#""sliding_window":4096"#), [all, all]);
        assert_eq!(masks("Mistral", r#""sliding_window":null"#), [all, all]);
        assert_eq!(masks("Mistral", r#""sliding_window":1024"#), [last, last]);
        assert_eq!(masks("Mistral", types), [last, last]);
        assert_eq!(masks("Qwen2", r#""sliding_window":1024"#), [all, all]);
        assert_eq!(masks("Qwen2", r#""sliding_window":1024,"use_sliding_window":true,"max_window_layers":1"#), [all, last]);
        assert_eq!(masks("Qwen3", r#""sliding_window":null,"use_sliding_window":true,"max_window_layers":1"#), [all, all]);
        assert_eq!(masks("Gemma3", r#""sliding_window":1024,"sliding_window_pattern":2"#), [last, all]);
        assert_eq!(masks("Gemma3", types), [all, last]);
    }

    #[test]
    fn absent_fields_are_those_of_transformers() {
        let spec = |family: &str, max_position: &str| {
            let json = format!("{BASE}}}").replace("Llama", family).replace(r#":4096"#, max_position);
            let json =
                json.replace(r#","rms_norm_eps":1e-5"#, "").replace(r#""num_hidden_layers":2"#, r#""num_hidden_layers":6"#);
            read(Path::new("config.json"), &json).unwrap()
        };
        let gemma = spec("Gemma3", ":8192");
        assert_eq!((gemma.activation, gemma.attention_scale, gemma.head_dim), (Activation::GeluTanh, 1.0 / 16.0, 256));
        let mut masks = vec![Mask::Window(4096); 6];
        masks[5] = Mask::Causal;
        assert_eq!(gemma.layers.iter().map(|layer| layer.mask).collect::<Vec<_>>(), masks);
        let mistral = spec("Mistral", ":8192");
        assert!(mistral.layers.iter().all(|layer| layer.mask == Mask::Window(4096)));
        for family in ["Llama", "Qwen2", "Qwen3"] {
            let other = spec(family, ":8192");
            assert!(other.layers.iter().all(|layer| layer.mask == Mask::Causal) && other.activation == Activation::Silu);
            assert_eq!((other.head_dim, other.rms_norm_eps), (if family == "Qwen3" { 128 } else { 16 }, 1e-6));
        }
        let divided = of_family("Llama", r#""query_pre_attn_scalar":4"#).unwrap();
        assert_eq!(divided.attention_scale, 0.25);
    }

    #[test]
    fn fields_of_a_wrong_type_are_refused_by_name() {
        for (field, value) in [
            ("sliding_window", r#""512""#),
            ("sliding_window", "16.5"),
            ("layer_types", "[1,2]"),
            ("layer_types", "{}"),
            ("tie_word_embeddings", "1"),
            ("rope_scaling", "5"),
            ("hidden_act", "3"),
            ("use_sliding_window", r#""yes""#),
        ] {
            check_refused(&format!(r#""{field}":{value}"#), &format!("config.json: {field} is "));
        }
        for (field, value) in
            [("rms_norm_eps", r#""1e-6""#), ("rope_theta", r#""x""#), ("hidden_size", "-1"), ("vocab_size", "null")]
        {
            let mut json: Value = serde_json::from_str(&format!("{BASE}}}")).unwrap();
            json[field] = serde_json::from_str(value).unwrap();
            let error = read(Path::new("config.json"), &json.to_string()).expect_err(field).to_string();
            assert!(error.starts_with(&format!("config.json: {field} is ")), "{error}");
        }
        let none = of_family("Gemma3", r#""sliding_window":null"#).unwrap_err().to_string();
        assert!(none.contains("config.json: sliding_window is null"), "{none}");
        let zero = of_family("Gemma3", r#""sliding_window_pattern":0"#).unwrap_err().to_string();
        assert!(zero.contains("sliding_window_pattern of 0"), "{zero}");
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_refused_by_file_and_field() {
        let ids = |generation: Value, config: Value| {
            let files = [(Path::new("generation_config.json"), &generation), (Path::new("config.json"), &config)];
            token_ids(&files, "eos_token_id", 96).map_err(|error| error.to_string())
        };
        use serde_json::json;
        assert_eq!(ids(json!({"eos_token_id": [1, 2]}), json!({"eos_token_id": 5})), Ok(vec![1, 2]));
        assert_eq!(ids(json!({"eos_token_id": null}), json!({"eos_token_id": 95})), Ok(vec![95]));
        assert_eq!(ids(json!({}), json!({})), Ok(vec![]));
        for wrong in [json!(96), json!(-1), json!("2"), json!([2, "x"]), json!(1.5), json!(u64::MAX)] {
            let error = ids(json!({}), json!({"eos_token_id": wrong})).unwrap_err();
            assert!(error.starts_with("config.json: eos_token_id is "), "{error}");
        }
        assert!(
            ids(json!({"eos_token_id": 96}), json!({})).unwrap_err().starts_with("generation_config.json: eos_token_id is 96")
        );
    }

    #[test]
    fn layers_with_a_window_may_rotate_otherwise() {
        let thetas = |extra: &str| {
            let json = format!("{BASE},{extra}}}").replace("Llama", "Gemma3").replace(r#","rope_theta":10000.0"#, "");
            let ropes = read(Path::new("config.json"), &json).unwrap().ropes;
            ropes.iter().map(|rope| (rope.theta, rope.scaling.clone())).collect::<Vec<_>>()
        };
        let eight = RopeScaling::Linear(8.0);
        let older = r#""rope_theta":2e6,"rope_local_base_freq":5000.0,"rope_scaling":{"rope_type":"linear","factor":8.0}"#;
        assert_eq!(thetas(older), [(2e6, eight.clone()), (5000.0, RopeScaling::None)]);
        let newer = r#""rope_parameters":{"full_attention":{"rope_type":"linear","factor":8.0,"rope_theta":2e6},
            "sliding_attention":{"rope_type":"default","rope_theta":5000.0}}"#;
        assert_eq!(thetas(newer), [(2e6, eight), (5000.0, RopeScaling::None)]);
        assert_eq!(thetas(r#""mlp_bias":false"#), [(1e6, RopeScaling::None), (1e4, RopeScaling::None)]);
    }

    #[test]
    fn llama3_keeps_short_and_divides_long_wavelengths() {
        let extra = r#""rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":512}"#;
        let scaled = read(Path::new("config.json"), &format!("{BASE},{extra}}}")).unwrap();
        let plain = RopeSpec { scaling: RopeScaling::None, ..scaled.ropes[0].clone() }.inv_freq(scaled.head_dim);
        let scaled = scaled.ropes[0].inv_freq(scaled.head_dim);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(*scaled.last().unwrap(), plain.last().unwrap() / 8.0);
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
    }
}
