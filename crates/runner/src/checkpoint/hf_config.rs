//! The `config.json` of Hugging Face.
//!
//! A checkpoint that requires something this crate does not compute is refused by name here, so that no model gives wrong output.

use std::path::Path;

use kernels::cpu::{Activation, RopeLayout};
use serde::Deserialize;
use serde_json::Value;

use crate::LoadError;
use crate::error::{brief, shown};
use crate::spec::{self, Architecture, GEMMA3_LOCAL_THETA, GEMMA3_PATTERN, LayerSpec, ModelSpec, RopeScaling, RopeSpec};

/// The relevant part of `config.json` as Hugging Face writes it.
#[derive(Deserialize)]
struct HfConfig {
    architectures: Option<Vec<String>>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    hidden_act: Option<String>,
    /// Gemma's name of `hidden_act`.
    hidden_activation: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// Theta and scaling, which newer files store together here; one such object for each kind of layer where kinds differ.
    rope_parameters: Option<Value>,
    /// Theta of Gemma's layers with a window.
    rope_local_base_freq: Option<f64>,
    partial_rotary_factor: Option<f64>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
    tie_word_embeddings: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    /// Qwen: number of first layers without a window.
    max_window_layers: Option<usize>,
    /// Gemma: number of layers of which the last has no window.
    sliding_window_pattern: Option<usize>,
    /// `full_attention` or `sliding_attention` for each layer.
    layer_types: Option<Vec<String>>,
    mlp_bias: Option<bool>,
    num_experts: Option<usize>,
    num_local_experts: Option<usize>,
    quantization_config: Option<Value>,
}

/// Layers without a window, from the first on, of a Qwen configuration that does not say: as in transformers.
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

/// Reads `config.json`.
pub(crate) fn read(path: &Path, json: &str) -> Result<ModelSpec, LoadError> {
    let config: HfConfig =
        serde_json::from_str(json).map_err(|error| LoadError::Corrupt { path: path.to_owned(), reason: brief(&error) })?;
    let name = config.architectures.as_ref().and_then(|names| names.first()).map_or("unnamed", String::as_str);
    let architecture = match name {
        "LlamaForCausalLM" | "MistralForCausalLM" => Architecture::Llama,
        "Qwen2ForCausalLM" => Architecture::Qwen2,
        "Qwen3ForCausalLM" => Architecture::Qwen3,
        "Gemma3ForCausalLM" => Architecture::Gemma3,
        other => return Err(LoadError::unsupported(format!("architecture {}", shown(other)))),
    };
    refuse(&config)?;
    let is_gemma = architecture == Architecture::Gemma3;
    let head_dim = config.head_dim.unwrap_or(config.hidden_size / config.num_attention_heads.max(1));
    let ropes = config.ropes(is_gemma)?;
    ModelSpec {
        architecture,
        layers: config.layers(architecture, ropes.len())?,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_heads: config.num_attention_heads,
        num_kv_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads),
        head_dim,
        vocab_size: config.vocab_size,
        max_position: config.max_position_embeddings,
        rms_norm_eps: config.rms_norm_eps as f32,
        ropes,
        rope_layout: RopeLayout::Half,
        attention_scale: 1.0 / (config.query_pre_attn_scalar.unwrap_or(head_dim as f64) as f32).sqrt(),
        embedding_scale: if is_gemma { (config.hidden_size as f32).sqrt() } else { 1.0 },
        activation: config.activation()?,
        has_post_norms: is_gemma,
        tied_head: config.tie_word_embeddings.unwrap_or(is_gemma),
    }
    .validated()
}

impl HfConfig {
    fn activation(&self) -> Result<Activation, LoadError> {
        match self.hidden_activation.as_deref().or(self.hidden_act.as_deref()).unwrap_or("silu") {
            "silu" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => Err(LoadError::unsupported(format!("activation {}", shown(other)))),
        }
    }

