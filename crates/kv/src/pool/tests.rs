use std::collections::HashMap;

use tokens::{BlockHash, CacheSalt, RequestId, SessionId, TokenId, hash_full_blocks};

use super::*;
use crate::{BlockFetch, BlockOffload, ReadableScope};

const SIZE: BlockSize = BlockSize::new(2).unwrap();

/// A sequence with all its blocks, as a scheduler would hold it.
struct Holder {
    text: Text,
    lease: BlockLease,
}

/// What a sequence says, and where.
struct Text {
    salt: CacheSalt,
    tokens: Vec<TokenId>,
    hashes: Vec<BlockHash>,
    readable: Vec<ReadableScope>,
}

impl Text {
    /// `tokens` in a scope that may read [`PUBLIC`], as every scope may.
    fn new(salt: CacheSalt, tokens: Vec<TokenId>) -> Self {
        let hashes_in = |salt| hash_full_blocks(salt, &tokens, SIZE);
        let readable = vec![ReadableScope { salt: PUBLIC, hashes: hashes_in(PUBLIC).into() }];
        Self { salt, hashes: hashes_in(salt), readable, tokens }
    }

    fn of(text: &str) -> Self {
        Self::new(CacheSalt(0), text.bytes().map(|byte| TokenId(byte.into())).collect())
    }

    fn hashed(&self) -> HashedTokens<'_> {
        HashedTokens { salt: self.salt, tokens: &self.tokens, hashes: &self.hashes, readable: &self.readable }
    }
}

/// A scope that all read and one tenant writes.
const PUBLIC: CacheSalt = CacheSalt(9);

/// The tenant that a scope belongs to in these tests.
fn owner_in(salt: CacheSalt) -> BlockOwner {
    BlockOwner { tenant: TenantId(salt.0 as u32), session: None, request: RequestId(0) }
}

impl Holder {
    fn hashed(&self) -> HashedTokens<'_> {
        self.text.hashed()
    }

    fn cache(&mut self, pool: &mut BlockPool, num_computed_tokens: usize) {
        pool.cache_full_blocks(&mut self.lease, self.text.hashed(), num_computed_tokens, OnDuplicate::Exchange);
        pool.check_invariants();
    }

    fn blocks(&self) -> Vec<u32> {
        self.lease.block_ids().map(|block| block.0).collect()
    }
}

fn pool(num_blocks: usize) -> BlockPool {
    BlockPool::try_new(num_blocks, SIZE).unwrap()
}

/// Finds what is there of `text`, allocates the rest, and computes and caches it.
fn hold(pool: &mut BlockPool, text: &str) -> Option<Holder> {
    hold_in(pool, 0, text)
}

/// The same in scope `salt`.
fn hold_in(pool: &mut BlockPool, salt: u64, text: &str) -> Option<Holder> {
    let text = Text::new(CacheSalt(salt), Text::of(text).tokens);
    let owner = owner_in(text.salt);
    let mut holder = admit(pool, owner, text, 0)?;
    let num_tokens = holder.text.tokens.len();
    holder.cache(pool, num_tokens);
    Some(holder)
}

fn admit(pool: &mut BlockPool, owner: BlockOwner, text: Text, num_approximate: usize) -> Option<Holder> {
    let found = pool.match_prefix(text.hashed(), text.tokens.len());
    let num_new = SIZE.blocks_for(text.tokens.len()) - found.blocks.len();
    let num_approximate = num_approximate.min(num_new);
    let wish = SlotRequest { num_approximate, ..wish(owner, &found.blocks, num_new - num_approximate) };
    match pool.allocate_slots(&wish) {
        Allocation::Ready(Slots { lease, .. }) => Some(Holder { text, lease }),
        Allocation::CapacityExhausted { .. } | Allocation::QuotaExhausted { .. } => None,
    }
}

fn wish(owner: BlockOwner, shared: &[Place], num_exact: usize) -> SlotRequest<'_> {
    SlotRequest { owner, shared, pinned: &[], num_exact, num_approximate: 0, headroom: 0, quota_headroom: 0 }
}

/// Leading blocks of `text` that are found in scope `salt`.
fn found(pool: &BlockPool, salt: u64, text: &str) -> usize {
    pool.match_full_blocks(Text::new(CacheSalt(salt), Text::of(text).tokens).hashed()).len()
}

