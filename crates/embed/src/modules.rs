//! Files of sentence-transformers beside a checkpoint: the steps from hidden states to an embedding, and the length of a text.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use candle_core::{Result, Tensor};
use serde_json::{Map, Value};

/// Reduction of a text's hidden states to one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Mean over the tokens.
    Mean,
    /// State of the first token, `[CLS]`.
    First,
    /// Maximum over the tokens, element by element.
    Max,
}

/// Settings of an encoder besides its `config.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Modules {
    /// Folder of the transformer's own files.
    pub(crate) transformer: PathBuf,
    pub(crate) pooling: Pooling,
    /// Maximum tokens of a text, special tokens included, if the encoder states one.
    pub(crate) max_seq_length: Option<usize>,
    /// True if texts are lowercased before they are tokenized.
    pub(crate) lowercases: bool,
}

/// An entry of `modules.json`.
#[derive(serde::Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// `sentence_bert_config.json`.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

impl Pooling {
    /// Reduces `states`, `[tokens, hidden_size]`, to `[hidden_size]`.
    ///
    /// # Errors
    /// If there are no tokens.
    pub(crate) fn pool(self, states: &Tensor) -> Result<Tensor> {
        match self {
            Self::Mean => states.mean(0),
            Self::First => states.get(0),
            Self::Max => states.max(0),
        }
    }

    /// Reads the `config.json` of a pooling step: older ones have a flag for each mode, newer ones a name.
    fn of_config(config: &Map<String, Value>) -> anyhow::Result<Self> {
        let is_set = |name: &&String| config[*name] == Value::Bool(true);
        let mut modes: Vec<_> = config.keys().filter(is_set).filter_map(|name| name.strip_prefix("pooling_mode_")).collect();
        match config.get("pooling_mode") {
            Some(Value::String(mode)) => modes.push(mode),
            Some(Value::Array(names)) => modes.extend(names.iter().filter_map(Value::as_str)),
            _ => {}
        }
        match modes[..] {
            ["mean_tokens" | "mean"] => Ok(Self::Mean),
            ["cls_token" | "cls"] => Ok(Self::First),
            ["max_tokens" | "max"] => Ok(Self::Max),
            _ => bail!("it pools by `{}`: one of mean, cls and max is supported", modes.join("` and `")),
        }
    }
}

impl Modules {
    /// Reads the files in `folder`. Without them an encoder averages its hidden states, as in sentence-transformers.
    ///
    /// # Errors
    /// If a file is not as expected, or names a step that is not computed here.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let mut modules =
            Self { transformer: folder.to_owned(), pooling: Pooling::Mean, max_seq_length: None, lowercases: false };
        for Module { path, kind } in read_json::<Vec<Module>>(&folder.join("modules.json"))?.unwrap_or_default() {
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => modules.transformer = folder.join(path),
                "Pooling" => {
                    let path = folder.join(path).join("config.json");
                    let config = read_json::<Map<_, _>>(&path)?.with_context(|| format!("{} is missing", path.display()))?;
                    modules.pooling = Pooling::of_config(&config).with_context(|| path.display().to_string())?;
                }
                // Embeddings have length 1 in any case.
                "Normalize" => {}
                kind => bail!("modules.json has a step `{kind}`, which is not supported"),
            }
        }
        let path = modules.transformer.join("sentence_bert_config.json");
        let TransformerConfig { max_seq_length, do_lower_case } = read_json(&path)?.unwrap_or_default();
        Ok(Self { max_seq_length, lowercases: do_lower_case, ..modules })
    }
}

/// Reads a file of JSON; `None` if it does not exist.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| path.display().to_string())?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_pooling(config: &Value, expected: Option<Pooling>) {
        assert_eq!(Pooling::of_config(config.as_object().unwrap()).ok(), expected, "{config}");
    }

    #[test]
    fn pooling_is_named_in_the_words_of_old_and_new_files() {
        check_pooling(
            &json!({"word_embedding_dimension": 384, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}),
            Some(Pooling::Mean),
        );
        check_pooling(&json!({"pooling_mode_cls_token": true, "include_prompt": true}), Some(Pooling::First));
        check_pooling(&json!({"pooling_mode": "max"}), Some(Pooling::Max));
        check_pooling(&json!({"pooling_mode": ["cls"]}), Some(Pooling::First));
        check_pooling(&json!({"pooling_mode": ["cls", "mean"]}), None);
        check_pooling(&json!({"pooling_mode_lasttoken": true}), None);
        check_pooling(&json!({}), None);
    }

    #[test]
    fn hidden_states_are_reduced_by_token() {
        let states = Tensor::new(&[[1f32, 5.0], [3.0, 1.0]], &Device::Cpu).unwrap();
        let pooled = |pooling: Pooling| pooling.pool(&states).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(pooled(Pooling::Mean), [2.0, 3.0]);
        assert_eq!(pooled(Pooling::First), [1.0, 5.0]);
        assert_eq!(pooled(Pooling::Max), [3.0, 5.0]);
    }

    #[test]
    fn the_steps_of_an_encoder_are_read_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        };
        let read = || Modules::read(folder.path());
        let plain = read().unwrap();
        assert_eq!((plain.pooling, plain.max_seq_length, plain.lowercases), (Pooling::Mean, None, false));
        let step = |kind: &str, path: &str| json!({"idx": 0, "name": "0", "path": path, "type": format!("sentence_transformers.models.{kind}")});
        write(
            "modules.json",
            json!([step("Transformer", "0_T"), step("Pooling", "1_Pooling"), step("Normalize", "2_Normalize")]),
        );
        assert!(format!("{:#}", read().unwrap_err()).contains("is missing"));
        write("1_Pooling/config.json", json!({"pooling_mode_cls_token": true}));
        write("0_T/sentence_bert_config.json", json!({"max_seq_length": 128, "do_lower_case": true}));
        let expected = Modules {
            transformer: folder.path().join("0_T"),
            pooling: Pooling::First,
            max_seq_length: Some(128),
            lowercases: true,
        };
        assert_eq!(read().unwrap(), expected);
        write("modules.json", json!([step("Transformer", ""), step("Dense", "2_Dense")]));
        assert!(format!("{:#}", read().unwrap_err()).contains("a step `Dense`"));
    }
}