    /// Returns the rotation of layers without a window, then that of the others where it differs.
    fn ropes(&self, is_gemma: bool) -> Result<Vec<RopeSpec>, LoadError> {
        let parameters = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let of = |kind: &str| parameters.and_then(|parameters| parameters.get(kind));
        let global = of("full_attention").or(parameters);
        let theta_of = |rope: Option<&Value>| rope.and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64);
        let scaling_of = |rope: Option<&Value>| rope.map_or(Ok(RopeScaling::None), hf_rope_scaling);
        let theta = self.rope_theta.or_else(|| theta_of(global)).unwrap_or(if is_gemma { 1e6 } else { 1e4 });
        let mut ropes = vec![RopeSpec { theta, scaling: scaling_of(global)? }];
        if is_gemma {
            let local = of("sliding_attention");
            let theta = self.rope_local_base_freq.or_else(|| theta_of(local)).unwrap_or(GEMMA3_LOCAL_THETA);
            ropes.push(RopeSpec { theta, scaling: scaling_of(local)? });
        }
        Ok(ropes)
    }

    fn layers(&self, architecture: Architecture, num_ropes: usize) -> Result<Vec<LayerSpec>, LoadError> {
        let is_qwen = matches!(architecture, Architecture::Qwen2 | Architecture::Qwen3);
        // Qwen files set a window and disable it; Mistral's is in use unless it is null or spans the whole context.
        let switched_off = self.use_sliding_window.map_or(is_qwen, |used| !used);
        let window = self.sliding_window.filter(|window| *window < self.max_position_embeddings && !switched_off);
        let window = window.map(|window| window as u32);
        let pattern = self.sliding_window_pattern.unwrap_or(GEMMA3_PATTERN).max(1);
        spec::layers(self.num_hidden_layers, num_ropes, window, |i| match (&self.layer_types, architecture) {
            (Some(types), _) => types.get(i).is_some_and(|kind| kind == "sliding_attention"),
            (None, Architecture::Gemma3) => (i + 1) % pattern != 0,
            (None, Architecture::Llama) => true,
            (None, Architecture::Qwen2 | Architecture::Qwen3) => i >= self.max_window_layers.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS),
        })
    }
}

fn refuse(config: &HfConfig) -> Result<(), LoadError> {
    if config.mlp_bias == Some(true) {
        return Err(LoadError::unsupported("mlp_bias"));
    }
    if config.num_experts.or(config.num_local_experts).is_some_and(|n| n > 0) {
        return Err(LoadError::unsupported("a mixture of experts"));
    }
    if config.quantization_config.is_some() {
        return Err(LoadError::unsupported("quantization_config in safetensors"));
    }
    if config.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
        return Err(LoadError::unsupported("partial_rotary_factor"));
    }
    if config.attn_logit_softcapping.or(config.final_logit_softcapping).is_some() {
        return Err(LoadError::unsupported("logit soft-capping"));
    }
    if config.use_bidirectional_attention == Some(true) {
        return Err(LoadError::unsupported("bidirectional attention"));
    }
    if let Some(types) = config.layer_types.as_ref().filter(|types| types.len() != config.num_hidden_layers) {
        let (num_types, num_layers) = (types.len(), config.num_hidden_layers);
        return Err(LoadError::unsupported(format!("layer_types of {num_types} layers in a model of {num_layers}")));
    }
    let kinds = config.layer_types.iter().flatten();
    if let Some(kind) = kinds.into_iter().find(|kind| !matches!(kind.as_str(), "full_attention" | "sliding_attention")) {
        return Err(LoadError::unsupported(format!("layers of type {}", shown(kind))));
    }
    Ok(())
}

fn hf_rope_scaling(scaling: &Value) -> Result<RopeScaling, LoadError> {
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number = |key: &str| {
        let missing = || LoadError::MissingKey { key: format!("rope_scaling.{key}") };
        scaling.get(key).and_then(Value::as_f64).filter(|x| *x > 0.0).ok_or_else(missing)
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear(number("factor")?)),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position: number("original_max_position_embeddings")?,
        }),
        other => Err(LoadError::unsupported(format!("rope scaling {}", shown(other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Mask;

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
        check_refused(r#""final_logit_softcapping":30.0"#, "soft-capping");
        check_refused(r#""layer_types":["full_attention","chunked_attention"]"#, "chunked_attention");
        check_refused(r#""layer_types":["full_attention"]"#, "layer_types of 1");
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

    #[test]
    fn a_window_that_is_switched_off_or_spans_everything_is_no_window() {
        let masks = |architecture: &str, extra: &str| {
            let json = format!("{BASE},{extra}}}").replace("Llama", architecture);
            read(Path::new("config.json"), &json).unwrap().layers.iter().map(|layer| layer.mask).collect::<Vec<_>>()
        };
        let (all, last) = (Mask::Causal, Mask::Window(1024));
        assert_eq!(masks("Llama", r#""sliding_window":1024,"use_sliding_window":false"#), [all, all]);
        assert_eq!(masks("Mistral", r#""sliding_window":4096"#), [all, all]);
        assert_eq!(masks("Mistral", r#""sliding_window":null"#), [all, all]);
        assert_eq!(masks("Mistral", r#""sliding_window":1024"#), [last, last]);
        assert_eq!(masks("Qwen2", r#""sliding_window":1024"#), [all, all]);
        assert_eq!(masks("Qwen2", r#""sliding_window":1024,"use_sliding_window":true,"max_window_layers":1"#), [all, last]);
        assert_eq!(masks("Gemma3", r#""sliding_window":1024,"sliding_window_pattern":2"#), [last, all]);
        let types = r#""sliding_window":1024,"layer_types":["full_attention","sliding_attention"]"#;
        assert_eq!(masks("Gemma3", types), [all, last]);
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
