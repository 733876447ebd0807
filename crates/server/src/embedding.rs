//! What prompts mean, found out before the engine sees them or beside it, never in a step.
//!
//! A quick embedder runs where a prompt is tokenized. A slow one has a lane of its own: one prompt at a time, a few waiting. No request
//! waits for it: its embedding is attached when it is done, to the request if that is still queued, which then is searched with it, or
//! to the donor that it has become, which then is found by it. (Waiting would take longer than most prompts take to compute, see
//! `benches/serve/embedders.md`.) A prompt that finds the lane full has no embedding: it is found by its spans as before.

use std::sync::Arc;

use tokens::{RequestId, TokenId};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::encode::Encoded;
use crate::state::AppState;

/// An embedding, of any length greater than 0.
pub type Embedding = Arc<[f32]>;

/// Something that knows what prompts mean.
pub trait Embedder: Send + Sync {
    /// Numbers in an embedding: what the engine's index is made for.
    fn num_dimensions(&self) -> usize;

    /// Whether a prompt takes no longer than tokenizing it.
    fn is_quick(&self) -> bool;

    /// What a prompt of the served model means; `None` if that cannot be said.
    fn embed(&self, tokens: &[TokenId]) -> Option<Embedding>;
}

/// Prompts that wait for a slow embedder at most. Chosen: further ones would be done after their answers.
const MAX_WAITING: usize = 16;

/// The lane of a slow embedder.
pub(crate) struct Lane {
    /// One permit: embedding takes the processor from the engine.
    turn: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// An embedding that is being computed.
pub(crate) struct Pending(JoinHandle<Option<Embedding>>);

impl Default for Lane {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), places: Arc::new(Semaphore::new(MAX_WAITING)) }
    }
}

impl Pending {
    /// Has `tokens` embedded, if there is a slow embedder with a free place.
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
            told(embedded.await)
        })))
    }

    /// Gives it to the engine as that of `request_id` when it is done.
    fn attach(self, app: &AppState, request_id: RequestId) {
        let engine = app.engine.clone();
        tokio::spawn(async move {
            if let Some(embedding) = told(self.0.await)
                && let Err(error) = engine.attach_embedding(request_id, embedding).await
            {
                tracing::debug!(%request_id, ?error, "an embedding came after the engine's end");
            }
        });
    }
}

fn told(embedded: Result<Option<Embedding>, tokio::task::JoinError>) -> Option<Embedding> {
    embedded.unwrap_or_else(|error| {
        tracing::error!(%error, "embedding panicked");
        None
    })
}

/// Has the prompts of requests that are on their way embedded by a slow embedder, for them and for those that come later.
pub(crate) fn embed_later(app: &AppState, prompts: impl Iterator<Item = (RequestId, Arc<[TokenId]>)>) {
    for (request_id, tokens) in prompts {
        if let Some(pending) = Pending::begin(app, tokens) {
            pending.attach(app, request_id);
        }
    }
}

/// Has `prompt` embedded by a slow embedder, however long that takes.
pub(crate) async fn await_whole(app: &AppState, prompt: &mut Encoded) {
    if prompt.embedding.is_none()
        && let Some(Pending(handle)) = Pending::begin(app, Arc::clone(&prompt.token_ids))
    {
        prompt.embedding = told(handle.await);
    }
}
