//! Extends the shingles that a target shares with donors to maximal equal runs.
//!
//! A popular text has many holders, and few of them suffice. So a place of the target that `max_postings` runs already cover is skipped,
//! except for rare shingles: these distinguish donors that are nearly the same. The number of holders examined and followed at each place
//! is bounded, so the work is linear in the target's tokens for any number of donors, and a run is left out only where others cover its
//! tokens.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::BuildHasherDefault;

use tokens::{DonorId, Scope, TokenId};

use crate::donors::Donors;
use crate::minimizer::Sketch;
use crate::postings::{KeyHasher, Posting};
use crate::runs::{common_prefix, common_suffix};
use crate::span::is_near;
use crate::{PromptView, SpanIndexConfig, SpanMatch, Steps};

/// Maximum of the tokens that the runs of a search cover, summed over the runs. It lowers the number of runs per place in a long prompt, but
/// not below [`MIN_COVER`], so that planning takes only some milliseconds. Chosen: 32,000 tokens that eight donors have.
const MAX_COVERED_TOKENS: usize = 1 << 18;
/// Number of runs that may cover a place of a prompt of any length.
const MIN_COVER: usize = 2;
/// Maximum number of postings that the search examines for each posting that it may follow: it skips donors whose KV was evicted. Chosen:
/// skipping a posting takes a few nanoseconds, and the index soon removes those of permanently evicted KV.
const EXAMINED_PER_FOLLOWED: usize = 32;
/// Divisor of `max_postings` that gives the maximum number of places of one donor that the search follows from one place of the target. The
/// other postings are left for other donors. Chosen.
const PLACES_DIVISOR: usize = 4;
/// Divisor of `max_postings` that gives the maximum number of holders of a rare shingle. Chosen.
const RARE_DIVISOR: usize = 2;
/// Number of tokens that the search compares for each token of the target and each run that may cover it, before it shortens comparisons.
/// Chosen: several times as many as texts without repetition need.
const COMPARED_PER_TOKEN: u64 = 4;
/// Number of tokens that a short comparison compares to the left of a shingle: the left context that the best class of a moved run requires.
const SHORT_LEFT_TOKENS: usize = 256;

/// A prompt that needs equal spans.
#[derive(Clone, Copy, Debug)]
pub struct SpanQuery<'a> {
    /// Scopes to search, each once, the most important first.
    pub scopes: &'a [Scope],
    /// All tokens of the prompt.
    pub tokens: &'a [TokenId],
    /// Sketch of the prompt; see [`DonorStore::sketch`](crate::DonorStore::sketch).
    pub sketch: &'a Sketch,
    /// End of its prefix hit.
    pub from: u32,
}

/// Result of a [`SpanQuery`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// Equal runs, by ascending target position.
    pub matches: Vec<SpanMatch>,
    /// Donors with an equal place beyond their usable tokens, each once.
    pub unusable: Vec<DonorId>,
    /// Work of the search.
    pub steps: Steps,
}

/// Holders of one shingle of the target.
pub(crate) struct Holders<'a> {
    /// Position of the shingle in the target.
    pub(crate) pos: u32,
    /// Its postings in each scope, oldest first.
    pub(crate) lists: &'a [&'a [Posting]],
}

/// A posting whose hash equals that of a target shingle.
#[derive(Clone, Copy)]
struct Hit {
    slot: u32,
    donor_pos: u32,
    target_pos: u32,
}

