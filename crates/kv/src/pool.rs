//! Counts the references to each block, lends free blocks, and keeps their content findable until they are reused.
//!
//! A freed block that can be found goes to the end of the free queue, the tail of a sequence before its beginning, so that the least
//! recently used and least shareable KV is evicted first. A freed block that cannot be found is reused first. A tenant whose quota is full
//! evicts a cached block of its own for each new one, never one of another tenant. Evicted KV goes to the host tier, if there is one and
//! recomputing it takes longer than fetching it; KV needed again is fetched into a block of its owner's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokens::{BlockId, BlockSize, HostBlockId, TenantId, Timestamp, TokenRange};

use crate::free_queue::FreeBlockQueue;
use crate::host_tier::HostTier;
use crate::lease::{LeasedBlock, num_before};
use crate::prefix_index::Insertion;
use crate::quotas::Quotas;
use crate::{
    BlockEntry, BlockLease, BlockOwner, CacheGroups, HashedTokens, HostStats, Place, PoolError, PrefixIndex, PrefixMatch,
    Transfers,
};

/// Blocks of one device, and the places of its host tier.
///
/// Invariants, see [`BlockPool::check_invariants`]: a block is in the free queue if and only if no sequence holds it; free, cached and
/// active blocks add up to all.
#[derive(Debug)]
pub struct BlockPool {
    groups: CacheGroups,
    block_size: BlockSize,
    ref_counts: Vec<u32>,
    free_queue: FreeBlockQueue,
    index: PrefixIndex,
    /// Blocks of the free queue that can be found.
    num_cached: usize,
    num_evictions: u64,
    /// Last owner of each block; `None` if it was never filled.
    owners: Vec<Option<BlockOwner>>,
    quotas: Quotas,
    /// Time of the last release of each block.
    last_used: Vec<Timestamp>,
    now: Timestamp,
    ttl: Option<Duration>,
    /// Blocks that passed from one tenant to another and have not been reported.
    to_zero: BTreeSet<BlockId>,
    host: HostTier,
}

/// A request for the blocks of a new sequence.
#[derive(Clone, Copy, Debug)]
pub struct SlotRequest<'a> {
    /// Owner of the new blocks.
    pub owner: BlockOwner,
    /// Leading blocks, just found by [`BlockPool::match_prefix`].
    pub shared: &'a [Place],
    /// Further blocks, just found, to hold while the new ones are filled from them.
    pub pinned: &'a [Place],
    /// Number of new exact blocks after them.
    pub num_exact: usize,
    /// Number of blocks to leave room for after those; [`BlockLease::with_kept`] brings them.
    pub num_kept: usize,
    /// Number of new approximate blocks after those.
    pub num_approximate: usize,
    /// Number of allocatable blocks to leave.
    pub headroom: usize,
    /// Number of blocks to leave of the owner's quota.
    pub quota_headroom: usize,
}

/// Blocks of a new sequence. Content from the host tier is on the device once the transfers of the next step are done.
#[derive(Debug)]
pub struct Slots {
    /// Own and shared blocks, in the order of the sequence.
    pub lease: BlockLease,
    /// Pinned blocks, in the order of the request.
    pub pins: BlockLease,
}

/// Result of an allocation. A full pool is a result, not an error.
#[derive(Debug)]
#[must_use]
pub enum Allocation<T = BlockLease> {
    /// Allocated.
    Ready(T),
    /// Nothing was changed.
    CapacityExhausted {
        /// Blocks to free first.
        short_by: usize,
    },
    /// Nothing was changed: the quota of the owner, or of an owner of content to fetch, is full of held blocks.
    QuotaExhausted {
        /// Blocks of the owner to free first.
        short_by: usize,
    },
}

/// Handling of a block whose content the index already holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDuplicate {
    /// Hold the indexed block instead: saves memory, and the following blocks can be indexed too.
    Exchange,
    /// Keep the own block, for a sequence that must not read KV of others. The following blocks are not indexed.
    Keep,
}

