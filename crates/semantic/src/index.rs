//! Finds the spans that a prompt shares with earlier prompts of its scopes, at any offset and in any order.
//!
//! A sample of each donor's shingles is posted under its hash, in a table of its scope, so no match crosses scopes. A target is sampled the
//! same way, so every equal run of `min_span_tokens` meets at least one posting; ids are then compared to both sides until they differ
//! (`search.rs`). The hash only selects where to compare ids: a collision costs time, never a wrong token.

use std::collections::HashMap;
use std::sync::Arc;

use tokens::{DonorId, Scope, TenantId, TokenId};

use crate::donors::{Donors, NewDonor};
use crate::fair_lru::Load;
use crate::minimizer::{Sample, Sketch};
use crate::postings::{Posting, Postings};
use crate::search::{Holders, Search, SpanQuery, search};
use crate::{DonorPrompts, PromptView, Segments, SpanIndexConfig, SpanMatch};

/// Index of earlier prompts by the positions of their shingles.
pub struct SpanIndex {
    config: SpanIndexConfig,
    donors: Donors,
    postings: HashMap<Scope, Postings>,
}

impl SpanIndex {
    /// Creates an empty index.
    ///
    /// # Panics
    /// If [`SpanIndexConfig::validated`] rejects `config`.
    #[must_use]
    pub fn new(config: SpanIndexConfig) -> Self {
        let config = config.validated().expect("the configuration was validated");
        Self { config, donors: Donors::default(), postings: HashMap::new() }
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

    /// Total number of tokens of all donors.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.donors.num_tokens()
    }

    /// Returns the prompt of `donor`, if it is kept.
    #[must_use]
    pub fn tokens_of(&self, donor: DonorId) -> Option<&Arc<[TokenId]>> {
        self.donors.get(donor).map(|donor| &donor.tokens)
    }

    /// Returns the shingles of `tokens` that are looked up. Valid for every index of this configuration.
    #[must_use]
    pub fn sketch(&self, tokens: &[TokenId], segments: &Segments) -> Sketch {
        Sketch::of(tokens, segments, self.config.shingle_tokens, self.config.window_shingles)
    }

    /// Calls [`insert_segmented`](Self::insert_segmented) for a prompt with unknown segments.
    pub fn insert(&mut self, scope: Scope, donor: DonorId, tokens: Arc<[TokenId]>) -> Vec<DonorId> {
        self.insert_segmented(scope, donor, tokens, Segments::default())
    }

    /// Calls [`insert_of`](Self::insert_of) with the same tenant for all donors.
    pub fn insert_segmented(&mut self, scope: Scope, donor: DonorId, tokens: Arc<[TokenId]>, segments: Segments) -> Vec<DonorId> {
        self.insert_of(TenantId::default(), scope, donor, tokens, segments)
    }

    /// Keeps `tokens` as `donor` of `tenant`, replacing its earlier prompt, and returns the evicted donors.
    ///
    /// If there is no room, the tenant with most donors, or most tokens, evicts its least recently used one, so no tenant can displace
    /// donors that others keep within an equal share. Returns `donor` itself if it cannot be kept: too short to hold a span, or too long
    /// for the whole index.
    pub fn insert_of(
        &mut self,
        tenant: TenantId,
        scope: Scope,
        donor: DonorId,
        tokens: Arc<[TokenId]>,
        segments: Segments,
    ) -> Vec<DonorId> {
        self.remove(donor);
        let fits = tokens.len() <= self.config.max_tokens && self.config.max_donors > 0;
        if tokens.len() < self.config.min_span_tokens as usize || !fits {
            return vec![donor];
        }
        let evicted = self.make_room(tenant, tokens.len());
        let sketch = self.sketch(&tokens, &segments);
        let slot = self.donors.insert(NewDonor { tenant, id: donor, scope, tokens, segments, sketch });
        self.post(slot);
        evicted
    }

