//! Random steps of the pool, compared with its reference.

use super::reference::{At, Path, Reference};
use super::*;

/// Generator of the walk: SplitMix64 (Steele, Lea, Flood 2014, fig. 19).
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % bound as u64) as usize
    }
}

/// One sequence of the walk, in the pool and in the reference.
struct Walker {
    holder: Holder,
    owner: BlockOwner,
    blocks: Vec<u32>,
    num_exact: usize,
    num_cached: usize,
    /// Number of leading blocks before the first hole.
    num_dense: usize,
    /// True if it has computed nothing but exact KV.
    is_exact: bool,
}

impl Walker {
    /// Removes `gone`, some of its blocks, after which it has a hole.
    fn lose(&mut self, gone: &[u32]) {
        let is_gone = |block: &u32| gone.contains(block);
        let num_dense = self.blocks.iter().take_while(|block| !is_gone(block)).count();
        self.num_dense = self.num_dense.min(num_dense);
        self.num_cached = self.num_cached.min(self.num_dense);
        self.num_exact -= self.blocks[..self.num_exact].iter().filter(|block| is_gone(block)).count();
        self.blocks.retain(|block| !is_gone(block));
    }
}

/// The pool and the reference side by side.
struct Walk {
    pool: BlockPool,
    reference: Reference,
    rng: Rng,
    walkers: Vec<Walker>,
    /// Blocks held until the next step.
    pins: Option<(BlockLease, Vec<u32>)>,
    /// Actual content of each block and each place of the host.
    device: Vec<Option<Path>>,
    host: Vec<Option<Path>>,
    /// Tenant that last filled each block, as known to a zeroing executor.
    written_by: Vec<Option<TenantId>>,
    num_refusals: usize,
    num_quota_refusals: usize,
    num_erased: usize,
    num_expired: usize,
    num_holes: usize,
}

const NUM_BLOCKS: u32 = 12;

/// Positions that a row reads in a walk with holes.
const WINDOW: u32 = 3;

const SCOPES: [Scope; 3] = [Scope(0), Scope(1), PUBLIC];

impl Walk {
    fn new(quotas: &[(TenantId, usize)], ttl_micros: Option<u64>, num_places: u32) -> Self {
        let quotas = quotas.iter().copied().collect();
        let ttl = ttl_micros.map(Duration::from_micros);
        Self {
            pool: windowed_pool(NUM_BLOCKS as usize, WINDOW).with_quotas(&quotas).with_ttl(ttl).with_host_tier(num_places),
            reference: Reference::new(NUM_BLOCKS, &quotas, ttl_micros.unwrap_or(u64::MAX), num_places as usize),
            rng: Rng(1),
            walkers: Vec::new(),
            pins: None,
            device: vec![None; NUM_BLOCKS as usize],
            host: vec![None; num_places as usize],
            written_by: vec![None; NUM_BLOCKS as usize],
            num_refusals: 0,
            num_quota_refusals: 0,
            num_erased: 0,
            num_expired: 0,
            num_holes: 0,
        }
    }

    /// Returns a text of two distinct tokens, so that prefixes are shared all the time.
    fn random_text(&mut self) -> Text {
        let scope = SCOPES[self.rng.below(3)];
        let tokens = (0..1 + self.rng.below(9)).map(|_| TokenId(self.rng.below(2) as u32)).collect();
        Text::new(scope, tokens)
    }

    /// Returns the match of some text, to hold beside a new sequence, of content in the host perhaps only the end; mostly nothing.
    fn random_pins(&mut self) -> (Vec<Place>, Vec<Path>) {
        let text = self.random_text();
        let places = self.pool.match_full_blocks(text.hashed());
        let paths = self.reference.find(text.scope, &text.tokens);
        assert_eq!(places.len(), paths.len(), "the pool and the reference disagree about what is found");
        let (is_pinning, start) = (self.rng.below(3) == 0, self.rng.below(paths.len() + 1));
        let found = places.into_iter().zip(paths).enumerate();
        found.filter(|(i, (place, _))| is_pinning && (!place.is_host() || *i >= start)).map(|(_, pinned)| pinned).unzip()
    }

