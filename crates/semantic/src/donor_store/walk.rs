//! Random walks over a store of three tenants, beside a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::testing::{Random, small_config};

const SCOPES: [Scope; 2] = [Scope(1), Scope(2)];
const TENANTS: [TenantId; 3] = [TenantId(1), TenantId(2), TenantId(3)];
const NUM_IDS: usize = 14;
const MAX_DONORS: usize = 9;
const MAX_TOKENS: usize = 400;
const MAX_VECTORS: usize = 4;
const TTL: Duration = Duration::from_secs(80);

/// A kept donor, as the model remembers it.
#[derive(Clone)]
struct ModelDonor {
    tenant: TenantId,
    scope: Scope,
    tokens: Arc<[TokenId]>,
    vector: Option<Vec<f32>>,
    /// Leading tokens that searches find.
    num_posted: u32,
    created: Timestamp,
    last_used: Timestamp,
    /// Number of uses of all donors before this one's last.
    last_use: u64,
}

/// A walk, and counts of the rare events of all walks.
struct Walk<'a> {
    store: DonorStore,
    kept: BTreeMap<DonorId, ModelDonor>,
    random: Random,
    now: Timestamp,
    num_uses: u64,
    /// Scopes whose donors changed in the current step.
    changed: BTreeSet<Scope>,
    tally: &'a mut BTreeMap<&'static str, usize>,
}

fn new_store() -> DonorStore {
    let config = SpanIndexConfig { max_donors: MAX_DONORS, max_tokens: MAX_TOKENS, ..small_config() };
    let embeddings = EmbeddingIndexConfig { max_vectors: MAX_VECTORS, min_cosine: -1.0, ..EmbeddingIndexConfig::new(3) };
    DonorStore::new(config).with_embeddings(Some(embeddings))
}

