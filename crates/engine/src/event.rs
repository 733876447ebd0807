//! Events that the engine reports to the submitter of a request.

use tokens::{RequestId, Timestamp, TokenId};

use crate::TokenLogProbs;

/// Events of one request, in the order they happen: `Admitted`, `PromptLogProbs`?, `Token`*, `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    /// The request left the waiting queue. Sent once, at the first admission; a later preemption does not repeat it.
    Admitted {
        /// Request ID.
        request_id: RequestId,
        /// Sources of the prompt's KV.
        usage: KvUsage,
        /// Time of admission.
        at: Timestamp,
    },
    /// Log probabilities of the whole prompt but its first token; sent before the first token, on request.
    PromptLogProbs {
        /// Request ID.
        request_id: RequestId,
        /// For positions `1..prompt_len`.
        logprobs: Vec<TokenLogProbs>,
    },
    /// The request has one more token. Stop tokens are reported too.
    Token {
        /// Request ID.
        request_id: RequestId,
        /// The token.
        token: TokenId,
        /// Log probabilities, on request.
        logprobs: Option<TokenLogProbs>,
    },
    /// The request ended and its blocks are free. The last event.
    Finished {
        /// Request ID.
        request_id: RequestId,
        /// Reason why it ended.
        reason: FinishReason,
        /// Final accounting: a rejected donor or a preemption may have changed what `Admitted` reported.
        usage: KvUsage,
    },
}

impl KvUsage {
    /// Moves `num_tokens` from the span tokens to the computed and recomputed ones.
    pub(crate) fn recompute(&mut self, num_tokens: u32) {
        self.span_tokens -= num_tokens;
        self.computed_tokens += num_tokens;
        self.recomputed_tokens += num_tokens;
    }
}

impl EngineEvent {
    /// Returns the ID of the request that the event belongs to.
    #[must_use]
    pub fn request_id(&self) -> RequestId {
        match self {
            Self::Admitted { request_id, .. }
            | Self::PromptLogProbs { request_id, .. }
            | Self::Token { request_id, .. }
            | Self::Finished { request_id, .. } => *request_id,
        }
    }
}

/// Reason why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model generated this stop token.
    Stop(TokenId),
    /// The answer is a complete sentence of its grammar, which nothing may follow.
    Complete,
    /// The model generated `max_tokens` tokens.
    Length,
    /// The caller aborted it.
    Aborted,
    /// The model returned non-finite logits: there is no next token.
    Faulty,
}

/// Sources of the KV of a prompt. Prefix, continued, span and computed tokens add up to the prompt's length.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct KvUsage {
    /// Tokens found in the prefix index. Exact.
    pub prefix_tokens: u32,
    /// Tokens after the prefix whose KV an earlier turn of the conversation computed over moved spans. Approximate.
    pub continued_tokens: u32,
    /// Tokens copied from donors. Approximate.
    pub span_tokens: u32,
    /// Tokens computed.
    pub computed_tokens: u32,
    /// Computed tokens that a donor had and that were recomputed on purpose.
    pub recomputed_tokens: u32,
    /// Donors that gave spans.
    pub donors: u32,
    /// Lowest match class of the spans and of those in the continued tokens.
    pub class: Option<semantic::MatchClass>,
    /// Estimated change of the tokens that stay as donors had them, if it was measured; see [`semantic::SelectedRows::deviation`].
    pub deviation: Option<f32>,
    /// Deviation per token of the prompt at a quarter of the model's depth, if measured there; see [`semantic::deep_deviation`].
    pub deep_deviation: Option<f32>,
    /// Outcome of the search for spans; `None` if the request's mode needs no search.
    pub outcome: Option<crate::SpanOutcome>,
}
