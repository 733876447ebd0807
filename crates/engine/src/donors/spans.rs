//! Spans that are, or will be, copied from donors.

use std::collections::BTreeSet;
use std::ops::Range;

use semantic::ReusePlan;
use tokens::DonorId;

/// Spans to copy.
#[derive(Clone, Debug)]
pub(crate) struct PlannedSpans {
    pub(crate) plan: ReusePlan,
    /// Donors found only by embedding.
    pub(crate) by_embedding: BTreeSet<DonorId>,
}

/// Spans to copy, with the blocks that hold them.
pub(crate) struct FoundSpans {
    pub(crate) plan: ReusePlan,
    /// Blocks to pin while they are copied.
    pub(crate) sources: Vec<SourceBlock>,
    /// Donors found only by embedding.
    pub(crate) by_embedding: BTreeSet<DonorId>,
}

/// A block of a donor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceBlock {
    pub(crate) donor: DonorId,
    /// Number of blocks before it in the donor.
    pub(crate) idx: u32,
    pub(crate) place: kv::Place,
}

impl FoundSpans {
    /// Returns the number of blocks to fetch from the host tier.
    pub(crate) fn num_fetched(&self) -> usize {
        self.sources.iter().filter(|source| source.place.is_host()).count()
    }
}

/// Returns the blocks that hold `num_tokens` tokens from position `start` on.
pub(crate) fn covering(start: u32, num_tokens: u32, block_size: u32) -> Range<u32> {
    start / block_size..if num_tokens == 0 { start / block_size } else { (start + num_tokens).div_ceil(block_size) }
}
