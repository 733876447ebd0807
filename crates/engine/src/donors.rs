//! Earlier prompts whose spans may be copied, and the location of their KV.
//!
//! `semantic` knows donors and positions, `kv` knows blocks; this module joins them. A donor holds no blocks: evicted parts of it
//! are no longer offered. A donor is offered in its own scope and to requests that may read it; its blocks are given only to
//! requests that may read the scopes of all of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Bound, Range};
use std::time::Duration;

use semantic::{
    ByLeftContext, DonorQuery, DonorSource, EmbeddingIndex, PlanTarget, PromptView, RepairPolicy, ReusePlan, Search, Segments,
    Sketch, SpanConfig, SpanIndex, SpanIndexConfig, SpanMatch, SpanQuery, Steps, plan_counted,
};
use tokens::{
    BlockHash, BlockSize, Borders, DonorId, RequestId, Scope, SessionId, TenantId, Timestamp, TokenId, TokenRange, UseOrder,
};

use crate::host::FetchGate;
use crate::{FoundDonors, SchedulerConfig, SpanOutcome};

/// Maximum donors searched by embedding. Chosen: besides those that share text, one of them is seldom of use.
const MAX_SIMILAR: usize = 4;

/// Registry of all donors.
pub(crate) struct DonorRegistry {
    config: SpanConfig,
    index_config: SpanIndexConfig,
    block_size: BlockSize,
    ttl: Option<Duration>,
    index: SpanIndex,
    /// Index of donors with an embedding, if configured.
    embeddings: Option<EmbeddingIndex>,
    num_found: FoundDonors,
    donors: BTreeMap<DonorId, Donor>,
    /// Donors by the hash of the last block, so that repeated prompts are one donor.
    by_last_block: HashMap<BlockHash, DonorId>,
    /// Newest donor of each request.
    by_request: HashMap<RequestId, DonorId>,
    by_last_use: UseOrder<DonorId, Timestamp>,
    /// Versions by scope; scopes without donors have none.
    versions: HashMap<Scope, ScopeVersion>,
    num_changes: u64,
    has_host_tier: bool,
    next_id: u64,
    now: Timestamp,
}

struct Donor {
    scope: Scope,
    tokens: std::sync::Arc<[TokenId]>,
    segments: Segments,
    hashes: Box<[BlockHash]>,
    /// Scopes that its own request could read: it may have found its beginning there.
    readable: Box<[kv::ReadableScope]>,
    owner: kv::BlockOwner,
    hits: u64,
    created: Timestamp,
    last_used: Timestamp,
}

/// State of one scope's donors.
#[derive(Clone, Copy, Debug, Default)]
struct ScopeVersion {
    /// Sequence number of the last change among those of all scopes.
    last_change: u64,
    num_donors: usize,
}

/// Metadata of a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DonorInfo {
    /// ID; a later donor has a larger one.
    pub id: DonorId,
    /// Tenant of its request.
    pub tenant: TenantId,
    /// Scope in which it is found.
    pub scope: Scope,
    /// Conversation it belongs to, if given.
    pub session: Option<SessionId>,
    /// Length, in whole blocks.
    pub num_tokens: u32,
    /// Leading tokens whose KV is still in the pool or the host tier.
    pub num_resident_tokens: u32,
    /// Number of requests that copied spans of it.
    pub hits: u64,
    /// Time at which it was computed.
    pub created: Timestamp,
    /// Time at which it was last recomputed or copied from.
    pub last_used: Timestamp,
}

/// Prompt to fill.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) scope: Scope,
    /// Further scopes it may read.
    pub(crate) readable: &'a [Scope],
    pub(crate) tokens: &'a [TokenId],
    /// Its shingles, if sampled before.
    pub(crate) sketch: Option<&'a Sketch>,
    pub(crate) template: &'a [TokenRange],
    /// Starts of its pieces.
    pub(crate) borders: &'a Borders,
    /// End of its prefix hit.
    pub(crate) from: u32,
    pub(crate) policy: RepairPolicy,
    /// True if donors of the same text are ranked by their left contexts.
    pub(crate) ranks_donors: bool,
    /// Donors to search besides those that the span index finds; see [`DonorRegistry::similar`].
    pub(crate) similar: &'a [DonorId],
}

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