#[test]
fn content_is_shared_while_its_holder_still_runs() {
    let mut pool = pool(8);
    let a = hold(&mut pool, "abcdx").unwrap();
    let b = hold(&mut pool, "abcdy").unwrap();
    assert_eq!(a.blocks()[..2], b.blocks()[..2]);
    assert_ne!(a.blocks()[2], b.blocks()[2]);
    pool.free(a.lease);
    pool.free(b.lease);
    assert_eq!(pool.stats(), PoolStats { free: 6, cached: 2, active: 0, total: 8, evictions: 0 });
}

#[test]
fn freed_tail_is_evicted_before_its_prefix() {
    let mut pool = pool(3);
    let a = hold(&mut pool, "abcdef").unwrap();
    pool.free(a.lease);
    let b = hold(&mut pool, "xx").unwrap();
    pool.free(b.lease);
    let a = hold(&mut pool, "abcd").unwrap();
    assert_eq!(a.blocks(), [0, 1]);
    assert_eq!(pool.stats().evictions, 1);
    pool.free(a.lease);
}

#[test]
fn the_least_recently_freed_sequence_is_evicted_first() {
    let mut pool = pool(3);
    for text in ["aa", "bb", "cc", "aa", "dd"] {
        let holder = hold(&mut pool, text).unwrap();
        pool.free(holder.lease);
    }
    assert_eq!(["aa", "bb", "cc", "dd"].map(|text| found(&pool, 0, text)), [1, 0, 1, 1]);
}

#[test]
fn a_block_that_nobody_can_find_is_used_before_cached_ones() {
    let mut pool = pool(3);
    let a = hold(&mut pool, "aabbc").unwrap();
    pool.free(a.lease);
    let b = hold(&mut pool, "x").unwrap();
    assert_eq!(pool.stats().evictions, 0);
    pool.free(b.lease);
}

#[test]
fn a_full_pool_says_how_much_is_missing_and_changes_nothing() {
    let mut pool = pool(4);
    let a = hold(&mut pool, "aabb").unwrap();
    let before = pool.stats();
    let owner = owner_in(CacheSalt(0));
    match pool.allocate_slots(&SlotRequest { num_approximate: 1, headroom: 1, ..wish(owner, &[], 3) }) {
        Allocation::CapacityExhausted { short_by } => assert_eq!(short_by, 3),
        other => panic!("4 blocks of 2, and one more to spare: {other:?}"),
    }
    assert_eq!(pool.stats(), before);
    pool.free(a.lease);
}

#[test]
fn an_idle_hit_counts_as_taken_room() {
    let mut pool = pool(2);
    let a = hold(&mut pool, "aabb").unwrap();
    pool.free(a.lease);
    let found = pool.match_full_blocks(Text::of("aa").hashed());
    match pool.allocate_slots(&wish(owner_in(CacheSalt(0)), &found, 2)) {
        Allocation::CapacityExhausted { short_by } => assert_eq!(short_by, 1),
        other => panic!("1 hit and 2 new blocks of 2: {other:?}"),
    }
}

#[test]
fn content_computed_twice_is_held_once() {
    let mut pool = pool(4);
    let admit = |pool: &mut BlockPool| admit(pool, owner_in(CacheSalt(0)), Text::of("abcd"), 0).unwrap();
    let mut both = [admit(&mut pool), admit(&mut pool)];
    both.iter_mut().for_each(|holder| holder.cache(&mut pool, 4));
    assert_eq!(both[0].blocks(), both[1].blocks());
    assert_eq!(pool.stats().active, 2);
    both.into_iter().for_each(|holder| pool.free(holder.lease));
}

#[test]
fn a_sequence_that_must_not_read_others_keeps_its_blocks() {
    let mut pool = pool(4);
    let a = hold(&mut pool, "aa").unwrap();
    let Allocation::Ready(Slots { mut lease, .. }) = pool.allocate_slots(&wish(owner_in(CacheSalt(0)), &[], 1)) else {
        panic!("3 are free")
    };
    let own: Vec<_> = lease.block_ids().collect();
    pool.cache_full_blocks(&mut lease, a.hashed(), 2, OnDuplicate::Keep);
    assert_eq!(lease.block_ids().collect::<Vec<_>>(), own);
    pool.free(lease);
    pool.free(a.lease);
}

