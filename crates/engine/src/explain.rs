//! The effect that sharing would have on a request, without running it.

use crate::KvUsage;

/// The result of admitting a request at this moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Usage as the request would report it at admission. A run may still reject spans that it measures to be wrong.
    pub usage: KvUsage,
    /// Upper bound of the span tokens that the policy would recompute after measuring them.
    pub policy_tokens: u32,
    /// Spans that would be copied, and the decisions made on the way. Empty in a mode without spans.
    pub plan: semantic::ReusePlan,
    /// All matching spans found, resident or not; empty in a mode without spans.
    pub matches: Vec<semantic::SpanMatch>,
    /// IDs of donors among them found only by embedding.
    pub by_embedding: Vec<tokens::DonorId>,
}