/// Number of blocks in each state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// Not held, and without findable content.
    pub free: usize,
    /// Not held, but findable by a prefix hit until reused.
    pub cached: usize,
    /// Held by at least one sequence.
    pub active: usize,
    /// All blocks.
    pub total: usize,
    /// Number of cached blocks evicted so far for room, to the host tier or for good.
    pub evictions: u64,
}

impl BlockPool {
    /// Creates a pool of `num_blocks` free blocks for `groups`.
    ///
    /// # Errors
    /// If there are no blocks, or more than ids.
    pub fn try_new(groups: CacheGroups, num_blocks: usize, block_size: BlockSize) -> Result<Self, PoolError> {
        let count = u32::try_from(num_blocks).ok().filter(|&count| count < u32::MAX);
        match count.ok_or(PoolError::TooManyBlocks { num_blocks })? {
            0 => Err(PoolError::NoBlocks),
            count => Ok(Self {
                groups,
                block_size,
                ref_counts: vec![0; num_blocks],
                free_queue: FreeBlockQueue::new(count),
                index: PrefixIndex::new(count, 0, block_size),
                num_cached: 0,
                num_evictions: 0,
                owners: vec![None; num_blocks],
                quotas: Quotas::new(count, &BTreeMap::new()),
                last_used: vec![Timestamp::default(); num_blocks],
                now: Timestamp::default(),
                ttl: None,
                to_zero: BTreeSet::new(),
                host: HostTier::new(0, &BTreeMap::new()),
            }),
        }
    }

    /// Limits the blocks held or findable of each tenant of `quotas`. Must be called while the pool is unused.
    #[must_use]
    pub fn with_quotas(self, quotas: &BTreeMap<TenantId, usize>) -> Self {
        Self { quotas: Quotas::new(self.ref_counts.len() as u32, quotas), ..self }
    }

    /// Adds a host tier of `num_blocks` places, of which a tenant with a quota may fill as large a part as of the pool. Must be called
    /// while the pool is unused, after [`BlockPool::with_quotas`].
    #[must_use]
    pub fn with_host_tier(self, num_blocks: u32) -> Self {
        let limits = self.quotas.scaled(num_blocks, self.ref_counts.len());
        let index = PrefixIndex::new(self.ref_counts.len() as u32, num_blocks, self.block_size);
        Self { host: HostTier::new(num_blocks, &limits), index, ..self }
    }

    /// Makes blocks that were not held for longer than `ttl` unfindable.
    #[must_use]
    pub fn with_ttl(self, ttl: Option<Duration>) -> Self {
        Self { ttl, ..self }
    }

    /// Advances the time; it never goes back.
    pub fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// Sends a block to the host tier only if at least `min_depth` blocks precede it on its path, since its computation takes the longer
    /// the more precede it, or if other blocks are found through it.
    pub fn set_min_host_depth(&mut self, min_depth: u32) {
        self.host.set_min_depth(min_depth);
    }

    /// Returns the number of tokens in a block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Returns the index of the content.
    #[must_use]
    pub fn index(&self) -> &PrefixIndex {
        &self.index
    }

    /// Returns the blocks of the pool that match the first `max_tokens` tokens of `sequence`.
    #[must_use]
    pub fn match_prefix(&self, sequence: HashedTokens<'_>, max_tokens: usize) -> PrefixMatch {
        let mut found = self.index.match_prefix(sequence, max_tokens);
        found.partial = found.partial.filter(|partial| !self.is_expired(partial.block));
        found.truncate(self.count_usable(&found.blocks), self.block_size);
        found
    }

    /// Returns the leading full blocks of `sequence` that the pool holds.
    #[must_use]
    pub fn match_full_blocks(&self, sequence: HashedTokens<'_>) -> Vec<Place> {
        let mut blocks = self.index.match_full_blocks(sequence);
        blocks.truncate(self.count_usable(&blocks));
        blocks
    }

    /// Returns the last owner of `block`.
    #[must_use]
    pub fn owner(&self, block: BlockId) -> Option<BlockOwner> {
        self.owners[block.0 as usize]
    }

