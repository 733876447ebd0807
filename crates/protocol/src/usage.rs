//! Token usage of a request, and the source of its KV.

use serde::{Deserialize, Serialize};
use tokens::SharingMode;

/// Token counts of one request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of all prompts; a prompt with several answers counts once.
    pub prompt_tokens: u32,
    /// Tokens of all answers, stop tokens included.
    pub completion_tokens: u32,
    /// Sum of both.
    pub total_tokens: u32,
    /// Always present.
    pub prompt_tokens_details: PromptTokensDetails,
    /// Always present.
    pub completion_tokens_details: CompletionTokensDetails,
    /// Source of the prompts' KV.
    pub kv_sharing: KvSharingUsage,
}

/// Prompt tokens that were not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Tokens whose KV was reused exactly, as a prefix. Span tokens are not counted here.
    pub cached_tokens: u32,
}

/// Completion tokens that are not text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionTokensDetails {
    /// Always 0: reasoning is not distinguished from text.
    pub reasoning_tokens: u32,
}

/// Source of the prompts' KV. Tokens outside of the prefix, continued and span tokens were computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvSharingUsage {
    /// Mode that applied.
    #[serde(with = "crate::sharing_mode")]
    pub mode: SharingMode,
    /// Tokens reused as a prefix. Exact.
    pub prefix_tokens: u32,
    /// Tokens after the prefix whose KV an earlier turn of the conversation computed over spans. Approximate.
    #[serde(default)]
    pub continued_tokens: u32,
    /// Tokens reused as spans of other prompts. Approximate.
    pub span_tokens: u32,
    /// Tokens that a donor had and that were recomputed anyway.
    pub recomputed_tokens: u32,
    /// Donors that gave spans.
    pub donors: u32,
    /// Agreement of the left context of the worst span with its donor's, spans of continued turns included; `null` without any.
    pub class: Option<MatchClass>,
    /// Deviation that remains in the reused KV after repair, measured at one early layer, in tokens' worth of change; 0 where the policy
    /// measures nothing. `null` when no span was reused.
    pub deviation: Option<f32>,
    /// True if whitespace of a prompt was normalized before it was tokenized.
    #[serde(default)]
    pub normalized: bool,
    /// Reason why no span was reused; `null` when one was. With several prompts and no spans, the reason of the first.
    pub reason: Option<ReuseReason>,
}

/// Reason why no span was reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReuseReason {
    /// The applied mode shares only prefixes, or nothing.
    Mode,
    /// The prompt is shorter than the minimum for span reuse.
    PromptTooShort,
    /// The prefix leaves too few tokens to compute.
    PrefixCovers,
    /// No readable earlier prompt has a span in common.
    NoDonor,
    /// The common text is too short, or must be computed anyway.
    TooShort,
    /// All common text follows a change in its own segment.
    Edited,
    /// Copying would not save enough time.
    NotWorthIt,
    /// Earlier prompts have spans in common, but their KV has been evicted.
    NotResident,
    /// The pool or the tenant's quota has no room for the spans in addition to the request's own KV.
    NoRoom,
    /// Verified answers of the tenant over such spans were too far from full computation.
    SwitchedOff,
    /// Mode `auto` has not yet proven span reuse on earlier requests of this class; see `GET /v1/kv/classes`.
    Unproven,
    /// Mode `shadow` finds and counts spans but does not use them.
    Shadowed,
    /// The deviation exceeded what repair may leave, so everything was computed. Known only after a run.
    BailedOut,
    /// The policy recomputed everything. Known only after a run.
    Recomputed,
    /// The KV of the donor disagreed with a fresh computation of the first layer. Known only after a run.
    FailedCheck,
}

impl ReuseReason {
    /// All reasons.
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

/// Extent to which the left context of a reused span is equal in donor and target. Best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchClass {
    /// Entire left context at the same positions: the copy is exact.
    SamePast,
    /// At least the last 256 tokens.
    SameLeftContext,
    /// Less than that: text placed after other text.
    Composition,
    /// Text after a change inside its own segment.
    DownstreamOfEdit,
}
