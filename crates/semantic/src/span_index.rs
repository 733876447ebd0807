//! Finds the spans that a prompt shares with earlier prompts of its scopes, at any offset and in any order.
//!
//! A sample of each donor's shingles is posted under its hash, in a table of its scope, so no match crosses scopes. A target is sampled the
//! same way, so every equal run of `min_span_tokens` meets at least one posting; ids are then compared to both sides until they differ
//! (`search.rs`). The hash only selects where to compare ids: a collision costs time, never a wrong token.

use std::collections::HashMap;

use tokens::{DonorId, Scope, TokenId};

use crate::donor::Donor;
use crate::donors::Donors;
use crate::minimizer::{Sample, Sketch};
use crate::postings::{Posting, Postings};
use crate::search::{Holders, Search, SpanQuery, search};
use crate::{Segments, SpanIndexConfig};

/// Postings of donors, by scope.
pub(crate) struct SpanIndex {
    config: SpanIndexConfig,
    by_scope: HashMap<Scope, Postings>,
}

impl SpanIndex {
    /// Creates an empty index.
    ///
    /// # Panics
    /// If [`SpanIndexConfig::validated`] rejects `config`.
    pub(crate) fn new(config: SpanIndexConfig) -> Self {
        Self { config: config.validated().expect("the configuration was validated"), by_scope: HashMap::new() }
    }

    pub(crate) fn config(&self) -> &SpanIndexConfig {
        &self.config
    }

    /// Returns the shingles of `tokens` that are posted or looked up.
    pub(crate) fn sketch(&self, tokens: &[TokenId], segments: &Segments) -> Sketch {
        Sketch::of(tokens, segments, self.config.shingle_tokens, self.config.window_shingles)
    }

    /// Posts the shingles of `donor`, which is in `slot`, as the newest of its scope.
    pub(crate) fn post(&mut self, slot: u32, donor: &Donor) {
        let postings = self.by_scope.entry(donor.scope).or_default();
        for &Sample { key, pos } in donor.sketch.samples() {
            postings.insert(key, Posting { slot, pos }, self.config.max_postings as usize);
        }
    }

    /// Removes the postings of `donor`, which is in `slot`, at `from_pos` or later.
    pub(crate) fn unpost(&mut self, slot: u32, donor: &Donor, from_pos: u32) {
        let Some(postings) = self.by_scope.get_mut(&donor.scope) else { return };
        donor.sketch.keys().into_iter().for_each(|key| postings.remove(key, slot, from_pos));
        if postings.is_empty() {
            self.by_scope.remove(&donor.scope);
        }
    }

    /// Removes all postings.
    pub(crate) fn clear(&mut self) {
        self.by_scope.clear();
    }

    /// Searches a target among the donors of its scopes, which are those of `donors`.
    pub(crate) fn search(&self, donors: &Donors, query: &SpanQuery<'_>, usable: impl FnMut(DonorId) -> u32) -> Search {
        let scopes: Vec<_> = query.scopes.iter().filter_map(|scope| self.by_scope.get(scope)).collect();
        let samples = query.sketch.samples_from(query.from);
        // All lookups precede the first comparison: they miss the caches, and issued together their latencies overlap.
        let lists: Vec<&[Posting]> =
            samples.iter().flat_map(|sample| scopes.iter().map(|postings| postings.get(sample.key))).collect();
        let holders = samples.iter().zip(lists.chunks(scopes.len().max(1)));
        search(donors, &self.config, query, holders.map(|(sample, lists)| Holders { pos: sample.pos, lists }), usable)
    }

    /// Searches a target against the donor in `slot`, all of whose shingles count as posted.
    pub(crate) fn search_in(
        &self,
        donors: &Donors,
        slot: u32,
        query: &SpanQuery<'_>,
        usable: impl FnMut(DonorId) -> u32,
    ) -> Search {
        let mut places = Postings::default();
        for &Sample { key, pos } in donors.at(slot).sketch.samples() {
            places.insert(key, Posting { slot, pos }, self.config.max_postings as usize);
        }
        let samples = query.sketch.samples_from(query.from);
        let lists: Vec<_> = samples.iter().map(|sample| [places.get(sample.key)]).collect();
        let holders = samples.iter().zip(&lists).map(|(sample, lists)| Holders { pos: sample.pos, lists });
        search(donors, &self.config, query, holders, usable)
    }
}

