//! Earlier prompts whose spans may be copied, and the location of their KV.
//!
//! `semantic` knows donors and positions, `kv` knows blocks; this module joins them. A donor holds no blocks: evicted parts of it
//! are no longer offered. A donor is offered in its own scope and to requests that may read it; its blocks are given only to
//! requests that may read the scopes of all of them.

mod blocks;
mod info;
mod planning;
mod residency;
mod spans;
mod target;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use semantic::{Donor, DonorStore, NewDonor, Segments, Sketch, SpanConfig};
use tokens::{BlockHash, BlockSize, Borders, DonorId, RequestId, Scope, Timestamp, TokenId, TokenRange};

use self::blocks::DonorBlocks;
pub use self::info::DonorInfo;
pub(crate) use self::planning::{ExplainedSpans, Planning};
pub(crate) use self::residency::Residency;
pub(crate) use self::spans::{FoundSpans, PlannedSpans, covering};
pub(crate) use self::target::{Target, scopes, segments_of};
use crate::{FoundDonors, SchedulerConfig};

/// Maximum donors searched by embedding. Chosen: besides those that share text, one of them is seldom of use.
const MAX_SIMILAR: usize = 4;

/// Registry of all donors.
pub(crate) struct DonorRegistry {
    config: SpanConfig,
    block_size: BlockSize,
    has_host_tier: bool,
    /// Prompts of the donors, and their order of use.
    store: DonorStore,
    /// Blocks of the donors in `store`.
    blocks: BTreeMap<DonorId, DonorBlocks>,
    /// Donors by the hash of the last block, so that repeated prompts are one donor.
    by_last_block: HashMap<BlockHash, DonorId>,
    /// Newest donor of each request.
    by_request: HashMap<RequestId, DonorId>,
    num_found: FoundDonors,
    next_id: u64,
}

impl DonorRegistry {
    pub(crate) fn new(config: &SchedulerConfig) -> Self {
        let store = DonorStore::new(config.span_index()).with_embeddings(config.embeddings).with_ttl(config.donor_ttl);
        let (blocks, by_last_block, by_request, num_found) = Default::default();
        Self {
            config: config.spans.clone(),
            block_size: config.block_size,
            has_host_tier: config.host.num_blocks > 0,
            store,
            blocks,
            by_last_block,
            by_request,
            num_found,
            next_id: 0,
        }
    }

    /// Advances the clock; it never goes back.
    pub(crate) fn advance(&mut self, now: Timestamp) {
        self.store.advance(now);
    }

    /// Drops at most `max_donors` expired donors.
    pub(crate) fn expire(&mut self, max_donors: usize) {
        let expired = self.store.expire(max_donors);
        expired.into_iter().for_each(|donor| self.forget(donor));
    }

    pub(crate) fn len(&self) -> usize {
        self.store.len()
    }

    /// Returns the numbers of donors that gave spans so far.
    pub(crate) fn num_found(&self) -> FoundDonors {
        self.num_found
    }

    /// Returns the prompt of a donor and its blocks, if it is kept.
    fn get(&self, id: DonorId) -> Option<(&Donor, &DonorBlocks)> {
        self.store.get(id).zip(self.blocks.get(&id))
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
        if tokens.len() < self.config.min_span_tokens as usize {
            return;
        }
        let hashes = &prompt.hashes[..num_blocks];
        let &last = hashes.last().expect("a span fills at least one block");
        if let Some(&known) = self.by_last_block.get(&last) {
            self.store.restore(known);
            return self.store.touch(known);
        }
        let superseded: Vec<_> = hashes.iter().filter_map(|hash| self.by_last_block.get(hash).copied()).collect();
        superseded.into_iter().for_each(|donor| self.remove(donor));
        let id = DonorId(self.next_id);
        self.next_id += 1;
        let new = NewDonor { tenant: owner.tenant, segments, ..NewDonor::new(id, prompt.scope, tokens) };
        let evicted = self.store.insert(new);
        self.by_last_block.insert(last, id);
        self.by_request.insert(owner.request, id);
        self.blocks.insert(id, DonorBlocks { hashes: hashes.into(), readable: prompt.readable.into(), owner, hits: 0 });
        evicted.into_iter().for_each(|evicted| self.forget(evicted));
        if let Some(embedding) = embedding {
            self.store.attach(id, embedding);
        }
    }

