//! How alike two left contexts are.

use std::cell::RefCell;
use std::cmp::Ordering;

use tokens::{DonorId, TokenId};

use crate::{DonorPrompts, PlanTarget, PromptView, SpanMatch};

/// Tokens over which the weight of a token falls to 1/e. Chosen, after how attention falls with distance.
const DECAY_TOKENS: f32 = 512.0;
/// Tokens looked at: further left, weights are below 2 %.
const WINDOW_TOKENS: usize = 2048;

/// Prefers, between donors of the same text, the one whose left context is most like the target's.
///
/// That is what foretells how far its KV is off, better than embeddings do. It looks at up to 2048 tokens on both sides of each match.
///
/// Made for one plan: it remembers the weights left of the target position asked about last, since matches come by position.
#[derive(Debug)]
pub struct ByLeftContext<'a, D> {
    donors: &'a D,
    last: RefCell<Option<(u32, Weights)>>,
}

impl<'a, D> ByLeftContext<'a, D> {
    /// Preferences among `donors`, for one target.
    #[must_use]
    pub const fn new(donors: &'a D) -> Self {
        Self { donors, last: RefCell::new(None) }
    }
}

impl<D: DonorPrompts> DonorPrompts for ByLeftContext<'_, D> {
    fn prompt_of(&self, donor: DonorId) -> Option<PromptView<'_>> {
        self.donors.prompt_of(donor)
    }

    fn preference(&self, target: &PlanTarget<'_>, found: &SpanMatch) -> f32 {
        let Some(donor) = self.donors.prompt_of(found.donor) else { return 0.0 };
        let mut last = self.last.borrow_mut();
        if last.as_ref().is_none_or(|(position, _)| *position != found.target_pos) {
            *last = Some((found.target_pos, weights(&target.prompt.tokens[..found.target_pos as usize])));
        }
        let (_, of_target) = last.as_ref().expect("it was just remembered");
        similarity(of_target, &weights(&donor.tokens[..found.donor_pos as usize]))
    }
}

/// Shared weight of the tokens left of a span in target and donor, 0 for none and 1 for the same tokens at the same distances.
///
/// Each token weighs exp(-distance / 512); of a token that both have, the smaller of its two weights is shared, and the sum is divided
/// by the larger of both sides' weights. Order counts through distance only, so that text that was moved a little still counts. Two
/// empty contexts are the same.
#[must_use]
pub fn left_context_similarity(target_left: &[TokenId], donor_left: &[TokenId]) -> f32 {
    similarity(&weights(target_left), &weights(donor_left))
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

/// Sum of the smaller weights of the tokens that both lists have.
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

/// [`Weights`] are lists, because a map of two thousand tokens takes several times as long to fill.
fn weights(left: &[TokenId]) -> Weights {
    let weight = |(distance, &token): (usize, &TokenId)| (token, (-(distance as f32) / DECAY_TOKENS).exp());
    let mut weights: Vec<_> = left.iter().rev().take(WINDOW_TOKENS).enumerate().map(weight).collect();
    // Stable: the weights of a token are added from near to far.
    weights.sort_by_key(|(token, _)| *token);
    weights.dedup_by(|later, first| {
        let is_same = later.0 == first.0;
        if is_same {
            first.1 += later.1;
        }
        is_same
    });
    weights
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
