//! KV of answered conversations, each kept for its own next turn.
//!
//! KV over moved spans is approximate: it enters no prefix index and serves no other request. The next turn of the same
//! conversation repeats the prompt and the answer, though, and recomputing these would cost what the first turn saved. So the
//! approximate blocks of an answered request stay for the next request of the same scope that repeats the whole prompt and
//! continues it, with the answer or with the client's version of it. That request takes over the blocks: a second one like it
//! finds none, and they never become a donor.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use semantic::{MatchClass, TrafficClass};
use tokens::{BlockHash, BlockSize, Scope, TenantId, Timestamp, TokenId};

/// Maximum answered requests kept. Chosen: more than a pool has room for.
const MAX_KEPT: usize = 1024;

/// Maximum answers kept for one prompt: each is compared with a prompt that begins like it. Chosen: more than a client asks for.
const MAX_PER_PROMPT: usize = 8;

/// Divisor of the pool for all tenants together, and of the quota for one tenant. Chosen: the rest serves others.
const POOL_PARTS: usize = 4;

/// ID of an answered request.
pub(crate) type KeptId = u64;

/// The conversation that approximate KV belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Continued {
    /// Length of its first prompt, all of which the next turn has to repeat.
    pub(crate) answer_start: u32,
    /// Lowest match class among its spans.
    pub(crate) class: MatchClass,
}

/// KV of an answered request.
#[derive(Debug)]
pub(crate) struct RetainedKv {
    pub(crate) scope: Scope,
    /// Further scopes that its request could read, and that some of it may come from.
    pub(crate) readable: Vec<Scope>,
    pub(crate) owner: kv::BlockOwner,
    /// Owners of the KV that was copied into it, including earlier turns: it is erased with any of them.
    pub(crate) sources: Vec<kv::BlockOwner>,
    /// All tokens with KV.
    pub(crate) tokens: Vec<TokenId>,
    /// Number of exact blocks before those of `lease`: found as a prefix, or lost.
    pub(crate) num_exact: usize,
    /// Approximate blocks.
    pub(crate) lease: kv::BlockLease,
    pub(crate) continued: Continued,
    /// Traffic class whose proof the request relied on, in mode `auto`.
    pub(crate) traffic: Option<TrafficClass>,
    pub(crate) since: Timestamp,
}

/// Limits on the blocks that may be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Blocks that the tenant may hold.
    pub(crate) of_tenant: usize,
    /// Blocks of the pool.
    pub(crate) of_all: usize,
}

/// The last full block of a first prompt: its index and its hash, which covers the scope and all tokens up to its end.
type Name = (usize, BlockHash);

/// Answered requests whose conversation may continue.
#[derive(Debug, Default)]
pub(crate) struct Continuations {
    /// Oldest first.
    kept: BTreeMap<KeptId, (Name, RetainedKv)>,
    /// Oldest first, by the index of the block in their name: a lookup per existing prompt length.
    by_name: BTreeMap<usize, HashMap<BlockHash, VecDeque<KeptId>>>,
    blocks: BTreeMap<TenantId, usize>,
    next: KeptId,
}

impl RetainedKv {
    /// True if an owner of some of it is erased.
    pub(crate) fn is_of(&self, is_erased: impl Fn(&kv::BlockOwner) -> bool) -> bool {
        self.sources.iter().chain([&self.owner]).any(is_erased)
    }
}