    fn admit(&mut self) {
        let text = self.random_text();
        let (pinned, pinned_paths) = self.random_pins();
        let session = [None, Some(SessionId(1)), Some(SessionId(2))][self.rng.below(3)];
        let owner = BlockOwner { session, request: RequestId(self.rng.below(4) as u64), ..owner_in(text.scope) };
        let num_approximate = self.rng.below(4).saturating_sub(1);
        let reference = &mut self.reference;
        let shared = reference.find(text.scope, &text.tokens);
        let num_new = text.tokens.len().div_ceil(2) - shared.len();
        let held: Vec<_> = shared.iter().chain(&pinned_paths).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        let is_idle =
            |path: &&&Path| !matches!(reference.content[**path], At::Device(block) if reference.holders[block as usize] > 0);
        let has_room = held.iter().filter(is_idle).count() + num_new <= reference.free.len();
        let own = |tenant| if tenant == owner.tenant { num_new } else { 0 };
        let is_within_quota = reference.quotas.keys().all(|&tenant| reference.is_within_quota(tenant, &held, own(tenant)));
        let num_approximate = num_approximate.min(num_new);
        let found = self.pool.match_prefix(text.hashed(), text.tokens.len());
        let wish = wish(owner, &found.blocks, num_new - num_approximate);
        let allocation = self.pool.allocate_slots(&SlotRequest { num_approximate, pinned: &pinned, ..wish });
        let is_ready = matches!(allocation, Allocation::Ready(_));
        assert_eq!(is_ready, has_room && is_within_quota, "the pool and the reference disagree about room for {num_new}");
        self.num_refusals += usize::from(!has_room);
        self.num_quota_refusals += usize::from(has_room && !is_within_quota);
        let Allocation::Ready(Slots { lease, pins }) = allocation else { return };
        let ids = |lease: &BlockLease| lease.block_ids().map(|block| block.0).collect::<Vec<_>>();
        let (blocks, pinned_blocks) = (ids(&lease), ids(&pins));
        reference.hold(&[&shared[..], &pinned_paths].concat(), &[&blocks[..shared.len()], &pinned_blocks].concat());
        blocks[shared.len()..].iter().for_each(|&block| reference.take_new(owner, block));
        self.pins = Some((pins, pinned_blocks));
        let (num_exact, is_exact) = (blocks.len() - num_approximate, num_approximate == 0);
        assert_eq!(lease.block_table(lease.end()), BlockEntry::table_of(lease.block_ids(), SIZE), "a new table is dense");
        let (holder, num_cached) = (Holder { text, lease }, shared.len());
        self.walkers.push(Walker { holder, owner, blocks, num_exact, num_cached, num_dense: usize::MAX, is_exact });
    }

    fn cache(&mut self, pick: usize) {
        let Walker { holder: Holder { text, lease }, blocks, num_exact, num_cached, num_dense, .. } = &mut self.walkers[pick];
        self.pool.cache_full_blocks(lease, text.hashed(), text.tokens.len(), OnDuplicate::Exchange);
        let num_full = (*num_exact).min(*num_dense).min(text.tokens.len() / 2);
        for (path, block) in self.reference.cache(text.scope, &text.tokens, &mut blocks[..num_full], num_cached) {
            self.device[block as usize] = Some(path);
        }
    }

    fn grow(&mut self, pick: usize) {
        let walker = &mut self.walkers[pick];
        let grown = matches!(self.pool.grow(&mut walker.holder.lease, 1), Allocation::Ready(()));
        let fits = !self.reference.free.is_empty() && self.reference.is_within_quota(walker.owner.tenant, &[], 1);
        assert_eq!(grown, fits, "the pool and the reference disagree about room to grow");
        if grown {
            walker.num_exact += usize::from(walker.is_exact);
            let block = *walker.holder.blocks().last().expect("it grew");
            self.reference.take_new(walker.owner, block);
            walker.blocks.push(block);
        }
    }

    /// Frees what is left of the window of some row, or compacts some blocks to one.
    fn make_hole(&mut self, pick: usize) {
        let Walker { holder, owner, .. } = &mut self.walkers[pick];
        let (owner, end) = (*owner, holder.lease.end());
        let before = holder.table();
        let (start, is_window) = (self.rng.below(end as usize) as u32, self.rng.below(2) == 0);
        let range = if is_window { 0..(start + 1).saturating_sub(WINDOW) } else { start & !1..end };
        if is_window {
            self.pool.free_unread(&mut holder.lease, start);
        } else {
            let fits = !self.reference.free.is_empty() && self.reference.is_within_quota(owner.tenant, &[], 1);
            match self.pool.compact(&mut holder.lease, TokenRange::new(range.start, range.end), 1) {
                Allocation::Ready(replaced) if fits => self.pool.free(replaced),
                Allocation::CapacityExhausted { .. } | Allocation::QuotaExhausted { .. } if !fits => return,
                other => panic!("the pool and the reference disagree about room to compact: {other:?}"),
            }
            let block = holder.table().into_iter().find(|&(_, position)| position == range.start).expect("it is compacted").0;
            self.reference.take_new(owner, block);
            self.walkers[pick].blocks.push(block);
            self.walkers[pick].is_exact = false;
        }
        let lies_in = |&(_, position): &(u32, u32)| range.start <= position && position + 2 <= range.end;
        let gone: Vec<_> = before.into_iter().filter(lies_in).map(|(block, _)| block).collect();
        self.walkers[pick].lose(&gone);
        self.reference.release(&gone);
        self.num_holes += usize::from(!gone.is_empty());
    }