impl Hit {
    /// Returns a key that is the same for all hits of one run and for no other: donor and offset, hashed by an odd, hence lossless, factor.
    fn run_key(self) -> u64 {
        let offset = self.target_pos.wrapping_sub(self.donor_pos);
        let key = (u64::from(self.slot) << 32 | u64::from(offset)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        key.rotate_left(32)
    }
}

/// State of a donor within one search.
#[derive(Clone, Copy)]
enum Limit {
    Unknown,
    /// Tokens that may be copied. `is_short`: a hit needed more.
    Known {
        num_tokens: u32,
        is_short: bool,
    },
}

struct Follower<'a, F> {
    donors: &'a Donors,
    query: &'a SpanQuery<'a>,
    usable: F,
    min_span_tokens: u32,
    /// Least length of a short run that is a whole segment or a link of a chain.
    min_link_tokens: u32,
    /// Most runs that may cover a token.
    max_cover: usize,
    /// Most holders of a rare shingle.
    max_rare: usize,
    /// State of each donor, by slot.
    limits: Vec<Limit>,
    /// Target position up to which each run was followed.
    run_ends: HashMap<u64, u32, BuildHasherDefault<KeyHasher>>,
    /// Ends of the matches of popular shingles that reach beyond the current place.
    open_ends: BinaryHeap<Reverse<u32>>,
    found: Search,
    /// Runs that are too short on their own.
    links: Vec<SpanMatch>,
}

/// Searches `places`, by ascending target position.
pub(crate) fn search<'a>(
    donors: &Donors,
    config: &SpanIndexConfig,
    query: &SpanQuery<'_>,
    places: impl Iterator<Item = Holders<'a>>,
    usable: impl FnMut(DonorId) -> u32,
) -> Search {
    let num_wanted = query.tokens.len().saturating_sub(query.from as usize).max(1);
    let max_cover = (MAX_COVERED_TOKENS / num_wanted).max(MIN_COVER).min(config.max_postings as usize);
    let mut follower = Follower {
        donors,
        query,
        usable,
        min_span_tokens: config.min_span_tokens,
        min_link_tokens: config.shingle_tokens,
        max_cover,
        max_rare: max_cover.min(config.max_postings as usize / RARE_DIVISOR),
        limits: vec![Limit::Unknown; donors.num_slots()],
        run_ends: HashMap::default(),
        open_ends: BinaryHeap::new(),
        found: Search::default(),
        links: Vec::new(),
    };
    places.for_each(|place| follower.visit(&place));
    let Follower { mut found, links, .. } = follower;
    found.steps.cells += (found.matches.len() + links.len()) as u64;
    let chained = chained_links(&found.matches, links, config.min_span_tokens);
    found.matches.extend(chained);
    found.matches.sort_unstable_by_key(|found: &SpanMatch| {
        (found.target_pos, Reverse(found.num_tokens), Reverse(found.donor), found.donor_pos)
    });
    found
}

/// Returns those of `links` that form a chain with one of `matches`, or with other links of `min_span_tokens` in all: runs of one donor
/// that follow each other in donor and target with small gaps, like the runs of a text with changed words.
fn chained_links(matches: &[SpanMatch], links: Vec<SpanMatch>, min_span_tokens: u32) -> Vec<SpanMatch> {
    if links.is_empty() {
        return links;
    }
    let mut runs: Vec<_> = matches.iter().map(|&run| (run, false)).chain(links.into_iter().map(|run| (run, true))).collect();
    runs.sort_unstable_by_key(|(run, _)| (run.donor, run.target_pos, run.donor_pos));
    let follows = |(before, _): &(SpanMatch, bool), (run, _): &(SpanMatch, bool)| {
        run.donor == before.donor
            && is_near(before.target_range().end, run.target_pos)
            && is_near(before.donor_range().end, run.donor_pos)
    };
    let mut kept = Vec::new();
    for chain in runs.chunk_by(follows) {
        let num_tokens: u32 = chain.iter().map(|(run, _)| run.num_tokens).sum();
        if num_tokens >= min_span_tokens {
            kept.extend(chain.iter().filter(|(_, is_link)| *is_link).map(|(run, _)| *run));
        }
    }
    kept
}