    /// Returns the number of blocks in each state.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let (total, available) = (self.ref_counts.len(), self.free_queue.len());
        PoolStats {
            free: available - self.num_cached,
            cached: self.num_cached,
            active: total - available,
            total,
            evictions: self.num_evictions,
        }
    }

    /// Returns the state of the host tier.
    #[must_use]
    pub fn host_stats(&self) -> HostStats {
        self.host.stats()
    }

    /// Checks if [`BlockPool::allocate_slots`] would find room.
    pub fn check_room(&self, request: &SlotRequest<'_>) -> Allocation<()> {
        let num_new = request.num_exact + request.num_approximate;
        let places = request.places();
        let num_fetched = places.iter().filter(|place| place.is_host()).count();
        let needed = self.num_idle(&places, |_| true) + num_fetched + num_new + request.headroom;
        if let Some(short_by) = self.short_by(needed) {
            return Allocation::CapacityExhausted { short_by };
        }
        let paying = places.iter().filter(|place| place.is_host()).map(|&place| self.tenant_at(place));
        for tenant in paying.chain([request.owner.tenant]).collect::<BTreeSet<_>>() {
            let num_kept = self.num_idle(&places, |owner| owner.tenant == tenant);
            let num_fetched = places.iter().filter(|&&place| place.is_host() && self.tenant_at(place) == tenant).count();
            let num_own = if tenant == request.owner.tenant { num_new + request.quota_headroom } else { 0 };
            if let Some(short_by) = self.quotas.short_by(tenant, num_kept, num_fetched + num_own) {
                return Allocation::QuotaExhausted { short_by };
            }
        }
        Allocation::Ready(())
    }

    /// True if [`BlockPool::allocate_slots`] would find room without evicting a cached block used within `unused_for`.
    #[must_use]
    pub fn has_idle_room(&self, request: &SlotRequest<'_>, unused_for: Duration) -> bool {
        let num_new = request.num_exact + request.num_approximate;
        let places = request.places();
        let fetched: Vec<_> = places.iter().filter(|place| place.is_host()).map(|&place| self.tenant_at(place)).collect();
        let num_needed = num_new + fetched.len() + request.headroom;
        let is_unused = |block: &BlockId| self.now.since(self.last_used[block.0 as usize]) >= unused_for;
        let is_spare = |block: &BlockId| !places.contains(&Place::Device(*block));
        let unused = self.free_queue.iter_cached().take_while(is_unused).filter(is_spare);
        let num_free = self.stats().free;
        let has_blocks = num_free + unused.take(num_needed.saturating_sub(num_free)).count() >= num_needed;
        let paying: BTreeSet<_> = fetched.iter().copied().chain([request.owner.tenant]).collect();
        has_blocks
            && paying.into_iter().all(|tenant| {
                let num_fetched = fetched.iter().filter(|&&paying| paying == tenant).count();
                let num_own = if tenant == request.owner.tenant { num_new + request.quota_headroom } else { 0 };
                num_fetched + num_own <= self.quotas.num_left(tenant)
            })
    }

    /// Lends the blocks of a new sequence.
    pub fn allocate_slots(&mut self, request: &SlotRequest<'_>) -> Allocation<Slots> {
        match self.check_room(request) {
            Allocation::Ready(()) => {}
            Allocation::CapacityExhausted { short_by } => return Allocation::CapacityExhausted { short_by },
            Allocation::QuotaExhausted { short_by } => return Allocation::QuotaExhausted { short_by },
        }
        let [mut lease, pins] = self.hold([request.shared, request.pinned]);
        lease.owner = Some(request.owner);
        lease.exact.extend((0..request.num_exact).map(|_| self.lend_new(request.owner, &mut lease.end)));
        lease.first_inexact = (request.num_kept + request.num_approximate > 0).then_some(lease.end);
        lease.end += request.num_kept as u32 * self.block_size.get();
        lease.approximate.extend((0..request.num_approximate).map(|_| self.lend_new(request.owner, &mut lease.end)));
        Allocation::Ready(Slots { lease, pins })
    }

    /// Adds `num_blocks` new blocks to the end of `lease`: approximate ones if they follow KV that is not exact.
    ///
    /// # Panics
    /// If `lease` does not come from [`BlockPool::allocate_slots`].
    pub fn grow(&mut self, lease: &mut BlockLease, num_blocks: usize) -> Allocation<()> {
        let owner = lease.owner.expect("only the lease of a sequence grows");
        if let Some(refusal) = self.refusal(owner.tenant, num_blocks) {
            return refusal;
        }
        for _ in 0..num_blocks {
            match lease.first_inexact.is_none() {
                true => lease.exact.push(self.lend_new(owner, &mut lease.end)),
                false => lease.approximate.push(self.lend_new(owner, &mut lease.end)),
            }
        }
        Allocation::Ready(())
    }

    /// Replaces the approximate blocks of `lease` by as many exact ones, whose content must be recomputed.
    ///
    /// # Panics
    /// If `lease` does not come from [`BlockPool::allocate_slots`], or lacks KV that these are computed from.
    pub fn exchange_approximate(&mut self, lease: &mut BlockLease) {
        let owner = lease.owner.expect("only the lease of a sequence has approximate blocks");
        let is_dense = lease.len() * self.block_size.as_usize() == lease.end as usize;
        assert!(is_dense && lease.compacted.is_empty(), "what is computed after a hole or compacted KV cannot be exact");
        lease.first_inexact = None;
        let given_back = std::mem::take(&mut lease.approximate);
        let positions: Vec<_> = given_back.iter().map(|block| block.entry().position).collect();
        self.release_all(given_back);
        lease.exact.extend(positions.into_iter().map(|mut position| self.lend_new(owner, &mut position)));
    }

    /// Replaces the blocks of `lease` that lie in `range` by `num_blocks` compacted ones at its start; a hole follows them. Returns the
    /// replaced blocks, to hold until the new ones are filled from them. Later blocks are not indexed: those before them are not held.
    ///
    /// # Panics
    /// If `lease` does not come from [`BlockPool::allocate_slots`], or `num_blocks` is 0 or does not fit into `range`.
    pub fn compact(&mut self, lease: &mut BlockLease, range: TokenRange, num_blocks: usize) -> Allocation {
        let owner = lease.owner.expect("only the lease of a sequence is compacted");
        let block_size = self.block_size.get();
        let mut end = range.start.next_multiple_of(block_size);
        let room = range.end.min(lease.end).saturating_sub(end) / block_size;
        assert!((1..=room as usize).contains(&num_blocks), "{num_blocks} blocks in {range:?}");
        if let Some(refusal) = self.refusal(owner.tenant, num_blocks) {
            return refusal;
        }
        let replaced = self.split_off(lease, range);
        lease.first_inexact = Some(lease.first_inexact.map_or(end, |first| first.min(end)));
        lease.compacted.extend((0..num_blocks).map(|_| self.lend_new(owner, &mut end)));
        lease.compacted.sort_unstable_by_key(|block| block.entry().position);
        Allocation::Ready(replaced)
    }

    /// Frees the blocks of `lease` that no row at `position` or later reads in any group. Later blocks are not indexed if those before
    /// them were not: these are no longer held.
    pub fn free_unread(&mut self, lease: &mut BlockLease, position: u32) {
        let unread = self.split_off(lease, TokenRange::new(0, self.groups.first_read(position)));
        self.free(unread);
    }

    /// Frees all blocks of `lease` that begin at position `end` or later.
    pub fn truncate(&mut self, lease: &mut BlockLease, end: u32) {
        let start = end.next_multiple_of(self.block_size.get());
        let rest = self.split_off(lease, TokenRange::new(start, lease.end));
        self.free(rest);
        lease.end = lease.end.min(start);
        lease.first_inexact = lease.first_inexact.filter(|&first| first < lease.end);
    }

    /// Frees the exact blocks of `lease`; findable ones stay findable. It keeps only the others.
    pub fn free_exact(&mut self, lease: &mut BlockLease) {
        self.release_all(std::mem::take(&mut lease.exact));
        lease.num_cached = 0;
    }

    /// Returns the time last passed to [`BlockPool::advance`].
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Makes the exact blocks of `lease` that the first `num_computed_tokens` of `sequence` fill findable.
    pub fn cache_full_blocks(
        &mut self,
        lease: &mut BlockLease,
        sequence: HashedTokens<'_>,
        num_computed_tokens: usize,
        on_duplicate: OnDuplicate,
    ) {
        let num_full = self.block_size.full_blocks(num_computed_tokens).min(lease.exact.len());
        for idx in lease.num_cached..num_full {
            if lease.exact[idx].entry().position != idx as u32 * self.block_size.get() {
                return;
            }
            let parent = idx.checked_sub(1).map(|parent| &lease.exact[parent]);
            match self.index.insert(&lease.exact[idx], parent, sequence, idx) {
                Insertion::Stored => {}
                Insertion::Replaced(slot) => self.host.release(slot),
                Insertion::Duplicate(block) if on_duplicate == OnDuplicate::Exchange => {
                    self.take_indexed(block);
                    let own = lease.exact[idx].entry();
                    lease.exact[idx] = LeasedBlock::new(BlockEntry { block, ..own });
                    self.release(own.block);
                }
                Insertion::Duplicate(_) | Insertion::Refused => return,
            }
            lease.num_cached = idx + 1;
        }
    }

    /// Frees all blocks of `lease`. Findable ones stay findable until they are reused.
    pub fn free(&mut self, mut lease: BlockLease) {
        self.release_all(std::mem::take(&mut lease.compacted));
        self.release_all(std::mem::take(&mut lease.approximate));
        self.release_all(std::mem::take(&mut lease.exact));
    }

    /// Makes all content unfindable. Held blocks stay held.
    pub fn reset_prefix_cache(&mut self) {
        self.index.clear();
        self.num_cached = 0;
        while let Some(block) = self.free_queue.empty_oldest() {
            let tenant = self.tenant_of(block);
            self.quotas.remove_idle(tenant, block);
            self.quotas.discharge(tenant);
        }
        while let Some(slot) = self.host.oldest() {
            self.host.release(slot);
        }
    }

    /// Forgets the content of all blocks whose owner satisfies `is_erased`, on the device and in the host tier, and all content only found
    /// through them; returns the number of blocks. Held blocks stay held.
    pub fn erase(&mut self, is_erased: impl Fn(&BlockOwner) -> bool) -> usize {
        let blocks = (0..self.ref_counts.len() as u32).map(|block| Place::Device(BlockId(block)));
        let mut num_erased = 0;
        for place in blocks.chain(self.host.slots().map(Place::Host)) {
            if self.index.contains(place) && self.owner_at(place).as_ref().is_some_and(&is_erased) {
                num_erased += self.forget(place);
            }
        }
        num_erased
    }

    /// Forgets blocks that were not held for too long, at most about `max_blocks`; returns their number.
    pub fn expire(&mut self, max_blocks: usize) -> usize {
        let mut num_expired = 0;
        while num_expired < max_blocks
            && let Some(place) = self.oldest().into_iter().flatten().find(|&place| self.is_expired(place))
        {
            num_expired += self.forget(place);
        }
        num_expired
    }

    /// Returns the blocks lent since the last call that another tenant had filled before, ascending. They must be zeroed before use.
    pub fn take_to_zero(&mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.to_zero).into_iter().collect()
    }

    /// Returns the copies between device and host since the last call, for the next step. Must be called before each step runs.
    pub fn take_transfers(&mut self) -> Transfers {
        self.host.take_transfers()
    }

    /// Panics with a message if an invariant does not hold. Takes time in proportion to the pool.
    pub fn check_invariants(&self) {
        let mut num_cached = 0;
        for (i, &ref_count) in self.ref_counts.iter().enumerate() {
            let block = BlockId(i as u32);
            assert_eq!(self.free_queue.contains(block), ref_count == 0, "{block:?} has {ref_count} holders");
            num_cached += usize::from(ref_count == 0 && self.is_found(block));
        }
        assert_eq!(self.free_queue.iter().count(), self.free_queue.len(), "the free queue has lost blocks");
        assert_eq!(num_cached, self.num_cached, "cached blocks were miscounted");
        let stats = self.stats();
        assert_eq!(stats.free + stats.cached + stats.active, stats.total, "blocks were lost");
        self.index.check_invariants();
        self.host.check_invariants(|slot| self.index.contains(Place::Host(slot)));
        self.quotas.check_invariants(|tenant| self.count_of(tenant));
    }

    /// Counts the blocks that `tenant` filled and that are held or findable, and those of them that are not held.
    fn count_of(&self, tenant: TenantId) -> (usize, usize) {
        let ids = (0..self.ref_counts.len() as u32).map(BlockId);
        let own: Vec<_> = ids.filter(|&block| self.owner(block).is_some_and(|owner| owner.tenant == tenant)).collect();
        let num_held = own.iter().filter(|block| self.ref_counts[block.0 as usize] > 0).count();
        let num_idle = own.iter().filter(|&&block| self.is_idle(block) && self.is_found(block)).count();
        (num_held + num_idle, num_idle)
    }

    fn is_idle(&self, block: BlockId) -> bool {
        self.ref_counts[block.0 as usize] == 0
    }

    fn is_found(&self, block: BlockId) -> bool {
        self.index.contains(Place::Device(block))
    }

    /// Counts the idle blocks of the device among `places`, which were just found, whose owner satisfies `counts`.
    fn num_idle(&self, places: &[Place], counts: impl Fn(BlockOwner) -> bool) -> usize {
        let is_idle = |place: Place| matches!(place, Place::Device(block) if self.is_idle(block));
        places.iter().filter(|&&place| is_idle(place) && self.owner_at(place).is_some_and(&counts)).count()
    }

    /// Counts the leading `places` that have not expired, and for whose fetches their owners' quotas have room.
    fn count_usable(&self, places: &[Place]) -> usize {
        let num_fresh = places.iter().take_while(|&&place| !self.is_expired(place)).count();
        if !places.iter().any(|place| place.is_host()) {
            return num_fresh;
        }
        let mut needed: BTreeMap<TenantId, (usize, usize)> = BTreeMap::new();
        let has_room = |&place: &Place| {
            let tenant = self.tenant_at(place);
            let (num_kept, num_fetched) = needed.entry(tenant).or_default();
            *num_kept += self.num_idle(&[place], |_| true);
            *num_fetched += usize::from(place.is_host());
            self.quotas.short_by(tenant, *num_kept, *num_fetched).is_none()
        };
        places[..num_fresh].iter().copied().take_while(has_room).count()
    }

    /// Returns the next place to evict, on the device and in the host tier.
    fn oldest(&self) -> [Option<Place>; 2] {
        [self.free_queue.oldest_cached().map(Place::Device), self.host.oldest().map(Place::Host)]
    }

    fn is_expired(&self, place: Place) -> bool {
        let last_used = match place {
            Place::Device(block) if !self.is_idle(block) => return false,
            Place::Device(block) => self.last_used[block.0 as usize],
            Place::Host(slot) => self.host.last_used(slot),
        };
        self.ttl.is_some_and(|ttl| self.now.since(last_used) > ttl)
    }

    fn owner_at(&self, place: Place) -> Option<BlockOwner> {
        match place {
            Place::Device(block) => self.owner(block),
            Place::Host(slot) => self.host.owner(slot),
        }
    }

    /// Returns the tenant charged for the content of `place`, if that is held or findable.
    fn tenant_at(&self, place: Place) -> TenantId {
        self.owner_at(place).expect("what is held or found was filled by somebody").tenant
    }

    fn tenant_of(&self, block: BlockId) -> TenantId {
        self.tenant_at(Place::Device(block))
    }

    /// Returns the reason why `tenant` gets no `num_new` blocks, if there is one.
    fn refusal<T>(&self, tenant: TenantId, num_new: usize) -> Option<Allocation<T>> {
        let capacity = self.short_by(num_new).map(|short_by| Allocation::CapacityExhausted { short_by });
        capacity.or_else(|| {
            let short_by = self.quotas.short_by(tenant, 0, num_new)?;
            Some(Allocation::QuotaExhausted { short_by })
        })
    }

    fn short_by(&self, needed: usize) -> Option<usize> {
        needed.checked_sub(self.free_queue.len()).filter(|&short_by| short_by > 0)
    }

    /// Adds a reference to each of the blocks just found, some of them perhaps named twice. Blocks in the host tier are fetched once none
    /// of the blocks can be evicted for the others any more.
    fn hold<const N: usize>(&mut self, groups: [&[Place]; N]) -> [BlockLease; N] {
        // Read first: once room is made for others, a block may not be found any more.
        let block_size = self.block_size.get();
        let with_position = |&place: &Place| (place, self.index.depth(place) * block_size);
        let groups = groups.map(|places| places.iter().map(with_position).collect::<Vec<_>>());
        for &(place, _) in groups.iter().flatten() {
            match place {
                Place::Device(block) => self.take_indexed(block),
                Place::Host(slot) => self.host.reserve(slot),
            }
        }
        let mut fetched = BTreeMap::new();
        groups.map(|places| {
            let end = places.last().map_or(0, |(_, position)| position + block_size);
            let mut entry = |(place, position)| BlockEntry { block: self.held_block(place, &mut fetched), position };
            let exact: Vec<_> = places.into_iter().map(|place| LeasedBlock::new(entry(place))).collect();
            let (approximate, compacted) = (Vec::new(), Vec::new());
            BlockLease { num_cached: exact.len(), exact, approximate, compacted, end, first_inexact: None, owner: None }
        })
    }

    /// Returns the block for the content of `place`, which is held or reserved. `fetched`: content fetched from the host tier so far.
    fn held_block(&mut self, place: Place, fetched: &mut BTreeMap<HostBlockId, BlockId>) -> BlockId {
        match place {
            Place::Device(block) => block,
            Place::Host(slot) => match fetched.get(&slot) {
                Some(&block) => {
                    self.ref_counts[block.0 as usize] += 1;
                    block
                }
                None => *fetched.entry(slot).or_insert_with(|| self.fetch(slot)),
            },
        }
    }

    /// Returns a held block for the content of the reserved `slot`, charged to its owner.
    fn fetch(&mut self, slot: HostBlockId) -> BlockId {
        let owner = self.host.owner(slot).expect("what was found was filled by somebody");
        let block = self.take_new(owner);
        // Making room may have evicted the content for good; its holder reads it all the same.
        if self.index.contains(Place::Host(slot)) {
            self.index.move_entry(Place::Host(slot), Place::Device(block));
        }
        self.host.fetch(slot, block);
        block
    }

    /// Adds a reference to a findable block.
    fn take_indexed(&mut self, block: BlockId) {
        assert!(self.is_found(block), "{block:?} is not indexed");
        if self.is_idle(block) {
            self.free_queue.remove(block);
            self.num_cached -= 1;
            self.quotas.remove_idle(self.tenant_of(block), block);
        }
        self.ref_counts[block.0 as usize] += 1;
    }

    /// Returns a block for `owner` and evicts its content: a block of the owner if its quota is full, else the front of the free queue.
    fn take_new(&mut self, owner: BlockOwner) -> BlockId {
        let own = self.quotas.victim(owner.tenant);
        let block = own.or_else(|| self.free_queue.front()).expect("the caller has counted free blocks");
        if self.is_found(block) {
            let num_cached = self.num_cached;
            self.evict(block);
            self.num_evictions += (num_cached - self.num_cached) as u64;
        }
        self.free_queue.remove(block);
        self.ref_counts[block.0 as usize] = 1;
        self.quotas.charge(owner.tenant);
        let before = self.owners[block.0 as usize].replace(owner);
        if before.is_some_and(|before| before.tenant != owner.tenant) {
            self.to_zero.insert(block);
        }
        block
    }

    /// Evicts the content of the idle `block`: to the host tier if that pays and its owner has a place there, else for good.
    fn evict(&mut self, block: BlockId) {
        let place = Place::Device(block);
        let is_wanted = !self.host.is_absent() && !self.is_expired(place);
        if is_wanted && (self.host.keeps(self.index.depth(place)) || self.index.has_children(place)) {
            self.offload(block);
        }
        if self.index.contains(place) {
            self.forget(place);
        }
    }

    /// Moves the content of the idle `block` to the host tier, unless its owner has no place there or making room made it unfindable.
    fn offload(&mut self, block: BlockId) {
        let owner = self.owner(block).expect("what is found was filled by somebody");
        let Some(slot) = self.host.next_slot(owner.tenant) else { return };
        if self.index.contains(Place::Host(slot)) {
            self.forget(Place::Host(slot));
        }
        if self.is_found(block) {
            self.index.move_entry(Place::Device(block), Place::Host(slot));
            self.host.store(block, slot, owner, self.last_used[block.0 as usize]);
            self.uncache(block);
        }
    }

    /// Forgets the content of `place` and all content only found through it; returns the number of blocks.
    fn forget(&mut self, place: Place) -> usize {
        let forgotten = self.index.remove_subtree(place);
        for &place in &forgotten {
            match place {
                Place::Device(block) if self.is_idle(block) => self.uncache(block),
                Place::Device(_) => {}
                Place::Host(slot) => self.host.release(slot),
            }
        }
        forgotten.len()
    }

    /// Marks the idle `block` as unfindable.
    fn uncache(&mut self, block: BlockId) {
        self.num_cached -= 1;
        self.free_queue.remove(block);
        self.free_queue.push_empty(block);
        let tenant = self.tenant_of(block);
        self.quotas.remove_idle(tenant, block);
        self.quotas.discharge(tenant);
    }

    /// Lends a new block of `owner` whose first token is at position `end`, and moves `end` after it.
    fn lend_new<P>(&mut self, owner: BlockOwner, end: &mut u32) -> LeasedBlock<P> {
        let entry = BlockEntry { block: self.take_new(owner), position: *end };
        *end += self.block_size.get();
        LeasedBlock::new(entry)
    }

    /// Removes the blocks that lie in `range` from `lease` and returns them.
    fn split_off(&self, lease: &mut BlockLease, range: TokenRange) -> BlockLease {
        // A block that begins before it also ends in `range`.
        let end = range.end.saturating_sub(self.block_size.get() - 1);
        let exact = drain_between(&mut lease.exact, range.start, end);
        if !exact.is_empty() {
            lease.num_cached = lease.num_cached.min(num_before(&lease.exact, range.start));
        }
        let approximate = drain_between(&mut lease.approximate, range.start, end);
        let compacted = drain_between(&mut lease.compacted, range.start, end);
        BlockLease { exact, approximate, compacted, num_cached: 0, end: 0, first_inexact: None, owner: None }
    }

    /// Removes a reference to each of `blocks`, the last one first.
    fn release_all<P>(&mut self, blocks: Vec<LeasedBlock<P>>) {
        blocks.into_iter().rev().for_each(|block| self.release(block.id()));
    }

    /// Removes a reference.
    fn release(&mut self, block: BlockId) {
        let ref_count = &mut self.ref_counts[block.0 as usize];
        *ref_count = ref_count.checked_sub(1).expect("a lease holds a reference for each of its blocks");
        if *ref_count > 0 {
            return;
        }
        self.last_used[block.0 as usize] = self.now;
        let tenant = self.tenant_of(block);
        if self.is_found(block) {
            self.free_queue.push_cached(block);
            self.num_cached += 1;
            self.quotas.insert_idle(tenant, block);
        } else {
            self.free_queue.push_empty(block);
            self.quotas.discharge(tenant);
        }
    }
}

/// Removes and returns the blocks that begin at `first` or later and before `end`.
fn drain_between<P>(blocks: &mut Vec<LeasedBlock<P>>, first: u32, end: u32) -> Vec<LeasedBlock<P>> {
    let (first, end) = (num_before(blocks, first), num_before(blocks, end));
    blocks.drain(first..end.max(first)).collect()
}

impl SlotRequest<'_> {
    /// Returns the places that the request shares or pins, each once.
    fn places(&self) -> Vec<Place> {
        let mut places = [self.shared, self.pinned].concat();
        if !self.pinned.is_empty() {
            places.sort_unstable();
            places.dedup();
        }
        places
    }
}

#[cfg(test)]
mod tests;