/// Method to determine the resident blocks of a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residency {
    /// By the hash of the last block, in some steps: right unless hashes collide or a block may not be read.
    Estimated,
    /// By comparing all blocks, in as many steps as the donor has.
    Confirmed,
}

/// A plan, and the search results it is based on.
pub(crate) struct Planning {
    spans: PlannedSpans,
    /// All matching spans that may be copied.
    found: Vec<SpanMatch>,
    /// Donors whose KV of matching tokens was evicted.
    unusable: Vec<DonorId>,
    pub(crate) steps: Steps,
}

/// Spans that a search would find, with the matches they are based on.
pub(crate) struct ExplainedSpans {
    /// Its plan may have been rejected.
    pub(crate) found: FoundSpans,
    /// All matching spans, resident or not.
    pub(crate) matches: Vec<SpanMatch>,
    /// True if some of their KV is resident, or if there are none.
    pub(crate) is_resident: bool,
}

/// Matching spans whose KV is worth copying.
struct Matches {
    /// By ascending target position.
    spans: Vec<SpanMatch>,
    /// Donors found only by embedding.
    by_embedding: BTreeSet<DonorId>,
    /// Donors whose KV of matching tokens was evicted.
    unusable: Vec<DonorId>,
    steps: Steps,
}

impl FoundSpans {
    /// Returns the number of blocks to fetch from the host tier.
    pub(crate) fn num_fetched(&self) -> usize {
        self.sources.iter().filter(|source| source.place.is_host()).count()
    }
}

impl Target<'_> {
    fn scopes(&self) -> impl Iterator<Item = Scope> + '_ {
        scopes(self.scope, self.readable)
    }
}

