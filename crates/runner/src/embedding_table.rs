//! The served model's input embeddings, for callers that need the meaning of a text without running the model.

use std::sync::Arc;

use kernels::cpu::Matrix;
use tokens::TokenId;

/// Input embeddings, `[vocab_size, hidden_size]`, as stored: shared with the weights, not a copy.
#[derive(Clone)]
pub struct EmbeddingTable {
    matrix: Arc<Matrix>,
}

impl EmbeddingTable {
    pub(crate) fn new(matrix: Arc<Matrix>) -> Self {
        Self { matrix }
    }

    /// Returns the number of rows: ids are below this.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.matrix.n()
    }

    /// Returns the number of elements per row.
    #[must_use]
    pub fn num_dimensions(&self) -> usize {
        self.matrix.k()
    }

    /// Writes the row of `token` to `row`.
    ///
    /// # Panics
    /// If there is no such token, or `row` is not [`num_dimensions`](Self::num_dimensions) long.
    pub fn read(&self, token: TokenId, row: &mut [f32]) {
        self.matrix.read_row(token.0 as usize, row);
    }
}
