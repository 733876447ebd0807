//! The served model as seen by the HTTP layer: its names, its limits, and its tokenizer.

use std::sync::Arc;

use tokens::TokenId;

use crate::embedding::Embedder;
use crate::forms::AnswerForms;
use crate::text_embedding::TextEmbedder;

/// Properties of the served model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Name in answers, metrics and scopes.
    pub id: String,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    /// Maximum number of tokens of prompt and answer together.
    pub max_model_len: u32,
    /// Exclusive upper bound of token ids.
    pub vocab_size: u32,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<TokenId>,
    /// Load time, in seconds since 1970.
    pub created: u64,
    /// Forms of calls and reasoning in its answers.
    pub forms: AnswerForms,
}

impl ModelInfo {
    /// True if a request may call it `name`.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }

    /// Returns all names, the main one first.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.id.as_str()).chain(self.aliases.iter().map(String::as_str))
    }

    /// Returns a short hash of everything that determines the result of a seed: model and version of the daemon.
    pub(crate) fn fingerprint(&self) -> String {
        let hash = blake3::hash(format!("{}\0{}", self.id, env!("CARGO_PKG_VERSION")).as_bytes());
        format!("fp_{}", &hash.to_hex()[..10])
    }
}

/// The served model with its tokenizer and embedder.
#[derive(Clone)]
pub struct ServedModel {
    /// Properties of the model.
    pub info: Arc<ModelInfo>,
    /// Tokenizer, with a chat template if the model has one.
    pub tokenizer: Arc<tokenizer::Tokenizer>,
    /// Prompt embedder; with `None` donors are found by their spans alone.
    pub embedder: Option<Arc<dyn Embedder>>,
    /// Embedder of clients' texts; with `None` there are no embeddings, and no reranking.
    pub texts: Option<Arc<dyn TextEmbedder>>,
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
            forms: AnswerForms::default(),
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
