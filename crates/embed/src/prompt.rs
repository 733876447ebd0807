//! Embedder of prompts of the served model.

use std::sync::Arc;

use runner::EmbeddingTable;
use semantic::{EmbeddingIndexConfig, TokenEmbedder};
use tokenizer::Tokenizer;
use tokens::TokenId;

use crate::SentenceEncoder;
use crate::token::Rows;

/// Maximum donors with an embedding. Chosen by measurement: a scan of all of them takes some milliseconds at most up to here
/// (`benches/serve/embedders.md`), so no second index is kept for more, which would have to be built and could not forget.
const MAX_VECTORS: usize = 50_000;

/// Minimum cosine of a donor to be considered, with either embedder. Chosen: prompts on different topics are mostly below, see
/// `benches/serve/embedders.md`.
const MIN_COSINE: f32 = 0.5;

/// Embedder of prompts, with the settings of the index of its vectors.
pub struct PromptEmbedder(Source);

/// Origin of the vectors.
enum Source {
    /// Means of the served model's input embeddings, see [`TokenEmbedder`].
    Tokens(TokenEmbedder<Rows>),
    /// A sentence encoder. Prompts are detokenized, because it reads text.
    Sentences(Arc<SentenceEncoder>, Arc<Tokenizer>),
}

impl PromptEmbedder {
    /// Takes means of the served model's input embeddings: no other model, and quick.
    #[must_use]
    pub fn by_tokens(table: EmbeddingTable) -> Self {
        Self(Source::Tokens(TokenEmbedder::new(Rows::new(table))))
    }

    /// Takes the embeddings of `encoder`, for prompts that `tokenizer` has encoded.
    #[must_use]
    pub fn by_sentences(encoder: Arc<SentenceEncoder>, tokenizer: Arc<Tokenizer>) -> Self {
        Self(Source::Sentences(encoder, tokenizer))
    }

    /// Returns the number of elements of an embedding.
    #[must_use]
    pub fn num_dimensions(&self) -> usize {
        match &self.0 {
            Source::Tokens(embedder) => embedder.num_dimensions(),
            Source::Sentences(encoder, _) => encoder.num_dimensions(),
        }
    }

    /// True if embedding a prompt takes no longer than tokenizing it.
    #[must_use]
    pub fn is_quick(&self) -> bool {
        matches!(self.0, Source::Tokens(_))
    }

    /// Embeds a prompt of the served model; `None` if that is not possible.
    #[must_use]
    pub fn embed(&self, tokens: &[TokenId]) -> Option<Vec<f32>> {
        match &self.0 {
            Source::Tokens(embedder) => embedder.embed(tokens),
            Source::Sentences(encoder, tokenizer) => {
                let text = tokenizer.decode(tokens, true);
                encoder.embed(&text).unwrap_or_else(|error| {
                    tracing::error!(error = format!("{error:#}"), "embedding a prompt");
                    None
                })
            }
        }
    }

    /// Configures the index of its vectors, for at most `max_donors` donors.
    #[must_use]
    pub fn index_config(&self, max_donors: usize) -> EmbeddingIndexConfig {
        EmbeddingIndexConfig {
            num_dimensions: self.num_dimensions(),
            max_vectors: max_donors.min(MAX_VECTORS),
            min_cosine: MIN_COSINE,
        }
    }
}
