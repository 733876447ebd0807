//! Earlier prompts whose spans may be copied, and where their KV is now.
//!
//! `semantic` knows donors and positions, `kv` knows blocks; here the two meet. A donor holds no blocks: whatever of it was evicted is
//! simply not offered any more. A donor is offered in its own scope and to those who may read that; its blocks are given only to those
//! who may read the scopes of all of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Bound, Range};
use std::time::Duration;

use semantic::{
    ByLeftContext, DonorQuery, DonorSource, EmbeddingIndex, PlanTarget, PromptView, RepairPolicy, ReusePlan, Segments,
    SpanConfig, SpanIndex, SpanIndexConfig, SpanMatch, plan_reuse,
};
use tokens::{BlockHash, BlockSize, CacheSalt, DonorId, RequestId, SessionId, TenantId, Timestamp, TokenId, TokenRange};

use crate::host::FetchGate;
use crate::{FoundDonors, SchedulerConfig, SpanOutcome};

/// Donors looked at because they mean something similar. Chosen: beside those that share text, one of them is seldom of use.
const MAX_SIMILAR: usize = 4;

/// All donors.
pub(crate) struct DonorRegistry {
    config: SpanConfig,
    index_config: SpanIndexConfig,
    block_size: BlockSize,
    ttl: Option<Duration>,
    index: SpanIndex,
    /// For donors with an embedding, if anybody asks for those.
    embeddings: Option<EmbeddingIndex>,
    num_found: FoundDonors,
    donors: BTreeMap<DonorId, Donor>,
    /// By the hash of the last block, so that one prompt is one donor however often it comes.
    by_last_block: HashMap<BlockHash, DonorId>,
    by_last_use: BTreeSet<(Timestamp, DonorId)>,
    next_id: u64,
    now: Timestamp,
}

struct Donor {
    salt: CacheSalt,
    tokens: std::sync::Arc<[TokenId]>,
    segments: Segments,
    hashes: Box<[BlockHash]>,
    /// What its own request could read: it may have found its beginning there.
    readable: Box<[kv::ReadableScope]>,
    owner: kv::BlockOwner,
    hits: u64,
    created: Timestamp,
    last_used: Timestamp,
}

/// What is known of a donor, but for its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DonorInfo {
    /// Its name; a later donor has a larger one.
    pub id: DonorId,
    /// Whose request it was.
    pub tenant: TenantId,
    /// Where it is found.
    pub scope: CacheSalt,
    /// The conversation it belongs to, if that was named.
    pub session: Option<SessionId>,
    /// Its length, in whole blocks.
    pub num_tokens: u32,
    /// Leading tokens whose KV is still in the pool or the host tier.
    pub num_resident_tokens: u32,
    /// Requests that copied spans of it.
    pub hits: u64,
    /// When it was computed.
    pub created: Timestamp,
    /// When it was computed again or copied from last.
    pub last_used: Timestamp,
}

/// The prompt to be filled.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) salt: CacheSalt,
    /// Further scopes it may read.
    pub(crate) readable: &'a [CacheSalt],
    pub(crate) tokens: &'a [TokenId],
    pub(crate) template: &'a [TokenRange],
    /// Where its segments begin.
    pub(crate) segments: &'a [u32],
    /// End of its prefix hit.
    pub(crate) from: u32,
    pub(crate) policy: RepairPolicy,
    /// Whether donors of the same text are ranked by their left contexts.
    pub(crate) ranks_donors: bool,
    /// Donors to be looked at besides those that the index of spans finds; see [`DonorRegistry::similar`].
    pub(crate) similar: &'a [DonorId],
}

/// Spans to copy, with the blocks that hold them.
pub(crate) struct FoundSpans {
    pub(crate) plan: ReusePlan,
    /// What is to be held while they are copied.
    pub(crate) sources: Vec<SourceBlock>,
    /// Those of the donors that only their embeddings found.
    pub(crate) by_embedding: BTreeSet<DonorId>,
}

/// A block of a donor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceBlock {
    pub(crate) donor: DonorId,
    /// Blocks before it in the donor.
    pub(crate) idx: u32,
    pub(crate) place: kv::Place,
}

/// Equal spans, and who has them.
pub(crate) struct Matches {
    /// By ascending target position.
    pub(crate) spans: Vec<SpanMatch>,
    /// Donors that only their embeddings found.
    pub(crate) by_embedding: BTreeSet<DonorId>,
}

