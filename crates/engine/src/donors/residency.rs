//! Finds the blocks of donors that are still there.

use std::collections::BTreeMap;
use std::ops::Range;

use semantic::{ReusePlan, SpanMatch};
use tokens::DonorId;

use super::DonorRegistry;
use super::spans::{SourceBlock, covering};
use super::target::Target;
use crate::host::FetchGate;

/// Method to determine the resident blocks of a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residency {
    /// By the hash of the last block, in some steps: right unless hashes collide or a block may not be read.
    Estimated,
    /// By comparing all blocks, in as many steps as the donor has.
    Confirmed,
}

impl DonorRegistry {
    /// Returns the blocks that `plan` needs; `None` if some were evicted. Blocks before its spans are pinned too, so that no
    /// block is evicted after one that is found through it; but they are not fetched.
    pub(crate) fn sources(&self, pool: &kv::BlockPool, target: Target<'_>, plan: &ReusePlan) -> Option<Vec<SourceBlock>> {
        let block_size = self.block_size.get();
        let mut needed: BTreeMap<DonorId, Vec<Range<u32>>> = BTreeMap::new();
        for span in &plan.spans {
            needed.entry(span.donor).or_default().push(covering(span.donor_pos, span.num_tokens, block_size));
        }
        let mut sources = Vec::new();
        for (donor, covered) in needed {
            let end = covered.iter().map(|range| range.end).max().unwrap_or(0);
            let blocks = self.resident_blocks(pool, donor, target, end as usize)?;
            if blocks.len() < end as usize {
                return None;
            }
            let mut is_covered = vec![false; end as usize];
            covered.into_iter().for_each(|range| is_covered[range.start as usize..range.end as usize].fill(true));
            for ((idx, place), is_covered) in (0..end).zip(blocks).zip(is_covered) {
                if !place.is_host() || is_covered {
                    sources.push(SourceBlock { donor, idx, place });
                }
            }
        }
        Some(sources)
    }

    /// Returns the tokens of `found` that are worth copying: all if fetching those in the host tier pays, else those before the
    /// first block that would have to be fetched.
    pub(super) fn num_worthy(&self, pool: &kv::BlockPool, found: &SpanMatch, gate: FetchGate<'_>) -> u32 {
        let block_size = self.block_size.get();
        let Some((donor, blocks)) = self.get(found.donor) else { return 0 };
        let place = |idx: u32| pool.index().place_in(blocks.hashed(donor, &blocks.readable), idx as usize);
        let is_fetched = |&idx: &u32| place(idx).is_none_or(|place| place.is_host());
        let fetched: Vec<_> = covering(found.donor_pos, found.num_tokens, block_size).filter(is_fetched).collect();
        match fetched.first() {
            Some(first) if !gate.pays(fetched.len(), found.num_tokens, found.target_pos + found.num_tokens) => {
                found.num_tokens.min((first * block_size).saturating_sub(found.donor_pos))
            }
            _ => found.num_tokens,
        }
    }

    /// Returns the leading tokens of a donor that `target` may copy.
    pub(super) fn usable(&self, pool: &kv::BlockPool, id: DonorId, target: Target<'_>, residency: Residency) -> u32 {
        let Some((donor, blocks)) = self.get(id).filter(|_| !self.store.is_expired(id)) else { return 0 };
        let readable = blocks.readable_by(target);
        let hashed = blocks.hashed(donor, &readable);
        let num_blocks = match residency {
            Residency::Estimated => pool.index().count_leading(hashed),
            Residency::Confirmed => pool.match_full_blocks(hashed).len(),
        };
        self.num_tokens(num_blocks)
    }

    /// Returns all tokens of a donor that has not expired.
    pub(super) fn unexpired(&self, id: DonorId) -> u32 {
        if self.store.is_expired(id) { 0 } else { u32::MAX }
    }

    /// Returns the leading blocks of `donor`, at most `max_blocks`, that are in the pool or the host tier and in scopes that
    /// `target` may read; `None` if it is not kept, or has expired.
    fn resident_blocks(
        &self,
        pool: &kv::BlockPool,
        id: DonorId,
        target: Target<'_>,
        max_blocks: usize,
    ) -> Option<Vec<kv::Place>> {
        let (donor, blocks) = self.get(id).filter(|_| !self.store.is_expired(id))?;
        let readable = blocks.readable_by(target);
        let hashed = blocks.hashed(donor, &readable);
        let tokens = &hashed.tokens[..max_blocks * self.block_size.as_usize()];
        Some(pool.match_full_blocks(kv::HashedTokens { tokens, ..hashed }))
    }

    pub(super) fn is_too_short(&self, num_blocks: usize) -> bool {
        self.num_tokens(num_blocks) < self.config.min_span_tokens
    }
}