    /// Posts the shingles of the donor in `slot` as the newest of its scope.
    fn post(&mut self, slot: u32) {
        let donor = self.donors.at(slot);
        let postings = self.postings.entry(donor.scope).or_default();
        for &Sample { key, pos } in donor.sketch.samples() {
            postings.insert(key, Posting { slot, pos }, self.config.max_postings as usize);
        }
    }

    /// Removes `donor`. Returns true if it was kept.
    pub fn remove(&mut self, donor: DonorId) -> bool {
        let Some((slot, donor)) = self.donors.remove(donor) else { return false };
        unpost(&mut self.postings, donor.scope, &donor.sketch, slot, 0);
        true
    }

    /// Limits searches to the leading `num_tokens` tokens of `donor`, for example because the KV of the others is lost. Removing the
    /// further postings makes room for those of other holders of the same text. Does nothing if the donor is not kept or is already limited
    /// to fewer.
    pub fn shorten(&mut self, donor: DonorId, num_tokens: u32) {
        let Some(slot) = self.donors.slot(donor) else { return };
        let donor = self.donors.at_mut(slot);
        if num_tokens < donor.num_posted {
            donor.num_posted = num_tokens;
            let (scope, sketch) = (donor.scope, donor.sketch.clone());
            unpost(&mut self.postings, scope, &sketch, slot, num_tokens);
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
        let (scope, sketch) = (donor.scope, donor.sketch.clone());
        unpost(&mut self.postings, scope, &sketch, slot, 0);
        self.post(slot);
        true
    }

    /// Removes all donors of `scope` and returns their number.
    pub fn remove_scope(&mut self, scope: Scope) -> usize {
        let donors = self.donors.in_scope(scope);
        donors.iter().filter(|&&donor| self.remove(donor)).count()
    }

    /// Records a use of `donor`, so that others are evicted before it. Does nothing if it is not kept.
    pub fn touch(&mut self, donor: DonorId) {
        self.donors.touch(donor);
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
        let scopes: Vec<_> = query.scopes.iter().filter_map(|scope| self.postings.get(scope)).collect();
        let samples = query.sketch.samples_from(query.from);
        // All lookups precede the first comparison: they miss the caches, and issued together their latencies overlap.
        let lists: Vec<&[Posting]> =
            samples.iter().flat_map(|sample| scopes.iter().map(|postings| postings.get(sample.key))).collect();
        let holders = samples.iter().zip(lists.chunks(scopes.len().max(1)));
        search(&self.donors, &self.config, query, holders.map(|(sample, lists)| Holders { pos: sample.pos, lists }), usable)
    }

    /// Searches a target against one donor of any scope; returns nothing if it is not kept.
    ///
    /// For donors that were proposed for another reason than their spans.
    #[must_use]
    pub fn search_in(&self, donor: DonorId, query: &SpanQuery<'_>, usable: impl FnMut(DonorId) -> u32) -> Search {
        let Some(slot) = self.donors.slot(donor) else { return Search::default() };
        let mut places = Postings::default();
        for &Sample { key, pos } in self.donors.at(slot).sketch.samples() {
            places.insert(key, Posting { slot, pos }, self.config.max_postings as usize);
        }
        let samples = query.sketch.samples_from(query.from);
        let lists: Vec<_> = samples.iter().map(|sample| [places.get(sample.key)]).collect();
        let holders = samples.iter().zip(&lists).map(|(sample, lists)| Holders { pos: sample.pos, lists });
        search(&self.donors, &self.config, query, holders, usable)
    }

    /// Calls [`search_in`](Self::search_in) for a donor that may be copied in full.
    #[must_use]
    pub fn find_in(&self, donor: DonorId, target: &[TokenId], from: u32) -> Vec<SpanMatch> {
        let sketch = self.sketch(target, &Segments::default());
        self.search_in(donor, &SpanQuery { scopes: &[], tokens: target, sketch: &sketch, from }, |_| u32::MAX).matches
    }

    /// Evicts donors until `tenant` can add one of `num_tokens`.
    fn make_room(&mut self, tenant: TenantId, num_tokens: usize) -> Vec<DonorId> {
        let mut evicted = Vec::new();
        loop {
            let load = match () {
                () if self.len() >= self.config.max_donors => Load::Entries,
                () if self.num_tokens() + num_tokens > self.config.max_tokens => Load::Weight,
                () => return evicted,
            };
            let victim = self.donors.victim(load, tenant, num_tokens).expect("an empty index has room");
            self.remove(victim);
            evicted.push(victim);
        }
    }
}

/// Removes the postings of the donor in `slot` at `from_pos` or later, and the scope if it has none left.
fn unpost(scopes: &mut HashMap<Scope, Postings>, scope: Scope, sketch: &Sketch, slot: u32, from_pos: u32) {
    let Some(postings) = scopes.get_mut(&scope) else { return };
    for key in sketch.keys() {
        postings.remove(key, slot, from_pos);
    }
    if postings.is_empty() {
        scopes.remove(&scope);
    }
}

impl DonorPrompts for SpanIndex {
    fn prompt_of(&self, donor: DonorId) -> Option<PromptView<'_>> {
        self.donors.get(donor).map(|donor| PromptView { tokens: &donor.tokens, segments: &donor.segments })
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use super::*;
    use crate::testing::Random;