impl DonorRegistry {
    pub(crate) fn new(config: &SchedulerConfig) -> Self {
        let SchedulerConfig { spans, block_size, donor_ttl, .. } = config;
        let index_config = config.span_index();
        let (donors, by_last_block, by_request, by_last_use, versions) = Default::default();
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
            by_request,
            by_last_use,
            versions,
            num_changes: 0,
            has_host_tier: config.host.num_blocks > 0,
            next_id: 0,
            now: Timestamp::default(),
        }
    }

    /// Advances the clock; it never goes back.
    pub(crate) fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// Drops at most `max_donors` expired donors.
    pub(crate) fn expire(&mut self, max_donors: usize) {
        for _ in 0..max_donors {
            let Some((oldest, _)) = self.by_last_use.oldest().filter(|&(id, _)| self.is_expired(id)) else { return };
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

    /// Returns the numbers of donors that gave spans so far.
    pub(crate) fn num_found(&self) -> FoundDonors {
        self.num_found
    }

    /// Keeps the full blocks of a prompt that was computed exactly. It supersedes a shorter donor that it continues.
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
            if self.index.restore(known) {
                self.note_change(prompt.scope, 0);
            }
            return self.touch(known);
        }
        let superseded: Vec<_> = hashes.iter().filter_map(|hash| self.by_last_block.get(hash).copied()).collect();
        superseded.into_iter().for_each(|donor| self.remove(donor));
        let (created, last_used) = (self.now, self.now);
        let (tokens, hashes, readable) = (tokens.into(), hashes.into(), prompt.readable.into());
        let donor = Donor { scope: prompt.scope, tokens, segments, hashes, readable, owner, hits: 0, created, last_used };
        let id = self.insert(donor, last);
        if let Some(embedding) = embedding {
            self.embed(id, embedding);
        }
    }

    /// Keeps the embedding of the prompt of `request`, which arrived late, if the prompt is a donor by now.
    pub(crate) fn attach(&mut self, request: RequestId, embedding: &[f32]) {
        if let Some(&id) = self.by_request.get(&request) {
            self.embed(id, embedding);
        }
    }

    /// Indexes the embedding of a donor. A zero vector, or one that exceeds the capacity, does not remove any donor.
    fn embed(&mut self, id: DonorId, embedding: &[f32]) {
        let Some(donor) = self.donors.get(&id) else { return };
        if let Some(embeddings) = &mut self.embeddings {
            drop(embeddings.insert_of(donor.owner.tenant, donor.scope, id, &[embedding]));
        }
    }

    /// Returns the few donors with the most similar embeddings, of the scopes that may be read; the nearest first.
    pub(crate) fn similar(&self, scopes: impl Iterator<Item = Scope>, embedding: &[f32]) -> Vec<DonorId> {
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
        let evicted = self.index.insert_of(donor.owner.tenant, donor.scope, id, donor.tokens.clone(), donor.segments.clone());
        self.note_change(donor.scope, 1);
        self.by_last_block.insert(last, id);
        self.by_request.insert(donor.owner.request, id);
        self.by_last_use.insert(id, donor.last_used);
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
            self.note_change(donor.scope, -1);
            self.by_last_block.remove(donor.hashes.last().expect("a donor has blocks"));
            self.by_last_use.remove(id, donor.last_used);
            if self.by_request.get(&donor.owner.request) == Some(&id) {
                self.by_request.remove(&donor.owner.request);
            }
        }
    }

    /// Records that a scope has `num_more` donors more, or that more of one is found.
    fn note_change(&mut self, scope: Scope, num_more: isize) {
        self.num_changes += 1;
        let version = self.versions.entry(scope).or_default();
        version.last_change = self.num_changes;
        version.num_donors = version.num_donors.strict_add_signed(num_more);
        if version.num_donors == 0 {
            self.versions.remove(&scope);
        }
    }

    /// Returns a number that changes with every donor of `scopes` that is added or removed, so that a caller can detect a stale
    /// plan.
    pub(crate) fn version(&self, scopes: impl Iterator<Item = Scope>) -> u64 {
        let last_change = |scope| self.versions.get(&scope).map_or(0, |version| version.last_change);
        scopes.fold(0, |version: u64, scope| version.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(last_change(scope)))
    }

    /// Samples the shingles of a prompt that is looked up here, or among the prompts being computed.
    pub(crate) fn sketch(&self, tokens: &[TokenId], borders: &Borders, template: &[TokenRange]) -> Sketch {
        self.index.sketch(tokens, &segments_of(borders, template))
    }

    /// Drops the donors of owners for which `is_erased` is true; returns their number.
    pub(crate) fn erase(&mut self, is_erased: impl Fn(&kv::BlockOwner) -> bool) -> usize {
        let erased: Vec<_> = self.donors.iter().filter(|(_, donor)| is_erased(&donor.owner)).map(|(&id, _)| id).collect();
        erased.iter().for_each(|&id| self.remove(id));
        erased.len()
    }

    /// Returns the owner of a donor.
    pub(crate) fn owner(&self, donor: DonorId) -> Option<kv::BlockOwner> {
        self.donors.get(&donor).map(|donor| donor.owner)
    }

    /// Lists the donors after `after` that have not expired, oldest first, at most `limit`.
    pub(crate) fn list(&self, pool: &kv::BlockPool, after: Option<DonorId>, limit: usize) -> Vec<DonorInfo> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.donors.range((start, Bound::Unbounded)).filter(|&(&id, _)| !self.is_expired(id));
        behind.take(limit).map(|(&id, donor)| self.info(pool, id, donor)).collect()
    }

    fn info(&self, pool: &kv::BlockPool, id: DonorId, donor: &Donor) -> DonorInfo {
        let &Donor { scope, owner: kv::BlockOwner { tenant, session, .. }, hits, created, last_used, .. } = donor;
        let num_resident = pool.match_full_blocks(donor.hashed(&donor.readable)).len() as u32 * self.block_size.get();
        let num_tokens = donor.tokens.len() as u32;
        DonorInfo { id, tenant, scope, session, num_tokens, num_resident_tokens: num_resident, hits, created, last_used }
    }

    /// Records that spans are copied.
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
        self.by_last_use.remove(id, donor.last_used);
        donor.last_used = self.now;
        self.by_last_use.insert(id, self.now);
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

    /// Plans which spans still resident in `pool` to copy into `target`. Changes nothing.
    pub(crate) fn plan_resident(
        &self,
        pool: &kv::BlockPool,
        target: Target<'_>,
        gate: FetchGate<'_>,
        residency: Residency,
    ) -> Planning {
        let Matches { mut spans, by_embedding, unusable, mut steps } =
            self.find(target, |id| self.usable(pool, id, target, residency));
        if self.has_host_tier {
            spans.retain_mut(|found| {
                found.num_tokens = self.num_worthy(pool, found, gate);
                found.num_tokens >= self.config.min_span_tokens
            });
        }
        let (plan, of_plan) = self.plan(target, &spans);
        steps += of_plan;
        Planning { spans: PlannedSpans { plan, by_embedding }, found: spans, unusable, steps }
    }

    /// Returns the outcome of `planning`, and removes evicted KV from the index, so that later searches find other donors in its
    /// place.
    pub(crate) fn settle(
        &mut self,
        pool: &kv::BlockPool,
        target: Target<'_>,
        planning: Planning,
    ) -> Result<PlannedSpans, SpanOutcome> {
        let Planning { spans, found, unusable, .. } = planning;
        let was_there = found.is_empty() && !unusable.is_empty() && !self.find(target, |id| self.unexpired(id)).spans.is_empty();
        for id in unusable {
            let Some(donor) = self.donors.get(&id) else { continue };
            let num_blocks = pool.index().count_leading(donor.hashed(&donor.readable));
            match self.is_too_short(num_blocks) {
                true => self.remove(id),
                false => self.index.shorten(id, self.num_tokens(num_blocks)),
            }
        }
        match spans.plan.rejected {
            _ if was_there => Err(SpanOutcome::NotResident),
            Some(reason) => Err(SpanOutcome::Rejected(reason)),
            None => Ok(spans),
        }
    }

    /// Returns the spans that would be copied into `target`, and all that match, resident or not.
    pub(crate) fn explain(&self, pool: &kv::BlockPool, target: Target<'_>, gate: FetchGate<'_>) -> ExplainedSpans {
        let sketch = target.sketch.is_none().then(|| self.sketch(target.tokens, target.borders, target.template));
        let target = Target { sketch: target.sketch.or(sketch.as_ref()), ..target };
        let estimated = self.plan_resident(pool, target, gate, Residency::Estimated);
        let (planning, sources) = match self.sources(pool, target, &estimated.spans.plan) {
            Some(sources) => (estimated, sources),
            None => {
                let confirmed = self.plan_resident(pool, target, gate, Residency::Confirmed);
                let sources = self.sources(pool, target, &confirmed.spans.plan);
                (confirmed, sources.expect("what was confirmed is there"))
            }
        };
        let Planning { spans: PlannedSpans { plan, by_embedding }, found, unusable, .. } = planning;
        let has_all = unusable.is_empty() && !self.has_host_tier;
        let nothing_left = found.is_empty() && !unusable.is_empty();
        let matches = if has_all { found } else { self.find(target, |id| self.unexpired(id)).spans };
        let is_resident = !nothing_left || matches.is_empty();
        ExplainedSpans { found: FoundSpans { plan, sources, by_embedding }, matches, is_resident }
    }

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
    fn num_worthy(&self, pool: &kv::BlockPool, found: &SpanMatch, gate: FetchGate<'_>) -> u32 {
        let block_size = self.block_size.get();
        let donor = &self.donors[&found.donor];
        let place = |idx: u32| pool.index().place_in(donor.hashed(&donor.readable), idx as usize);
        let is_fetched = |&idx: &u32| place(idx).is_none_or(|place| place.is_host());
        let fetched: Vec<_> = covering(found.donor_pos, found.num_tokens, block_size).filter(is_fetched).collect();
        match fetched.first() {
            Some(first) if !gate.pays(fetched.len(), found.num_tokens, found.target_pos + found.num_tokens) => {
                found.num_tokens.min((first * block_size).saturating_sub(found.donor_pos))
            }
            _ => found.num_tokens,
        }
    }

    /// Finds matching spans if the prompt is long enough for a plan. Compares all spans of donors found by embedding.
    fn find(&self, target: Target<'_>, mut usable: impl FnMut(DonorId) -> u32) -> Matches {
        let num_tokens = target.tokens.len() as u32;
        let is_worthwhile =
            num_tokens >= self.config.min_prompt_tokens && num_tokens.saturating_sub(target.from) >= self.config.min_span_tokens;
        if !is_worthwhile {
            return Matches { spans: Vec::new(), by_embedding: BTreeSet::new(), unusable: Vec::new(), steps: Steps::default() };
        }
        let sampled = target.sketch.is_none().then(|| self.sketch(target.tokens, target.borders, target.template));
        let sketch = target.sketch.or(sampled.as_ref()).expect("it was sampled if it was not there");
        let scopes: Vec<_> = target.scopes().collect();
        let query = SpanQuery { scopes: &scopes, tokens: target.tokens, sketch, from: target.from };
        let Search { matches: mut spans, mut unusable, mut steps } = self.index.search(&query, &mut usable);
        let mut by_embedding = BTreeSet::new();
        if !target.similar.is_empty() {
            let posted: BTreeSet<_> = spans.iter().map(|span| span.donor).collect();
            spans.retain(|span| !target.similar.contains(&span.donor));
            for &donor in target.similar {
                let of_donor = self.index.search_in(donor, &query, &mut usable);
                by_embedding.extend(of_donor.matches.first().map(|_| donor).filter(|donor| !posted.contains(donor)));
                spans.extend(of_donor.matches);
                unusable.extend(of_donor.unusable);
                steps += of_donor.steps;
            }
            spans.sort_by_key(|found| (found.target_pos, Reverse(found.num_tokens), Reverse(found.donor), found.donor_pos));
        }
        Matches { spans, by_embedding, unusable, steps }
    }

    fn plan(&self, target: Target<'_>, matches: &[SpanMatch]) -> (ReusePlan, Steps) {
        let segments = match target.sketch {
            Some(sketch) => sketch.segments(),
            None => &segments_of(target.borders, target.template),
        };
        let prompt = PromptView { tokens: target.tokens, segments };
        let Target { from, template, .. } = target;
        let (planned, config) = (PlanTarget { prompt, from, template }, target.policy.spans(&self.config));
        match target.ranks_donors {
            true => plan_counted(&planned, matches, &ByLeftContext::new(&self.index), &config),
            false => plan_counted(&planned, matches, &self.index, &config),
        }
    }

    /// Returns the leading tokens of a donor that `target` may copy.
    fn usable(&self, pool: &kv::BlockPool, id: DonorId, target: Target<'_>, residency: Residency) -> u32 {
        if self.is_expired(id) {
            return 0;
        }
        let donor = &self.donors[&id];
        let num_blocks = match residency {
            Residency::Estimated => pool.index().count_leading(donor.hashed(&donor.readable_by(target))),
            Residency::Confirmed => pool.match_full_blocks(donor.hashed(&donor.readable_by(target))).len(),
        };
        self.num_tokens(num_blocks)
    }

    /// Returns all tokens of a donor that has not expired.
    fn unexpired(&self, id: DonorId) -> u32 {
        if self.is_expired(id) { 0 } else { u32::MAX }
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
        let donor = self.donors.get(&id).filter(|_| !self.is_expired(id))?;
        let readable = donor.readable_by(target);
        let hashed = donor.hashed(&readable);
        let tokens = &hashed.tokens[..max_blocks * self.block_size.as_usize()];
        Some(pool.match_full_blocks(kv::HashedTokens { tokens, ..hashed }))
    }

    fn is_too_short(&self, num_blocks: usize) -> bool {
        self.num_tokens(num_blocks) < self.config.min_span_tokens
    }

    fn num_tokens(&self, num_blocks: usize) -> u32 {
        num_blocks as u32 * self.block_size.get()
    }
}

