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
    /// Tokens after them whose KV an earlier turn of the conversation computed over spans. Approximate.
    #[serde(default)]
    pub continued_tokens: u32,
    /// Tokens reused as spans of other prompts. Approximate.
    pub span_tokens: u32,
    /// Tokens that a donor had and that were computed all the same.
    pub recomputed_tokens: u32,
    /// Donors that gave spans.
    pub donors: u32,
    /// Agreement of the worst span with its donor on what stands left of it, spans of continued turns included; `null` without any.
    pub class: Option<MatchClass>,
    /// How much of what was reused is left as it was, after repair: measured at one early layer, in tokens' worth of change; 0 where
    /// the policy measures nothing. `null` when no span was reused.
    pub deviation: Option<f32>,
    /// True if a prompt had blanks that were written another way before it was tokenized.
    #[serde(default)]
    pub normalized: bool,
    /// Why no span was reused; `null` when one was. Of several prompts without spans, the reason of the first.
    pub reason: Option<ReuseReason>,
}

/// Why no span was reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReuseReason {
    /// The mode that the request was run with shares nothing but prefixes, or nothing at all.
    Mode,
    /// The prompt is shorter than prompts with spans have to be.
    PromptTooShort,
    /// The prefix leaves too little to compute.
    PrefixCovers,
    /// No earlier prompt that may be read has a span in common.
    NoDonor,
    /// The common text is too short, or has to be computed anyway.
    TooShort,
    /// All that is in common stands after a change in its own segment.
    Edited,
    /// Copying would not save enough time.
    NotWorthIt,
    /// Earlier prompts have spans in common, but their KV has been evicted.
    NotResident,
    /// The pool or the tenant's quota has no room to hold the spans beside the request's own KV.
    NoRoom,
    /// Verified answers of the tenant over such spans were too far from full computation.
    SwitchedOff,
    /// In mode `auto` spans are used where that has proven itself on earlier requests like this one: `GET /v1/kv/classes` tells.
    Unproven,
    /// In mode `shadow` spans are found and counted, and not used.
    Shadowed,
    /// More deviated than repair may leave, so everything was computed. Only known in a run.
    BailedOut,
    /// The policy had everything computed anew. Only known in a run.
    Recomputed,
    /// The KV of the donor disagreed with a fresh computation of the first layer. Only known in a run.
    FailedCheck,
}

impl ReuseReason {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Mode,
        Self::PromptTooShort,
        Self::PrefixCovers,
        Self::NoDonor,
        Self::TooShort,
        Self::Edited,
        Self::NotWorthIt,
        Self::NotResident,
        Self::NoRoom,
        Self::SwitchedOff,
        Self::Unproven,
        Self::Shadowed,
        Self::BailedOut,
        Self::Recomputed,
        Self::FailedCheck,
    ];
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