    const A: Scope = Scope(1);
    const B: Scope = Scope(2);

    fn small_config() -> SpanIndexConfig {
        SpanIndexConfig {
            shingle_tokens: 4,
            window_shingles: 5,
            min_span_tokens: 10,
            max_postings: 1000,
            ..SpanIndexConfig::default()
        }
    }

    /// Returns random tokens with pieces of `source` pasted in.
    fn collage(random: &mut Random, source: &[TokenId], num_pieces: usize, alphabet: usize) -> Vec<TokenId> {
        let mut text = Vec::new();
        for _ in 0..num_pieces {
            let len = random.below(12);
            text.extend(random.tokens(len, alphabet));
            if source.len() > 1 {
                let start = random.below(source.len() - 1);
                let end = (start + 1 + random.below(40)).min(source.len());
                text.extend_from_slice(&source[start..end]);
            }
        }
        text
    }

    /// Returns all maximal equal runs of at least `min` tokens, cut at `from`, by comparing all pairs of positions.
    fn naive(donor: DonorId, donor_tokens: &[TokenId], target: &[TokenId], min: u32, from: u32) -> Vec<SpanMatch> {
        let mut matches = Vec::new();
        for donor_pos in 0..donor_tokens.len() {
            for target_pos in 0..target.len() {
                let begins = donor_pos == 0 || target_pos == 0 || donor_tokens[donor_pos - 1] != target[target_pos - 1];
                let rest = donor_tokens[donor_pos..].iter().zip(&target[target_pos..]);
                let len = rest.take_while(|(a, b)| a == b).count();
                if begins && len > 0 {
                    let (donor_pos, target_pos, num_tokens) = (donor_pos as u32, target_pos as u32, len as u32);
                    let run = SpanMatch { donor, donor_pos, target_pos, num_tokens, left_context: 0 };
                    matches.extend(run.within_target(tokens::TokenRange::new(from, target.len() as u32)));
                }
            }
        }
        matches.retain(|found| found.num_tokens >= min);
        matches
    }

