//! Embedding models for prompts, and the queue of the slow ones.

mod queue;

use std::sync::Arc;

use tokens::TokenId;

pub(crate) use self::queue::EmbeddingQueue;

/// An embedding, of any length greater than 0.
pub type Embedding = Arc<[f32]>;

/// Embedding model for prompts.
pub trait Embedder: Send + Sync {
    /// Returns the number of elements of an embedding, for which the engine's index is built.
    fn num_dimensions(&self) -> usize;

    /// True if embedding a prompt takes no longer than tokenizing it.
    fn is_quick(&self) -> bool;

    /// Embeds a prompt of the served model; `None` if that is not possible.
    fn embed(&self, tokens: &[TokenId]) -> Option<Embedding>;
}