impl<F: FnMut(DonorId) -> u32> Follower<'_, F> {
    /// Follows the holders of one shingle, newest first.
    fn visit(&mut self, place: &Holders<'_>) {
        self.found.steps.lookups += place.lists.len() as u64;
        while self.open_ends.peek().is_some_and(|&Reverse(end)| end <= place.pos) {
            self.open_ends.pop();
        }
        let num_holders: usize = place.lists.iter().map(|list| list.len()).sum();
        let is_rare = num_holders <= self.max_rare;
        let mut num_live = 0;
        let mut of_donor = (u32::MAX, 0);
        let newest_first = place.lists.iter().flat_map(|list| list.iter().rev());
        for posting in newest_first.take(EXAMINED_PER_FOLLOWED * self.max_cover) {
            let is_covered = self.open_ends.len() >= self.max_cover;
            if num_live == self.max_cover || is_covered && !(is_rare && self.may_compare_at_length()) {
                return;
            }
            self.found.steps.postings += 1;
            of_donor = if of_donor.0 == posting.slot { (posting.slot, of_donor.1 + 1) } else { (posting.slot, 1) };
            if of_donor.1 > self.max_cover.div_ceil(PLACES_DIVISOR) {
                continue;
            }
            let hit = Hit { slot: posting.slot, donor_pos: posting.pos, target_pos: place.pos };
            let limit = self.limit(hit);
            if posting.pos < limit {
                num_live += 1;
                self.follow(hit, limit, is_rare);
            }
        }
    }

    /// Returns the number of tokens of the donor of `hit` that may be copied. Records a donor that has too few.
    fn limit(&mut self, hit: Hit) -> u32 {
        let limit = &mut self.limits[hit.slot as usize];
        let (num_tokens, is_short) = match *limit {
            Limit::Unknown => ((self.usable)(self.donors.at(hit.slot).id), false),
            Limit::Known { num_tokens, is_short } => (num_tokens, is_short),
        };
        let falls_short = hit.donor_pos >= num_tokens;
        if falls_short && !is_short {
            self.found.unusable.push(self.donors.at(hit.slot).id);
        }
        *limit = Limit::Known { num_tokens, is_short: is_short || falls_short };
        num_tokens
    }

    fn may_compare_at_length(&self) -> bool {
        let budget = COMPARED_PER_TOKEN * self.max_cover as u64 * self.query.tokens.len() as u64;
        self.found.steps.compared_tokens < budget
    }

    /// Compares to both sides of `hit`, unless its run was already followed to here. A run with a rare shingle does not count towards the
    /// cover.
    fn follow(&mut self, hit: Hit, limit: u32, is_rare: bool) {
        let may_compare_at_length = self.may_compare_at_length();
        let run_end = self.run_ends.entry(hit.run_key()).or_default();
        if hit.target_pos < *run_end {
            return;
        }
        let donor = self.donors.at(hit.slot);
        let usable = &donor.tokens[..donor.tokens.len().min(limit as usize)];
        let (donor_left, donor_right) = usable.split_at(hit.donor_pos as usize);
        let (target_left, target_right) = self.query.tokens.split_at(hit.target_pos as usize);
        let compared_left = if may_compare_at_length { donor_left.len() } else { donor_left.len().min(SHORT_LEFT_TOKENS) };
        let left = common_suffix(&donor_left[donor_left.len() - compared_left..], target_left);
        let right = common_prefix(donor_right, target_right);
        *run_end = hit.target_pos + right;
        self.found.steps.compared_tokens += u64::from(left + right + 1);
        let kept_left = left.min(hit.target_pos - self.query.from);
        let found = SpanMatch {
            donor: donor.id,
            donor_pos: hit.donor_pos - kept_left,
            target_pos: hit.target_pos - kept_left,
            num_tokens: kept_left + right,
            left_context: left - kept_left,
        };
        let holds_segment = || {
            let target = PromptView { tokens: self.query.tokens, segments: self.query.sketch.segments() };
            found.holds_segment(
                target,
                PromptView { tokens: &donor.tokens, segments: donor.sketch.segments() },
                self.min_link_tokens,
            )
        };
        if found.num_tokens >= self.min_span_tokens || holds_segment() {
            if !is_rare {
                self.open_ends.push(Reverse(hit.target_pos + right));
            }
            self.found.matches.push(found);
        } else if found.num_tokens >= self.min_link_tokens {
            self.links.push(found);
        }
    }
}
