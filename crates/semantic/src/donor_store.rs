//! Store of earlier prompts: their tokens, the places where they are found, and their order of use.
//!
//! A donor is found by equal spans in its scope, by an embedding if it has one, and by its ID. Every change is one call here, so that all
//! of these agree. One order of use ([`FairLru`]) decides which donor is evicted, which one expires and which one loses its vector.

use std::time::Duration;

use tokens::{DonorId, Scope, TenantId, Timestamp, TokenId};

use crate::donor::{Donor, NewDonor};
use crate::donors::Donors;
use crate::embedding::{EmbeddingIndex, EmbeddingIndexConfig};
use crate::fair_lru::{FairLru, Load};
use crate::minimizer::Sketch;
use crate::scope_versions::ScopeVersions;
use crate::search::{Search, SpanQuery};
use crate::span_index::SpanIndex;
use crate::vector_rows::Similar;
use crate::{DonorPrompts, PromptView, Segments, SpanIndexConfig, SpanMatch};

/// Earlier prompts of all tenants and scopes.
pub struct DonorStore {
    donors: Donors,
    spans: SpanIndex,
    /// Vectors of donors, if configured.
    embeddings: Option<EmbeddingIndex>,
    order: FairLru,
    versions: ScopeVersions,
    ttl: Option<Duration>,
    now: Timestamp,
}

impl DonorStore {
    /// Creates an empty store without embeddings, whose donors do not expire.
    ///
    /// # Panics
    /// If [`SpanIndexConfig::validated`] rejects `config`.
    #[must_use]
    pub fn new(config: SpanIndexConfig) -> Self {
        let (donors, order, versions, now) = Default::default();
        Self { donors, spans: SpanIndex::new(config), embeddings: None, order, versions, ttl: None, now }
    }

    /// Sets the settings of embeddings; `None` keeps none.
    ///
    /// # Panics
    /// If `config` has no dimensions.
    #[must_use]
    pub fn with_embeddings(self, config: Option<EmbeddingIndexConfig>) -> Self {
        Self { embeddings: config.map(EmbeddingIndex::new), ..self }
    }

    /// Sets the time without use after which a donor expires; `None` lets none expire.
    #[must_use]
    pub fn with_ttl(self, ttl: Option<Duration>) -> Self {
        Self { ttl, ..self }
    }

