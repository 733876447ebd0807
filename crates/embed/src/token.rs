//! The served model's input embeddings as vectors of tokens.

use runner::EmbeddingTable;
use semantic::TokenVectors;
use tokens::TokenId;

/// Adapts the runner's table to `semantic`: neither imports the other.
pub(crate) struct Rows(EmbeddingTable);

impl Rows {
    /// Wraps `table`.
    pub(crate) fn new(table: EmbeddingTable) -> Self {
        Self(table)
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
