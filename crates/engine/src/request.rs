//! A request to the engine. The caller has validated all of it: the engine never refuses a request.

use std::ops::RangeInclusive;
use std::sync::Arc;

use semantic::Repair;
use tokens::{Borders, RequestId, Scope, SessionId, SharingMode, TenantId, Timestamp, TokenId, TokenRange};

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// ID in every later event. Unique in the life of the process.
    pub request_id: RequestId,
    /// The prompt; never empty, and with `sampling.max_tokens` within the model's length.
    pub prompt_token_ids: Arc<[TokenId]>,
    /// Sampling parameters and stop conditions.
    pub sampling: SamplingParams,
    /// Tenant that owns the request.
    pub tenant: TenantId,
    /// Conversation of the request, if its donors and blocks may have to be erased.
    pub session: Option<SessionId>,
    /// Scope of every cache lookup and of the KV that this request stores.
    pub scope: Scope,
    /// Further scopes it may read, such as that of public texts. Only requests that could read nothing but such a scope should have
    /// stored KV in it: KV stored after text of another scope is only found by requests that may read that scope too.
    pub readable: Vec<Scope>,
    /// KV that may be reused.
    pub sharing: SharingMode,
    /// Policy that selects the tokens of reused spans to recompute.
    pub repair: Repair,
    /// True if the exact KV of this request may serve later ones.
    pub store: bool,
    /// Positions that are always computed even if a donor has them: tokens of the chat template. Sorted, disjoint.
    pub template: Vec<TokenRange>,
    /// Starts of the pieces of the prompt.
    pub borders: Borders,
    /// Embedding of the prompt, if the embedder has computed it by now: of any length greater than 0. Used to find donors for
    /// [`SharingMode::Semantic`], and to find this request as a donor.
    pub embedding: Option<Arc<[f32]>>,
    /// Time at which the daemon received it.
    pub arrival: Timestamp,
}

impl Request {
    /// Returns the owner that its blocks are charged to and erased with.
    pub(crate) fn owner(&self) -> kv::BlockOwner {
        kv::BlockOwner { tenant: self.tenant, session: self.session, request: self.request_id }
    }
}

/// Parameters of sampling and of the end of generation.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Smallest probability mass of the likeliest tokens to keep; 1 keeps all.
    pub top_p: f32,
    /// Number of likeliest tokens to keep; 0 keeps all.
    pub top_k: u32,
    /// Minimum probability relative to the likeliest token; 0 drops none.
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
    /// Number of likeliest tokens whose log probabilities are reported besides that of the chosen token.
    pub logprobs: Option<u32>,
    /// Log probabilities of the prompt's tokens too (`echo`). Forces computing the prompt from `prompt_logprobs_from` on.
    pub prompt_logprobs: Option<u32>,
    /// First position whose log probabilities are reported; at least 1, since no token precedes position 0.
    pub prompt_logprobs_from: u32,
    /// Tokens to generate at most; at least 1 (or 0 with `prompt_logprobs`, which only scores the prompt).
    pub max_tokens: u32,
    /// Tokens to generate before a stop token may be chosen.
    pub min_tokens: u32,
    /// Tokens that end generation, end-of-sequence ones included unless the caller ignores them.
    pub stop_token_ids: Vec<TokenId>,
    /// Grammar that the answer is a sentence of.
    pub grammar: Option<grammar::Grammar>,
}

impl SamplingParams {
    /// Valid temperatures: with any of these, logits give a distribution of finite probabilities. So with the ranges below.
    pub const TEMPERATURE: RangeInclusive<f32> = 0.0..=2.0;
    /// Valid repetition penalties: a lower one would make a logit infinite.
    pub const REPETITION_PENALTY: RangeInclusive<f32> = 0.01..=100.0;
    /// Valid presence and frequency penalties.
    pub const ADDITIVE_PENALTY: RangeInclusive<f32> = -2.0..=2.0;
    /// Valid biases of a logit.
    pub const LOGIT_BIAS: RangeInclusive<f32> = -100.0..=100.0;

    /// Returns parameters for a greedy continuation of `max_tokens` tokens, without stop tokens.
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
            grammar: None,
        }
    }
}
