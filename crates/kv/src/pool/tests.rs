use std::collections::HashMap;

use tokens::{BlockHash, RequestId, Scope, SessionId, TokenId, hash_full_blocks};

use super::*;
use crate::{BlockFetch, BlockOffload, CacheGroup, ReadableScope, Retention};

mod reference;
mod walk;

const SIZE: BlockSize = BlockSize::new(2).unwrap();

/// A sequence with all its blocks, as a scheduler would hold it.
struct Holder {
    text: Text,
    lease: BlockLease,
}

/// Tokens of a sequence, and their scope.
struct Text {
    scope: Scope,
    tokens: Vec<TokenId>,
    hashes: Vec<BlockHash>,
    readable: Vec<ReadableScope>,
}

impl Text {
    /// Creates `tokens` in a scope that may read [`PUBLIC`], as every scope may.
    fn new(scope: Scope, tokens: Vec<TokenId>) -> Self {
        let hashes_in = |scope| hash_full_blocks(scope, &tokens, SIZE);
        let readable = vec![ReadableScope { scope: PUBLIC, hashes: hashes_in(PUBLIC).into() }];
        Self { scope, hashes: hashes_in(scope), readable, tokens }
    }

    fn of(text: &str) -> Self {
        Self::new(Scope(0), text.bytes().map(|byte| TokenId(byte.into())).collect())
    }

    fn hashed(&self) -> HashedTokens<'_> {
        HashedTokens { scope: self.scope, tokens: &self.tokens, hashes: &self.hashes, readable: &self.readable }
    }
}

/// A scope that all read and one tenant writes.
const PUBLIC: Scope = Scope(9);

/// Returns the tenant that owns a scope in these tests.
fn owner_in(scope: Scope) -> BlockOwner {
    BlockOwner { tenant: TenantId(scope.0 as u32), session: None, request: RequestId(0) }
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
        self.table().into_iter().map(|(block, _)| block).collect()
    }

    /// Returns each block with its position.
    fn table(&self) -> Vec<(u32, u32)> {
        self.lease.block_table(self.lease.end()).into_iter().map(|entry| (entry.block.0, entry.position)).collect()
    }
}

fn pool(num_blocks: usize) -> BlockPool {
    BlockPool::try_new(CacheGroups::default(), num_blocks, SIZE).unwrap()
}

/// Returns a pool of layers whose rows read the last `window` positions.
fn windowed_pool(num_blocks: usize, window: u32) -> BlockPool {
    let group = CacheGroup { retention: Retention::Window(window), ..CacheGroup::default() };
    BlockPool::try_new(group.into(), num_blocks, SIZE).unwrap()
}

/// Matches `text`, allocates the rest, computes and caches it.
fn hold(pool: &mut BlockPool, text: &str) -> Option<Holder> {
    hold_in(pool, 0, text)
}

/// Does the same in `scope`.
fn hold_in(pool: &mut BlockPool, scope: u64, text: &str) -> Option<Holder> {
    let text = Text::new(Scope(scope), Text::of(text).tokens);
    let owner = owner_in(text.scope);
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
    SlotRequest { owner, shared, pinned: &[], num_exact, num_kept: 0, num_approximate: 0, headroom: 0, quota_headroom: 0 }
}

/// Counts the leading blocks of `text` that are found in `scope`.
fn found(pool: &BlockPool, scope: u64, text: &str) -> usize {
    pool.match_full_blocks(Text::new(Scope(scope), Text::of(text).tokens).hashed()).len()
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
    let owner = owner_in(Scope(0));
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
    match pool.allocate_slots(&wish(owner_in(Scope(0)), &found, 2)) {
        Allocation::CapacityExhausted { short_by } => assert_eq!(short_by, 1),
        other => panic!("1 hit and 2 new blocks of 2: {other:?}"),
    }
}