#[test]
fn approximate_blocks_are_never_found() {
    let mut pool = pool(4);
    let mut holder = admit(&mut pool, owner_in(CacheSalt(0)), Text::of("abcdef"), 2).unwrap();
    holder.cache(&mut pool, 6);
    assert_eq!(found(&pool, 0, "abcdef"), 1);
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("1 is free") };
    assert_eq!(holder.lease.num_exact(), 1);
    pool.free(holder.lease);
}

#[test]
fn exchanged_approximate_blocks_can_be_found_once_computed() {
    let mut pool = pool(3);
    let mut holder = admit(&mut pool, owner_in(CacheSalt(0)), Text::of("abcdef"), 2).unwrap();
    pool.exchange_approximate(&mut holder.lease);
    holder.cache(&mut pool, 6);
    assert_eq!(found(&pool, 0, "abcdef"), 3);
    pool.free(holder.lease);
}

#[test]
fn after_a_reset_nothing_is_found_and_holders_go_on() {
    let mut pool = pool(4);
    let mut holder = hold(&mut pool, "aabb").unwrap();
    pool.reset_prefix_cache();
    pool.check_invariants();
    holder.text = Text::of("aabbcc");
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("2 are free") };
    holder.cache(&mut pool, 6);
    assert!(pool.index().is_empty());
    pool.free(holder.lease);
    assert_eq!(pool.stats().free, 4);
}

#[test]
fn impossible_pools_are_refused() {
    assert_eq!(BlockPool::try_new(0, SIZE).unwrap_err(), PoolError::NoBlocks);
    let num_blocks = u32::MAX as usize;
    assert_eq!(BlockPool::try_new(num_blocks, SIZE).unwrap_err(), PoolError::TooManyBlocks { num_blocks });
}

#[test]
fn what_follows_public_text_is_found_behind_it_in_its_own_scope_only() {
    let mut pool = pool(8);
    for (salt, text) in [(PUBLIC.0, "abcd"), (1, "abcdef"), (2, "abcdxx")] {
        let holder = hold_in(&mut pool, salt, text).unwrap();
        assert_eq!(holder.blocks()[..2], [0, 1]);
        pool.free(holder.lease);
    }
    assert_eq!(
        [(1, "abcdef"), (2, "abcdef"), (1, "abcdxx"), (9, "abcdef")].map(|(salt, text)| found(&pool, salt, text)),
        [3, 2, 2, 2]
    );
}

#[test]
fn a_full_quota_evicts_own_blocks_and_no_others() {
    let mut pool = pool(6).with_quotas(&[(TenantId(1), 3)].into());
    for (salt, text) in [(0, "aabb"), (1, "ccdd"), (1, "ee"), (1, "ffgg")] {
        let holder = hold_in(&mut pool, salt, text).unwrap();
        pool.free(holder.lease);
    }
    assert_eq!(pool.stats().evictions, 2);
    assert_eq!([(0, "aabb"), (1, "ccdd"), (1, "ee"), (1, "ffgg")].map(|(salt, text)| found(&pool, salt, text)), [2, 0, 1, 2]);
}

#[test]
fn a_quota_full_of_held_blocks_is_an_answer_and_changes_nothing() {
    let mut pool = pool(8).with_quotas(&[(TenantId(1), 3)].into());
    let mut holder = hold_in(&mut pool, 1, "aabb").unwrap();
    let before = pool.stats();
    match pool.allocate_slots(&SlotRequest { quota_headroom: 1, ..wish(owner_in(CacheSalt(1)), &[], 2) }) {
        Allocation::QuotaExhausted { short_by } => assert_eq!(short_by, 2),
        other => panic!("1 of 3 is left: {other:?}"),
    }
    match pool.grow(&mut holder.lease, 2) {
        Allocation::QuotaExhausted { short_by } => assert_eq!(short_by, 1),
        other => panic!("1 of 3 is left: {other:?}"),
    }
    assert_eq!(pool.stats(), before);
    pool.free(holder.lease);
}

