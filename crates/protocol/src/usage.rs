//! What a request consumed, and where its KV came from.

use serde::{Deserialize, Serialize};

use crate::SharingMode;

/// Accounting of one request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Of all prompts; a prompt with several answers counts once.
    pub prompt_tokens: u32,
    /// Of all answers, stop tokens included.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// Always present.
    pub prompt_tokens_details: PromptTokensDetails,
    /// Always present.
    pub completion_tokens_details: CompletionTokensDetails,
    /// Where the prompts' KV came from.
    pub kv_sharing: KvSharingUsage,
}

/// Part of the prompt that cost nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Tokens whose KV was found exactly, as a prefix. Tokens of spans are not counted here.
    pub cached_tokens: u32,
}

/// Part of the answer that is not text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionTokensDetails {
    /// Always 0: reasoning is not told apart from text.
    pub reasoning_tokens: u32,
}

/// Where the prompts' KV came from. What is in neither of the first two was computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvSharingUsage {
    /// What was allowed.
    pub mode: SharingMode,
    /// Tokens reused as a prefix. Exact.
    pub prefix_tokens: u32,
    /// Tokens reused as spans of other prompts. Approximate.
    pub span_tokens: u32,
    /// Tokens that a donor had and that were computed all the same.
    pub recomputed_tokens: u32,
    /// Donors that gave spans.
    pub donors: u32,
    /// How far the worst span agrees with its donor on what stands left of it; `null` when no span was reused.
    pub class: Option<MatchClass>,
    /// How much of what was reused is left as it was, after repair: measured at one early layer, in tokens' worth of change; 0 where
    /// the policy measures nothing. `null` when no span was reused.
    pub deviation: Option<f32>,
}

/// How much of the left context of a reused span is equal in donor and target. Best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchClass {
    /// All of it, at the same positions: the copy is exact.
    SamePast,
    /// At least the last 256 tokens.
    SameLeftContext,
    /// Less: text put behind other text.
    Composition,
    /// Text behind a change inside its own segment.
    DownstreamOfEdit,
}
