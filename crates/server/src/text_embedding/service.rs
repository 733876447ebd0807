//! Tokenizes texts of clients and has them embedded.

use std::sync::Arc;

use super::TextEmbedder;
use super::lane::{EmbeddingLane, LaneError};
use crate::answer::submit_error;
use crate::body::Body;
use crate::embedding::Embedding;
use crate::engine_thread::{EngineHandle, SubmitError};
use crate::error::ApiError;
use crate::heavy::Heavy;
use crate::metrics::{Metrics, ShedReason};
use crate::tenants::Caller;
use crate::valid::{EmbeddingInput, InputSource};

/// Maximum bytes that are tokenized inline. Chosen: WordPiece takes below a millisecond for them.
const INLINE_BYTES: usize = 4 << 10;
/// Seconds until a retry when the queue is full. Chosen: some batches are done by then.
const RETRY_AFTER_S: u64 = 1;

/// Parts of the server that embed texts.
#[derive(Clone, Copy)]
pub(crate) struct TextEmbeddings<'a> {
    pub(crate) lane: Option<&'a Arc<EmbeddingLane>>,
    pub(crate) engine: &'a EngineHandle,
    pub(crate) heavy: &'a Heavy,
    pub(crate) metrics: &'a Metrics,
}

/// Embeddings of the texts of a request.
pub(crate) struct Embedded {
    /// One for each text, in their order.
    pub(crate) vectors: Vec<Embedding>,
    /// Tokens of all texts.
    pub(crate) num_tokens: usize,
}

impl<'a> TextEmbeddings<'a> {
    /// Returns the model that embeds texts.
    ///
    /// # Errors
    /// If none is configured.
    pub(crate) fn embedder(self) -> Result<&'a dyn TextEmbedder, ApiError> {
        self.lane.map(|lane| &**lane.embedder()).ok_or(ApiError::NoEmbeddingModel)
    }

    /// Tokenizes and embeds `inputs`, sent by `caller` in `body`, whose memory is held until they are tokenized.
    pub(crate) async fn embed(self, caller: &Caller, inputs: Vec<EmbeddingInput>, body: Body) -> Result<Embedded, ApiError> {
        let lane = self.lane.ok_or(ApiError::NoEmbeddingModel)?;
        let refused = |error| submit_error(self.engine, self.metrics, error);
        let in_flight = self.engine.enter().map_err(refused)?;
        let texts = self.tokenize(lane, inputs).await?;
        drop(body);
        let (num_texts, num_tokens) = (texts.len(), texts.iter().map(Vec::len).sum());
        let embedded = tokio::select! {
            embedded = lane.embed(caller.tenant, texts, self.engine.queue_timeout()) => embedded,
            phase = self.engine.ended() => return Err(match submit_error(self.engine, self.metrics, SubmitError::NotRunning(phase)) {
                ApiError::Draining => ApiError::CutByShutdown,
                error => error,
            }),
        };
        drop(in_flight);
        let vectors = embedded.map_err(|error| match error {
            LaneError::Full => {
                self.metrics.http.count_shed(ShedReason::QueueFull);
                ApiError::QueueFull { retry_after_s: RETRY_AFTER_S }
            }
            LaneError::TimedOut => {
                self.metrics.http.count_shed(ShedReason::QueueTimeout);
                ApiError::QueueTimeout
            }
            LaneError::Failed => ApiError::Internal,
        })?;
        self.metrics.embeddings.count(num_texts, num_tokens);
        Ok(Embedded { vectors, num_tokens })
    }

    async fn tokenize(self, lane: &EmbeddingLane, inputs: Vec<EmbeddingInput>) -> Result<Vec<Vec<u32>>, ApiError> {
        let num_bytes = |input: &EmbeddingInput| match &input.source {
            InputSource::Text(text) => text.len(),
            InputSource::Tokens(_) => 0,
        };
        let num_bytes = inputs.iter().map(num_bytes).sum();
        let embedder = Arc::clone(lane.embedder());
        let tokenize = move || inputs.into_iter().map(|input| tokenize(&*embedder, input)).collect();
        self.heavy.run(num_bytes, INLINE_BYTES, tokenize).await
    }
}

fn tokenize(embedder: &dyn TextEmbedder, EmbeddingInput { source, place, cut }: EmbeddingInput) -> Result<Vec<u32>, ApiError> {
    let ids = match source {
        InputSource::Text(text) => embedder.tokenize(&text, cut).map_err(|error| place.error(&error))?,
        InputSource::Tokens(ids) => ids,
    };
    match ids.len() <= embedder.max_tokens() {
        true => Ok(ids),
        false => Err(place.too_long(ids.len(), embedder.max_tokens())),
    }
}