#[cfg(test)]
impl SpanIndex {
    /// True if nothing is posted.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_scope.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::sync::Arc;

    use super::*;
    use crate::testing::{Random, small_config};
    use crate::{DonorStore, NewDonor, SpanMatch};

    const A: Scope = Scope(1);

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

            let mut store = DonorStore::new(small_config());
            for (id, tokens) in donors.iter().enumerate() {
                store.insert(NewDonor::new(DonorId(id as u64), A, tokens.as_slice()));
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
            assert_eq!(long(store.find(A, &target, from)), expected, "seed {seed}");
            for id in 0..3 {
                let of_donor: Vec<_> = expected.iter().filter(|found| found.donor.0 == id).copied().collect();
                assert_eq!(long(store.find_in(DonorId(id), &target, from)), of_donor, "seed {seed}");
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
        let mut store = DonorStore::new(SpanIndexConfig::default());
        store.insert(NewDonor { segments: donor_segments, ..NewDonor::new(DonorId(1), A, donor.as_slice()) });
        let sketch = store.sketch(&target, &segments);
        let query = SpanQuery { scopes: &[A], tokens: &target, sketch: &sketch, from: 0 };
        let found = store.search(&query, |_| u32::MAX).matches;
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
        let mut store = DonorStore::new(SpanIndexConfig::default());
        let donor = random.tokens(3000, 50_000);
        store.insert(NewDonor::new(DonorId(7), A, donor.as_slice()));
        for _ in 0..300 {
            let (left, donor_pos) = (random.below(200), random.below(3000 - 64));
            let target = [random.tokens(left, 9), donor[donor_pos..donor_pos + 64].to_vec(), random.tokens(50, 9)].concat();
            let target_pos = left as u32;
            let expected =
                SpanMatch { donor: DonorId(7), donor_pos: donor_pos as u32, target_pos, num_tokens: 64, left_context: 0 };
            assert!(naive_contains(&store.find(A, &target, 0), expected));
        }
    }

    /// True if some match covers `expected`; by chance the run may be longer.
    fn naive_contains(matches: &[SpanMatch], expected: SpanMatch) -> bool {
        matches.iter().any(|found| found.within_target(expected.target_range()).is_some_and(|part| part.num_tokens == 64))
    }

    #[test]
    fn nothing_is_found_in_another_scope() {
        let mut random = Random(1);
        let mut store = DonorStore::new(small_config());
        for id in 0..40 {
            let scope = Scope(random.below(4) as u64);
            let tokens: Arc<[_]> = random.tokens(30, 2).into();
            store.insert(NewDonor::new(DonorId(id * 4 + scope.0), scope, Arc::clone(&tokens)));
            for other in 0..4 {
                let found = store.find(Scope(other), &tokens, 0);
                assert!(found.iter().all(|found| found.donor.0 % 4 == other));
                assert!(other != scope.0 || !found.is_empty());
            }
        }
    }

    #[test]
    fn text_that_repeats_itself_costs_a_bounded_number_of_hits() {
        let mut store = DonorStore::new(SpanIndexConfig::default());
        let tokens: Arc<[_]> = vec![TokenId(5); 20_000].into();
        store.insert(NewDonor::new(DonorId(1), A, Arc::clone(&tokens)));
        let found = store.find(A, &tokens, 0);
        assert!((1..=64).contains(&found.len()), "{}", found.len());
    }

    #[test]
    fn only_the_newest_holders_of_a_text_are_found() {
        let mut store = DonorStore::new(SpanIndexConfig { max_postings: 2, ..small_config() });
        let tokens: Arc<[_]> = Random(2).tokens(40, 1000).into();
        for id in [3, 9, 4] {
            store.insert(NewDonor::new(DonorId(id), A, Arc::clone(&tokens)));
        }
        assert_eq!(store.find_in(DonorId(3), &tokens, 0).len(), 1, "it is kept, although its postings are not");
        assert_eq!(store.find_in(DonorId(1), &tokens, 0), []);
        let donors: Vec<_> = store.find(A, &tokens, 0).iter().map(|found| found.donor.0).collect();
        assert_eq!(donors, [9, 4]);
    }
}
