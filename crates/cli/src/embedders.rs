//! Prompt embeddings: the configured embedder, for the server and for the engine's index.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use embed::{PromptEmbedder, SentenceEncoder};
use runner::EmbeddingTable;
use server::{Embedder, Embedding};
use tokenizer::Tokenizer;
use tokens::TokenId;

use crate::config::{EmbedderKind, SharingConfig};

/// Builds the embedder that `config` names, if any, for a model with these input embeddings and this tokenizer.
///
/// # Errors
/// If the embedder's own model cannot be read.
pub(crate) fn build(
    config: &SharingConfig,
    table: Option<&EmbeddingTable>,
    tokenizer: &Arc<Tokenizer>,
) -> anyhow::Result<Option<PromptEmbedder>> {
    Ok(match config.embedder {
        EmbedderKind::Off => None,
        EmbedderKind::Token => {
            let table = table.context("the model's input embeddings are not on the host")?;
            Some(PromptEmbedder::by_tokens(table.clone()))
        }
        EmbedderKind::Bert => {
            let folder = config.embedder_model.as_ref().value().context("sharing.embedder_model names no folder")?;
            Some(PromptEmbedder::by_sentences(load(folder)?, Arc::clone(tokenizer)))
        }
    })
}

/// Loads the sentence encoder in `folder`.
fn load(folder: &Path) -> anyhow::Result<Arc<SentenceEncoder>> {
    let encoder = SentenceEncoder::load(folder).with_context(|| format!("loading the embedder in {}", folder.display()))?;
    Ok(Arc::new(encoder))
}

/// Adapts an embedder to the server: neither imports the other.
pub(crate) struct ServedEmbedder(pub(crate) PromptEmbedder);

impl Embedder for ServedEmbedder {
    fn num_dimensions(&self) -> usize {
        self.0.num_dimensions()
    }

    fn is_quick(&self) -> bool {
        self.0.is_quick()
    }

    fn embed(&self, tokens: &[TokenId]) -> Option<Embedding> {
        self.0.embed(tokens).map(Embedding::from)
    }
}
