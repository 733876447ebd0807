//! Embeddings without another model: means of the served model's input embeddings.

use runner::EmbeddingTable;
use semantic::{TokenEmbedder, TokenVectors};
use server::{Embedder, Embedding};
use tokens::TokenId;

/// Minimum cosine of a donor to be considered. Chosen: prompts on different topics are mostly below, see `benches/serve/embedders.md`.
pub(super) const MIN_COSINE: f32 = 0.5;

/// See [`TokenEmbedder`].
pub(super) struct TokenMeanEmbedder(TokenEmbedder<Rows>);

/// Adapts the runner's table to `semantic`: neither imports the other.
struct Rows(EmbeddingTable);

impl TokenMeanEmbedder {
    pub(super) fn new(table: EmbeddingTable) -> Self {
        Self(TokenEmbedder::new(Rows(table)))
    }
}

impl TokenVectors for Rows {
    fn num_tokens(&self) -> usize {
        self.0.num_tokens()
    }

    fn num_dimensions(&self) -> usize {
        self.0.num_dimensions()
    }

    fn read(&self, token: TokenId, row: &mut [f32]) {
        self.0.read(token, row);
    }
}

impl Embedder for TokenMeanEmbedder {
    fn num_dimensions(&self) -> usize {
        self.0.num_dimensions()
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn embed(&self, tokens: &[TokenId]) -> Option<Embedding> {
        self.0.embed(tokens).map(Embedding::from)
    }
}
