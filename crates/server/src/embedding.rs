//! Prompt embeddings, computed before or concurrently with the engine, never in a step.
//!
//! A quick embedder runs where a prompt is tokenized. A slow one has a lane of its own: one prompt at a time, with a short queue. No
//! request waits for it: its embedding is attached when ready, to the request if that is still queued, which then is searched with it, or
//! to the donor that it has become, which then is found by it. (Waiting would take longer than most prompts take to compute, see
//! `benches/serve/embedders.md`.) A prompt that finds the lane full has no embedding and is found by its spans only.

use std::sync::Arc;

use tokens::{RequestId, TokenId};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::encode::Encoded;
use crate::state::AppState;

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

/// Maximum prompts that wait for a slow embedder. Chosen: further ones would be done after their answers.
const MAX_WAITING: usize = 16;

/// EmbeddingQueue of a slow embedder.
pub(crate) struct EmbeddingQueue {
    /// One permit: embedding takes the processor from the engine.
    turn: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// An embedding that is being computed.
pub(crate) struct Pending(JoinHandle<Option<Embedding>>);

impl Default for EmbeddingQueue {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), places: Arc::new(Semaphore::new(MAX_WAITING)) }
    }
}

impl Pending {
    /// Starts embedding `tokens` if there is a slow embedder with a free place.
    fn begin(app: &AppState, tokens: Arc<[TokenId]>) -> Option<Self> {
        let embedder = app.model.embedder.as_ref().filter(|embedder| !embedder.is_quick())?;
        let place = Arc::clone(&app.embedding_lane.places).try_acquire_owned().ok()?;
        let (embedder, turn) = (Arc::clone(embedder), Arc::clone(&app.embedding_lane.turn));
        Some(Self(tokio::spawn(async move {
            let turn = turn.acquire_owned().await.expect("the semaphore is never closed");
            let held = (place, turn);
            let embedded = tokio::task::spawn_blocking(move || {
                let embedding = embedder.embed(&tokens);
                drop(held);
                embedding
            });
            log_join_error(embedded.await)
        })))
    }

    /// Attaches the embedding to `request_id` when ready.
    fn attach(self, app: &AppState, request_id: RequestId) {
        let engine = app.engine.clone();
        tokio::spawn(async move {
            if let Some(embedding) = log_join_error(self.0.await)
                && let Err(error) = engine.attach_embedding(request_id, embedding).await
            {
                tracing::debug!(%request_id, ?error, "an embedding came after the engine's end");
            }
        });
    }
}

fn log_join_error(embedded: Result<Option<Embedding>, tokio::task::JoinError>) -> Option<Embedding> {
    embedded.unwrap_or_else(|error| {
        tracing::error!(%error, "embedding panicked");
        None
    })
}

/// Embeds the prompts of submitted requests with a slow embedder, for these requests and later ones.
pub(crate) fn embed_later(app: &AppState, prompts: impl Iterator<Item = (RequestId, Arc<[TokenId]>)>) {
    for (request_id, tokens) in prompts {
        if let Some(pending) = Pending::begin(app, tokens) {
            pending.attach(app, request_id);
        }
    }
}

/// Embeds `prompt` with a slow embedder and waits for it.
pub(crate) async fn await_whole(app: &AppState, prompt: &mut Encoded) {
    if prompt.embedding.is_none()
        && let Some(Pending(handle)) = Pending::begin(app, Arc::clone(&prompt.token_ids))
    {
        prompt.embedding = log_join_error(handle.await);
    }
}