    /// Number of donors kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.donors.len()
    }

    /// True if no donor is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns `donor`, if it is kept.
    #[must_use]
    pub fn get(&self, donor: DonorId) -> Option<&Donor> {
        self.donors.get(donor)
    }

    /// Advances the clock; it never goes back.
    pub fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
    }

    /// Keeps a prompt, replacing an earlier one of the same ID, and returns the evicted donors.
    ///
    /// If there is no room, the tenant with most donors, or most tokens, evicts its least recently used one, so no tenant can displace
    /// donors that others keep within an equal share. Returns the new donor itself if it cannot be kept: too short to hold a span, or too
    /// long for the whole store.
    pub fn insert(&mut self, new: NewDonor) -> Vec<DonorId> {
        let NewDonor { tenant, id, scope, tokens, segments } = new;
        self.remove(id);
        let config = self.spans.config();
        let fits = tokens.len() <= config.max_tokens && config.max_donors > 0;
        if tokens.len() < config.min_span_tokens as usize || !fits {
            return vec![id];
        }
        let evicted = self.make_room(tenant, tokens.len());
        let slot = self.donors.insert(Donor {
            id,
            scope,
            created: self.now,
            last_used: self.now,
            sketch: self.spans.sketch(&tokens, &segments),
            num_posted: tokens.len() as u32,
            lru_entry: self.order.insert(tenant, id, tokens.len()),
            tokens,
        });
        self.spans.post(slot, self.donors.at(slot));
        self.versions.note_change(scope, 1);
        evicted
    }

    /// Gives `donor` a vector, of any length greater than 0, in place of an earlier one. This is no use. Does nothing if the donor is not
    /// kept or the store keeps no embeddings.
    ///
    /// If there is no room, the tenant with most vectors loses that of its least recently used donor, which stays; so no tenant loses
    /// vectors to another one within an equal share. The donor has no vector afterwards if this one has no direction (zero, not finite).
    ///
    /// # Panics
    /// If the vector has another number of dimensions than the configuration.
    pub fn attach(&mut self, donor: DonorId, vector: &[f32]) {
        self.detach(donor);
        let (Some(kept), Some(embeddings)) = (self.donors.get(donor), &self.embeddings) else { return };
        let Some(vector) = embeddings.quantised(vector) else { return };
        let (scope, tenant) = (kept.scope, kept.lru_entry.tenant());
        if self.embeddings.as_ref().is_some_and(EmbeddingIndex::is_full) {
            let Some(victim) = self.order.victim(Load::Vectors, tenant, 1) else { return };
            self.detach(victim);
        }
        if let (Some(kept), Some(embeddings)) = (self.donors.get_mut(donor), &mut self.embeddings) {
            embeddings.insert(scope, donor, &vector);
            self.order.set_vector(&mut kept.lru_entry, true);
        }
    }

    /// Takes the vector from `donor`, if it has one.
    fn detach(&mut self, donor: DonorId) {
        let (Some(kept), Some(embeddings)) = (self.donors.get_mut(donor), &mut self.embeddings) else { return };
        if embeddings.remove(donor) {
            self.order.set_vector(&mut kept.lru_entry, false);
        }
    }

    /// Removes `donor`. Returns true if it was kept.
    pub fn remove(&mut self, donor: DonorId) -> bool {
        let Some((slot, gone)) = self.donors.remove(donor) else { return false };
        self.order.remove(&gone.lru_entry);
        self.spans.unpost(slot, &gone, 0);
        if let Some(embeddings) = &mut self.embeddings {
            embeddings.remove(donor);
        }
        self.versions.note_change(gone.scope, -1);
        true
    }

    /// Removes all donors.
    pub fn clear(&mut self) {
        self.donors = Donors::default();
        self.order = FairLru::default();
        self.spans.clear();
        self.embeddings.iter_mut().for_each(EmbeddingIndex::clear);
        self.versions.clear();
    }

    /// Removes at most `max` expired donors, the least recently used first, and returns them.
    pub fn expire(&mut self, max: usize) -> Vec<DonorId> {
        let mut expired = Vec::new();
        while expired.len() < max
            && let Some(oldest) = self.order.oldest().filter(|&oldest| self.is_expired(oldest))
        {
            self.remove(oldest);
            expired.push(oldest);
        }
        expired
    }

    /// True if the time since the last use of `donor` exceeds the time to live. False if the store does not hold it.
    #[must_use]
    pub fn is_expired(&self, donor: DonorId) -> bool {
        let unused_for = self.get(donor).map(|donor| self.now.since(donor.last_used));
        self.ttl.zip(unused_for).is_some_and(|(ttl, unused_for)| unused_for > ttl)
    }

    /// Records a use of `donor`, so that others are evicted before it. Does nothing if it is not kept.
    pub fn touch(&mut self, donor: DonorId) {
        if let Some(donor) = self.donors.get_mut(donor) {
            donor.last_used = self.now;
            self.order.touch(&mut donor.lru_entry);
        }
    }

    /// Limits searches to the leading `num_tokens` tokens of `donor`, for example because the KV of the others is lost. Removing the
    /// further postings makes room for those of other holders of the same text. Does nothing if the donor is not kept or is already limited
    /// to fewer.
    pub fn shorten(&mut self, donor: DonorId, num_tokens: u32) {
        let Some(slot) = self.donors.slot(donor) else { return };
        let donor = self.donors.at_mut(slot);
        if num_tokens < donor.num_posted {
            donor.num_posted = num_tokens;
            self.spans.unpost(slot, donor, num_tokens);
        }
    }

    /// Lets searches find all of `donor` again. Returns true if it was limited.
    pub fn restore(&mut self, donor: DonorId) -> bool {
        let Some(slot) = self.donors.slot(donor) else { return false };
        let donor = self.donors.at_mut(slot);
        let num_tokens = donor.tokens.len() as u32;
        if donor.num_posted == num_tokens {
            return false;
        }
        donor.num_posted = num_tokens;
        self.spans.unpost(slot, donor, 0);
        self.spans.post(slot, donor);
        self.versions.note_change(donor.scope, 0);
        true
    }

    /// Evicts donors until `tenant` can add one of `num_tokens`.
    fn make_room(&mut self, tenant: TenantId, num_tokens: usize) -> Vec<DonorId> {
        let mut evicted = Vec::new();
        loop {
            let (load, num_added) = match self.spans.config() {
                config if self.len() >= config.max_donors => (Load::Donors, 1),
                config if self.donors.num_tokens() + num_tokens > config.max_tokens => (Load::Tokens, num_tokens),
                _ => return evicted,
            };
            let victim = self.order.victim(load, tenant, num_added).expect("an empty store has room");
            self.remove(victim);
            evicted.push(victim);
        }
    }

    /// Returns a number that changes with every donor of `scopes` that is added, removed or restored, so that a caller can detect a stale
    /// plan.
    pub fn version(&self, scopes: impl Iterator<Item = Scope>) -> u64 {
        self.versions.version(scopes)
    }

    /// Returns the shingles of `tokens` that are looked up. Valid for every store of this configuration.
    #[must_use]
    pub fn sketch(&self, tokens: &[TokenId], segments: &Segments) -> Sketch {
        self.spans.sketch(tokens, segments)
    }

    /// Returns the equal runs of `target` and the donors of `scope`, cut at `from`: [`search`](Self::search) for one scope whose donors may
    /// all be copied from.
    #[must_use]
    pub fn find(&self, scope: Scope, target: &[TokenId], from: u32) -> Vec<SpanMatch> {
        let sketch = self.sketch(target, &Segments::default());
        self.search(&SpanQuery { scopes: &[scope], tokens: target, sketch: &sketch, from }, |_| u32::MAX).matches
    }

    /// Returns the maximal equal runs of a target and the donors of its scopes, cut at `from` and at the end of the donor's `usable`
    /// leading tokens, by ascending target position. Runs at equal positions come longest first, then youngest donor first.
    ///
    /// Finds each run right of `from` that has `min_span_tokens` or holds a whole segment of both, unless several others, at most
    /// `max_postings`, cover its positions. Matches may overlap each other in the target. The work is linear in the tokens of the target,
    /// independent of the number of donors.
    #[must_use]
    pub fn search(&self, query: &SpanQuery<'_>, usable: impl FnMut(DonorId) -> u32) -> Search {
        self.spans.search(&self.donors, query, usable)
    }

    /// Searches a target against one donor of any scope; returns nothing if it is not kept.
    ///
    /// For donors that were proposed for another reason than their spans.
    #[must_use]
    pub fn search_in(&self, donor: DonorId, query: &SpanQuery<'_>, usable: impl FnMut(DonorId) -> u32) -> Search {
        let slot = self.donors.slot(donor);
        slot.map(|slot| self.spans.search_in(&self.donors, slot, query, usable)).unwrap_or_default()
    }

    /// Calls [`search_in`](Self::search_in) for a donor that may be copied in full.
    #[must_use]
    pub fn find_in(&self, donor: DonorId, target: &[TokenId], from: u32) -> Vec<SpanMatch> {
        let sketch = self.sketch(target, &Segments::default());
        self.search_in(donor, &SpanQuery { scopes: &[], tokens: target, sketch: &sketch, from }, |_| u32::MAX).matches
    }

    /// Returns at most `max` donors of `scopes` whose vectors are most similar to `vector`, without expired ones: the nearest first, among
    /// equals the youngest. They may share no text: [`search_in`](Self::search_in) compares it.
    ///
    /// # Panics
    /// If the vector has another number of dimensions than the configuration.
    pub fn similar(&self, scopes: impl Iterator<Item = Scope>, vector: &[f32], max: usize) -> Vec<DonorId> {
        let Some(embeddings) = &self.embeddings else { return Vec::new() };
        let mut similar: Vec<_> = scopes.flat_map(|scope| embeddings.nearest(scope, vector, max)).collect();
        similar.retain(|similar| !self.is_expired(similar.donor));
        similar.sort_by(Similar::compare);
        similar.into_iter().take(max).map(|similar| similar.donor).collect()
    }
}

