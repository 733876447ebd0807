//! Loading a tokenizer from a folder in the layout of the Hugging Face hub.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};
use tokens::TokenId;

use crate::error::brief;
use crate::file::read_bounded;
use crate::{ChatError, Tokenizer, TokenizerError};

impl Tokenizer {
    /// Reads `tokenizer.json` and, if present, `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json`,
    /// `config.json`, `chat_template.jinja` and `chat_template.json` of `folder`: added and special tokens, and the chat template.
    ///
    /// # Errors
    /// If a file cannot be read or is not valid, or names a token that the vocabulary lacks.
    pub fn from_folder(folder: &Path) -> Result<Self, ChatError> {
        let config = read_json(&folder.join("tokenizer_config.json"))?;
        let named = named_tokens(&config, &read_json(&folder.join("special_tokens_map.json"))?);
        let tokenizer = Self::from_file_with(&folder.join("tokenizer.json"), &added_tokens(&config["added_tokens_decoder"]))?;
        let bos = tokenizer.named_token(named.get("bos_token"))?;
        let mut eos: Vec<TokenId> = tokenizer.named_token(named.get("eos_token"))?.into_iter().collect();
        for file in ["generation_config.json", "config.json"] {
            eos.extend(ids(&read_json(&folder.join(file))?["eos_token_id"]));
        }
        let mut distinct = Vec::new();
        for id in eos {
            if !distinct.contains(&id) {
                distinct.push(id);
            }
        }
        let tokenizer = tokenizer.with_special_ids(bos, distinct).with_named_tokens(named);
        let in_json = || read_json(&folder.join("chat_template.json")).map(|json| template_of(&json["chat_template"]));
        let template = match read_text(&folder.join("chat_template.jinja"))?.or_else(|| template_of(&config["chat_template"])) {
            Some(source) => Some(source),
            None => in_json()?,
        };
        match template {
            Some(source) => tokenizer.with_chat_template(&source),
            None => Ok(tokenizer),
        }
    }

    /// Returns the token with this text.
    fn named_token(&self, text: Option<&Value>) -> Result<Option<TokenId>, TokenizerError> {
        let Some(text) = text.and_then(Value::as_str) else { return Ok(None) };
        let id = self.token_id(text).ok_or_else(|| TokenizerError::UnknownToken { token: brief(&text) })?;
        Ok(Some(id))
    }
}

/// Names of special tokens that transformers passes to chat templates.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Returns the texts of special tokens by name, from `tokenizer_config.json`, else from `special_tokens_map.json`.
fn named_tokens(config: &Value, map: &Value) -> Map<String, Value> {
    let text = |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned);
    let mut named = Map::new();
    for name in NAMES {
        if let Some(text) = text(&config[name]).or_else(|| text(&map[name])) {
            named.insert(name.to_owned(), text.into());
        }
    }
    let key = "additional_special_tokens";
    let list = config[key].as_array().or_else(|| map[key].as_array());
    let texts: Vec<String> = list.into_iter().flatten().filter_map(text).collect();
    if !texts.is_empty() {
        named.insert(key.to_owned(), texts.into());
    }
    named
}

/// Returns the tokens of `added_tokens_decoder`, ordered by id.
fn added_tokens(decoder: &Value) -> Vec<tokenizers::AddedToken> {
    let mut tokens: Vec<(u32, tokenizers::AddedToken)> = Vec::new();
    for (id, token) in decoder.as_object().into_iter().flatten() {
        let (Ok(id), Some(content)) = (id.parse(), token["content"].as_str()) else { continue };
        let flag = |name: &str| token[name].as_bool().unwrap_or(false);
        let added = tokenizers::AddedToken::from(content, flag("special"))
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .normalized(flag("normalized"));
        tokens.push((id, added));
    }
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}

/// Returns the ids in `2` or `[2, 3]`.
fn ids(value: &Value) -> Vec<TokenId> {
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    values.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()).map(TokenId).collect()
}

/// Returns the template in `"..."` or, of several named ones, the default.
fn template_of(value: &Value) -> Option<String> {
    let default = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    value.as_str().or_else(default).map(str::to_owned)
}

/// Reads JSON; `null` if the file does not exist.
fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    let Some(text) = read_text(path)? else { return Ok(Value::Null) };
    serde_json::from_str(&text).map_err(|error| TokenizerError::Parse { path: path.to_owned(), reason: brief(&error) })
}

/// Reads text; `None` if the file does not exist.
fn read_text(path: &Path) -> Result<Option<String>, TokenizerError> {
    let bytes = match read_bounded(path, MAX_TEXT_BYTES) {
        Ok(bytes) => bytes,
        Err(TokenizerError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let parse_error = |error| TokenizerError::Parse { path: path.to_owned(), reason: brief(&error) };
    String::from_utf8(bytes).map(Some).map_err(parse_error)
}

/// Maximum bytes of a configuration file.
const MAX_TEXT_BYTES: u64 = 16 << 20;

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

    /// Checks against bos, the end tokens and the rendering of one message "x".
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
    fn special_tokens_are_named_by_either_file() {
        let config = r#"{"eos_token": "<t>", "additional_special_tokens": ["<s>", {"content": "<t>"}]}"#;
        let map = r#"{"bos_token": {"content": "<s>"}, "eos_token": "<s>", "pad_token": "<t>"}"#;
        let template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ additional_special_tokens | join(',') }}|{{ unk_token is defined }}";
        let files = [("tokenizer_config.json", config), ("special_tokens_map.json", map), ("chat_template.jinja", template)];
        check(&files, Some(262), &[263], Some("<s>|<t>|<t>|<s>,<t>|False"));
    }

    #[test]
    fn added_tokens_of_the_configuration_are_read() {
        let config = r#"{"added_tokens_decoder": {"264": {"content": "<u>", "special": true}, "263": {"content": "<t>", "special": true},
            "265": {"content": "<v>", "special": false, "rstrip": true}}}"#;
        let tokenizer = load(&[("tokenizer_config.json", config)]).unwrap();
        let ids: Vec<u32> = tokenizer.encode("<u><t>h<v> h", false).unwrap().token_ids.iter().map(|id| id.0).collect();
        let h = tokenizer.token_id("h").unwrap().0;
        assert_eq!(ids, [264, 263, h, 265, h]);
        assert_eq!([263, 264, 265].map(|id| tokenizer.is_special(TokenId(id))), [true, true, false]);
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