#[test]
fn content_computed_twice_is_held_once() {
    let mut pool = pool(4);
    let admit = |pool: &mut BlockPool| admit(pool, owner_in(Scope(0)), Text::of("abcd"), 0).unwrap();
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
    let Allocation::Ready(Slots { mut lease, .. }) = pool.allocate_slots(&wish(owner_in(Scope(0)), &[], 1)) else {
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
    let mut holder = admit(&mut pool, owner_in(Scope(0)), Text::of("abcdef"), 2).unwrap();
    holder.cache(&mut pool, 6);
    assert_eq!(found(&pool, 0, "abcdef"), 1);
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("1 is free") };
    assert_eq!(holder.lease.num_exact(), 1);
    pool.free(holder.lease);
}

#[test]
fn exchanged_approximate_blocks_can_be_found_once_computed() {
    let mut pool = pool(3);
    let mut holder = admit(&mut pool, owner_in(Scope(0)), Text::of("abcdef"), 2).unwrap();
    pool.exchange_approximate(&mut holder.lease);
    holder.cache(&mut pool, 6);
    assert_eq!(found(&pool, 0, "abcdef"), 3);
    pool.free(holder.lease);
}

#[test]
fn compacted_blocks_and_what_follows_them_are_never_found() {
    let mut pool = pool(8);
    let mut holder = admit(&mut pool, owner_in(Scope(0)), Text::of("aabbccddee"), 0).unwrap();
    holder.cache(&mut pool, 2);
    let Allocation::Ready(replaced) = pool.compact(&mut holder.lease, TokenRange::new(2, 7), 1) else { panic!("3 are free") };
    assert_eq!(replaced.block_ids().map(|block| block.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(holder.table(), [(0, 0), (5, 2), (3, 6), (4, 8)]);
    assert_eq!((pool.stats().active, pool.stats().free), (6, 2));
    pool.free(replaced);
    holder.cache(&mut pool, 10);
    assert_eq!(found(&pool, 0, "aabbccddee"), 1);
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("4 are free") };
    assert_eq!((holder.lease.num_exact(), holder.table().last()), (3, Some(&(1, 10))));
    pool.free(holder.lease);
    assert_eq!(pool.stats(), PoolStats { free: 7, cached: 1, active: 0, total: 8, evictions: 0 });
}

#[test]
fn blocks_left_of_a_window_are_freed_and_stay_findable() {
    let mut pool = windowed_pool(8, 3);
    let mut holder = hold(&mut pool, "aabbccdd").unwrap();
    pool.free_unread(&mut holder.lease, 3);
    assert_eq!(holder.table(), [(0, 0), (1, 2), (2, 4), (3, 6)], "row 3 reads positions 1 to 3");
    pool.free_unread(&mut holder.lease, 7);
    pool.check_invariants();
    assert_eq!(holder.table(), [(2, 4), (3, 6)], "row 7 reads positions 5 to 7");
    assert_eq!(pool.stats(), PoolStats { free: 4, cached: 2, active: 2, total: 8, evictions: 0 });
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("6 are free") };
    assert_eq!(holder.lease.block_table(8), holder.lease.block_table(10)[..2]);
    assert_eq!((holder.table()[2], holder.lease.end()), ((4, 8), 10));
    holder.text = Text::of("aabbccddee");
    holder.cache(&mut pool, 10);
    assert_eq!(found(&pool, 0, "aabbccddee"), 4, "the block before the last one is held, and the first ones are not");
    pool.truncate(&mut holder.lease, 5);
    assert_eq!((holder.table(), holder.lease.end()), (vec![(2, 4)], 6));
    pool.free(holder.lease);
    assert_eq!(pool.stats(), PoolStats { free: 4, cached: 4, active: 0, total: 8, evictions: 0 });
}

#[test]
fn what_follows_inexact_kv_is_inexact_though_its_blocks_were_freed() {
    let mut pool = windowed_pool(8, 2);
    let mut holder = admit(&mut pool, owner_in(Scope(0)), Text::of("aabbcc"), 2).unwrap();
    pool.free_unread(&mut holder.lease, 8);
    assert!(holder.lease.is_empty());
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("8 are free") };
    assert_eq!((holder.lease.num_exact(), holder.lease.len()), (0, 1));
    pool.truncate(&mut holder.lease, 2);
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("8 are free") };
    assert_eq!((holder.lease.num_exact(), holder.table()[0].1), (1, 2));
    pool.free(holder.lease);
}

