//! `/v1/kv/explain`: what would be reused for a request.

use serde::{Deserialize, Serialize};

use crate::{MatchClass, SharingMode};

/// What would be reused if the request were admitted now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// `kv.explanation`.
    pub object: String,
    /// Name of the model.
    pub model: String,
    /// What would be allowed.
    pub mode: SharingMode,
    /// Which tokens of spans would be computed all the same: `name@ratio`, and `+deviation=` where a bound was set.
    pub policy: String,
    /// Length of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that would be reused as a prefix. Exact.
    pub prefix_tokens: u32,
    /// Tokens that would be copied from donors.
    pub span_tokens: u32,
    /// Tokens that a donor has and that would be computed all the same, before a policy chooses more.
    pub recomputed_tokens: u32,
    /// Tokens that would be computed, those among them.
    pub computed_tokens: u32,
    /// Positions at which a segment of the prompt begins.
    pub segments: Vec<u32>,
    /// What would be copied, by ascending `target_pos`.
    pub spans: Vec<ExplainedSpan>,
    /// Everything that was found, the declined among it, by ascending `target_pos`. Entries may overlap.
    pub matches: Vec<ExplainedSpan>,
    /// Positions, as `[start, end]`, that are computed because their donors have a change in the same segment.
    pub edited: Vec<[u32; 2]>,
    /// What the prompt is predicted to cost; `null` while nothing is known of costs.
    pub estimate: Option<CostEstimate>,
    /// Why `spans` is empty; `null` if it is not.
    pub rejected: Option<String>,
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