    #[test]
    fn matches_are_all_maximal_equal_runs() {
        for seed in 0..60 {
            let mut random = Random(seed);
            let alphabet = 2 + random.below(6);
            let source = random.tokens(80, alphabet);
            let donors: Vec<_> = (0..3).map(|_| collage(&mut random, &source, 5, alphabet)).collect();
            let target = collage(&mut random, &source, 6, alphabet);
            let from = random.below(target.len() / 2 + 1) as u32;

            let mut index = SpanIndex::new(small_config());
            for (id, tokens) in donors.iter().enumerate() {
                index.insert(A, DonorId(id as u64), tokens.as_slice().into());
            }
            let mut expected: Vec<_> = (0..3)
                .filter(|&id| donors[id].len() >= 10)
                .flat_map(|id| naive(DonorId(id as u64), &donors[id], &target, 10, from))
                .collect();
            expected.sort_by_key(|m| (m.target_pos, Reverse(m.num_tokens), Reverse(m.donor), m.donor_pos));
            let long = |mut found: Vec<SpanMatch>| {
                found.retain(|found| found.num_tokens >= 10);
                found
            };
            assert_eq!(long(index.find(A, &target, from)), expected, "seed {seed}");
            for id in 0..3 {
                let of_donor: Vec<_> = expected.iter().filter(|found| found.donor.0 == id).copied().collect();
                assert_eq!(long(index.find_in(DonorId(id), &target, from)), of_donor, "seed {seed}");
            }
        }
    }

    /// Checks the runs that a donor of texts `donor` and a target of texts `target` share: each text is a letter and its length, and begins
    /// a segment if `are_segments`. Runs are printed as positions of the target.
    #[track_caller]
    fn check_short(donor: &str, target: &str, are_segments: bool, expected: &str) {
        let prompt = |text: &str| {
            let (mut tokens, mut starts) = (Vec::new(), Vec::new());
            for word in text.split_whitespace() {
                starts.push(tokens.len() as u32);
                let letter = word.as_bytes()[0] as u32 * 1_000;
                tokens.extend((0..word[1..].parse().unwrap()).map(|i| TokenId(letter + i)));
            }
            (tokens, Segments::from_starts(if are_segments { starts } else { Vec::new() }))
        };
        let ((donor, donor_segments), (target, segments)) = (prompt(donor), prompt(target));
        let mut index = SpanIndex::new(SpanIndexConfig::default());
        index.insert_segmented(A, DonorId(1), donor.as_slice().into(), donor_segments);
        let sketch = index.sketch(&target, &segments);
        let query = SpanQuery { scopes: &[A], tokens: &target, sketch: &sketch, from: 0 };
        let found = index.search(&query, |_| u32::MAX).matches;
        let print = |found: &SpanMatch| format!("{:?}", found.target_range());
        assert_eq!(found.iter().map(print).collect::<Vec<_>>().join(", "), expected);
    }

    #[test]
    fn a_whole_segment_of_16_tokens_is_a_span() {
        check_short("a40 b40 c40", "x30 c40 y30 a40", true, "30..70, 100..140");
        check_short("a40 b40 c40", "x30 c40 y30 a40", false, "");
        check_short("a40 b15 c16", "x30 c16 y30 b15", true, "30..46");
        check_short("a40 b40", "x30 b30 y30", true, "");
    }

    #[test]
    fn short_runs_that_follow_each_other_closely_are_one_span() {
        check_short("a50 x1 b50 x1 c50", "a50 y2 b50 y2 c50", false, "0..50, 52..102, 104..154");
        check_short("a50 x1 b50", "b50 y2 a50", false, "");
        check_short("a50 x70 b50", "a50 y70 b50", false, "");
    }

    #[test]
    fn the_default_sampling_misses_no_span_of_64_tokens() {
        let mut random = Random(9);
        let mut index = SpanIndex::new(SpanIndexConfig::default());
        let donor = random.tokens(3000, 50_000);
        index.insert(A, DonorId(7), donor.as_slice().into());
        for _ in 0..300 {
            let (left, donor_pos) = (random.below(200), random.below(3000 - 64));
            let target = [random.tokens(left, 9), donor[donor_pos..donor_pos + 64].to_vec(), random.tokens(50, 9)].concat();
            let target_pos = left as u32;
            let expected =
                SpanMatch { donor: DonorId(7), donor_pos: donor_pos as u32, target_pos, num_tokens: 64, left_context: 0 };
            assert!(naive_contains(&index.find(A, &target, 0), expected));
        }
    }

