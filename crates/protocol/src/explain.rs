//! `/v1/kv/explain`: the reuse that a request would get, as its usage would report it.

use serde::{Deserialize, Serialize};
use tokens::SharingMode;

use crate::{MatchClass, ReuseReason};

/// Reuse that an admission would find now. Fields that `usage.kv_sharing` has too predict its values; a run may still recompute up to
/// `policy_tokens` of the span tokens after measuring them, and all of them if they disagree with the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// `kv.explanation`.
    pub object: String,
    /// Name of the model.
    pub model: String,
    /// Mode that would apply: the server's default if the request names none, and exact sharing only if the request asks for that.
    #[serde(with = "crate::sharing_mode")]
    pub mode: SharingMode,
    /// Policy that selects the span tokens to recompute: `name@ratio`, and `+deviation=` where a bound was set.
    pub policy: String,
    /// Length of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that would be reused as a prefix. Exact.
    pub prefix_tokens: u32,
    /// Tokens after the prefix whose KV an earlier turn of the conversation computed over spans. Approximate.
    #[serde(default)]
    pub continued_tokens: u32,
    /// Tokens that would be copied from donors.
    pub span_tokens: u32,
    /// Tokens that a donor has and that would be recomputed anyway, before a policy selects more.
    pub recomputed_tokens: u32,
    /// Tokens that would be computed, `recomputed_tokens` included.
    pub computed_tokens: u32,
    /// Maximum number of span tokens that the policy would recompute after measuring them.
    pub policy_tokens: u32,
    /// Donors that would give spans.
    pub donors: u32,
    /// Agreement of the left context of the worst span with its donor's; `null` without spans.
    pub class: Option<MatchClass>,
    /// Positions at which the segments of the prompt begin.
    pub segments: Vec<u32>,
    /// Spans that would be copied, by ascending `target_pos`.
    pub spans: Vec<ExplainedSpan>,
    /// All matches found, including rejected ones, by ascending `target_pos`. Entries may overlap. A mode without spans searches for none.
    pub matches: Vec<ExplainedSpan>,
    /// Positions, as `[start, end]`, that are computed because their donors have a change in the same segment.
    pub edited: Vec<[u32; 2]>,
    /// Predicted cost of the prompt; `null` until costs have been measured.
    pub estimate: Option<CostEstimate>,
    /// Reason why `spans` is empty; `null` if it is not.
    pub reason: Option<ReuseReason>,
}

/// Cost of one prompt, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostEstimate {
    /// Cost with everything after the prefix computed.
    pub full_ms: f64,
    /// Cost with the spans copied.
    pub reuse_ms: f64,
}

/// Index entry that led to a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DonorSource {
    /// Equal spans in the index.
    Span,
    /// Similarity of the prompts' embeddings only.
    Embedding,
}

/// Equal tokens in a donor and the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainedSpan {
    /// Id of the donor, unique inside this process.
    pub donor: u64,
    /// Position of the first token in the donor.
    pub donor_pos: u32,
    /// Position of the first token in the prompt.
    pub target_pos: u32,
    /// Number of tokens.
    pub num_tokens: u32,
    /// Agreement of donor and prompt on the left context; `null` for entries of `matches`.
    pub class: Option<MatchClass>,
    /// Index entry that led to the donor.
    pub source: DonorSource,
}
