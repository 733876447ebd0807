//! Earlier prompts whose spans may be copied, and where their KV is now.
//!
//! `semantic` knows donors and positions, `kv` knows blocks; here the two meet. A donor holds no blocks: whatever of it was evicted is
//! simply not offered any more.

use std::collections::{BTreeMap, HashMap};

use semantic::{
    PlanTarget, PromptView, RepairPolicy, ReusePlan, Segments, SpanConfig, SpanIndex, SpanIndexConfig, SpanMatch, plan_reuse,
};
use tokens::{BlockHash, BlockId, BlockSize, CacheSalt, DonorId, TokenId, TokenRange};

use crate::SpanOutcome;

/// All donors.
pub(crate) struct DonorRegistry {
    config: SpanConfig,
    index_config: SpanIndexConfig,
    block_size: BlockSize,
    index: SpanIndex,
    donors: HashMap<DonorId, Donor>,
    /// By the hash of the last block, so that one prompt is one donor however often it comes.
    by_last_block: HashMap<BlockHash, DonorId>,
    next_id: u64,
}

struct Donor {
    salt: CacheSalt,
    tokens: std::sync::Arc<[TokenId]>,
    segments: Segments,
    hashes: Box<[BlockHash]>,
}

/// The prompt to be filled.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) salt: CacheSalt,
    pub(crate) tokens: &'a [TokenId],
    pub(crate) template: &'a [TokenRange],
    /// Where its segments begin.
    pub(crate) segments: &'a [u32],
    /// End of its prefix hit.
    pub(crate) from: u32,
    pub(crate) policy: RepairPolicy,
}

/// Spans to copy, with the blocks that hold them.
pub(crate) struct FoundSpans {
    pub(crate) plan: ReusePlan,
    /// Leading blocks of each donor, as many as the plan needs.
    pub(crate) donor_blocks: BTreeMap<DonorId, Vec<BlockId>>,
}