impl Continuations {
    /// Keeps `kept`, whose full blocks have the hashes `hashes`, if its first prompt fills a block and there is room. Returns the
    /// leases that are evicted.
    pub(crate) fn keep(
        &mut self,
        kept: RetainedKv,
        hashes: &[BlockHash],
        block_size: BlockSize,
        room: Room,
    ) -> Vec<kv::BlockLease> {
        let tenant = kept.owner.tenant;
        let idx = block_size.full_blocks(kept.continued.answer_start as usize).checked_sub(1);
        let name = idx.and_then(|idx| Some((idx, *hashes.get(idx)?)));
        let num_blocks = kept.lease.len();
        let (most_of_tenant, most) = (room.of_tenant / POOL_PARTS, room.of_all / POOL_PARTS);
        let Some(name) = name.filter(|_| num_blocks <= most_of_tenant.min(most)) else { return vec![kept.lease] };
        let mut given_up = Vec::new();
        while self.num_blocks(Some(tenant)) + num_blocks > most_of_tenant {
            given_up.extend(self.pop(Some(tenant), None));
        }
        while self.kept.len() >= MAX_KEPT || self.num_blocks(None) + num_blocks > most {
            given_up.extend(self.pop(None, None));
        }
        let same = self.by_name.get(&name.0).and_then(|names| names.get(&name.1));
        let oldest = same.filter(|same| same.len() >= MAX_PER_PROMPT).and_then(|same| same.front().copied());
        given_up.extend(oldest.map(|id| self.take(id).lease));
        let id = self.next;
        self.next += 1;
        self.by_name.entry(name.0).or_default().entry(name.1).or_default().push_back(id);
        *self.blocks.entry(tenant).or_default() += num_blocks;
        self.kept.insert(id, (name, kept));
        given_up
    }

    /// Finds the answered request that a prompt in `scope` that may read `readable`, and whose full blocks have the hashes `hashes`,
    /// continues, and the number of common tokens, at most `max_tokens`. Takes a lookup for each length of a first prompt, and compares at most
    /// [`MAX_PER_PROMPT`] answers for each prompt that is repeated.
    pub(crate) fn find(
        &self,
        scope: Scope,
        readable: &[Scope],
        hashes: &[BlockHash],
        tokens: &[TokenId],
        max_tokens: u32,
    ) -> Option<(KeptId, u32)> {
        let ids = self.by_name.iter().filter_map(|(&idx, names)| names.get(hashes.get(idx)?)).flatten();
        let agreeing = ids.filter_map(|&id| {
            // Hashes of different scopes and texts may be equal.
            let may_read = |kept: &&RetainedKv| kept.scope == scope && kept.readable.iter().all(|scope| readable.contains(scope));
            let kept = Some(self.get(id)).filter(may_read)?;
            let num_equal = kept.tokens.iter().zip(tokens).take(max_tokens as usize).take_while(|(a, b)| a == b).count() as u32;
            (num_equal >= kept.continued.answer_start).then_some((id, num_equal))
        });
        agreeing.max_by_key(|&(id, num_equal)| (num_equal, id))
    }

    /// Returns the answered request `id`.
    ///
    /// # Panics
    /// If it is not kept.
    pub(crate) fn get(&self, id: KeptId) -> &RetainedKv {
        &self.kept[&id].1
    }

    /// Removes and returns the answered request `id`.
    ///
    /// # Panics
    /// If it is not kept.
    pub(crate) fn take(&mut self, id: KeptId) -> RetainedKv {
        let ((idx, hash), kept) = self.kept.remove(&id).expect("only a kept request is taken");
        let names = self.by_name.get_mut(&idx).expect("every kept request has a name");
        let same = names.get_mut(&hash).expect("every kept request has a name");
        same.retain(|&other| other != id);
        if same.is_empty() {
            names.remove(&hash);
        }
        if names.is_empty() {
            self.by_name.remove(&idx);
        }
        let tenant = kept.owner.tenant;
        let blocks = self.blocks.get_mut(&tenant).expect("its tenant keeps blocks");
        *blocks -= kept.lease.len();
        if *blocks == 0 {
            self.blocks.remove(&tenant);
        }
        kept
    }