/// Equal spans and what is left of their donors.
struct Residency {
    /// All that were found.
    found: Matches,
    /// What there still is of them and worth fetching, where it is long enough.
    resident: Vec<SpanMatch>,
    /// Of each donor found, the leading blocks that the target may read.
    blocks: BTreeMap<DonorId, Vec<kv::Place>>,
}

impl FoundSpans {
    /// Blocks to be fetched from the host tier.
    pub(crate) fn num_fetched(&self) -> usize {
        self.sources.iter().filter(|source| source.place.is_host()).count()
    }
}

impl Target<'_> {
    fn scopes(&self) -> impl Iterator<Item = CacheSalt> + '_ {
        scopes(self.salt, self.readable)
    }
}

impl DonorRegistry {
    pub(crate) fn new(config: &SchedulerConfig) -> Self {
        let SchedulerConfig { spans, max_donors, block_size, donor_ttl, .. } = config;
        let index_config = SpanIndexConfig { max_donors: *max_donors, ..SpanIndexConfig::for_spans(spans) };
        let (donors, by_last_block, by_last_use) = Default::default();
        Self {
            config: spans.clone(),
            index: SpanIndex::new(index_config.clone()),
            embeddings: config.embeddings.map(EmbeddingIndex::new),
            num_found: FoundDonors::default(),
            index_config,
            block_size: *block_size,
            ttl: *donor_ttl,
            donors,
            by_last_block,
            by_last_use,
            next_id: 0,
            now: Timestamp::default(),
        }
    }

    /// Lets time pass; it never goes back.
    pub(crate) fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// Forgets at most `max_donors` that were not used for too long.
    pub(crate) fn expire(&mut self, max_donors: usize) {
        for _ in 0..max_donors {
            let Some(&(_, oldest)) = self.by_last_use.first().filter(|&&(_, id)| self.is_expired(id)) else { return };
            self.remove(oldest);
        }
    }

    fn is_expired(&self, donor: DonorId) -> bool {
        let unused_for = self.now.since(self.donors[&donor].last_used);
        self.ttl.is_some_and(|ttl| unused_for > ttl)
    }

    pub(crate) fn len(&self) -> usize {
        self.donors.len()
    }

    /// Donors that gave spans so far.
    pub(crate) fn num_found(&self) -> FoundDonors {
        self.num_found
    }

    /// Keeps the full blocks of a prompt that was computed exactly. A shorter donor that it continues is superseded.
    pub(crate) fn keep(
        &mut self,
        prompt: kv::HashedTokens<'_>,
        segments: Segments,
        owner: kv::BlockOwner,
        embedding: Option<&[f32]>,
    ) {
        let num_blocks = self.block_size.full_blocks(prompt.tokens.len());
        let tokens = &prompt.tokens[..num_blocks * self.block_size.as_usize()];
        if self.index_config.max_donors == 0 || tokens.len() < self.config.min_span_tokens as usize {
            return;
        }
        let hashes = &prompt.hashes[..num_blocks];
        let &last = hashes.last().expect("a span fills at least one block");
        if let Some(&known) = self.by_last_block.get(&last) {
            return self.touch(known);
        }
        let superseded: Vec<_> = hashes.iter().filter_map(|hash| self.by_last_block.get(hash).copied()).collect();
        superseded.into_iter().for_each(|donor| self.remove(donor));
        let (created, last_used) = (self.now, self.now);
        let (tokens, hashes, readable) = (tokens.into(), hashes.into(), prompt.readable.into());
        let donor = Donor { salt: prompt.salt, tokens, segments, hashes, readable, owner, hits: 0, created, last_used };
        let id = self.insert(donor, last);
        if let Some(embedding) = embedding {
            self.embed(id, embedding);
        }
    }

    /// Keeps the embedding of the prompt of `request`, which came late, if that is a donor by now.
    pub(crate) fn attach(&mut self, request: RequestId, embedding: &[f32]) {
        // Donors come and go with their requests, so it is among the youngest.
        let of_request = self.donors.iter().rev().find(|(_, donor)| donor.owner.request == request);
        if let Some((&id, _)) = of_request {
            self.embed(id, embedding);
        }
    }