#[test]
fn an_erased_block_is_not_found_and_stays_with_its_holder() {
    let mut pool = pool(8);
    let kept = hold_in(&mut pool, 2, "aabb").unwrap();
    let mut holder = hold_in(&mut pool, 1, "aabb").unwrap();
    assert_eq!(pool.erase(|owner| owner.tenant == TenantId(1)), 2);
    pool.check_invariants();
    assert_eq!((found(&pool, 1, "aabb"), found(&pool, 2, "aabb"), pool.stats().active), (0, 2, 4));
    holder.text = Text::new(CacheSalt(1), Text::of("aabbcc").tokens);
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("4 are free") };
    holder.cache(&mut pool, 6);
    pool.free(holder.lease);
    assert_eq!((found(&pool, 1, "aabbcc"), pool.stats().cached), (0, 0));
    pool.free(kept.lease);
}

#[test]
fn a_block_that_changes_its_tenant_is_zeroed() {
    let mut pool = pool(2);
    let mut check = |salt: u64, text: &str, expected: &[u32]| {
        let holder = hold_in(&mut pool, salt, text).unwrap();
        pool.free(holder.lease);
        assert_eq!(pool.take_to_zero(), expected.iter().copied().map(BlockId).collect::<Vec<_>>(), "{text}");
    };
    check(1, "aabb", &[]);
    check(1, "ccdd", &[]);
    check(2, "ee", &[0]);
    check(2, "ffgg", &[1]);
}

#[test]
fn a_block_unused_for_too_long_is_not_found_and_its_place_is_empty_after_a_while() {
    let mut pool = pool(8).with_ttl(Some(Duration::from_micros(10)));
    let early = hold(&mut pool, "aabbcc").unwrap();
    let held = hold(&mut pool, "dd").unwrap();
    pool.free(early.lease);
    pool.advance(Timestamp::from_micros(8));
    let again = hold(&mut pool, "aa").unwrap();
    pool.free(again.lease);
    pool.advance(Timestamp::from_micros(11));
    assert_eq!((found(&pool, 0, "aabbcc"), found(&pool, 0, "dd")), (1, 1));
    assert_eq!((pool.expire(1), pool.expire(9), pool.expire(9)), (1, 1, 0));
    pool.check_invariants();
    assert_eq!((pool.stats().cached, pool.stats().evictions), (1, 0));
    pool.free(held.lease);
}

/// What the pool must do, the slow way: paths are compared scope by scope and token by token, the free queue is a `Vec`.
struct Reference {
    holders: Vec<u32>,
    free: Vec<u32>,
    owners: Vec<Option<BlockOwner>>,
    last_used: Vec<u64>,
    quotas: BTreeMap<TenantId, usize>,
    now: u64,
    ttl: u64,
    /// Content that can be found.
    content: HashMap<Path, At>,
    /// What the host tier holds, oldest first.
    copies: Vec<HostCopy>,
    num_places: usize,
    /// Places that were fetched from since the last step.
    num_leaving: usize,
    min_depth: usize,
}

/// Scope of each block from the start of the sequence on, and the tokens to the end of the last.
type Path = (Vec<CacheSalt>, Vec<TokenId>);

/// Where content is. It does not matter in which place of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Device(u32),
    Host,
}

struct HostCopy {
    path: Path,
    owner: BlockOwner,
    last_used: u64,
    is_reserved: bool,
}

fn follows((scopes, tokens): &Path, (other_scopes, other_tokens): &Path) -> bool {
    scopes.starts_with(other_scopes) && tokens.starts_with(other_tokens)
}

impl Reference {
    fn new(num_blocks: u32, quotas: &BTreeMap<TenantId, usize>, ttl: u64, num_places: usize) -> Self {
        let n = num_blocks as usize;
        let (holders, owners, last_used) = (vec![0; n], vec![None; n], vec![0; n]);
        let (free, quotas) = ((0..num_blocks).collect(), quotas.clone());
        let (content, copies) = Default::default();
        let (num_leaving, min_depth) = (0, 0);
        Self { holders, free, owners, last_used, quotas, now: 0, ttl, content, copies, num_places, num_leaving, min_depth }
    }

    fn copy_of(&self, path: &Path) -> &HostCopy {
        self.copies.iter().find(|copy| copy.path == *path).expect("what is found in the host has a copy there")
    }

