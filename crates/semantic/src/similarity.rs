//! Similarity of two left contexts.

use std::cmp::Ordering;

use tokens::{DonorId, TokenId};

use crate::{DonorPrompts, PlanTarget, PromptView, SpanMatch, Steps};

/// Distance in tokens over which a token's weight falls to 1/e. Chosen, after the decay of attention with distance.
const DECAY_TOKENS: f32 = 512.0;
/// Tokens compared: further left, weights are below 2 %.
const WINDOW_TOKENS: usize = 2048;

/// Most tokens whose weights are summed for one plan. Chosen: a few dozen contested spans, as many as a prompt of some passages has.
const MAX_WEIGHED_TOKENS: usize = 1 << 18;
/// Most spans of one donor compared to the left of another one. Chosen: the window holds about as many of the shortest spans.
const MAX_NEIGHBOURS: usize = 32;

/// Prefers, among donors of the same text, the one with the left context most similar to the target's.
///
/// This similarity predicts the error of its KV better than embeddings do. It compares up to 2048 tokens on both sides of each match that
/// has a rival. If there are too many rivals, it compares the spans found in place of the tokens: that takes a few steps for each match.
#[derive(Debug)]
pub struct ByLeftContext<'a, D> {
    donors: &'a D,
}

impl<'a, D> ByLeftContext<'a, D> {
    /// Creates preferences among `donors`.
    #[must_use]
    pub const fn new(donors: &'a D) -> Self {
        Self { donors }
    }
}

impl<D: DonorPrompts> DonorPrompts for ByLeftContext<'_, D> {
    fn prompt_of(&self, donor: DonorId) -> Option<PromptView<'_>> {
        self.donors.prompt_of(donor)
    }

    fn preferences(&self, target: &PlanTarget<'_>, matches: &[SpanMatch], steps: &mut Steps) -> Vec<f32> {
        let contested = contested(matches);
        let num_contested = contested.iter().filter(|is_contested| **is_contested).count();
        match num_contested * 2 * WINDOW_TOKENS <= MAX_WEIGHED_TOKENS {
            true => self.by_tokens(target, matches, &contested, steps),
            false => by_spans(matches, &contested, steps),
        }
    }
}

impl<D: DonorPrompts> ByLeftContext<'_, D> {
    /// Returns the [`left_context_similarity`] of each contested match.
    fn by_tokens(&self, target: &PlanTarget<'_>, matches: &[SpanMatch], contested: &[bool], steps: &mut Steps) -> Vec<f32> {
        let decay = Decay::new();
        // Matches of one text begin at one place.
        let mut last: Option<(u32, Weights)> = None;
        let of_match = |(found, &is_contested): (&SpanMatch, &bool)| {
            let donor = self.donors.prompt_of(found.donor).filter(|_| is_contested);
            let Some(donor) = donor else { return 0.0 };
            if last.as_ref().is_none_or(|(position, _)| *position != found.target_pos) {
                last = Some((found.target_pos, decay.weights(&target.prompt.tokens[..found.target_pos as usize])));
                steps.weighed += WINDOW_TOKENS.min(found.target_pos as usize) as u64;
            }
            steps.weighed += WINDOW_TOKENS.min(found.donor_pos as usize) as u64;
            let (_, of_target) = last.as_ref().expect("it was just remembered");
            similarity(of_target, &decay.weights(&donor.tokens[..found.donor_pos as usize]))
        };
        matches.iter().zip(contested).map(of_match).collect()
    }
}

/// Approximates it with the tokens of each donor's other matches in place of all equal tokens.
fn by_spans(matches: &[SpanMatch], contested: &[bool], steps: &mut Steps) -> Vec<f32> {
    let decay = Decay::new();
    let mut by_donor: Vec<_> = (0..matches.len()).collect();
    by_donor.sort_unstable_by_key(|&i| (matches[i].donor, i));
    let mut preferences = vec![0.0; matches.len()];
    for of_donor in by_donor.chunk_by(|&a, &b| matches[a].donor == matches[b].donor) {
        for (nth, &i) in of_donor.iter().enumerate().filter(|&(_, &i)| contested[i]) {
            let found = &matches[i];
            let neighbours = of_donor[..nth].iter().rev().take(MAX_NEIGHBOURS).map(|&j| &matches[j]);
            let mut shared = decay.sum(0, found.left_context);
            for other in neighbours {
                steps.weighed += 1;
                shared += shared_by(other, found, &decay);
            }
            let largest = decay.sum(0, found.target_pos.max(found.donor_pos));
            preferences[i] = if largest > 0.0 { (shared / largest).min(1.0) } else { 1.0 };
        }
    }
    preferences
}

/// Returns the weight of the tokens of `other` that are left of `found` in donor and target.
fn shared_by(other: &SpanMatch, found: &SpanMatch, decay: &Decay) -> f32 {
    let target_distance = found.target_pos.checked_sub(other.target_pos);
    let donor_distance = found.donor_pos.checked_sub(other.donor_pos);
    let (Some(in_target), Some(in_donor)) = (target_distance, donor_distance) else { return 0.0 };
    // Each token counts by the larger of its two distances; those that are not left of `found` in both do not count.
    let (far, near) = (in_target.max(in_donor), in_target.min(in_donor));
    decay.sum(far - other.num_tokens.min(near), far)
}

/// Token weights by distance.
struct Decay {
    weights: Vec<f32>,
    /// Total weight of all tokens nearer than each distance, up to the window.
    sums: Vec<f32>,
}