    /// Keeps the embedding of the prompt of `request`, which arrived late, if the prompt is a donor by now.
    pub(crate) fn attach(&mut self, request: RequestId, embedding: &[f32]) {
        if let Some(&id) = self.by_request.get(&request) {
            self.store.attach(id, embedding);
        }
    }

    /// Returns the few donors with the most similar embeddings, of the scopes that may be read; the nearest first.
    pub(crate) fn similar(&self, scopes: impl Iterator<Item = Scope>, embedding: &[f32]) -> Vec<DonorId> {
        self.store.similar(scopes, embedding, MAX_SIMILAR)
    }

    pub(crate) fn remove(&mut self, donor: DonorId) {
        self.store.remove(donor);
        self.forget(donor);
    }

    /// Drops what is known of a donor that has left the store.
    fn forget(&mut self, id: DonorId) {
        let Some(DonorBlocks { hashes, owner, .. }) = self.blocks.remove(&id) else { return };
        self.by_last_block.remove(hashes.last().expect("a donor has blocks"));
        if self.by_request.get(&owner.request) == Some(&id) {
            self.by_request.remove(&owner.request);
        }
    }

    /// Returns a number that changes with every donor of `scopes` that is added or removed, so that a caller can detect a stale
    /// plan.
    pub(crate) fn version(&self, scopes: impl Iterator<Item = Scope>) -> u64 {
        self.store.version(scopes)
    }

    /// Samples the shingles of a prompt that is looked up here, or among the prompts being computed.
    pub(crate) fn sketch(&self, tokens: &[TokenId], borders: &Borders, template: &[TokenRange]) -> Sketch {
        self.store.sketch(tokens, &segments_of(borders, template))
    }

    /// Drops the donors of owners for which `is_erased` is true; returns their number.
    pub(crate) fn erase(&mut self, is_erased: impl Fn(&kv::BlockOwner) -> bool) -> usize {
        let erased: Vec<_> = self.blocks.iter().filter(|(_, blocks)| is_erased(&blocks.owner)).map(|(&id, _)| id).collect();
        erased.iter().for_each(|&id| self.remove(id));
        erased.len()
    }

    /// Returns the owner of a donor.
    pub(crate) fn owner(&self, donor: DonorId) -> Option<kv::BlockOwner> {
        self.blocks.get(&donor).map(|blocks| blocks.owner)
    }

    /// Lists the donors after `after` that have not expired, oldest first, at most `limit`.
    pub(crate) fn list(&self, pool: &kv::BlockPool, after: Option<DonorId>, limit: usize) -> Vec<DonorInfo> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.blocks.range((start, Bound::Unbounded)).filter(|&(&id, _)| !self.store.is_expired(id));
        let joined = later.filter_map(|(&id, blocks)| Some((id, self.store.get(id)?, blocks)));
        joined.take(limit).map(|(id, donor, blocks)| self.info(pool, id, donor, blocks)).collect()
    }

    fn info(&self, pool: &kv::BlockPool, id: DonorId, donor: &Donor, blocks: &DonorBlocks) -> DonorInfo {
        let num_resident = pool.match_full_blocks(blocks.hashed(donor, &blocks.readable)).len();
        DonorInfo {
            id,
            tenant: blocks.owner.tenant,
            scope: donor.scope,
            session: blocks.owner.session,
            num_tokens: donor.tokens.len() as u32,
            num_resident_tokens: self.num_tokens(num_resident),
            hits: blocks.hits,
            created: donor.created,
            last_used: donor.last_used,
        }
    }

    /// Records that spans are copied.
    pub(crate) fn note_reuse(&mut self, found: &FoundSpans) {
        let used: BTreeSet<_> = found.plan.spans.iter().map(|span| span.donor).collect();
        for id in used {
            self.store.touch(id);
            self.num_found.count(found.by_embedding.contains(&id));
            self.blocks.get_mut(&id).expect("a planned donor is kept").hits += 1;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.store.clear();
        self.blocks.clear();
        self.by_last_block.clear();
        self.by_request.clear();
    }

    fn num_tokens(&self, num_blocks: usize) -> u32 {
        num_blocks as u32 * self.block_size.get()
    }
}