    fn is_expired(&self, path: &Path) -> bool {
        let last_used = match self.content[path] {
            At::Device(block) if self.holders[block as usize] > 0 => return false,
            At::Device(block) => self.last_used[block as usize],
            At::Host => self.copy_of(path).last_used,
        };
        self.now - last_used > self.ttl
    }

    /// The longest path that begins with some blocks of the public scope, the fewest of equals, as far as it has not expired and its
    /// owners have room for what is fetched.
    fn find(&self, salt: CacheSalt, tokens: &[TokenId]) -> Vec<Path> {
        let own_only = self.follow(Vec::new(), salt, tokens);
        let public = self.follow(Vec::new(), PUBLIC, tokens);
        let mixed = if public.is_empty() { public } else { self.follow(public, salt, tokens) };
        let mut longest = if mixed.len() > own_only.len() { mixed } else { own_only };
        longest.truncate(longest.iter().take_while(|path| !self.is_expired(path)).count());
        let fits = |len: &usize| {
            let paths: Vec<_> = longest[..*len].iter().collect();
            self.quotas.keys().all(|&tenant| self.is_within_quota(tenant, &paths, 0))
        };
        let num_usable = (0..=longest.len()).take_while(fits).count().saturating_sub(1);
        longest.truncate(num_usable);
        longest
    }

    fn follow(&self, mut paths: Vec<Path>, salt: CacheSalt, tokens: &[TokenId]) -> Vec<Path> {
        while 2 * (paths.len() + 1) <= tokens.len() {
            let mut scopes = paths.last().map_or(Vec::new(), |(scopes, _)| scopes.clone());
            scopes.push(salt);
            let path = (scopes, tokens[..2 * (paths.len() + 1)].to_vec());
            if !self.content.contains_key(&path) {
                break;
            }
            paths.push(path);
        }
        paths
    }

    fn path_of(&self, block: u32) -> Option<Path> {
        self.content.iter().find(|&(_, &at)| at == At::Device(block)).map(|(path, _)| path.clone())
    }

    fn owner_of(&self, path: &Path) -> BlockOwner {
        match self.content[path] {
            At::Device(block) => self.owners[block as usize].expect("it was filled"),
            At::Host => self.copy_of(path).owner,
        }
    }

    fn take(&mut self, block: u32) {
        self.free.retain(|&free| free != block);
        self.holders[block as usize] += 1;
    }

    /// Holds what is in `paths`, fetched to `blocks` as far as it is in the host.
    fn hold(&mut self, paths: &[Path], blocks: &[u32]) {
        let before: Vec<_> = paths.iter().map(|path| self.content[path]).collect();
        for (path, &at) in paths.iter().zip(&before) {
            match at {
                At::Device(block) => self.take(block),
                At::Host => {
                    let copy = self.copies.iter_mut().find(|copy| copy.path == *path).expect("it has a copy");
                    copy.is_reserved = true;
                }
            }
        }
        for ((path, at), &block) in paths.iter().zip(before).zip(blocks) {
            match at {
                At::Device(held) => assert_eq!(block, held, "what was found is shared"),
                At::Host => match self.copies.iter().position(|copy| copy.path == *path && copy.is_reserved) {
                    None => self.take(block), // Fetched a moment ago.
                    Some(at) => {
                        let owner = self.copies[at].owner;
                        self.take_new(owner, block);
                        self.copies.retain(|copy| !(copy.path == *path && copy.is_reserved));
                        self.num_leaving += 1;
                        self.content.entry(path.clone()).and_modify(|at| *at = At::Device(block));
                    }
                },
            }
        }
    }

    fn num_used(&self, tenant: TenantId) -> usize {
        let is_used = |block: u32| self.holders[block as usize] > 0 || self.path_of(block).is_some();
        (0..self.holders.len() as u32).filter(|&block| self.is_of(tenant, block) && is_used(block)).count()
    }

    fn is_of(&self, tenant: TenantId, block: u32) -> bool {
        self.owners[block as usize].is_some_and(|owner| owner.tenant == tenant)
    }

