//! A tokenizer from a folder in the layout of the Hugging Face hub.

use std::path::Path;

use serde_json::Value;
use tokens::TokenId;

use crate::{ChatError, Tokenizer, TokenizerError};

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they are, `tokenizer_config.json`, `generation_config.json`, `config.json` and
    /// `chat_template.jinja` of `folder`: special tokens and the chat template.
    ///
    /// # Errors
    /// If a file cannot be read or is not valid, or names a token that the vocabulary lacks.
    pub fn from_folder(folder: &Path) -> Result<Self, ChatError> {
        let tokenizer = Self::from_file(&folder.join("tokenizer.json"))?;
        let config = read_json(&folder.join("tokenizer_config.json"))?;
        let bos = tokenizer.named_token(&config["bos_token"])?;
        let mut eos = Vec::new();
        for file in ["generation_config.json", "config.json"] {
            eos.extend(ids(&read_json(&folder.join(file))?["eos_token_id"]));
        }
        eos.splice(0..0, tokenizer.named_token(&config["eos_token"])?);
        let mut distinct = Vec::new();
        for id in eos {
            if !distinct.contains(&id) {
                distinct.push(id);
            }
        }
        let tokenizer = tokenizer.with_special_ids(bos, distinct);
        let template = read_text(&folder.join("chat_template.jinja"))?.or_else(|| template_of(&config["chat_template"]));
        match template {
            Some(source) => tokenizer.with_chat_template(&source),
            None => Ok(tokenizer),
        }
    }

    /// The token that `"<s>"` or `{"content": "<s>", ..}` names; none for `null`.
    fn named_token(&self, value: &Value) -> Result<Option<TokenId>, TokenizerError> {
        let Some(text) = value.as_str().or_else(|| value["content"].as_str()) else { return Ok(None) };
        let id = self.token_id(text).ok_or_else(|| TokenizerError::UnknownToken { token: text.to_owned() })?;
        Ok(Some(id))
    }
}

/// The ids in `2` or `[2, 3]`.
fn ids(value: &Value) -> Vec<TokenId> {
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    values.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()).map(TokenId).collect()
}

/// The template in `"..."` or, of several named ones, the default.
fn template_of(value: &Value) -> Option<String> {
    let default = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    value.as_str().or_else(default).map(str::to_owned)
}

/// `null` when there is no such file.
fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    let Some(text) = read_text(path)? else { return Ok(Value::Null) };
    serde_json::from_str(&text).map_err(|error| TokenizerError::Parse { path: path.to_owned(), reason: error.to_string() })
}

/// `None` when there is no such file.
fn read_text(path: &Path) -> Result<Option<String>, TokenizerError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::tokenizer_json;
    use crate::{ChatMessage, ChatOptions};

    fn load(files: &[(&str, &str)]) -> Result<Tokenizer, ChatError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer_json()).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Tokenizer::from_folder(folder.path())
    }

    /// `expected` is bos, the end tokens and what the template makes of one message "x".
    #[track_caller]
    fn check(files: &[(&str, &str)], expected_bos: Option<u32>, expected_eos: &[u32], expected_prompt: Option<&str>) {
        let tokenizer = load(files).unwrap();
        let eos: Vec<u32> = tokenizer.eos_ids().iter().map(|id| id.0).collect();
        assert_eq!((tokenizer.bos().map(|id| id.0), &*eos), (expected_bos, expected_eos));
        let messages = [ChatMessage::new("user", "x")];
        let prompt = tokenizer.chat_template().map(|template| template.render(&messages, &ChatOptions::default()).unwrap());
        assert_eq!(prompt.as_deref(), expected_prompt);
    }

    #[test]
    fn a_vocabulary_alone_has_no_special_tokens_and_no_template() {
        check(&[], None, &[], None);
    }

    #[test]
    fn end_tokens_are_gathered_from_all_files() {
        let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "<t>", "chat_template": "{{ eos_token }}{{ messages[0].content }}"}"#;
        let files = [
            ("tokenizer_config.json", config),
            ("generation_config.json", r#"{"eos_token_id": [5, 263]}"#),
            ("config.json", r#"{"eos_token_id": 6}"#),
        ];
        check(&files, Some(262), &[263, 5, 6], Some("<t>x"));
    }

    #[test]
    fn a_template_file_wins_over_the_configuration() {
        let config = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
        check(&[("tokenizer_config.json", config)], None, &[], Some("d"));
        check(&[("tokenizer_config.json", config), ("chat_template.jinja", "file")], None, &[], Some("file"));
    }

    #[test]
    fn a_token_that_the_vocabulary_lacks_is_refused() {
        let error = load(&[("tokenizer_config.json", r#"{"bos_token": "<nope>"}"#)]).err().unwrap();
        assert!(error.to_string().contains("<nope>"), "{error}");
    }

    #[test]
    fn a_broken_file_is_refused_by_name() {
        let error = load(&[("config.json", "{")]).err().unwrap();
        assert!(error.to_string().contains("config.json"), "{error}");
    }
}