    /// Notes what a donor means. A vector without a direction, or one more than there is room for, costs no donor.
    fn embed(&mut self, id: DonorId, embedding: &[f32]) {
        let Some(donor) = self.donors.get(&id) else { return };
        if let Some(embeddings) = &mut self.embeddings {
            drop(embeddings.insert(donor.salt, id, &[embedding]));
        }
    }

    /// The few donors that mean most nearly what `embedding` does, of the scopes that may be read; the nearest first.
    pub(crate) fn similar(&self, scopes: impl Iterator<Item = CacheSalt>, embedding: &[f32]) -> Vec<DonorId> {
        let Some(embeddings) = &self.embeddings else { return Vec::new() };
        let in_scope =
            |scope| embeddings.propose(&DonorQuery { scope, tokens: &[], from: 0, embedding: Some(embedding) }, MAX_SIMILAR);
        let mut proposals: Vec<_> = scopes.flat_map(in_scope).filter(|proposal| !self.is_expired(proposal.donor)).collect();
        proposals.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.donor.cmp(&a.donor)));
        proposals.into_iter().take(MAX_SIMILAR).map(|proposal| proposal.donor).collect()
    }

    fn insert(&mut self, donor: Donor, last: BlockHash) -> DonorId {
        let id = DonorId(self.next_id);
        self.next_id += 1;
        let evicted = self.index.insert_segmented(donor.salt, id, donor.tokens.clone(), donor.segments.clone());
        self.by_last_block.insert(last, id);
        self.by_last_use.insert((donor.last_used, id));
        self.donors.insert(id, donor);
        evicted.into_iter().for_each(|evicted| self.forget(evicted));
        id
    }

    pub(crate) fn remove(&mut self, donor: DonorId) {
        self.index.remove(donor);
        self.forget(donor);
    }

    fn forget(&mut self, id: DonorId) {
        if let Some(embeddings) = &mut self.embeddings {
            embeddings.remove(id);
        }
        if let Some(donor) = self.donors.remove(&id) {
            self.by_last_block.remove(donor.hashes.last().expect("a donor has blocks"));
            self.by_last_use.remove(&(donor.last_used, id));
        }
    }

    /// Forgets the donors left by an owner that `is_erased` names; how many they are.
    pub(crate) fn erase(&mut self, is_erased: impl Fn(&kv::BlockOwner) -> bool) -> usize {
        let erased: Vec<_> = self.donors.iter().filter(|(_, donor)| is_erased(&donor.owner)).map(|(&id, _)| id).collect();
        erased.iter().for_each(|&id| self.remove(id));
        erased.len()
    }

    /// Whose request it was.
    pub(crate) fn owner(&self, donor: DonorId) -> Option<kv::BlockOwner> {
        self.donors.get(&donor).map(|donor| donor.owner)
    }

    /// Those behind `after` that have not expired, oldest first, at most `limit`.
    pub(crate) fn list(&self, pool: &kv::BlockPool, after: Option<DonorId>, limit: usize) -> Vec<DonorInfo> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.donors.range((start, Bound::Unbounded)).filter(|&(&id, _)| !self.is_expired(id));
        behind.take(limit).map(|(&id, donor)| self.info(pool, id, donor)).collect()
    }

    fn info(&self, pool: &kv::BlockPool, id: DonorId, donor: &Donor) -> DonorInfo {
        let &Donor { salt, owner: kv::BlockOwner { tenant, session, .. }, hits, created, last_used, .. } = donor;
        let num_resident = pool.match_full_blocks(donor.hashed(&donor.readable)).len() as u32 * self.block_size.get();
        let num_tokens = donor.tokens.len() as u32;
        DonorInfo { id, tenant, scope: salt, session, num_tokens, num_resident_tokens: num_resident, hits, created, last_used }
    }

    /// Notes that spans are copied.
    pub(crate) fn note_reuse(&mut self, found: &FoundSpans) {
        let used: BTreeSet<_> = found.plan.spans.iter().map(|span| span.donor).collect();
        for id in used {
            self.touch(id);
            self.num_found.count(found.by_embedding.contains(&id));
            self.donors.get_mut(&id).expect("a planned donor is kept").hits += 1;
        }
    }

    fn touch(&mut self, id: DonorId) {
        let donor = self.donors.get_mut(&id).expect("a donor that is used is kept");
        self.by_last_use.remove(&(donor.last_used, id));
        donor.last_used = self.now;
        self.by_last_use.insert((self.now, id));
        self.index.touch(id);
        if let Some(embeddings) = &mut self.embeddings {
            embeddings.touch(id);
        }
    }

    pub(crate) fn clear(&mut self) {
        let donors: Vec<_> = self.donors.keys().copied().collect();
        donors.into_iter().for_each(|donor| self.forget(donor));
        self.index = SpanIndex::new(self.index_config.clone());
    }

    /// How many tokens of `target` donors have, resident or not: a prediction.
    pub(crate) fn predict(&self, target: Target<'_>) -> u32 {
        self.plan(target, &self.find(target).spans).spans.iter().map(|span| span.num_tokens).sum()
    }

    /// What to copy into `target` of that which is still in `pool`, or why nothing. Donors of whom too little is left are forgotten.
    pub(crate) fn find_resident(
        &mut self,
        pool: &kv::BlockPool,
        target: Target<'_>,
        gate: FetchGate<'_>,
    ) -> Result<FoundSpans, SpanOutcome> {
        let Residency { found, resident, blocks } = self.residency(pool, target, gate);
        let is_gone = |&donor: &DonorId| {
            self.is_too_short(&pool.match_full_blocks(self.donors[&donor].hashed(&self.donors[&donor].readable)))
        };
        let short = blocks.iter().filter(|(_, blocks)| self.is_too_short(blocks)).map(|(&donor, _)| donor);
        let gone: Vec<_> = short.filter(is_gone).collect();
        gone.into_iter().for_each(|donor| self.remove(donor));
        if !found.spans.is_empty() && resident.is_empty() {
            return Err(SpanOutcome::NotResident);
        }
        let plan = self.plan(target, &resident);
        if let Some(reason) = plan.rejected {
            return Err(SpanOutcome::Rejected(reason));
        }
        Ok(FoundSpans { sources: self.sources(&plan, &blocks), plan, by_embedding: found.by_embedding })
    }

    /// What would be copied into `target`, and all spans found.
    pub(crate) fn explain(&self, pool: &kv::BlockPool, target: Target<'_>, gate: FetchGate<'_>) -> (FoundSpans, Vec<SpanMatch>) {
        let Residency { found: Matches { spans, by_embedding }, resident, blocks } = self.residency(pool, target, gate);
        let plan = self.plan(target, &resident);
        (FoundSpans { sources: self.sources(&plan, &blocks), plan, by_embedding }, spans)
    }

    /// Of the leading `blocks` of each donor, what `plan` needs. Those before its spans are held too, so that no block is given up after
    /// one that is found through it; but they are not fetched.
    fn sources(&self, plan: &ReusePlan, blocks: &BTreeMap<DonorId, Vec<kv::Place>>) -> Vec<SourceBlock> {
        let block_size = self.block_size.get();
        let mut sources = Vec::new();
        for (&donor, blocks) in blocks {
            let spans = plan.spans.iter().filter(|span| span.donor == donor);
            let covered: Vec<_> = spans.map(|span| covering(span.donor_pos, span.num_tokens, block_size)).collect();
            let end = covered.iter().map(|range| range.end).max().unwrap_or(0);
            for (idx, &place) in (0..end).zip(blocks) {
                if !place.is_host() || covered.iter().any(|range| range.contains(&idx)) {
                    sources.push(SourceBlock { donor, idx, place });
                }
            }
        }
        sources
    }

    fn residency(&self, pool: &kv::BlockPool, target: Target<'_>, gate: FetchGate<'_>) -> Residency {
        let found = self.find(target);
        let donors: BTreeSet<_> = found.spans.iter().map(|span| span.donor).collect();
        let blocks: BTreeMap<_, _> = donors.into_iter().map(|donor| (donor, self.resident_blocks(pool, donor, target))).collect();
        let mut resident = found.spans.clone();
        resident.retain_mut(|found| {
            found.num_tokens = self.num_worthy(found, &blocks[&found.donor], gate);
            found.num_tokens >= self.config.min_span_tokens
        });
        Residency { found, resident, blocks }
    }

    /// Tokens of `found` that lie in `blocks`, the leading ones of its donor: all if fetching them pays, else those in front of the first
    /// block that would have to be fetched.
    fn num_worthy(&self, found: &SpanMatch, blocks: &[kv::Place], gate: FetchGate<'_>) -> u32 {
        let block_size = self.block_size.get();
        let reach = |num_blocks: u32| found.num_tokens.min((num_blocks * block_size).saturating_sub(found.donor_pos));
        let num_tokens = reach(blocks.len() as u32);
        let fetched = || covering(found.donor_pos, num_tokens, block_size).filter(|&idx| blocks[idx as usize].is_host());
        match fetched().next() {
            Some(first) if !gate.pays(fetched().count(), num_tokens, found.target_pos + num_tokens) => reach(first),
            _ => num_tokens,
        }
    }

    /// Searches only where the plan could use an answer. Of a similar donor all spans are compared: postings may have forgotten some.
    fn find(&self, target: Target<'_>) -> Matches {
        let num_tokens = target.tokens.len() as u32;
        let is_worthwhile =
            num_tokens >= self.config.min_prompt_tokens && num_tokens.saturating_sub(target.from) >= self.config.min_span_tokens;
        if !is_worthwhile {
            return Matches { spans: Vec::new(), by_embedding: BTreeSet::new() };
        }
        let in_scope = |scope| self.index.find(scope, target.tokens, target.from);
        let mut spans: Vec<_> = target.scopes().flat_map(in_scope).collect();
        let posted: BTreeSet<_> = spans.iter().map(|span| span.donor).collect();
        spans.retain(|span| !target.similar.contains(&span.donor));
        spans.extend(target.similar.iter().flat_map(|&donor| self.index.find_in(donor, target.tokens, target.from)));
        spans.retain(|span| !self.is_expired(span.donor));
        let by_embedding = spans.iter().map(|span| span.donor).filter(|donor| !posted.contains(donor)).collect();
        spans.sort_by_key(|found| (found.target_pos, Reverse(found.num_tokens), Reverse(found.donor), found.donor_pos));
        Matches { spans, by_embedding }
    }

    fn plan(&self, target: Target<'_>, matches: &[SpanMatch]) -> ReusePlan {
        let prompt = PromptView { tokens: target.tokens, segments: &segments_of(target.segments, target.template) };
        let Target { from, template, .. } = target;
        let (planned, config) = (PlanTarget { prompt, from, template }, target.policy.spans(&self.config));
        match target.ranks_donors {
            true => plan_reuse(&planned, matches, &ByLeftContext::new(&self.index), &config),
            false => plan_reuse(&planned, matches, &self.index, &config),
        }
    }

    /// Leading blocks of `donor` that are in the pool or the host tier and in scopes that `target` may read.
    fn resident_blocks(&self, pool: &kv::BlockPool, donor: DonorId, target: Target<'_>) -> Vec<kv::Place> {
        let donor = &self.donors[&donor];
        let readable = donor.readable.iter().filter(|scope| target.scopes().any(|salt| salt == scope.salt));
        pool.match_full_blocks(donor.hashed(&readable.cloned().collect::<Vec<_>>()))
    }

    fn is_too_short(&self, blocks: &[kv::Place]) -> bool {
        blocks.len() * self.block_size.as_usize() < self.config.min_span_tokens as usize
    }
}

impl Donor {
    /// As the pool knows it, where it could read `readable`.
    fn hashed<'a>(&'a self, readable: &'a [kv::ReadableScope]) -> kv::HashedTokens<'a> {
        kv::HashedTokens { salt: self.salt, tokens: &self.tokens, hashes: &self.hashes, readable }
    }
}

/// Blocks that hold `num_tokens` tokens from position `start` on.
pub(crate) fn covering(start: u32, num_tokens: u32, block_size: u32) -> Range<u32> {
    start / block_size..if num_tokens == 0 { start / block_size } else { (start + num_tokens).div_ceil(block_size) }
}

/// Where donors may be found: its own scope first, then the others that may be read.
pub(crate) fn scopes(own: CacheSalt, readable: &[CacheSalt]) -> impl Iterator<Item = CacheSalt> + '_ {
    let others = readable.iter().copied().filter(move |&salt| salt != own);
    std::iter::once(own).chain(others)
}

/// Segments that begin at `starts`, and messages, which the tokens of the chat template part.
pub(crate) fn segments_of(starts: &[u32], template: &[TokenRange]) -> Segments {
    Segments::from_starts(starts.iter().copied()).parted_by(template)
}