    /// Whether `num_new` blocks of `tenant` are within its quota when `kept` stay, are fetched where they must be, and all held ones stay.
    fn is_within_quota(&self, tenant: TenantId, kept: &[&Path], num_new: usize) -> bool {
        let is_kept = |block: u32| kept.iter().any(|path| self.content[*path] == At::Device(block));
        let stays = |block: u32| self.holders[block as usize] > 0 || is_kept(block);
        let num_fixed = (0..self.holders.len() as u32).filter(|&block| self.is_of(tenant, block) && stays(block)).count();
        let is_fetched = |path: &&&Path| self.content[**path] == At::Host && self.owner_of(path).tenant == tenant;
        let num_fetched = kept.iter().filter(is_fetched).count();
        self.quotas.get(&tenant).is_none_or(|&quota| num_fixed + num_fetched + num_new <= quota)
    }

    /// `owner` got `block`: its oldest own one if its quota is full, else an empty one if there is any, else the oldest of all.
    fn take_new(&mut self, owner: BlockOwner, block: u32) {
        let is_cached = |block: u32| self.path_of(block).is_some();
        let is_full = self.quotas.get(&owner.tenant).is_some_and(|&quota| self.num_used(owner.tenant) >= quota);
        if is_full || self.free.iter().all(|&block| is_cached(block)) {
            let mut candidates = self.free.iter().copied().filter(|&block| is_cached(block));
            let oldest = candidates.find(|&block| !is_full || self.is_of(owner.tenant, block));
            assert_eq!(Some(block), oldest, "another block was to be given up");
        } else {
            assert!(!is_cached(block), "a cached block was given up though another is empty");
        }
        let num_gone = self.path_of(block).map_or(0, |path| self.evict(&path, block));
        let is_in_order = self.quotas.is_empty() && self.num_places == 0;
        assert!(num_gone <= 1 || !is_in_order, "a block was given up before one that follows it");
        self.take(block);
        self.owners[block as usize] = Some(owner);
    }

    /// What `block` holds goes to the host if it is deep enough or something follows it and its owner has a place there, else nowhere;
    /// how much is found no more.
    fn evict(&mut self, path: &Path, block: u32) -> usize {
        let is_followed = self.content.keys().any(|other| other != path && follows(other, path));
        let is_wanted = self.num_places > 0 && !self.is_expired(path) && (path.0.len() > self.min_depth || is_followed);
        let owner = self.owners[block as usize].expect("it was filled");
        let num_before = self.content.len();
        if is_wanted && self.make_place(owner.tenant) && self.content.contains_key(path) {
            self.content.insert(path.clone(), At::Host);
            let last_used = self.last_used[block as usize];
            self.copies.push(HostCopy { path: path.clone(), owner, last_used, is_reserved: false });
        } else {
            self.forget(path);
        }
        num_before - self.content.len()
    }

    /// Gives up an old copy if need be; false if there is none to give up.
    fn make_place(&mut self, tenant: TenantId) -> bool {
        let limit = self.quotas.get(&tenant).map_or(usize::MAX, |quota| (quota * self.num_places).div_ceil(self.holders.len()));
        let num_own = self.copies.iter().filter(|copy| copy.owner.tenant == tenant).count();
        let is_full = num_own >= limit;
        if !is_full && self.copies.len() + self.num_leaving < self.num_places {
            return true;
        }
        let mut candidates = self.copies.iter().filter(|copy| !copy.is_reserved && (!is_full || copy.owner.tenant == tenant));
        let Some(oldest) = candidates.next().map(|copy| copy.path.clone()) else { return false };
        self.forget(&oldest);
        true
    }

    /// What is at `path` is found no more, nor what follows it.
    fn forget(&mut self, path: &Path) -> usize {
        let num_before = self.content.len();
        self.content.retain(|other, _| !follows(other, path));
        self.copies.retain(|copy| copy.is_reserved || !follows(&copy.path, path));
        num_before - self.content.len()
    }

