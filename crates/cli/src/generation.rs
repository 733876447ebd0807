//! Sampling defaults of the model's author: `generation_config.json`, or the keys of a GGUF file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use models::Weights;
use runner::SamplingKeys;
use serde_json::Value;
use server::SamplingDefaults;

use crate::config::ModelConfig;

const FILE: &str = "generation_config.json";
/// Maximum size of the file, in bytes. Chosen: real ones have some hundreds.
const MAX_BYTES: u64 = 1 << 20;

/// Returns the effective defaults, and their source.
///
/// # Errors
/// If the file cannot be read, or has values that no request may use.
pub(crate) fn defaults(config: &ModelConfig, weights: &Weights, keys: SamplingKeys) -> anyhow::Result<SamplingDefaults> {
    let (defaults, source) = match (file(config, weights)?, weights) {
        (Some(path), _) => (parse(&read(&path)?), path.display().to_string()),
        (None, Weights::Gguf(path)) if !config.has_no_generation_config() => (of_gguf(keys), path.display().to_string()),
        (None, _) => return Ok(SamplingDefaults::default()),
    };
    match defaults.validate() {
        Ok(()) => Ok(defaults),
        Err(reason) => bail!("{source}: {reason} (--generation-config none ignores it)"),
    }
}

/// Returns the end tokens of the file named in the configuration; those of the model's own folder come with the tokenizer.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn end_tokens(config: &ModelConfig) -> anyhow::Result<Vec<u32>> {
    let Some(folder) = config.generation_folder() else { return Ok(Vec::new()) };
    let json = read(&folder.join(FILE))?;
    let ids = &json["eos_token_id"];
    let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
    Ok(ids.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()).collect())
}

/// Returns the effective file, if there is one.
fn file(config: &ModelConfig, weights: &Weights) -> anyhow::Result<Option<PathBuf>> {
    if let Some(folder) = config.generation_folder() {
        let path = folder.join(FILE);
        return if path.is_file() { Ok(Some(path)) } else { bail!("there is no {FILE} in {}", folder.display()) };
    }
    Ok(match weights {
        Weights::Safetensors(folder) if !config.has_no_generation_config() => {
            Some(folder.join(FILE)).filter(|path| path.is_file())
        }
        _ => None,
    })
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let context = || format!("reading {}", path.display());
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)).with_context(context)?;
    serde_json::from_str(&text).with_context(context)
}

/// Parses the fields that vLLM reads. `null` counts as absent.
fn parse(json: &Value) -> SamplingDefaults {
    let number = |name: &str| json[name].as_f64().map(|number| number as f32);
    SamplingDefaults {
        temperature: number("temperature"),
        top_p: number("top_p"),
        // A value below 1 disables top-k.
        top_k: json["top_k"].as_i64().map(|top_k| u32::try_from(top_k).unwrap_or(0)),
        min_p: number("min_p"),
        repetition_penalty: number("repetition_penalty"),
        max_tokens: json["max_new_tokens"].as_u64().map(|max| u32::try_from(max).unwrap_or(u32::MAX)),
    }
}

fn of_gguf(keys: SamplingKeys) -> SamplingDefaults {
    let number = |number: Option<f64>| number.map(|number| number as f32);
    SamplingDefaults {
        temperature: number(keys.temperature),
        top_p: number(keys.top_p),
        top_k: keys.top_k.map(|top_k| u32::try_from(top_k).unwrap_or(u32::MAX)),
        min_p: number(keys.min_p),
        repetition_penalty: number(keys.repetition_penalty),
        max_tokens: None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Auto;

    fn folder(json: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), json).unwrap();
        dir
    }

    fn config(setting: Auto<PathBuf>) -> ModelConfig {
        ModelConfig { generation_config: setting, ..ModelConfig::default() }
    }

    #[test]
    fn the_fields_that_vllm_reads_are_read() {
        let json = r#"{"do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": null,
            "repetition_penalty": 1.1, "max_new_tokens": 512, "eos_token_id": [7, 9]}"#;
        let defaults = parse(&serde_json::from_str(json).unwrap());
        let expected = SamplingDefaults {
            temperature: Some(0.7),
            top_p: Some(0.8),
            top_k: Some(20),
            min_p: None,
            repetition_penalty: Some(1.1),
            max_tokens: Some(512),
        };
        assert_eq!(defaults, expected);
        assert_eq!(parse(&serde_json::json!({"top_k": -1})).top_k, Some(0));
    }

    #[test]
    fn the_file_is_the_models_own_another_or_none() {
        let (own, other) = (folder("{}"), folder(r#"{"eos_token_id": [7, 9]}"#));
        let weights = Weights::Safetensors(own.path().to_owned());
        assert_eq!(file(&config(Auto::Auto), &weights).unwrap(), Some(own.path().join(FILE)));
        assert_eq!(file(&config(Auto::Set("none".into())), &weights).unwrap(), None);
        let named = config(Auto::Set(other.path().to_owned()));
        assert_eq!(file(&named, &weights).unwrap(), Some(other.path().join(FILE)));
        assert_eq!(end_tokens(&named).unwrap(), [7, 9]);
        assert!(end_tokens(&config(Auto::Auto)).unwrap().is_empty());
        let error = file(&config(Auto::Set("no/such".into())), &weights).unwrap_err().to_string();
        assert!(error.contains("no/such"), "{error}");
    }
}
