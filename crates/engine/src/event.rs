//! What the engine tells the one who submitted a request.

use tokens::{RequestId, Timestamp, TokenId};

use crate::TokenLogProbs;

/// News of one request, in the order they happen: `Admitted`, `PromptLogProbs`?, `Token`*, `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    /// It left the waiting queue. Sent once, at the first admission; a later preemption does not repeat it.
    Admitted {
        /// Who.
        request_id: RequestId,
        /// Where its prompt's KV came from.
        usage: KvUsage,
        /// When.
        at: Timestamp,
    },
    /// Log probabilities of the whole prompt but its first token; sent before the first token if asked for.
    PromptLogProbs {
        /// Who.
        request_id: RequestId,
        /// For positions `1..prompt_len`.
        logprobs: Vec<TokenLogProbs>,
    },
    /// It has one more token. A stop token is reported too.
    Token {
        /// Who.
        request_id: RequestId,
        /// The token.
        token: TokenId,
        /// If asked for.
        logprobs: Option<TokenLogProbs>,
    },
    /// It is over and its blocks are free. The last event.
    Finished {
        /// Who.
        request_id: RequestId,
        /// Why.
        reason: FinishReason,
        /// Final accounting: a rejected donor or a preemption may have changed what `Admitted` announced.
        usage: KvUsage,
    },
}

impl KvUsage {
    /// `num_tokens` that a donor gave were computed after all.
    pub(crate) fn recompute(&mut self, num_tokens: u32) {
        self.span_tokens -= num_tokens;
        self.computed_tokens += num_tokens;
        self.recomputed_tokens += num_tokens;
    }
}

impl EngineEvent {
    /// Whose news it is.
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

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// This stop token was generated.
    Stop(TokenId),
    /// `max_tokens` were generated.
    Length,
    /// The caller took it back.
    Aborted,
    /// The model gave what is no number in place of logits: there is no next token.
    Faulty,
}

/// Sources of the KV of a prompt. Prefix, continued, span and computed tokens add up to the prompt's length.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct KvUsage {
    /// Tokens found in the prefix index. Exact.
    pub prefix_tokens: u32,
    /// Tokens after them whose KV an earlier turn of the conversation computed over moved spans. Approximate.
    pub continued_tokens: u32,
    /// Tokens copied from donors. Approximate.
    pub span_tokens: u32,
    /// Tokens computed.
    pub computed_tokens: u32,
    /// Among the computed ones, those a donor had and that were recomputed on purpose.
    pub recomputed_tokens: u32,
    /// Donors that gave spans.
    pub donors: u32,
    /// The least equal of the spans, and of those in the continued tokens.
    pub class: Option<semantic::MatchClass>,
    /// What the tokens that stay as donors had them are estimated to change; see [`semantic::SelectedRows::deviation`].
    pub deviation: f32,
    /// The same per token of the prompt at a quarter of the model's depth, if it was measured there; see [`semantic::deep_deviation`].
    pub deep_deviation: Option<f32>,
    /// Outcome of the search for spans; `None` if what the request allows needs none.
    pub outcome: Option<crate::SpanOutcome>,
}
