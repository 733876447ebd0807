use std::collections::HashMap;

use tokens::{BlockHash, CacheSalt, TokenId, hash_full_blocks};

use super::*;

const SIZE: BlockSize = BlockSize::new(2).unwrap();

/// A sequence with all its blocks, as a scheduler would hold it.
struct Holder {
    salt: CacheSalt,
    tokens: Vec<TokenId>,
    hashes: Vec<BlockHash>,
    lease: BlockLease,
}

impl Holder {
    fn hashed(&self) -> HashedTokens<'_> {
        HashedTokens { salt: self.salt, tokens: &self.tokens, hashes: &self.hashes }
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
    let tokens: Vec<_> = text.bytes().map(|byte| TokenId(byte.into())).collect();
    let num_tokens = tokens.len();
    let mut holder = admit(pool, CacheSalt(0), tokens, 0)?;
    pool.cache_full_blocks(
        &mut holder.lease,
        HashedTokens { salt: holder.salt, tokens: &holder.tokens, hashes: &holder.hashes },
        num_tokens,
        OnDuplicate::Exchange,
    );
    pool.check_invariants();
    Some(holder)
}

fn admit(pool: &mut BlockPool, salt: CacheSalt, tokens: Vec<TokenId>, num_approximate: usize) -> Option<Holder> {
    let hashes = hash_full_blocks(salt, &tokens, SIZE);
    let found = pool.match_prefix(HashedTokens { salt, tokens: &tokens, hashes: &hashes }, tokens.len());
    let num_new = SIZE.blocks_for(tokens.len()) - found.blocks.len();
    let num_approximate = num_approximate.min(num_new);
    match pool.allocate_slots(&found.blocks, num_new - num_approximate, num_approximate, 0) {
        Allocation::Ready(lease) => Some(Holder { salt, tokens, hashes, lease }),
        Allocation::CapacityExhausted { .. } => None,
    }
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
    let found = |text: &str| {
        let tokens: Vec<_> = text.bytes().map(|byte| TokenId(byte.into())).collect();
        let hashes = hash_full_blocks(CacheSalt(0), &tokens, SIZE);
        pool.index().count_leading(&hashes)
    };
    assert_eq!(["aa", "bb", "cc", "dd"].map(found), [1, 0, 1, 1]);
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
    match pool.allocate_slots(&[], 3, 1, 1) {
        Allocation::CapacityExhausted { short_by } => assert_eq!(short_by, 3),
        Allocation::Ready(_) => panic!("4 blocks of 2, and one more to spare"),
    }
    assert_eq!(pool.stats(), before);
    pool.free(a.lease);
}

#[test]
fn an_idle_hit_counts_as_taken_room() {
    let mut pool = pool(2);
    let a = hold(&mut pool, "aabb").unwrap();
    pool.free(a.lease);
    let found = pool.index().match_full_blocks(HashedTokens {
        salt: CacheSalt(0),
        tokens: &[TokenId(97), TokenId(97)],
        hashes: &hash_full_blocks(CacheSalt(0), &[TokenId(97), TokenId(97)], SIZE),
    });
    match pool.allocate_slots(&found, 2, 0, 0) {
        Allocation::CapacityExhausted { short_by } => assert_eq!(short_by, 1),
        Allocation::Ready(_) => panic!("1 hit and 2 new blocks of 2"),
    }
}

#[test]
fn content_computed_twice_is_held_once() {
    let mut pool = pool(4);
    let mut both: Vec<_> = (0..2)
        .map(|_| admit(&mut pool, CacheSalt(0), vec![TokenId(1), TokenId(2), TokenId(3), TokenId(4)], 0).unwrap())
        .collect();
    for holder in &mut both {
        let sequence = HashedTokens { salt: holder.salt, tokens: &holder.tokens, hashes: &holder.hashes };
        pool.cache_full_blocks(&mut holder.lease, sequence, 4, OnDuplicate::Exchange);
        pool.check_invariants();
    }
    assert_eq!(both[0].blocks(), both[1].blocks());
    assert_eq!(pool.stats().active, 2);
    both.into_iter().for_each(|holder| pool.free(holder.lease));
}

#[test]
fn a_sequence_that_must_not_read_others_keeps_its_blocks() {
    let mut pool = pool(4);
    let a = hold(&mut pool, "aa").unwrap();
    let Allocation::Ready(mut lease) = pool.allocate_slots(&[], 1, 0, 0) else { panic!("3 are free") };
    let own: Vec<_> = lease.block_ids().collect();
    pool.cache_full_blocks(&mut lease, a.hashed(), 2, OnDuplicate::Keep);
    assert_eq!(lease.block_ids().collect::<Vec<_>>(), own);
    pool.free(lease);
    pool.free(a.lease);
}