    fn release(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            self.holders[block as usize] -= 1;
            if self.holders[block as usize] == 0 {
                self.last_used[block as usize] = self.now;
                self.free.push(block);
            }
        }
    }

    /// Makes `blocks` findable from the first one on that is not; those that were not found anywhere on the device before. A path of
    /// other scopes to the same tokens is a collision.
    fn cache(&mut self, salt: CacheSalt, tokens: &[TokenId], blocks: &mut [u32], num_cached: &mut usize) -> Vec<(Path, u32)> {
        let mut stored = Vec::new();
        for i in *num_cached..blocks.len() {
            let end = 2 * (i + 1);
            let parent = match i {
                0 => Some((Vec::new(), Vec::new())),
                i => self.path_of(blocks[i - 1]),
            };
            let Some((mut scopes, _)) = parent else { break };
            scopes.push(salt);
            let path = (scopes, tokens[..end].to_vec());
            let collides = |other: &Path| *other != path && other.1 == path.1 && other.0.last() == Some(&salt);
            if self.content.keys().any(collides) {
                break;
            }
            if let Some(&At::Device(held)) = self.content.get(&path) {
                self.take(held);
                let own = std::mem::replace(&mut blocks[i], held);
                self.release(&[own]);
            } else {
                self.copies.retain(|copy| copy.path != path);
                self.content.insert(path.clone(), At::Device(blocks[i]));
                stored.push((path, blocks[i]));
            }
            *num_cached = i + 1;
        }
        stored
    }

    fn erase(&mut self, is_erased: impl Fn(&BlockOwner) -> bool) -> usize {
        let all: Vec<_> = self.content.keys().filter(|path| is_erased(&self.owner_of(path))).cloned().collect();
        all.iter().map(|path| self.forget(path)).sum()
    }

    fn expire(&mut self, max_blocks: usize) -> usize {
        let mut num_expired = 0;
        while num_expired < max_blocks {
            let on_device = self.free.iter().find_map(|&block| self.path_of(block));
            let in_host = self.copies.first().map(|copy| copy.path.clone());
            let Some(path) = on_device.into_iter().chain(in_host).find(|path| self.is_expired(path)) else { break };
            num_expired += self.forget(&path);
        }
        num_expired
    }
}

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
}

/// The pool and the reference side by side.
struct Walk {
    pool: BlockPool,
    reference: Reference,
    rng: Rng,
    walkers: Vec<Walker>,
    /// Held until the next step.
    pins: Option<(BlockLease, Vec<u32>)>,
    /// What each block and each place of the host really holds.
    device: Vec<Option<Path>>,
    host: Vec<Option<Path>>,
    /// Tenant that last filled each block, as far as a zeroing executor knows.
    written_by: Vec<Option<TenantId>>,
    num_refusals: usize,
    num_quota_refusals: usize,
    num_erased: usize,
    num_expired: usize,
}

const NUM_BLOCKS: u32 = 12;

const SCOPES: [CacheSalt; 3] = [CacheSalt(0), CacheSalt(1), PUBLIC];

impl Walk {
    fn new(quotas: &[(TenantId, usize)], ttl_micros: Option<u64>, num_places: u32) -> Self {
        let quotas = quotas.iter().copied().collect();
        let ttl = ttl_micros.map(Duration::from_micros);
        Self {
            pool: pool(NUM_BLOCKS as usize).with_quotas(&quotas).with_ttl(ttl).with_host_tier(num_places),
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
        }
    }

    /// Two tokens only, so that prefixes are shared all the time.
    fn random_text(&mut self) -> Text {
        let salt = SCOPES[self.rng.below(3)];
        let tokens = (0..1 + self.rng.below(9)).map(|_| TokenId(self.rng.below(2) as u32)).collect();
        Text::new(salt, tokens)
    }

    /// What is found of some text, to be held beside a new sequence, of what is in the host perhaps only the end; mostly nothing.
    fn random_pins(&mut self) -> (Vec<Place>, Vec<Path>) {
        let text = self.random_text();
        let places = self.pool.match_full_blocks(text.hashed());
        let paths = self.reference.find(text.salt, &text.tokens);
        assert_eq!(places.len(), paths.len(), "the pool and the reference disagree about what is found");
        let (is_pinning, start) = (self.rng.below(3) == 0, self.rng.below(paths.len() + 1));
        let found = places.into_iter().zip(paths).enumerate();
        found.filter(|(i, (place, _))| is_pinning && (!place.is_host() || *i >= start)).map(|(_, pinned)| pinned).unzip()
    }

    fn admit(&mut self) {
        let text = self.random_text();
        let (pinned, pinned_paths) = self.random_pins();
        let session = [None, Some(SessionId(1)), Some(SessionId(2))][self.rng.below(3)];
        let owner = BlockOwner { session, request: RequestId(self.rng.below(4) as u64), ..owner_in(text.salt) };
        let num_approximate = self.rng.below(4).saturating_sub(1);
        let reference = &mut self.reference;
        let shared = reference.find(text.salt, &text.tokens);
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
        let num_exact = blocks.len() - num_approximate;
        self.walkers.push(Walker { holder: Holder { text, lease }, owner, blocks, num_exact, num_cached: shared.len() });
    }

