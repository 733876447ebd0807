//! The served model, as far as HTTP is concerned: its names, its limits, and how text becomes tokens.

use std::sync::Arc;

use tokens::TokenId;

use crate::embedding::Embedder;

/// Facts of the served model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Its name in answers, metrics and scopes.
    pub id: String,
    /// Other names a request may use.
    pub aliases: Vec<String>,
    /// Tokens of prompt and answer together.
    pub max_model_len: u32,
    /// Ids are below this.
    pub vocab_size: u32,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<TokenId>,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

impl ModelInfo {
    /// Whether a request may call it `name`.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }

    /// All names, the main one first.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.id.as_str()).chain(self.aliases.iter().map(String::as_str))
    }

    /// A short name of everything that decides what a seed gives: model and version of the daemon.
    pub(crate) fn fingerprint(&self) -> String {
        let hash = blake3::hash(format!("{}\0{}", self.id, env!("CARGO_PKG_VERSION")).as_bytes());
        format!("fp_{}", &hash.to_hex()[..10])
    }
}

/// The served model with what turns text into its tokens.
#[derive(Clone)]
pub struct ServedModel {
    /// Its facts.
    pub info: Arc<ModelInfo>,
    /// Text to tokens and back, and conversations to text if it has a chat template.
    pub tokenizer: Arc<tokenizer::Tokenizer>,
    /// Prompts to what they mean; `None` finds donors by their spans alone.
    pub embedder: Option<Arc<dyn Embedder>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: &str) -> ModelInfo {
        ModelInfo {
            id: id.to_owned(),
            aliases: vec!["other".to_owned()],
            max_model_len: 100,
            vocab_size: 10,
            eos_token_ids: vec![],
            created: 0,
        }
    }

    #[test]
    fn a_model_has_its_name_and_its_aliases() {
        assert!(info("m").is_called("m") && info("m").is_called("other") && !info("m").is_called("n"));
    }

    #[test]
    fn the_fingerprint_is_of_the_model() {
        assert_eq!(info("m").fingerprint(), info("m").fingerprint());
        assert_ne!(info("m").fingerprint(), info("n").fingerprint());
    }
}
