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

use super::{Embedder, Embedding};
use crate::engine_thread::EngineHandle;

/// Maximum prompts that wait for a slow embedder. Chosen: further ones would be done after their answers.
const MAX_WAITING: usize = 16;

/// Prompts that wait for a slow embedder. Without one it takes none.
pub(crate) struct EmbeddingQueue {
    embedder: Option<Arc<dyn Embedder>>,
    /// One permit: embedding takes the processor from the engine.
    turn: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// An embedding that is being computed.
struct Pending(JoinHandle<Option<Embedding>>);

impl EmbeddingQueue {
    /// Creates the queue of `embedder`, which stays empty if that is quick.
    pub(crate) fn new(embedder: Option<Arc<dyn Embedder>>) -> Self {
        Self { embedder, turn: Arc::new(Semaphore::new(1)), places: Arc::new(Semaphore::new(MAX_WAITING)) }
    }

    /// Embeds the prompts of submitted requests with a slow embedder, for these requests and later ones.
    pub(crate) fn embed_later(&self, engine: &EngineHandle, prompts: impl Iterator<Item = (RequestId, Arc<[TokenId]>)>) {
        for (request_id, tokens) in prompts {
            if let Some(pending) = self.begin(tokens) {
                pending.attach(engine.clone(), request_id);
            }
        }
    }

    /// Embeds `tokens` with a slow embedder and waits for it.
    pub(crate) async fn embed(&self, tokens: Arc<[TokenId]>) -> Option<Embedding> {
        match self.begin(tokens) {
            Some(Pending(handle)) => log_join_error(handle.await),
            None => None,
        }
    }

    /// Starts embedding `tokens` if there is a slow embedder with a free place.
    fn begin(&self, tokens: Arc<[TokenId]>) -> Option<Pending> {
        let embedder = self.embedder.as_ref().filter(|embedder| !embedder.is_quick())?;
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let (embedder, turn) = (Arc::clone(embedder), Arc::clone(&self.turn));
        Some(Pending(tokio::spawn(async move {
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
}

impl Pending {
    /// Attaches the embedding to `request_id` when ready.
    fn attach(self, engine: EngineHandle, request_id: RequestId) {
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
