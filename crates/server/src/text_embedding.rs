//! Embeddings of clients' texts, for `/v1/embeddings`, `/v1/rerank` and `/v1/score`.

mod lane;
mod service;

pub(crate) use self::lane::EmbeddingLane;
pub(crate) use self::service::TextEmbeddings;
use crate::embedding::Embedding;

/// Model that embeds texts of clients.
pub trait TextEmbedder: Send + Sync {
    /// Returns its name in requests and answers.
    fn id(&self) -> &str;

    /// Returns the number of elements of an embedding.
    fn num_dimensions(&self) -> usize;

    /// Returns the maximum number of tokens of a text, special tokens included.
    fn max_tokens(&self) -> usize;

    /// Returns the exclusive upper bound of token ids.
    fn vocab_size(&self) -> usize;

    /// Tokenizes `text`, with the model's special tokens. With `cut`, drops tokens from the end of the text beyond this number.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    fn tokenize(&self, text: &str, cut: Option<usize>) -> Result<Vec<u32>, String>;

    /// Embeds texts given as tokens, each of 1 to [`Self::max_tokens`] ids below [`Self::vocab_size`]. Each result has length 1.
    ///
    /// # Errors
    /// If the model fails.
    fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Embedding>, String>;
}
