//! `/v1/kv/explain`: what would be reused for a request, as its usage would say.

use serde::{Deserialize, Serialize};

use crate::{MatchClass, ReuseReason, SharingMode};

/// Reuse that an admission would find now. Fields that `usage.kv_sharing` has too say what it would say, but that a run may
/// yet compute up to `policy_tokens` of the tokens of spans, once they are measured, and all of them if they disagree with the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// `kv.explanation`.
    pub object: String,
    /// Name of the model.
    pub model: String,
    /// The mode that would be allowed: the server's default when the request names none, and only exact sharing where it asks for that.
    pub mode: SharingMode,
    /// Which tokens of spans would be computed all the same: `name@ratio`, and `+deviation=` where a bound was set.
    pub policy: String,
    /// Length of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that would be reused as a prefix. Exact.
    pub prefix_tokens: u32,
    /// Tokens after them whose KV an earlier turn of the conversation computed over spans. Approximate.
    #[serde(default)]
    pub continued_tokens: u32,
    /// Tokens that would be copied from donors.
    pub span_tokens: u32,
    /// Tokens that a donor has and that would be computed all the same, before a policy chooses more.
    pub recomputed_tokens: u32,
    /// Tokens that would be computed, those among them.
    pub computed_tokens: u32,
    /// Tokens of spans, at most, that the policy would have computed all the same once they are measured.
    pub policy_tokens: u32,
    /// Donors that would give spans.
    pub donors: u32,
    /// The agreement of the worst span with its donor on what stands left of it; `null` without spans.
    pub class: Option<MatchClass>,
    /// Positions at which a segment of the prompt begins.
    pub segments: Vec<u32>,
    /// What would be copied, by ascending `target_pos`.
    pub spans: Vec<ExplainedSpan>,
    /// Everything that was found, the declined among it, by ascending `target_pos`. Entries may overlap. A mode without spans looks for
    /// none.
    pub matches: Vec<ExplainedSpan>,
    /// Positions, as `[start, end]`, that are computed because their donors have a change in the same segment.
    pub edited: Vec<[u32; 2]>,
    /// What the prompt is predicted to cost; `null` while nothing is known of costs.
    pub estimate: Option<CostEstimate>,
    /// Why `spans` is empty; `null` if it is not.
    pub reason: Option<ReuseReason>,
}

/// What one prompt costs, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostEstimate {
    /// With everything behind the prefix computed.
    pub full_ms: f64,
    /// With the spans copied.
    pub reuse_ms: f64,
}

/// What led to a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DonorSource {
    /// Equal spans in the index.
    Span,
    /// Only what its prompt means.
    Embedding,
}

/// Equal tokens in a donor and the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainedSpan {
    /// Who has them. A name only inside this process.
    pub donor: u64,
    /// Where they start there.
    pub donor_pos: u32,
    /// Where they start in the prompt.
    pub target_pos: u32,
    /// How many they are.
    pub num_tokens: u32,
    /// How far donor and prompt agree on what stands left of them; `null` for what was only found.
    pub class: Option<MatchClass>,
    /// What led to the donor.
    pub source: DonorSource,
}