impl Walk<'_> {
    fn step(&mut self) {
        let before = SCOPES.map(|scope| self.store.version([scope].into_iter()));
        self.changed.clear();
        let id = DonorId(self.random.below(NUM_IDS) as u64);
        match self.random.below(20) {
            0..5 => self.insert(id),
            5..12 => self.attach(id),
            12 => self.remove(id),
            13 => self.expire(),
            14..16 => self.shorten(id),
            16..18 => self.restore(id),
            18 if self.random.below(20) == 0 => self.clear(),
            _ => self.touch(id),
        }
        self.now.0 += Duration::from_secs(self.random.below(4) as u64);
        self.store.advance(self.now);
        for (scope, before) in SCOPES.into_iter().zip(before) {
            let is_changed = self.store.version([scope].into_iter()) != before;
            assert_eq!(is_changed, self.changed.contains(&scope), "the version of a scope changes with its donors");
        }
        self.check_kept();
        self.check_order();
        self.check_found();
    }

    fn count(&mut self, event: &'static str, is_seen: bool) {
        *self.tally.entry(event).or_default() += usize::from(is_seen);
    }

    /// Removes a donor from the model.
    fn forget(&mut self, id: DonorId) -> bool {
        let gone = self.kept.remove(&id);
        self.changed.extend(gone.as_ref().map(|gone| gone.scope));
        gone.is_some()
    }

    fn insert(&mut self, id: DonorId) {
        // Tenant 3 comes as often as the others together.
        let (tenant, scope) = (TENANTS[self.random.below(4).min(2)], SCOPES[self.random.below(2)]);
        let len = self.random.below(90);
        let tokens: Arc<[_]> = self.random.tokens(len, 3).into();
        let evicted = self.store.insert(NewDonor { tenant, ..NewDonor::new(id, scope, Arc::clone(&tokens)) });
        self.forget(id);
        if len < 10 {
            assert_eq!(evicted, [id], "it is too short");
            return;
        }
        for victim in evicted {
            let of = self.kept[&victim].tenant;
            assert_eq!(
                Some(victim),
                self.least_recent(|kept| kept.tenant == of),
                "a tenant gives up what it has not used longest"
            );
            if of != tenant {
                let (num_donors, num_tokens) = (self.load(of, |_| 1), self.load(of, |kept| kept.tokens.len()));
                let num_sharing = self.num_sharing(tenant, |_| true);
                assert!(
                    num_donors * num_sharing > MAX_DONORS || num_tokens * num_sharing > MAX_TOKENS,
                    "it had more than its share"
                );
                self.count("donors given up to another tenant", true);
            }
            self.forget(victim);
        }
        self.num_uses += 1;
        let (created, last_used, last_use, num_posted) = (self.now, self.now, self.num_uses, len as u32);
        self.kept.insert(id, ModelDonor { tenant, scope, tokens, vector: None, num_posted, created, last_used, last_use });
        self.changed.insert(scope);
    }

    fn attach(&mut self, id: DonorId) {
        let vector: Vec<_> = (0..3).map(|_| self.random.below(5) as f32 - 2.0).collect();
        self.store.attach(id, &vector);
        let Some(tenant) = self.kept.get_mut(&id).map(|kept| {
            kept.vector = None;
            kept.tenant
        }) else {
            return;
        };
        let embeddings = self.store.embeddings.as_ref().unwrap();
        let lost: Vec<_> = self.with_vector().filter(|&id| !embeddings.contains(id)).collect();
        assert!(lost.len() <= 1, "one vector takes the place of one");
        for victim in lost {
            let of = self.kept[&victim].tenant;
            let is_candidate = |kept: &ModelDonor| kept.tenant == of && kept.vector.is_some();
            assert_eq!(Some(victim), self.least_recent(is_candidate), "a tenant gives up what it has not used longest");
            if of != tenant {
                let num_vectors = self.load(of, |kept| usize::from(kept.vector.is_some()));
                let num_sharing = self.num_sharing(tenant, |kept| kept.vector.is_some());
                assert!(num_vectors * num_sharing > MAX_VECTORS, "it had more than its share");
            }
            self.count("vectors given up", true);
            self.count("vectors given up to another tenant", of != tenant);
            self.kept.get_mut(&victim).unwrap().vector = None;
        }
        self.kept.get_mut(&id).unwrap().vector = vector.iter().any(|&x| x != 0.0).then_some(vector);
    }

    fn remove(&mut self, id: DonorId) {
        assert_eq!(self.store.remove(id), self.forget(id));
    }

    fn touch(&mut self, id: DonorId) {
        self.store.touch(id);
        self.num_uses += 1;
        if let Some(kept) = self.kept.get_mut(&id) {
            (kept.last_used, kept.last_use) = (self.now, self.num_uses);
        }
    }

    fn expire(&mut self) {
        let max = self.random.below(3);
        let expired = self.store.expire(max);
        for &id in &expired {
            assert_eq!(Some(id), self.least_recent(|_| true));
            assert!(self.is_expired(id));
            self.forget(id);
        }
        assert!(expired.len() == max || !self.kept.keys().any(|&id| self.is_expired(id)));
        self.count("expired donors", !expired.is_empty());
    }

    fn shorten(&mut self, id: DonorId) {
        let num_tokens = self.random.below(90) as u32;
        self.store.shorten(id, num_tokens);
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.num_posted = kept.num_posted.min(num_tokens);
        }
    }

    fn restore(&mut self, id: DonorId) {
        let mut was_short = false;
        if let Some(kept) = self.kept.get_mut(&id) {
            was_short = std::mem::replace(&mut kept.num_posted, kept.tokens.len() as u32) < kept.tokens.len() as u32;
            self.changed.extend(was_short.then_some(kept.scope));
        }
        assert_eq!(self.store.restore(id), was_short);
        self.count("restored donors", was_short);
    }

    fn clear(&mut self) {
        self.store.clear();
        let ids: Vec<_> = self.kept.keys().copied().collect();
        ids.into_iter().for_each(|id| assert!(self.forget(id)));
    }

    fn is_expired(&self, id: DonorId) -> bool {
        self.now.since(self.kept[&id].last_used) > TTL
    }

    fn with_vector(&self) -> impl Iterator<Item = DonorId> {
        self.kept.iter().filter(|(_, kept)| kept.vector.is_some()).map(|(&id, _)| id)
    }

    /// Returns the donors for which `is_one` is true, least recently used first.
    fn by_last_use(&self, is_one: impl Fn(&ModelDonor) -> bool) -> Vec<DonorId> {
        let mut found: Vec<_> =
            self.kept.iter().filter(|(_, kept)| is_one(kept)).map(|(&id, kept)| (kept.last_use, id)).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }

    fn least_recent(&self, is_one: impl Fn(&ModelDonor) -> bool) -> Option<DonorId> {
        self.by_last_use(is_one).first().copied()
    }

    fn load(&self, tenant: TenantId, of: impl Fn(&ModelDonor) -> usize) -> usize {
        self.kept.values().filter(|kept| kept.tenant == tenant).map(of).sum()
    }

    /// Returns the number of tenants with a donor for which `is_one` is true; `newcomer` counts in any case.
    fn num_sharing(&self, newcomer: TenantId, is_one: impl Fn(&ModelDonor) -> bool) -> usize {
        let tenants = self.kept.values().filter(|kept| is_one(kept)).map(|kept| kept.tenant);
        tenants.chain([newcomer]).collect::<BTreeSet<_>>().len()
    }

    fn check_kept(&self) {
        let store = &self.store;
        let mut ids: Vec<_> = store.donors.iter().map(|donor| donor.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, self.kept.keys().copied().collect::<Vec<_>>());
        for (&id, kept) in &self.kept {
            let donor = store.get(id).unwrap();
            assert_eq!((donor.scope, &donor.tokens, donor.num_posted), (kept.scope, &kept.tokens, kept.num_posted));
            assert_eq!((donor.created, donor.last_used, donor.lru_entry.tenant()), (kept.created, kept.last_used, kept.tenant));
            assert_eq!(store.is_expired(id), self.is_expired(id));
        }
        let num_tokens = self.kept.values().map(|kept| kept.tokens.len()).sum::<usize>();
        assert_eq!((store.len(), store.donors.num_tokens()), (self.kept.len(), num_tokens));
        assert!(store.len() <= MAX_DONORS && num_tokens <= MAX_TOKENS && self.with_vector().count() <= MAX_VECTORS);
    }

    /// Checks that the order of use has exactly the kept donors and vectors.
    fn check_order(&self) {
        let order = &self.store.order;
        for tenant in TENANTS {
            assert_eq!(order.donors_of(Load::Donors, tenant), self.by_last_use(|kept| kept.tenant == tenant));
            let has_vector = |kept: &ModelDonor| kept.tenant == tenant && kept.vector.is_some();
            assert_eq!(order.donors_of(Load::Vectors, tenant), self.by_last_use(has_vector));
        }
        assert_eq!(order.oldest(), self.least_recent(|_| true));
        let embeddings = self.store.embeddings.as_ref().unwrap();
        assert!(self.with_vector().all(|id| embeddings.contains(id)));
        assert_eq!(embeddings.len(), self.with_vector().count());
    }

    /// Checks that searches find the same as in a store that never had any other donors.
    fn check_found(&mut self) {
        let mut fresh = new_store();
        for (&id, kept) in &self.kept {
            fresh.insert(NewDonor::new(id, kept.scope, Arc::clone(&kept.tokens)));
            fresh.shorten(id, kept.num_posted);
            kept.vector.iter().for_each(|vector| fresh.attach(id, vector));
        }
        let target = self.random.tokens(60, 3);
        for scope in SCOPES {
            let found = self.store.find(scope, &target, 5);
            assert_eq!(found, fresh.find(scope, &target, 5));
            self.count("spans", !found.is_empty());
            let mut similar = fresh.similar([scope].into_iter(), &[1.0, 0.5, 0.0], 99);
            similar.retain(|&id| !self.is_expired(id));
            assert_eq!(self.store.similar([scope].into_iter(), &[1.0, 0.5, 0.0], 99), similar);
        }
    }
}

#[test]
fn all_parts_agree_and_no_tenant_loses_its_share() {
    let mut tally = BTreeMap::new();
    for seed in 0..6 {
        let store = new_store().with_ttl(Some(TTL));
        let (kept, changed) = Default::default();
        let mut walk =
            Walk { store, kept, random: Random(seed), now: Timestamp::default(), num_uses: 0, changed, tally: &mut tally };
        for _ in 0..1500 {
            walk.step();
        }
        (0..NUM_IDS as u64).for_each(|id| walk.remove(DonorId(id)));
        assert!(walk.store.is_empty() && walk.store.spans.is_empty(), "what left leaves no trace");
        assert_eq!(walk.store.order.oldest(), None);
    }
    println!("{tally:?}");
    assert!(tally.len() == 6 && tally.values().all(|&n| n >= 20), "hardly tested: {tally:?}");
}
