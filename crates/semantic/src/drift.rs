//! Corrects the KV of tokens that are not recomputed by the differences seen at recomputed tokens of the same span.
//!
//! The KV of a moved span was computed under another left context. Part of the resulting difference is common to the span and drifts slowly
//! from token to token. The recomputed tokens show the difference exactly, layer by layer, so the K and V of the others are moved by a
//! smoothed sum of these differences without being computed. Keys differ smoothly only before rotation, so they are compared and moved
//! there.
//!
//! Half of the smoothed difference is applied. Tokens are recomputed because they differ most, so their difference overstates that of their
//! neighbours: with all of it, or with a regression in its place, one of two models became worse.

use tokens::TokenRange;

/// Distance over which differences are alike, in tokens. Values from 8 to 128 give much the same result.
const LENGTH: f32 = 16.0;
/// Weight of a zero difference, so that a far sample does not determine a token alone.
const PRIOR: f32 = 0.1;
/// Share of the smoothed difference that is applied. Constants found by a search over composition workloads.
const GAIN: f32 = 0.5;
/// Smaller weights are left out, which saves their work. Chosen: all of them together are some percent.
const MIN_WEIGHT: f32 = 1e-3;
/// Longest piece of a span that is processed at once: far more than `LENGTH`, and little work.
const MAX_PIECE_TOKENS: u32 = 512;

/// Weights by which the other tokens of one piece of a span follow its recomputed tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    /// Recomputed positions, ascending.
    pub samples: Vec<u32>,
    /// Following positions, ascending.
    pub targets: Vec<u32>,
    /// `[targets, samples]`: the correction of a target is the sum of the samples' differences with these weights. Weights of far samples
    /// are 0.
    pub weights: Vec<f32>,
}

/// Plans the corrections of the moved span `span`: positions in `recomputed` (sorted, disjoint) are recomputed, all others follow.
#[must_use]
pub fn follow_drift(span: TokenRange, recomputed: &[TokenRange]) -> Vec<Drift> {
    let pieces = span.positions().step_by(MAX_PIECE_TOKENS as usize);
    let piece = |start: u32| TokenRange::new(start, (start + MAX_PIECE_TOKENS).min(span.end));
    let nearness = nearness_by_distance(span.len().min(MAX_PIECE_TOKENS));
    pieces.filter_map(|start| Drift::of_piece(piece(start), recomputed, &nearness)).collect()
}

/// Returns `e^(−distance / LENGTH)` for the distances inside a piece. Each distance is used by about a hundred pairs.
fn nearness_by_distance(piece_tokens: u32) -> Vec<f32> {
    (0..piece_tokens).map(|distance| (-(distance as f32) / LENGTH).exp()).collect()
}

impl Drift {
    /// Returns `None` if the piece has no recomputed token or no other token.
    fn of_piece(piece: TokenRange, recomputed: &[TokenRange], nearness: &[f32]) -> Option<Self> {
        let first = recomputed.partition_point(|range| range.end <= piece.start);
        let (mut samples, mut targets, mut next) = (Vec::new(), Vec::new(), piece.start);
        for range in recomputed[first..].iter().take_while(|range| range.start < piece.end) {
            let sampled = range.start.max(next)..range.end.min(piece.end);
            targets.extend(next..sampled.start);
            next = sampled.end;
            samples.extend(sampled);
        }
        targets.extend(next..piece.end);
        if samples.is_empty() || targets.is_empty() {
            return None;
        }
        let mut weights = Vec::with_capacity(targets.len() * samples.len());
        targets.iter().for_each(|target| push_weights(*target, &samples, nearness, &mut weights));
        Some(Self { samples, targets, weights })
    }
}

