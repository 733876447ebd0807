//! Hits of an unbounded exact-prefix cache, counted from block names alone.
//!
//! It shares no code with the engine, so that the two can be compared.

use std::collections::HashSet;

use crate::Trace;

/// Block hits and lookups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockHits {
    /// Blocks found.
    pub hits: u64,
    /// Blocks looked up.
    pub lookups: u64,
}

impl BlockHits {
    /// Returns the share found, in `0..=1`; 0 without lookups.
    #[must_use]
    pub fn ratio(self) -> f64 {
        if self.lookups == 0 { 0.0 } else { self.hits as f64 / self.lookups as f64 }
    }
}

/// Counts, for each request, the leading blocks that an earlier request had. The last, partial block counts like any other.
#[must_use]
pub fn ideal_hits(trace: &Trace) -> Vec<BlockHits> {
    let mut seen = HashSet::new();
    let mut all = Vec::with_capacity(trace.requests.len());
    for request in &trace.requests {
        let hits = request.blocks.iter().take_while(|block| seen.contains(*block)).count() as u64;
        seen.extend(request.blocks.iter().copied());
        all.push(BlockHits { hits, lookups: request.blocks.len() as u64 });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::trace;

    #[track_caller]
    fn check(requests: &[&[u32]], expected_hits: &[u64]) {
        let requests: Vec<_> = requests.iter().map(|&blocks| (0, blocks, 1)).collect();
        let hits: Vec<_> = ideal_hits(&trace(&requests)).iter().map(|block_hits| block_hits.hits).collect();
        assert_eq!(hits, expected_hits);
    }

    #[test]
    fn only_leading_blocks_are_found() {
        check(&[&[1, 2], &[1, 2, 3], &[4, 2], &[4, 2, 5]], &[0, 2, 0, 2]);
    }

    #[test]
    fn a_prompt_does_not_find_itself() {
        check(&[&[1], &[1]], &[0, 1]);
    }
}