#[test]
fn kept_blocks_fill_the_room_left_for_them() {
    let mut pool = pool(8);
    let mut kept = admit(&mut pool, owner_in(Scope(0)), Text::of("aabbccdd"), 2).unwrap();
    kept.cache(&mut pool, 8);
    pool.free_exact(&mut kept.lease);
    pool.truncate(&mut kept.lease, 7);
    assert_eq!(kept.table(), [(2, 4), (3, 6)]);
    let shared = pool.match_full_blocks(Text::of("aabb").hashed());
    let wish = SlotRequest { num_kept: 2, num_approximate: 1, ..wish(owner_in(Scope(0)), &shared, 0) };
    let Allocation::Ready(Slots { lease, .. }) = pool.allocate_slots(&wish) else { panic!("4 are free") };
    let holder = Holder { text: Text::of("aabbccddee"), lease: lease.with_kept(kept.lease) };
    assert_eq!(holder.table(), [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]);
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
    let refuse = |num_blocks| BlockPool::try_new(CacheGroups::default(), num_blocks, SIZE).unwrap_err();
    assert_eq!(refuse(0), PoolError::NoBlocks);
    let num_blocks = u32::MAX as usize;
    assert_eq!(refuse(num_blocks), PoolError::TooManyBlocks { num_blocks });
}

#[test]
fn what_follows_public_text_is_found_behind_it_in_its_own_scope_only() {
    let mut pool = pool(8);
    for (scope, text) in [(PUBLIC.0, "abcd"), (1, "abcdef"), (2, "abcdxx")] {
        let holder = hold_in(&mut pool, scope, text).unwrap();
        assert_eq!(holder.blocks()[..2], [0, 1]);
        pool.free(holder.lease);
    }
    assert_eq!(
        [(1, "abcdef"), (2, "abcdef"), (1, "abcdxx"), (9, "abcdef")].map(|(scope, text)| found(&pool, scope, text)),
        [3, 2, 2, 2]
    );
}

#[test]
fn a_full_quota_evicts_own_blocks_and_no_others() {
    let mut pool = pool(6).with_quotas(&[(TenantId(1), 3)].into());
    for (scope, text) in [(0, "aabb"), (1, "ccdd"), (1, "ee"), (1, "ffgg")] {
        let holder = hold_in(&mut pool, scope, text).unwrap();
        pool.free(holder.lease);
    }
    assert_eq!(pool.stats().evictions, 2);
    assert_eq!([(0, "aabb"), (1, "ccdd"), (1, "ee"), (1, "ffgg")].map(|(scope, text)| found(&pool, scope, text)), [2, 0, 1, 2]);
}

#[test]
fn a_quota_full_of_held_blocks_is_an_answer_and_changes_nothing() {
    let mut pool = pool(8).with_quotas(&[(TenantId(1), 3)].into());
    let mut holder = hold_in(&mut pool, 1, "aabb").unwrap();
    let before = pool.stats();
    match pool.allocate_slots(&SlotRequest { quota_headroom: 1, ..wish(owner_in(Scope(1)), &[], 2) }) {
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
    holder.text = Text::new(Scope(1), Text::of("aabbcc").tokens);
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("4 are free") };
    holder.cache(&mut pool, 6);
    pool.free(holder.lease);
    assert_eq!((found(&pool, 1, "aabbcc"), pool.stats().cached), (0, 0));
    pool.free(kept.lease);
}

#[test]
fn a_block_that_changes_its_tenant_is_zeroed() {
    let mut pool = pool(2);
    let mut check = |scope: u64, text: &str, expected: &[u32]| {
        let holder = hold_in(&mut pool, scope, text).unwrap();
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