    /// True if some match covers `expected`; by chance the run may be longer.
    fn naive_contains(matches: &[SpanMatch], expected: SpanMatch) -> bool {
        matches.iter().any(|found| found.within_target(expected.target_range()).is_some_and(|part| part.num_tokens == 64))
    }

    #[test]
    fn nothing_is_found_in_another_scope() {
        let mut random = Random(1);
        let mut index = SpanIndex::new(small_config());
        for id in 0..40 {
            let scope = Scope(random.below(4) as u64);
            let tokens: Arc<[_]> = random.tokens(30, 2).into();
            index.insert(scope, DonorId(id * 4 + scope.0), Arc::clone(&tokens));
            for other in 0..4 {
                let found = index.find(Scope(other), &tokens, 0);
                assert!(found.iter().all(|found| found.donor.0 % 4 == other));
                assert!(other != scope.0 || !found.is_empty());
            }
        }
    }

    #[test]
    fn text_that_repeats_itself_costs_a_bounded_number_of_hits() {
        let mut index = SpanIndex::new(SpanIndexConfig::default());
        let tokens: Arc<[_]> = vec![TokenId(5); 20_000].into();
        index.insert(A, DonorId(1), Arc::clone(&tokens));
        let found = index.find(A, &tokens, 0);
        assert!((1..=64).contains(&found.len()), "{}", found.len());
    }

    #[test]
    fn only_the_newest_holders_of_a_text_are_found() {
        let mut index = SpanIndex::new(SpanIndexConfig { max_postings: 2, ..small_config() });
        let tokens: Arc<[_]> = Random(2).tokens(40, 1000).into();
        for id in [3, 9, 4] {
            index.insert(A, DonorId(id), Arc::clone(&tokens));
        }
        assert_eq!(index.find_in(DonorId(3), &tokens, 0).len(), 1, "it is kept, although its postings are not");
        assert_eq!(index.find_in(DonorId(1), &tokens, 0), []);
        let donors: Vec<_> = index.find(A, &tokens, 0).iter().map(|found| found.donor.0).collect();
        assert_eq!(donors, [9, 4]);
    }

    /// Inserts donors of 10 tokens into an index for 60 donors and 590 tokens; tenant `i` has a scope of its own and the ids `100 i ..`.
    fn flooded(floods: &[(u32, usize)]) -> (SpanIndex, impl Fn(&SpanIndex, u32) -> usize) {
        let mut index = SpanIndex::new(SpanIndexConfig { max_donors: 60, max_tokens: 590, ..small_config() });
        let mut random = Random(8);
        for &(tenant, num_donors) in floods {
            for i in 0..num_donors {
                let tokens = random.tokens(10, 100).into();
                let id = DonorId(u64::from(tenant) * 100 + i as u64);
                index.insert_of(TenantId(tenant), Scope(tenant.into()), id, tokens, Segments::default());
            }
        }
        let kept = |index: &SpanIndex, tenant: u32| {
            let ids = u64::from(tenant) * 100..u64::from(tenant) * 100 + 100;
            ids.filter(|&id| index.tokens_of(DonorId(id)).is_some()).count()
        };
        (index, kept)
    }

    #[test]
    fn a_flood_of_one_tenant_forgets_its_own_donors_first() {
        let (index, kept) = flooded(&[(1, 10), (2, 100), (3, 10)]);
        assert_eq!([1, 2, 3].map(|tenant| kept(&index, tenant)), [10, 39, 10], "what others leave is lent");
    }

    #[test]
    fn what_was_lent_is_given_back_down_to_an_equal_share() {
        let (index, kept) = flooded(&[(1, 100), (2, 100), (3, 100)]);
        let shares = [1, 2, 3].map(|tenant| kept(&index, tenant));
        assert!(shares.iter().all(|&share| (19..=20).contains(&share)), "{shares:?}");
    }