impl DonorPrompts for DonorStore {
    fn prompt_of(&self, donor: DonorId) -> Option<PromptView<'_>> {
        self.donors.get(donor).map(|donor| PromptView { tokens: &donor.tokens, segments: donor.sketch.segments() })
    }
}

#[cfg(test)]
mod walk;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, small_config};

    const A: Scope = Scope(1);
    const B: Scope = Scope(2);

    /// Inserts donors of 10 tokens into a store for 60 donors and 590 tokens, and returns the numbers that tenants 1, 2 and 3 have left;
    /// tenant `i` has a scope of its own and the IDs `1000 i ..`.
    fn flooded(floods: &[(u32, u64)]) -> [usize; 3] {
        let mut store = DonorStore::new(SpanIndexConfig { max_donors: 60, max_tokens: 590, ..small_config() });
        let mut random = Random(8);
        for &(tenant, num_donors) in floods {
            for i in 0..num_donors {
                let new = NewDonor::new(DonorId(u64::from(tenant) * 1000 + i), Scope(tenant.into()), random.tokens(10, 100));
                store.insert(NewDonor { tenant: TenantId(tenant), ..new });
            }
        }
        [1, 2, 3].map(|tenant| store.order.donors_of(Load::Donors, TenantId(tenant)).len())
    }

    #[test]
    fn a_flood_of_one_tenant_forgets_its_own_donors_first() {
        assert_eq!(flooded(&[(1, 10), (2, 100), (3, 10)]), [10, 39, 10], "what others leave is lent");
    }

    #[test]
    fn what_was_lent_is_given_back_down_to_an_equal_share() {
        let shares = flooded(&[(1, 100), (2, 100), (3, 100)]);
        assert!(shares.iter().all(|&share| (19..=20).contains(&share)), "{shares:?}");
    }

    /// `ops`, left to right: `+3` inserts donor 3 of 10 tokens into scope `A`, `!3` the same into `B`, `^3` touches it, `-3` removes it.
    /// The store keeps three donors and 40 tokens.
    #[track_caller]
    fn check_walk(ops: &str, expected_evicted: &[u64], expected_kept: &[u64]) {
        let mut store = DonorStore::new(SpanIndexConfig { max_donors: 3, max_tokens: 40, ..small_config() });
        let num_tokens = |id| if id == 20 { 20 } else { 10 };
        let mut evicted = Vec::new();
        for op in ops.split_whitespace() {
            let id: u64 = op[1..].parse().unwrap();
            let new = |scope| NewDonor::new(DonorId(id), scope, vec![TokenId(id as u32); num_tokens(id)]);
            match &op[..1] {
                "+" => evicted.extend(store.insert(new(A))),
                "!" => evicted.extend(store.insert(new(B))),
                "^" => store.touch(DonorId(id)),
                _ => assert!(store.remove(DonorId(id))),
            }
        }
        assert_eq!(evicted, expected_evicted.iter().copied().map(DonorId).collect::<Vec<_>>());
        let kept: Vec<_> = (0..30).filter(|&id| store.get(DonorId(id)).is_some()).collect();
        assert_eq!(kept, expected_kept);
        assert_eq!(store.len(), kept.len());
        assert_eq!(store.donors.num_tokens(), kept.iter().map(|&id| num_tokens(id)).sum::<usize>());
    }

    #[test]
    fn the_least_recently_used_donor_goes_first() {
        check_walk("+1 +2 +3 ^1 +4 +5", &[2, 3], &[1, 4, 5]);
    }

    #[test]
    fn a_long_donor_may_displace_several() {
        check_walk("+1 +2 +3 +20", &[1], &[2, 3, 20]);
        check_walk("+20 +1 +2 ^20 +3", &[1], &[2, 3, 20]);
        check_walk("+1 +2 +3 -2 +20", &[], &[1, 3, 20]);
    }

    #[test]
    fn an_id_inserted_again_replaces_itself() {
        check_walk("+1 +2 +3 !1", &[], &[1, 2, 3]);
    }

    #[test]
    fn what_cannot_be_kept_comes_back_at_once() {
        let mut store = DonorStore::new(SpanIndexConfig { max_tokens: 40, ..small_config() });
        for len in [9, 41] {
            assert_eq!(store.insert(NewDonor::new(DonorId(1), A, vec![TokenId(0); len])), [DonorId(1)]);
        }
        assert!(store.is_empty());
    }

    #[test]
    fn what_is_not_used_expires_with_all_by_which_it_is_found() {
        let mut store = with_vectors(9).with_ttl(Some(Duration::from_secs(10)));
        let at = |seconds| Timestamp(Duration::from_secs(seconds));
        for id in 1..=4 {
            store.advance(at(id));
            insert(&mut store, 1, id);
            store.attach(DonorId(id), &[1.0]);
        }
        store.touch(DonorId(1));
        store.advance(at(13));
        store.advance(at(5));
        assert_eq!((1..=4).map(|id| store.is_expired(DonorId(id))).collect::<Vec<_>>(), [false, true, false, false]);
        assert_eq!(similar(&store), [4, 3, 1], "an expired donor is not proposed");
        store.advance(at(15));
        assert_eq!(store.expire(2), [DonorId(2), DonorId(3)]);
        assert_eq!(store.expire(2), [DonorId(4), DonorId(1)], "the one that was used later expires later");
        assert_eq!(store.expire(2), []);
        assert!(store.is_empty() && store.spans.is_empty() && !store.is_expired(DonorId(1)));
    }

    /// Creates a store for `max_vectors` vectors of one dimension.
    fn with_vectors(max_vectors: usize) -> DonorStore {
        let embeddings = EmbeddingIndexConfig { max_vectors, min_cosine: 0.5, ..EmbeddingIndexConfig::new(1) };
        DonorStore::new(small_config()).with_embeddings(Some(embeddings))
    }

    /// Inserts donor `id` of `tenant` into scope `A`.
    fn insert(store: &mut DonorStore, tenant: u32, id: u64) {
        let new = NewDonor::new(DonorId(id), A, vec![TokenId(id as u32); 10]);
        assert_eq!(store.insert(NewDonor { tenant: TenantId(tenant), ..new }), []);
    }

    /// Returns the donors of scope `A` near to 1.
    fn similar(store: &DonorStore) -> Vec<u64> {
        store.similar([A].into_iter(), &[3.0], 99).into_iter().map(|donor| donor.0).collect()
    }

    #[test]
    fn a_donor_may_lose_its_vector_and_stay() {
        let mut store = with_vectors(2);
        for id in 1..=3 {
            insert(&mut store, 1, id);
        }
        for id in [3, 1, 2] {
            store.attach(DonorId(id), &[1.0]);
        }
        assert_eq!(similar(&store), [3, 2], "to attach a vector is no use");
        assert_eq!(store.len(), 3);
        store.touch(DonorId(2));
        store.attach(DonorId(1), &[1.0]);
        assert_eq!(similar(&store), [2, 1]);
    }

    #[test]
    fn a_flood_of_one_tenant_forgets_its_own_vectors_first() {
        let mut store = with_vectors(30);
        for (tenant, num_donors) in [(1, 10), (2, 200), (3, 10)] {
            for id in 0..num_donors {
                let id = u64::from(tenant) * 1000 + id;
                insert(&mut store, tenant, id);
                store.attach(DonorId(id), &[1.0]);
            }
        }
        assert_eq!([1, 2, 3].map(|tenant| store.order.donors_of(Load::Vectors, TenantId(tenant)).len()), [10, 10, 10]);
        assert_eq!(store.len(), 220);
    }

    #[test]
    fn a_vector_takes_the_place_of_an_earlier_one_even_without_a_direction() {
        let mut store = with_vectors(2);
        insert(&mut store, 1, 1);
        insert(&mut store, 1, 2);
        let attached = |store: &mut DonorStore, vector: f32| {
            store.attach(DonorId(1), &[vector]);
            similar(store)
        };
        assert_eq!(attached(&mut store, 1.0), [1]);
        assert_eq!(attached(&mut store, -1.0), [] as [u64; 0]);
        assert_eq!(attached(&mut store, 2.0), [1]);
        assert_eq!(attached(&mut store, 0.0), [] as [u64; 0]);
        store.attach(DonorId(3), &[1.0]);
        assert_eq!(similar(&store), [] as [u64; 0], "donor 3 is not kept");
    }

    #[test]
    fn without_room_or_settings_no_vector_is_kept() {
        for mut store in [with_vectors(0), DonorStore::new(small_config())] {
            insert(&mut store, 1, 1);
            store.attach(DonorId(1), &[1.0]);
            assert_eq!(similar(&store), [] as [u64; 0]);
        }
    }

    #[test]
    fn the_most_similar_of_several_scopes_come_first() {
        let embeddings = EmbeddingIndexConfig { min_cosine: 0.5, ..EmbeddingIndexConfig::new(2) };
        let mut store = DonorStore::new(small_config()).with_embeddings(Some(embeddings));
        let vectors = [(1, A, [1.0, 0.0]), (2, B, [1.0, 0.3]), (3, A, [1.0, 0.6]), (4, B, [2.0, 0.0]), (5, Scope(3), [1.0, 0.0])];
        for (id, scope, vector) in vectors {
            store.insert(NewDonor::new(DonorId(id), scope, vec![TokenId(0); 10]));
            store.attach(DonorId(id), &vector);
        }
        let similar = |scopes: &[Scope], max| store.similar(scopes.iter().copied(), &[1.0, 0.0], max);
        assert_eq!(similar(&[A, B], 9), [4, 1, 2, 3].map(DonorId));
        assert_eq!(similar(&[A, B], 2), [4, 1].map(DonorId));
        assert_eq!(similar(&[B], 9), [4, 2].map(DonorId));
    }
}