/// Appends `GAIN e^(−distance / LENGTH)`, normalised over the samples and the prior.
fn push_weights(target: u32, samples: &[u32], nearness: &[f32], weights: &mut Vec<f32>) {
    let start = weights.len();
    weights.extend(samples.iter().map(|sample| nearness[target.abs_diff(*sample) as usize]));
    let of_target = &mut weights[start..];
    let total: f32 = PRIOR + of_target.iter().sum::<f32>();
    for weight in of_target {
        let normalised = GAIN * *weight / total;
        *weight = if normalised < MIN_WEIGHT { 0.0 } else { normalised };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the values added to the targets of a span, by position, when each sample position has `value`.
    fn followed(span: (u32, u32), recomputed: &[(u32, u32)], value: impl Fn(u32) -> f64) -> Vec<(u32, f64)> {
        let recomputed: Vec<_> = recomputed.iter().map(|&(start, end)| TokenRange::new(start, end)).collect();
        let mut found = Vec::new();
        for Drift { samples, targets, weights } in follow_drift(TokenRange::new(span.0, span.1), &recomputed) {
            for (target, weights) in targets.iter().zip(weights.chunks(samples.len())) {
                found.push((*target, weights.iter().zip(&samples).map(|(w, &sample)| f64::from(*w) * value(sample)).sum()));
            }
        }
        found
    }

    /// Computes the weights from the formula, position by position.
    fn by_formula(piece: TokenRange, recomputed: &[TokenRange]) -> Option<Drift> {
        let is_sample = |position: &u32| recomputed.iter().any(|range| range.contains(*position));
        let (samples, targets): (Vec<u32>, Vec<u32>) = piece.positions().partition(is_sample);
        let of_target = |target: &u32| {
            let nearness: Vec<f32> = samples.iter().map(|sample| (-(target.abs_diff(*sample) as f32) / LENGTH).exp()).collect();
            let total: f32 = PRIOR + nearness.iter().sum::<f32>();
            let weight = move |nearness: f32| GAIN * nearness / total;
            nearness.into_iter().map(weight).map(|weight| if weight < MIN_WEIGHT { 0.0 } else { weight }).collect::<Vec<_>>()
        };
        let weights = targets.iter().flat_map(of_target).collect();
        (!samples.is_empty() && !targets.is_empty()).then_some(Drift { samples, targets, weights })
    }

    #[test]
    fn pieces_have_the_bits_of_the_formula() {
        let mut state = 7u32;
        let mut below = |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % n
        };
        for _ in 0..40 {
            let mut recomputed: Vec<TokenRange> = Vec::new();
            while recomputed.last().map_or(0, |range| range.end) < 2500 {
                let start = recomputed.last().map_or(0, |range| range.end) + 1 + below(90);
                recomputed.push(TokenRange::new(start, start + 1 + below(30)));
            }
            let start = below(1000);
            let span = TokenRange::new(start, start + 1 + below(1500));
            let pieces = span.positions().step_by(MAX_PIECE_TOKENS as usize);
            let piece = |start: u32| TokenRange::new(start, (start + MAX_PIECE_TOKENS).min(span.end));
            let expected: Vec<_> = pieces.filter_map(|start| by_formula(piece(start), &recomputed)).collect();
            assert_eq!(follow_drift(span, &recomputed), expected, "{span:?}");
        }
    }

    #[test]
    fn a_common_difference_is_followed_by_all_that_are_near() {
        let found = followed((100, 200), &[(120, 136), (160, 176)], |_| 1.0);
        assert_eq!(found.len(), 68);
        for (position, value) in found {
            assert!(value > 0.4 && value < f64::from(GAIN), "{position}: {value}");
        }
    }

    #[test]
    fn a_slow_drift_is_interpolated() {
        let found = followed((0, 64), &[(0, 16), (48, 64)], f64::from);
        assert!(found.windows(2).all(|pair| pair[0].1 < pair[1].1), "{found:?}");
    }

    #[test]
    fn one_token_alone_says_little_far_away() {
        let found = followed((0, 200), &[(100, 101)], |_| 1.0);
        let at = |position: u32| found.iter().find(|(p, _)| *p == position).unwrap().1;
        assert!(at(101) > 0.4 && at(150) < 0.2 && at(0) < 0.02, "{} {} {}", at(101), at(150), at(0));
    }

    #[test]
    fn nothing_follows_where_nothing_is_recomputed_or_nothing_is_left() {
        assert_eq!(follow_drift(TokenRange::new(0, 100), &[]), []);
        assert_eq!(follow_drift(TokenRange::new(10, 100), &[TokenRange::new(0, 100)]), []);
    }

    #[test]
    fn long_spans_are_taken_piece_by_piece() {
        let recomputed: Vec<_> = (0..20).map(|i| TokenRange::new(i * 100, i * 100 + 10)).collect();
        let drifts = follow_drift(TokenRange::new(50, 1500), &recomputed);
        let targets: Vec<_> = drifts.iter().flat_map(|drift| drift.targets.clone()).collect();
        let samples: Vec<_> = drifts.iter().flat_map(|drift| drift.samples.clone()).collect();
        assert_eq!(drifts.len(), 3);
        assert_eq!((targets.len(), samples.len()), (1310, 140));
        assert!(targets.is_sorted() && samples.is_sorted());
    }
}