impl Decay {
    fn new() -> Self {
        let weights: Vec<_> = (0..WINDOW_TOKENS).map(|distance| (-(distance as f32) / DECAY_TOKENS).exp()).collect();
        let sums = std::iter::once(0.0).chain(weights.iter().scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        }));
        Self { sums: sums.collect(), weights }
    }

    /// Returns the [`Weights`] as a list, because filling a map of two thousand tokens takes several times as long.
    fn weights(&self, left: &[TokenId]) -> Weights {
        let in_window = left.iter().rev().take(WINDOW_TOKENS).zip(0u64..);
        let mut by_token: Vec<_> = in_window.map(|(token, distance)| u64::from(token.0) << 32 | distance).collect();
        // Adds the weights of a token from near to far.
        by_token.sort_unstable();
        let of_one = by_token.chunk_by(|a, b| a >> 32 == b >> 32);
        let weight = |place: &u64| self.weights[(place & u64::from(u32::MAX)) as usize];
        of_one.map(|places| (TokenId((places[0] >> 32) as u32), places.iter().map(weight).sum())).collect()
    }

    /// Returns the weight of the tokens at distances `near..far`.
    fn sum(&self, near: u32, far: u32) -> f32 {
        let up_to = |distance: u32| self.sums[(distance as usize).min(WINDOW_TOKENS)];
        up_to(far) - up_to(near)
    }
}

/// Returns for each of `matches`, by ascending target position, true if it overlaps a match of another donor in the target: without a rival
/// there is nothing to prefer.
fn contested(matches: &[SpanMatch]) -> Vec<bool> {
    let mut contested = vec![false; matches.len()];
    // The two furthest ends so far, of different donors.
    let mut furthest: Option<(u32, DonorId)> = None;
    let mut second = None;
    for (i, found) in matches.iter().enumerate() {
        let rival = if furthest.is_some_and(|(_, donor)| donor == found.donor) { second } else { furthest };
        contested[i] = rival.is_some_and(|(end, _)| end > found.target_pos);
        let new = Some((found.target_range().end, found.donor));
        match furthest {
            Some((_, donor)) if donor == found.donor => furthest = furthest.max(new),
            _ if new > furthest => (furthest, second) = (new, furthest),
            _ if new > second => second = new,
            _ => {}
        }
    }
    // Start of the next match, and of the next one of another donor.
    let mut next: Option<(u32, DonorId)> = None;
    let mut next_other = None;
    for (i, found) in matches.iter().enumerate().rev() {
        if next.is_some_and(|(_, donor)| donor != found.donor) {
            next_other = next;
        }
        contested[i] |= next_other.is_some_and(|(start, _)| start < found.target_range().end);
        next = Some((found.target_pos, found.donor));
    }
    contested
}

/// Returns the shared weight of the tokens left of a span in target and donor, 0 for none and 1 for the same tokens at the same distances.
///
/// Each token weighs exp(-distance / 512); a token in both contributes the smaller of its two weights, and the sum is divided by the larger
/// of both sides' weights. Order counts through distance only, so slightly moved text still counts. Two empty contexts are the same.
#[must_use]
pub fn left_context_similarity(target_left: &[TokenId], donor_left: &[TokenId]) -> f32 {
    let decay = Decay::new();
    similarity(&decay.weights(target_left), &decay.weights(donor_left))
}

/// Weight of each token, by ascending token.
type Weights = Vec<(TokenId, f32)>;

fn similarity(target: &[(TokenId, f32)], donor: &[(TokenId, f32)]) -> f32 {
    let sum = |weights: &[(TokenId, f32)]| weights.iter().map(|(_, weight)| weight).sum::<f32>();
    let largest = sum(target).max(sum(donor));
    if largest <= 0.0 {
        return 1.0;
    }
    shared_weight(target, donor) / largest
}

/// Returns the sum of the smaller weights of the tokens in both lists.
fn shared_weight(a: &[(TokenId, f32)], b: &[(TokenId, f32)]) -> f32 {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut shared = 0.0;
    while let (Some((left, weight)), Some((right, other))) = (a.peek(), b.peek()) {
        match left.cmp(right) {
            Ordering::Less => drop(a.next()),
            Ordering::Greater => drop(b.next()),
            Ordering::Equal => {
                shared += weight.min(*other);
                a.next();
                b.next();
            }
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[track_caller]
    fn check(target: &[TokenId], donor: &[TokenId], expected: std::ops::RangeInclusive<f32>) {
        let similarity = left_context_similarity(target, donor);
        assert!(expected.contains(&similarity), "{similarity}");
        assert!((left_context_similarity(donor, target) - similarity).abs() < 1e-5);
    }

    #[test]
    fn equal_contexts_are_alike_and_foreign_ones_are_not() {
        let mut random = Random(1);
        let (a, b) = (random.tokens(3000, 1 << 20), random.tokens(3000, 1 << 20));
        check(&a, &a, 0.9999..=1.0001);
        check(&a, &b, 0.0..=0.02);
        check(&[], &[], 1.0..=1.0);
        check(&a, &[], 0.0..=0.0);
    }

    #[test]
    fn what_stands_near_counts_more() {
        let mut random = Random(2);
        let [a, b, shared] = [0, 1, 2].map(|_| random.tokens(500, 1 << 20));
        let near = left_context_similarity(&[a.clone(), shared.clone()].concat(), &[b.clone(), shared.clone()].concat());
        let far = left_context_similarity(&[shared.clone(), a].concat(), &[shared, b].concat());
        assert!(near > far + 0.2, "{near} {far}");
    }

    #[test]
    fn a_little_insertion_does_not_make_contexts_foreign() {
        let mut random = Random(3);
        let text = random.tokens(1000, 1 << 20);
        let longer = [&text[..900], &random.tokens(10, 1 << 20), &text[900..]].concat();
        check(&longer, &text, 0.95..=1.0);
    }
}
