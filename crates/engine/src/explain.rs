//! The effect that sharing would have on a request, without running it.

use crate::KvUsage;

/// The result of admitting a request at this moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// As the request would announce it. A run may yet take back what it measures to be wrong.
    pub usage: KvUsage,
    /// Of the tokens of spans, those that the policy may have computed all the same once they are measured.
    pub policy_tokens: u32,
    /// Which spans would be copied, with what was decided on the way. Nothing was planned in a mode without spans.
    pub plan: semantic::ReusePlan,
    /// All equal spans that were found, still there or not; none in a mode without spans.
    pub matches: Vec<semantic::SpanMatch>,
    /// Donors among them that only their embeddings led to, by id.
    pub by_embedding: Vec<tokens::DonorId>,
}