    fn free(&mut self, pick: usize) {
        let Walker { holder, blocks, .. } = self.walkers.swap_remove(pick);
        self.pool.free(holder.lease);
        self.reference.release(&blocks);
    }

    fn unpin(&mut self) {
        if let Some((pins, blocks)) = self.pins.take() {
            self.pool.free(pins);
            self.reference.release(&blocks);
        }
    }

    fn reset(&mut self) {
        while !self.walkers.is_empty() {
            self.free(0);
        }
        self.pool.reset_prefix_cache();
        self.reference.content.clear();
        self.reference.copies.clear();
    }

    fn erase(&mut self) {
        let tenant = TenantId(SCOPES[self.rng.below(3)].0 as u32);
        let session = Some(SessionId(1));
        let request = RequestId(self.rng.below(4) as u64);
        let kind = self.rng.below(3);
        let is_erased = |owner: &BlockOwner| match kind {
            0 => owner.tenant == tenant,
            1 => owner.tenant == tenant && owner.session == session,
            _ => owner.tenant == tenant && owner.request == request,
        };
        let num_erased = self.pool.erase(is_erased);
        assert_eq!(num_erased, self.reference.erase(is_erased), "erased blocks");
        let remains = |path: &Path| is_erased(&self.reference.owner_of(path));
        assert!(!self.reference.content.keys().any(remains), "an erased block is found");
        self.num_erased += num_erased;
    }

    fn pass_time(&mut self) {
        self.reference.now += 1;
        self.pool.advance(Timestamp::from_micros(self.reference.now));
        let num_expired = self.pool.expire(2);
        assert_eq!(num_expired, self.reference.expire(2), "expired blocks");
        self.num_expired += num_expired;
        let min_depth = self.rng.below(3);
        self.pool.set_min_host_depth(min_depth as u32);
        self.reference.min_depth = min_depth;
    }

    /// Makes the copies that an executor makes before a step, then checks that findable content is present.
    fn run_transfers(&mut self) {
        let Transfers { offloads, fetches } = self.pool.take_transfers();
        for BlockOffload { src, dst } in offloads {
            self.host[dst.0 as usize] = self.device[src.0 as usize].clone();
        }
        self.check_zeroed();
        for BlockFetch { src, dst } in fetches {
            self.device[dst.0 as usize] = self.host[src.0 as usize].clone();
        }
        self.reference.num_leaving = 0;
        for (path, at) in &self.reference.content {
            match at {
                At::Device(block) => {
                    assert_eq!(self.device[*block as usize].as_ref(), Some(path), "block {block} holds something else")
                }
                At::Host => assert!(self.host.contains(&Some(path.clone())), "{path:?} is not in the host"),
            }
        }
    }

    /// Checks that exactly the blocks that another tenant had filled are zeroed.
    fn check_zeroed(&mut self) {
        let mut expected = Vec::new();
        for (i, owner) in self.pool.owners.iter().enumerate() {
            let Some(owner) = owner else { continue };
            let before = self.written_by[i].replace(owner.tenant);
            if before.is_some_and(|before| before != owner.tenant) {
                expected.push(BlockId(i as u32));
            }
        }
        let zeroed = self.pool.take_to_zero();
        assert!(expected.iter().all(|block| zeroed.contains(block)), "{expected:?} are to be zeroed and not only {zeroed:?}");
        zeroed.iter().for_each(|block| self.device[block.0 as usize] = None);
    }

    fn check(&mut self) {
        self.run_transfers();
        let (pool, reference) = (&self.pool, &self.reference);
        pool.check_invariants();
        let sorted = |mut blocks: Vec<u32>| {
            blocks.sort_unstable();
            blocks
        };
        let is_cached = |block: &u32| reference.path_of(*block).is_some();
        let (cached, empty): (Vec<u32>, Vec<u32>) = pool.free_queue.iter().map(|block| block.0).partition(is_cached);
        let (expected_cached, expected_empty): (Vec<u32>, Vec<u32>) = reference.free.iter().partition(|block| is_cached(block));
        assert_eq!(cached, expected_cached, "order of the cached blocks");
        assert_eq!(sorted(empty), sorted(expected_empty), "empty blocks");
        assert_eq!(pool.ref_counts, reference.holders, "holders");
        assert_eq!(pool.owners, reference.owners, "owners");
        assert_eq!(pool.index.len(), reference.content.len(), "indexed blocks");
        assert_eq!(pool.host_stats().used, reference.copies.len(), "filled places of the host");
        self.check_match();
    }