#[test]
fn approximate_blocks_are_never_found() {
    let mut pool = pool(4);
    let mut holder = admit(&mut pool, CacheSalt(0), (0..6).map(TokenId).collect(), 2).unwrap();
    let sequence = HashedTokens { salt: holder.salt, tokens: &holder.tokens, hashes: &holder.hashes };
    pool.cache_full_blocks(&mut holder.lease, sequence, 6, OnDuplicate::Exchange);
    assert_eq!(pool.index().match_full_blocks(sequence).len(), 1);
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("1 is free") };
    assert_eq!(holder.lease.num_exact(), 1);
    pool.free(holder.lease);
}

#[test]
fn exchanged_approximate_blocks_can_be_found_once_computed() {
    let mut pool = pool(3);
    let mut holder = admit(&mut pool, CacheSalt(0), (0..6).map(TokenId).collect(), 2).unwrap();
    pool.exchange_approximate(&mut holder.lease);
    let sequence = HashedTokens { salt: holder.salt, tokens: &holder.tokens, hashes: &holder.hashes };
    pool.cache_full_blocks(&mut holder.lease, sequence, 6, OnDuplicate::Exchange);
    assert_eq!(pool.index().match_full_blocks(sequence).len(), 3);
    pool.check_invariants();
    pool.free(holder.lease);
}

