//! What sharing could give a request, without running it.

/// What of a prompt is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// Leading tokens whose exact KV is cached.
    pub prefix_tokens: u32,
    /// Which spans would be copied behind them, of what is still in the pool or the host tier.
    pub plan: semantic::ReusePlan,
    /// All equal spans that were found, still there or not.
    pub matches: Vec<semantic::SpanMatch>,
    /// Donors among them that only their embeddings led to, by id.
    pub by_embedding: Vec<tokens::DonorId>,
}