    /// `ops`, left to right: `+3` inserts donor 3 of 10 tokens into scope `A`, `!3` the same into `B`, `^3` touches it, `-3` removes it.
    /// The index keeps three donors and 40 tokens.
    #[track_caller]
    fn check_walk(ops: &str, expected_evicted: &[u64], expected_kept: &[u64]) {
        let mut index = SpanIndex::new(SpanIndexConfig { max_donors: 3, max_tokens: 40, ..small_config() });
        let mut evicted = Vec::new();
        for op in ops.split_whitespace() {
            let id: u64 = op[1..].parse().unwrap();
            let tokens: Arc<[_]> = vec![TokenId(id as u32); if id == 20 { 20 } else { 10 }].into();
            match &op[..1] {
                "+" => evicted.extend(index.insert(A, DonorId(id), tokens)),
                "!" => evicted.extend(index.insert(B, DonorId(id), tokens)),
                "^" => index.touch(DonorId(id)),
                _ => assert!(index.remove(DonorId(id))),
            }
        }
        assert_eq!(evicted, expected_evicted.iter().copied().map(DonorId).collect::<Vec<_>>());
        let kept: Vec<_> = (0..30).filter(|&id| index.tokens_of(DonorId(id)).is_some()).collect();
        assert_eq!(kept, expected_kept);
        assert_eq!(index.len(), kept.len());
        assert_eq!(index.num_tokens(), kept.iter().map(|&id| if id == 20 { 20 } else { 10 }).sum::<usize>());
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
        let mut index = SpanIndex::new(SpanIndexConfig { max_tokens: 40, ..small_config() });
        for len in [9, 41] {
            assert_eq!(index.insert(A, DonorId(1), vec![TokenId(0); len].into()), [DonorId(1)]);
        }
        assert!(index.is_empty());
    }

    #[test]
    fn a_scope_is_removed_as_a_whole() {
        let mut index = SpanIndex::new(small_config());
        let tokens: Arc<[_]> = Random(2).tokens(40, 1000).into();
        for (id, scope) in [(1, A), (2, B), (3, A)] {
            index.insert(scope, DonorId(id), Arc::clone(&tokens));
        }
        assert_eq!(index.remove_scope(A), 2);
        assert!(index.find(A, &tokens, 0).is_empty());
        assert_eq!(index.find(B, &tokens, 0).len(), 1);
    }

    /// After any walk, the index finds the same as an index of only the kept donors, and keeps no postings of others.
    #[test]
    fn what_left_leaves_no_trace() {
        let mut random = Random(11);
        let config = SpanIndexConfig { max_donors: 6, max_tokens: 300, ..small_config() };
        let mut index = SpanIndex::new(config.clone());
        for _ in 0..2000 {
            let donor = DonorId(random.below(12) as u64);
            let len = random.below(90);
            match random.below(6) {
                0 => drop(index.remove(donor)),
                1 => index.touch(donor),
                2 => drop(index.remove_scope(Scope(random.below(9) as u64))),
                _ => drop(index.insert(Scope(random.below(2) as u64), donor, random.tokens(len, 3).into())),
            }
            assert!(index.len() <= 6 && index.num_tokens() <= 300);
            let mut fresh = SpanIndex::new(config.clone());
            for kept in (0..12).map(DonorId).filter_map(|id| index.donors.get(id)) {
                fresh.insert(kept.scope, kept.id, Arc::clone(&kept.tokens));
            }
            let target = random.tokens(60, 3);
            for scope in [Scope(0), Scope(1)] {
                assert_eq!(index.find(scope, &target, 5), fresh.find(scope, &target, 5));
            }
        }
        for donor in 0..12 {
            index.remove(DonorId(donor));
        }
        assert!(index.postings.is_empty());
    }
}
