//! What a caller asks of the engine. Everything in it was validated before: the engine never refuses a request.

use std::ops::RangeInclusive;
use std::sync::Arc;

use semantic::Repair;
use tokens::{Borders, RequestId, Scope, SessionId, TenantId, Timestamp, TokenId, TokenRange};

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name in every later event. Unique in the life of the process.
    pub request_id: RequestId,
    /// The prompt; never empty, and with `sampling.max_tokens` within the model's length.
    pub prompt_token_ids: Arc<[TokenId]>,
    /// How to choose tokens, and when to stop.
    pub sampling: SamplingParams,
    /// Whose it is.
    pub tenant: TenantId,
    /// The conversation it belongs to, if what that leaves behind may have to be erased.
    pub session: Option<SessionId>,
    /// Scope of every cache lookup and of what this request leaves behind.
    pub scope: Scope,
    /// Further scopes it may read, public texts say. What such a scope holds should have been left by requests that could read
    /// nothing but it: what a request leaves behind text of another scope is only found by those who may read that scope too.
    pub readable: Vec<Scope>,
    /// What may be reused.
    pub sharing: KvSharingMode,
    /// Which tokens of reused spans are computed all the same.
    pub repair: Repair,
    /// Whether the exact KV of this request may serve later ones.
    pub store: bool,
    /// Positions that are always computed although a donor has them: tokens of the chat template. Sorted, disjoint.
    pub template: Vec<TokenRange>,
    /// Beginnings of the pieces of the prompt.
    pub borders: Borders,
    /// What the prompt means, as far as an embedder knows by now: of any length greater than 0. Finds donors for
    /// [`KvSharingMode::Semantic`], and this one for others.
    pub embedding: Option<Arc<[f32]>>,
    /// When the daemon received it.
    pub arrival: Timestamp,
}

/// Which KV of earlier requests a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum KvSharingMode {
    /// None: every prompt token is computed. Exact.
    Off,
    /// Blocks with equal tokens and equal left context. Exact.
    #[default]
    Prefix,
    /// Also equal spans at any offset and in any order, moved to their new positions. Approximate.
    Span,
    /// Like `Span`, also from donors that mean something similar, and of donors of the same text the one whose left context has most
    /// in common with the request's.
    Semantic,
    /// As `Span` where that has proven itself for requests like this one, and as `Prefix` elsewhere; see [`semantic::TrafficGuard`].
    Auto,
    /// Blocks as with `Prefix`; spans are searched and counted, but not used. Exact.
    Shadow,
}

impl Request {
    /// Who is charged for its blocks, and with whom they are erased.
    pub(crate) fn owner(&self) -> kv::BlockOwner {
        kv::BlockOwner { tenant: self.tenant, session: self.session, request: self.request_id }
    }
}

impl KvSharingMode {
    /// Whether spans are searched.
    #[must_use]
    pub fn searches_spans(self) -> bool {
        self.copies_spans() || self == Self::Shadow
    }

    /// True if spans may be copied.
    #[must_use]
    pub fn copies_spans(self) -> bool {
        matches!(self, Self::Span | Self::Semantic | Self::Auto)
    }
}

/// How tokens are chosen, and when generation ends.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens less likely than this share of the likeliest; 0 drops none.
    pub min_p: f32,
    /// Seed of the per-request generator: equal seed, prompt and parameters give equal output.
    pub seed: u64,
    /// Subtracted from a token's logit once for each time it was generated.
    pub frequency_penalty: f32,
    /// Subtracted from a token's logit if it was generated.
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 does nothing.
    pub repetition_penalty: f32,
    /// Added to logits before everything else.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Report log probabilities of the chosen token and of this many likeliest ones.
    pub logprobs: Option<u32>,
    /// Report log probabilities of the prompt's tokens too (`echo`). Forces computing the prompt from `prompt_logprobs_from` on.
    pub prompt_logprobs: Option<u32>,
    /// First position whose log probabilities are reported; at least 1, since nothing stands before position 0.
    pub prompt_logprobs_from: u32,
    /// Tokens to generate at most; at least 1 (or 0 with `prompt_logprobs`, which only scores the prompt).
    pub max_tokens: u32,
    /// Tokens to generate before a stop token may be chosen.
    pub min_tokens: u32,
    /// Tokens that end generation, end-of-sequence ones included unless the caller ignores them.
    pub stop_token_ids: Vec<TokenId>,
}

impl SamplingParams {
    /// Temperatures that may be asked for: with any of these, logits give a distribution of finite numbers. So with the ranges below.
    pub const TEMPERATURE: RangeInclusive<f32> = 0.0..=2.0;
    /// Repetition penalties that may be asked for: less would make a logit infinite.
    pub const REPETITION_PENALTY: RangeInclusive<f32> = 0.01..=100.0;
    /// Presence and frequency penalties that may be asked for.
    pub const ADDITIVE_PENALTY: RangeInclusive<f32> = -2.0..=2.0;
    /// Biases that may be added to a logit.
    pub const LOGIT_BIAS: RangeInclusive<f32> = -100.0..=100.0;

    /// Greedy continuation of `max_tokens` tokens, without stop tokens.
    #[must_use]
    pub fn greedy(max_tokens: u32) -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            prompt_logprobs_from: 1,
            max_tokens,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
        }
    }
}