    fn check_match(&mut self) {
        let text = self.random_text();
        let found = self.pool.match_prefix(text.hashed(), text.tokens.len());
        let expected = self.reference.find(text.scope, &text.tokens);
        let holds = |place: Place| match place {
            Place::Device(block) => self.device[block.0 as usize].clone(),
            Place::Host(slot) => self.host[slot.0 as usize].clone(),
        };
        assert_eq!(found.blocks.iter().filter_map(|&place| holds(place)).collect::<Vec<_>>(), expected);
        if let Some(partial) = found.partial {
            let (scopes, tokens) = holds(partial.block).expect("a partly matched block was filled");
            assert!(tokens.starts_with(&text.tokens[..found.num_tokens + partial.num_tokens]), "it holds something else");
            assert_eq!(scopes.last(), Some(&text.scope), "it is of another scope");
            assert!(scopes.iter().all(|scope| [text.scope, PUBLIC].contains(scope)), "it is behind another scope");
        }
    }

    /// Takes `num_steps` random steps, and makes a hole before some if `with_holes`.
    fn run(&mut self, num_steps: usize, with_holes: bool) {
        self.reference.has_holes = with_holes;
        for _ in 0..num_steps {
            let pick = self.rng.below(self.walkers.len().max(1));
            if with_holes && !self.walkers.is_empty() && self.rng.below(6) == 0 {
                self.make_hole(pick);
                self.check();
            }
            match (self.rng.below(100), self.walkers.is_empty()) {
                (99, _) if self.rng.below(50) == 0 => self.reset(),
                (97..99, _) => self.erase(),
                (80..97, _) => self.pass_time(),
                (0..40, _) | (_, true) => self.admit(),
                (40..60, _) => self.cache(pick),
                (60..68, _) => self.grow(pick),
                _ => self.free(pick),
            }
            self.check();
            self.unpin();
        }
        self.walkers.drain(..).for_each(|walker| self.pool.free(walker.holder.lease));
    }
}

#[test]
fn a_long_random_walk_agrees_with_the_naive_reference() {
    let mut walk = Walk::new(&[], None, 0);
    walk.run(60_000, false);
    assert!(walk.num_refusals > 1_000, "the pool was full only {} times", walk.num_refusals);
    assert!(walk.pool.stats().evictions > 2_000, "only {} evictions", walk.pool.stats().evictions);
    assert!(walk.num_erased > 500, "only {} blocks were erased", walk.num_erased);
    assert_eq!(walk.pool.host_stats(), HostStats::default());
}

#[test]
fn quotas_and_expiry_agree_with_the_naive_reference() {
    let mut walk = Walk::new(&[(TenantId(0), 5), (TenantId(9), 4)], Some(2), 0);
    walk.run(60_000, false);
    assert!(walk.num_quota_refusals > 1_000, "a quota was full only {} times", walk.num_quota_refusals);
    assert!(walk.num_expired > 1_000, "only {} blocks expired", walk.num_expired);
    assert!(walk.pool.stats().evictions > 1_000, "only {} evictions", walk.pool.stats().evictions);
}

#[test]
fn a_host_tier_agrees_with_the_naive_reference() {
    for (num_places, quotas, ttl) in [(7, &[][..], None), (9, &[(TenantId(0), 5), (TenantId(9), 4)], Some(20)), (2, &[], None)] {
        let mut walk = Walk::new(quotas, ttl, num_places);
        walk.run(40_000, false);
        let HostStats { offloads, fetches, .. } = walk.pool.host_stats();
        assert!(offloads > 1_000 && fetches > 150, "{offloads} offloads, {fetches} fetches of {num_places} places");
        assert!(walk.num_erased > 300, "only {} blocks were erased", walk.num_erased);
    }
}

#[test]
fn leases_with_holes_agree_with_the_naive_reference() {
    for (num_places, quotas) in [(0, &[][..]), (0, &[(TenantId(0), 5), (TenantId(9), 4)]), (7, &[])] {
        let mut walk = Walk::new(quotas, None, num_places);
        walk.run(30_000, true);
        assert!(walk.num_holes > 1_000, "only {} holes", walk.num_holes);
        assert!(walk.num_refusals > 200, "the pool was full only {} times", walk.num_refusals);
        assert!(walk.pool.stats().evictions > 500, "only {} evictions", walk.pool.stats().evictions);
    }
}