    /// Evicts the oldest request of `tenant`, or of the tenant that keeps most, but not `spared`.
    pub(crate) fn pop(&mut self, tenant: Option<TenantId>, spared: Option<KeptId>) -> Option<kv::BlockLease> {
        let oldest_of = |tenant: Option<TenantId>| {
            let mut oldest_first = self.kept.iter().filter(|&(&id, _)| Some(id) != spared);
            oldest_first.find(|(_, (_, kept))| tenant.is_none_or(|tenant| kept.owner.tenant == tenant)).map(|(&id, _)| id)
        };
        let largest = self.blocks.iter().max_by_key(|&(_, blocks)| blocks).map(|(&tenant, _)| tenant);
        let id = match tenant {
            Some(_) => oldest_of(tenant),
            None => oldest_of(largest).or_else(|| oldest_of(None)),
        };
        id.map(|id| self.take(id).lease)
    }

    /// Evicts the oldest request if it was kept for longer than `ttl` at `now`.
    pub(crate) fn pop_expired(&mut self, now: Timestamp, ttl: Duration) -> Option<kv::BlockLease> {
        let (&id, (_, kept)) = self.kept.first_key_value()?;
        (now.since(kept.since) > ttl).then(|| self.take(id).lease)
    }

    /// Removes all requests for which `is_gone` is true.
    pub(crate) fn extract(&mut self, is_gone: impl Fn(&RetainedKv) -> bool) -> Vec<kv::BlockLease> {
        let gone: Vec<_> = self.kept.iter().filter(|(_, (_, kept))| is_gone(kept)).map(|(&id, _)| id).collect();
        gone.into_iter().map(|id| self.take(id).lease).collect()
    }

    /// Returns the number of blocks kept for one tenant or for all.
    pub(crate) fn num_blocks(&self, tenant: Option<TenantId>) -> usize {
        match tenant {
            Some(tenant) => self.blocks.get(&tenant).copied().unwrap_or(0),
            None => self.blocks.values().sum(),
        }
    }

    /// Panics with a message if the bookkeeping is inconsistent.
    pub(crate) fn check_invariants(&self) {
        let mut blocks: BTreeMap<TenantId, usize> = BTreeMap::new();
        for (_, kept) in self.kept.values() {
            *blocks.entry(kept.owner.tenant).or_default() += kept.lease.len();
            assert_eq!(kept.lease.num_exact(), 0, "exact blocks are found, not kept");
        }
        assert_eq!(blocks, self.blocks, "blocks kept for conversations");
        let num_named: usize = self.by_name.values().flat_map(HashMap::values).map(VecDeque::len).sum();
        assert_eq!(num_named, self.kept.len(), "every kept request has one name");
    }
}

#[cfg(test)]
mod tests {
    use tokens::{ContentHashes, RequestId};

    use super::*;

    const BLOCK: u32 = 4;

    /// A pool, and the requests of which something is kept in it.
    struct World {
        pool: kv::BlockPool,
        kept: Continuations,
        room: Room,
    }

    impl World {
        fn new(of_tenant: usize, of_all: usize) -> Self {
            let pool = kv::BlockPool::try_new(kv::CacheGroups::default(), 1_000, BlockSize::new(BLOCK).unwrap()).unwrap();
            Self { pool, kept: Continuations::default(), room: Room { of_tenant, of_all } }
        }

        /// Keeps an answer of `tenant` to a prompt of two blocks that begins with `first`, in `num_blocks` approximate blocks.
        fn keep(&mut self, tenant: u32, first: u32, answer: u32, num_blocks: usize) {
            let owner = kv::BlockOwner { tenant: TenantId(tenant), session: None, request: RequestId(0) };
            let slot_request = kv::SlotRequest {
                owner,
                shared: &[],
                pinned: &[],
                num_exact: 0,
                num_kept: 0,
                num_approximate: num_blocks,
                headroom: 0,
                quota_headroom: 0,
            };
            let kv::Allocation::Ready(kv::Slots { lease, pins }) = self.pool.allocate_slots(&slot_request) else {
                panic!("no room")
            };
            self.pool.free(pins);
            let tokens: Vec<_> = (0..8).map(|i| TokenId(first + i)).chain([TokenId(answer)]).collect();
            let hashes = self.hashes(tenant, &tokens);
            let continued = Continued { answer_start: 8, class: MatchClass::Composition };
            let scope = Scope(tenant.into());
            let (sources, since) = (Vec::new(), Timestamp::default());
            let readable = Vec::new();
            let kept =
                RetainedKv { scope, readable, owner, sources, tokens, num_exact: 0, lease, continued, traffic: None, since };
            let given_up = self.kept.keep(kept, &hashes, BlockSize::new(BLOCK).unwrap(), self.room);
            given_up.into_iter().for_each(|lease| self.pool.free(lease));
            self.kept.check_invariants();
        }

