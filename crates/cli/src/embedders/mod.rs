//! Prompt embeddings: the configured embedder, for the server and for the engine's index.

mod bert;
mod token;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use runner::EmbeddingTable;
use server::Embedder;
use tokenizer::Tokenizer;

use self::bert::{Bert, BertEmbedder};
use self::token::TokenMeanEmbedder;
use crate::config::{EmbedderKind, SharingConfig};

/// Maximum donors with an embedding. Chosen by measurement: a scan of all of them takes some milliseconds at most up to here
/// (`benches/serve/embedders.md`), so no second index is kept for more, which would have to be built and could not forget.
const MAX_VECTORS: usize = 50_000;

/// Embedder with the minimum cosine of a donor to be considered.
#[derive(Clone)]
pub(crate) struct ChosenEmbedder {
    pub(crate) embedder: Arc<dyn Embedder>,
    min_cosine: f32,
}

impl ChosenEmbedder {
    /// Configures the engine's index for its vectors.
    pub(crate) fn index_config(&self, max_donors: usize) -> engine::EmbeddingIndexConfig {
        engine::EmbeddingIndexConfig {
            num_dimensions: self.embedder.num_dimensions(),
            max_vectors: max_donors.min(MAX_VECTORS),
            min_cosine: self.min_cosine,
        }
    }
}

/// Builds the embedder that `config` names, if any, for a model with these input embeddings and this tokenizer.
///
/// # Errors
/// If the embedder's own model cannot be read.
pub(crate) fn build(
    config: &SharingConfig,
    table: Option<&EmbeddingTable>,
    tokenizer: &Arc<Tokenizer>,
) -> anyhow::Result<Option<ChosenEmbedder>> {
    Ok(match config.embedder {
        EmbedderKind::Off => None,
        EmbedderKind::Token => Some(token(table.context("the model's input embeddings are not on the host")?)),
        EmbedderKind::Bert => {
            let folder = config.embedder_model.as_ref().set().context("sharing.embedder_model names no folder")?;
            Some(bert(folder, tokenizer)?)
        }
    })
}

fn token(table: &EmbeddingTable) -> ChosenEmbedder {
    ChosenEmbedder { embedder: Arc::new(TokenMeanEmbedder::new(table.clone())), min_cosine: token::MIN_COSINE }
}

fn bert(folder: &Path, tokenizer: &Arc<Tokenizer>) -> anyhow::Result<ChosenEmbedder> {
    let bert = Bert::load(folder).with_context(|| format!("loading the embedder in {}", folder.display()))?;
    let embedder = BertEmbedder { bert, tokenizer: Arc::clone(tokenizer) };
    Ok(ChosenEmbedder { embedder: Arc::new(embedder), min_cosine: bert::MIN_COSINE })
}