impl Donor {
    /// Returns the scopes that it could read, of those that `target` may read.
    fn readable_by(&self, target: Target<'_>) -> Vec<kv::ReadableScope> {
        self.readable.iter().filter(|readable| target.scopes().any(|scope| scope == readable.scope)).cloned().collect()
    }

    /// Returns its tokens and hashes for the pool, with the scopes `readable`.
    fn hashed<'a>(&'a self, readable: &'a [kv::ReadableScope]) -> kv::HashedTokens<'a> {
        kv::HashedTokens { scope: self.scope, tokens: &self.tokens, hashes: &self.hashes, readable }
    }
}

/// Returns the blocks that hold `num_tokens` tokens from position `start` on.
pub(crate) fn covering(start: u32, num_tokens: u32, block_size: u32) -> Range<u32> {
    start / block_size..if num_tokens == 0 { start / block_size } else { (start + num_tokens).div_ceil(block_size) }
}

/// Returns the scopes of eligible donors: its own scope first, then the others that it may read.
pub(crate) fn scopes(own: Scope, readable: &[Scope]) -> impl Iterator<Item = Scope> + '_ {
    let others = readable.iter().copied().filter(move |&scope| scope != own);
    std::iter::once(own).chain(others)
}

/// Returns segments that begin at `starts`, and messages, which the tokens of the chat template part.
pub(crate) fn segments_of(borders: &Borders, template: &[TokenRange]) -> Segments {
    Segments::from(borders).parted_by(template)
}