#[test]
fn after_a_reset_nothing_is_found_and_holders_go_on() {
    let mut pool = pool(4);
    let mut holder = hold(&mut pool, "aabb").unwrap();
    pool.reset_prefix_cache();
    pool.check_invariants();
    holder.tokens.extend([TokenId(1), TokenId(2)]);
    holder.hashes = hash_full_blocks(holder.salt, &holder.tokens, SIZE);
    let Allocation::Ready(()) = pool.grow(&mut holder.lease, 1) else { panic!("2 are free") };
    let sequence = HashedTokens { salt: holder.salt, tokens: &holder.tokens, hashes: &holder.hashes };
    pool.cache_full_blocks(&mut holder.lease, sequence, 6, OnDuplicate::Exchange);
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

/// What the pool must do, the slow way: chains are compared token by token, the free queue is a `Vec`.
struct Reference {
    holders: Vec<u32>,
    free: Vec<u32>,
    /// Content that can be found: the tokens from the start of the sequence to the end of the block.
    content: HashMap<(CacheSalt, Vec<TokenId>), u32>,
}

impl Reference {
    fn new(num_blocks: u32) -> Self {
        Self { holders: vec![0; num_blocks as usize], free: (0..num_blocks).collect(), content: HashMap::new() }
    }

    fn find(&self, salt: CacheSalt, tokens: &[TokenId]) -> Vec<u32> {
        let ends = (1..=tokens.len() / 2).map(|i| 2 * i);
        ends.map_while(|end| self.content.get(&(salt, tokens[..end].to_vec())).copied()).collect()
    }

    fn is_found(&self, block: u32) -> bool {
        self.content.values().any(|&held| held == block)
    }

    fn take(&mut self, block: u32) {
        self.free.retain(|&free| free != block);
        self.holders[block as usize] += 1;
    }

    fn take_new(&mut self) -> u32 {
        let block = self.free.remove(0);
        self.holders[block as usize] = 1;
        let gone = self.content.iter().find(|&(_, &held)| held == block).map(|(key, _)| key.clone());
        if let Some((salt, chain)) = gone {
            self.content.remove(&(salt, chain.clone()));
            let below = self.content.keys().any(|(other, tokens)| *other == salt && tokens.starts_with(&chain));
            assert!(!below, "a block was evicted before one that follows it");
        }
        block
    }

    fn release(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            self.holders[block as usize] -= 1;
            if self.holders[block as usize] == 0 {
                let at = if self.is_found(block) { self.free.len() } else { 0 };
                self.free.insert(at, block);
            }
        }
    }

    fn cache(&mut self, salt: CacheSalt, tokens: &[TokenId], blocks: &mut [u32]) {
        for (i, block) in blocks.iter_mut().enumerate() {
            let key = (salt, tokens[..2 * (i + 1)].to_vec());
            let held = *self.content.entry(key).or_insert(*block);
            if held != *block {
                self.take(held);
                let own = std::mem::replace(block, held);
                self.release(&[own]);
            }
        }
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
    blocks: Vec<u32>,
    num_exact: usize,
}

const NUM_BLOCKS: u32 = 12;

/// Two tokens only, so that prefixes are shared all the time.
fn random_tokens(rng: &mut Rng) -> Vec<TokenId> {
    (0..1 + rng.below(9)).map(|_| TokenId(rng.below(2) as u32)).collect()
}

fn walk_admit(pool: &mut BlockPool, reference: &mut Reference, rng: &mut Rng) -> Option<Walker> {
    let (salt, tokens) = (CacheSalt(rng.below(2) as u64), random_tokens(rng));
    let num_approximate = rng.below(4).saturating_sub(1);
    let shared = reference.find(salt, &tokens);
    let idle = shared.iter().filter(|&&block| reference.holders[block as usize] == 0).count();
    let num_new = tokens.len().div_ceil(2) - shared.len();
    let fits = idle + num_new <= reference.free.len();
    let holder = admit(pool, salt, tokens, num_approximate);
    assert_eq!(holder.is_some(), fits, "the pool and the reference disagree about room");
    let holder = holder?;
    shared.iter().for_each(|&block| reference.take(block));
    let new = (0..num_new).map(|_| reference.take_new());
    let blocks: Vec<u32> = shared.iter().copied().chain(new).collect();
    let num_exact = blocks.len() - num_approximate.min(num_new);
    Some(Walker { holder, blocks, num_exact })
}

fn walk_cache(pool: &mut BlockPool, reference: &mut Reference, walker: &mut Walker) {
    let Holder { salt, tokens, hashes, lease } = &mut walker.holder;
    let sequence = HashedTokens { salt: *salt, tokens, hashes };
    pool.cache_full_blocks(lease, sequence, tokens.len(), OnDuplicate::Exchange);
    let num_full = walker.num_exact.min(tokens.len() / 2);
    reference.cache(*salt, tokens, &mut walker.blocks[..num_full]);
}

fn walk_grow(pool: &mut BlockPool, reference: &mut Reference, walker: &mut Walker) {
    let grown = matches!(pool.grow(&mut walker.holder.lease, 1), Allocation::Ready(()));
    assert_eq!(grown, !reference.free.is_empty(), "the pool and the reference disagree about room");
    if grown {
        walker.num_exact += usize::from(walker.num_exact == walker.blocks.len());
        walker.blocks.push(reference.take_new());
    }
}

fn check_against(pool: &BlockPool, reference: &Reference, rng: &mut Rng) {
    pool.check_invariants();
    let order: Vec<_> = pool.free_queue.iter().map(|block| block.0).collect();
    assert_eq!(order, reference.free, "free queue");
    assert_eq!(pool.ref_counts, reference.holders, "holders");
    assert_eq!(pool.index.len(), reference.content.len(), "indexed blocks");
    let (salt, tokens) = (CacheSalt(rng.below(2) as u64), random_tokens(rng));
    let hashes = hash_full_blocks(salt, &tokens, SIZE);
    let found = pool.match_prefix(HashedTokens { salt, tokens: &tokens, hashes: &hashes }, tokens.len());
    assert_eq!(found.blocks.iter().map(|block| block.0).collect::<Vec<_>>(), reference.find(salt, &tokens));
    if let Some(partial) = found.partial {
        let chain = &tokens[..found.num_tokens + partial.num_tokens];
        let holds = |((other, content), &block): (&(CacheSalt, Vec<TokenId>), &u32)| {
            *other == salt && block == partial.block.0 && content.starts_with(chain)
        };
        assert!(reference.content.iter().any(holds), "the partly matched block holds something else");
    }
}

#[test]
fn a_long_random_walk_agrees_with_the_naive_reference() {
    let (mut pool, mut reference, mut rng) = (pool(NUM_BLOCKS as usize), Reference::new(NUM_BLOCKS), Rng(1));
    let mut walkers: Vec<Walker> = Vec::new();
    let mut num_refusals = 0;
    for _ in 0..100_000 {
        let pick = rng.below(walkers.len().max(1));
        match (rng.below(100), walkers.is_empty()) {
            (99, _) if rng.below(50) == 0 => {
                for Walker { holder, blocks, .. } in walkers.drain(..) {
                    pool.free(holder.lease);
                    reference.release(&blocks);
                }
                pool.reset_prefix_cache();
                reference.content.clear();
            }
            (0..40, _) | (_, true) => match walk_admit(&mut pool, &mut reference, &mut rng) {
                Some(walker) => walkers.push(walker),
                None => num_refusals += 1,
            },
            (40..60, _) => walk_cache(&mut pool, &mut reference, &mut walkers[pick]),
            (60..70, _) => walk_grow(&mut pool, &mut reference, &mut walkers[pick]),
            _ => {
                let Walker { holder, blocks, .. } = walkers.swap_remove(pick);
                pool.free(holder.lease);
                reference.release(&blocks);
            }
        }
        check_against(&pool, &reference, &mut rng);
    }
    assert!(num_refusals > 1_000, "the pool was full only {num_refusals} times");
    assert!(pool.stats().evictions > 10_000, "only {} evictions", pool.stats().evictions);
    walkers.into_iter().for_each(|walker| pool.free(walker.holder.lease));
}