impl DonorRegistry {
    pub(crate) fn new(config: SpanConfig, max_donors: usize, block_size: BlockSize) -> Self {
        let index_config = SpanIndexConfig { max_donors, ..SpanIndexConfig::for_spans(&config) };
        let index = SpanIndex::new(index_config.clone());
        let (donors, by_last_block) = Default::default();
        Self { config, index_config, block_size, index, donors, by_last_block, next_id: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.donors.len()
    }

    /// Keeps the full blocks of a prompt that was computed exactly. A shorter donor that it continues is superseded.
    pub(crate) fn keep(&mut self, prompt: kv::HashedTokens<'_>, segments: Segments) {
        let num_blocks = self.block_size.full_blocks(prompt.tokens.len());
        let tokens = &prompt.tokens[..num_blocks * self.block_size.as_usize()];
        if self.index_config.max_donors == 0 || tokens.len() < self.config.min_span_tokens as usize {
            return;
        }
        let hashes = &prompt.hashes[..num_blocks];
        let &last = hashes.last().expect("a span fills at least one block");
        if let Some(&known) = self.by_last_block.get(&last) {
            return self.index.touch(known);
        }
        let superseded: Vec<_> = hashes.iter().filter_map(|hash| self.by_last_block.get(hash).copied()).collect();
        superseded.into_iter().for_each(|donor| self.remove(donor));
        self.insert(Donor { salt: prompt.salt, tokens: tokens.into(), segments, hashes: hashes.into() }, last);
    }

    fn insert(&mut self, donor: Donor, last: BlockHash) {
        let id = DonorId(self.next_id);
        self.next_id += 1;
        let evicted = self.index.insert_segmented(donor.salt, id, donor.tokens.clone(), donor.segments.clone());
        self.by_last_block.insert(last, id);
        self.donors.insert(id, donor);
        evicted.into_iter().for_each(|evicted| self.forget(evicted));
    }

    pub(crate) fn remove(&mut self, donor: DonorId) {
        self.index.remove(donor);
        self.forget(donor);
    }

    fn forget(&mut self, id: DonorId) {
        if let Some(donor) = self.donors.remove(&id) {
            self.by_last_block.remove(donor.hashes.last().expect("a donor has blocks"));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.index = SpanIndex::new(self.index_config.clone());
        self.donors.clear();
        self.by_last_block.clear();
    }

    /// How many tokens of `target` donors have, resident or not: a prediction.
    pub(crate) fn predict(&self, target: Target<'_>) -> u32 {
        self.plan(target, &self.find(target)).spans.iter().map(|span| span.num_tokens).sum()
    }

    /// What to copy into `target` of that which is still in `pool`, or why nothing.
    pub(crate) fn find_resident(&mut self, pool: &kv::BlockPool, target: Target<'_>) -> Result<FoundSpans, SpanOutcome> {
        let mut matches = self.find(target);
        let was_found = !matches.is_empty();
        let mut resident = self.resident_blocks(pool, &matches);
        let block_size = self.block_size.get();
        matches.retain_mut(|found| {
            let num_resident = resident[&found.donor].len() as u32 * block_size;
            found.num_tokens = found.num_tokens.min(num_resident.saturating_sub(found.donor_pos));
            found.num_tokens >= self.config.min_span_tokens
        });
        if was_found && matches.is_empty() {
            return Err(SpanOutcome::NotResident);
        }
        let plan = self.plan(target, &matches);
        if let Some(reason) = plan.rejected {
            return Err(SpanOutcome::Rejected(reason));
        }
        resident.retain(|&donor, blocks| {
            let ends = plan.spans.iter().filter(|span| span.donor == donor).map(|span| span.donor_pos + span.num_tokens);
            blocks.truncate(ends.max().unwrap_or(0).div_ceil(block_size) as usize);
            !blocks.is_empty()
        });
        resident.keys().for_each(|&donor| self.index.touch(donor));
        Ok(FoundSpans { plan, donor_blocks: resident })
    }

    /// Searches only where the plan could use an answer.
    fn find(&self, target: Target<'_>) -> Vec<SpanMatch> {
        let num_tokens = target.tokens.len() as u32;
        let is_worthwhile =
            num_tokens >= self.config.min_prompt_tokens && num_tokens.saturating_sub(target.from) >= self.config.min_span_tokens;
        if is_worthwhile { self.index.find(target.salt, target.tokens, target.from) } else { Vec::new() }
    }

    fn plan(&self, target: Target<'_>, matches: &[SpanMatch]) -> ReusePlan {
        let prompt = PromptView { tokens: target.tokens, segments: &segments_of(target.segments, target.template) };
        let Target { from, template, .. } = target;
        plan_reuse(&PlanTarget { prompt, from, template }, matches, &self.index, &target.policy.spans(&self.config))
    }

    /// The blocks of each donor of `matches`. Donors of whom too little is left to copy are forgotten.
    fn resident_blocks(&mut self, pool: &kv::BlockPool, matches: &[SpanMatch]) -> BTreeMap<DonorId, Vec<BlockId>> {
        let mut resident = BTreeMap::new();
        for found in matches {
            resident.entry(found.donor).or_insert_with(|| {
                let Donor { salt, tokens, hashes, .. } = &self.donors[&found.donor];
                pool.index().match_full_blocks(kv::HashedTokens { salt: *salt, tokens, hashes })
            });
        }
        let too_short = |blocks: &Vec<_>| blocks.len() * self.block_size.as_usize() < self.config.min_span_tokens as usize;
        let gone: Vec<_> = resident.iter().filter(|(_, blocks)| too_short(blocks)).map(|(&donor, _)| donor).collect();
        gone.into_iter().for_each(|donor| self.remove(donor));
        resident
    }
}

/// Segments that begin at `starts`, and messages, which the tokens of the chat template part.
pub(crate) fn segments_of(starts: &[u32], template: &[TokenRange]) -> Segments {
    Segments::from_starts(starts.iter().copied()).parted_by(template)
}