        fn hashes(&self, tenant: u32, tokens: &[TokenId]) -> Vec<BlockHash> {
            ContentHashes::of(tokens, BlockSize::new(BLOCK).unwrap()).in_scope(Scope(tenant.into()))
        }

        /// True if a prompt of `tenant` with this beginning and answer continues a kept one up to its answer.
        fn finds(&self, tenant: u32, first: u32, answer: u32) -> bool {
            let tokens: Vec<_> = (0..8).map(|i| TokenId(first + i)).chain([TokenId(answer), TokenId(7)]).collect();
            let scope = Scope(tenant.into());
            self.kept.find(scope, &[], &self.hashes(tenant, &tokens), &tokens, 9).is_some_and(|(_, num_equal)| num_equal == 9)
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.kept.extract(|_| true).into_iter().for_each(|lease| self.pool.free(lease));
        }
    }

    #[test]
    fn of_the_answers_to_one_prompt_the_newest_are_kept() {
        let mut world = World::new(400, 400);
        (0..20).for_each(|answer| world.keep(1, 100, 1_000 + answer, 2));
        let found: Vec<_> = (0..20).filter(|answer| world.finds(1, 100, 1_000 + answer)).collect();
        assert_eq!(found, (12..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_tenant_keeps_its_part_and_displaces_only_itself() {
        let mut world = World::new(40, 400);
        world.keep(1, 100, 1, 2);
        (0..10).for_each(|i| world.keep(2, 200 + 10 * i, 1, 2));
        assert_eq!((world.kept.num_blocks(Some(TenantId(1))), world.kept.num_blocks(Some(TenantId(2)))), (2, 10));
        assert!(world.finds(1, 100, 1) && !world.finds(2, 200, 1) && world.finds(2, 290, 1));
        assert!(!world.finds(2, 100, 1), "another scope has another hash");
        world.keep(3, 300, 1, 11);
        assert_eq!(world.kept.num_blocks(Some(TenantId(3))), 0, "more than its part");
    }

    #[test]
    fn all_tenants_together_keep_a_part_of_the_pool_and_the_largest_gives_way() {
        let mut world = World::new(400, 80);
        world.keep(1, 100, 1, 4);
        (0..4).for_each(|i| world.keep(2, 200 + 10 * i, 1, 4));
        world.keep(3, 300, 1, 4);
        assert_eq!(world.kept.num_blocks(None), 20);
        assert!(world.finds(1, 100, 1) && world.finds(3, 300, 1) && !world.finds(2, 200, 1));
    }

    #[test]
    fn a_spared_request_stays_and_others_give_way() {
        let mut world = World::new(400, 400);
        world.keep(1, 100, 1, 8);
        world.keep(2, 200, 1, 2);
        let lease = world.kept.pop(None, Some(0)).unwrap();
        world.pool.free(lease);
        assert!(world.finds(1, 100, 1) && !world.finds(2, 200, 1));
        assert!(world.kept.pop(None, Some(0)).is_none());
    }

    #[test]
    fn what_is_kept_too_long_expires() {
        let mut world = World::new(400, 400);
        world.keep(1, 100, 1, 2);
        let second = Duration::from_secs(1);
        assert!(world.kept.pop_expired(Timestamp(second), second).is_none());
        let lease = world.kept.pop_expired(Timestamp(2 * second), second).unwrap();
        world.pool.free(lease);
        assert_eq!(world.kept.num_blocks(None), 0);
    }
}