    fn cache(&mut self, pick: usize) {
        let Walker { holder: Holder { text, lease }, blocks, num_exact, num_cached, .. } = &mut self.walkers[pick];
        self.pool.cache_full_blocks(lease, text.hashed(), text.tokens.len(), OnDuplicate::Exchange);
        let num_full = (*num_exact).min(text.tokens.len() / 2);
        for (path, block) in self.reference.cache(text.salt, &text.tokens, &mut blocks[..num_full], num_cached) {
            self.device[block as usize] = Some(path);
        }
    }

    fn grow(&mut self, pick: usize) {
        let walker = &mut self.walkers[pick];
        let grown = matches!(self.pool.grow(&mut walker.holder.lease, 1), Allocation::Ready(()));
        let fits = !self.reference.free.is_empty() && self.reference.is_within_quota(walker.owner.tenant, &[], 1);
        assert_eq!(grown, fits, "the pool and the reference disagree about room to grow");
        if grown {
            walker.num_exact += usize::from(walker.num_exact == walker.blocks.len());
            let block = *walker.holder.blocks().last().expect("it grew");
            self.reference.take_new(walker.owner, block);
            walker.blocks.push(block);
        }
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

    /// What an executor does before a step; then what can be found must be there.
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

    /// What is zeroed is exactly what another tenant had filled.
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
        let expected = self.reference.find(text.salt, &text.tokens);
        let holds = |place: Place| match place {
            Place::Device(block) => self.device[block.0 as usize].clone(),
            Place::Host(slot) => self.host[slot.0 as usize].clone(),
        };
        assert_eq!(found.blocks.iter().filter_map(|&place| holds(place)).collect::<Vec<_>>(), expected);
        if let Some(partial) = found.partial {
            let (scopes, tokens) = holds(partial.block).expect("a partly matched block was filled");
            assert!(tokens.starts_with(&text.tokens[..found.num_tokens + partial.num_tokens]), "it holds something else");
            assert_eq!(scopes.last(), Some(&text.salt), "it is of another scope");
            assert!(scopes.iter().all(|scope| [text.salt, PUBLIC].contains(scope)), "it is behind another scope");
        }
    }

    fn run(&mut self, num_steps: usize) {
        for _ in 0..num_steps {
            let pick = self.rng.below(self.walkers.len().max(1));
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
    walk.run(60_000);
    assert!(walk.num_refusals > 1_000, "the pool was full only {} times", walk.num_refusals);
    assert!(walk.pool.stats().evictions > 2_000, "only {} evictions", walk.pool.stats().evictions);
    assert!(walk.num_erased > 500, "only {} blocks were erased", walk.num_erased);
    assert_eq!(walk.pool.host_stats(), HostStats::default());
}

#[test]
fn quotas_and_expiry_agree_with_the_naive_reference() {
    let mut walk = Walk::new(&[(TenantId(0), 5), (TenantId(9), 4)], Some(2), 0);
    walk.run(60_000);
    assert!(walk.num_quota_refusals > 1_000, "a quota was full only {} times", walk.num_quota_refusals);
    assert!(walk.num_expired > 1_000, "only {} blocks expired", walk.num_expired);
    assert!(walk.pool.stats().evictions > 1_000, "only {} evictions", walk.pool.stats().evictions);
}

#[test]
fn a_host_tier_agrees_with_the_naive_reference() {
    for (num_places, quotas, ttl) in [(7, &[][..], None), (9, &[(TenantId(0), 5), (TenantId(9), 4)], Some(20)), (2, &[], None)] {
        let mut walk = Walk::new(quotas, ttl, num_places);
        walk.run(40_000);
        let HostStats { offloads, fetches, .. } = walk.pool.host_stats();
        assert!(offloads > 1_000 && fetches > 150, "{offloads} offloads, {fetches} fetches of {num_places} places");
        assert!(walk.num_erased > 300, "only {} blocks were erased", walk.num_erased);
    }
}
