//! What recomputed tokens say about their neighbours.
//!
//! The KV of a moved span was computed behind another left context, and much of the difference that makes is common to the span: it
//! drifts slowly from token to token. The recomputed tokens of a span show it exactly, layer by layer, so the others can follow
//! without being computed: their K and V are moved by an interpolation of the differences seen at the recomputed ones. Keys differ
//! smoothly only before rotation, so that is where they are compared and moved.
//!
//! The interpolation is Gaussian process regression (Rasmussen and Williams 2006, eq. 2.23) with a kernel over the distance of
//! positions, which is the same in all layers and heads: one matrix for each span.

use tokens::TokenRange;

/// Distance over which differences are alike, in tokens.
const LENGTH: f64 = 32.0;
/// Variance of what is common to the whole span, beside 1 for what varies along it.
const COMMON: f64 = 0.3;
/// Variance of what a token has of its own.
const NOISE: f64 = 0.3;
/// Share of the interpolated difference that is applied. Constants found by a search over composition workloads.
const GAIN: f64 = 0.7;
/// Longest piece of a span that is interpolated at once: far more than `LENGTH`, and little work.
const MAX_PIECE_TOKENS: u32 = 512;

/// How the tokens of one piece of a span follow those of it that are recomputed.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    /// Positions that are recomputed, ascending.
    pub samples: Vec<u32>,
    /// Positions that follow, ascending.
    pub targets: Vec<u32>,
    /// `[targets, samples]`: what is added to a target is the sum of the samples' differences with these weights.
    pub weights: Vec<f32>,
}

/// For the moved span `span`, of which positions in `recomputed` (sorted, disjoint) are recomputed and all others are to follow.
#[must_use]
pub fn follow_drift(span: TokenRange, recomputed: &[TokenRange]) -> Vec<Drift> {
    let pieces = span.positions().step_by(MAX_PIECE_TOKENS as usize);
    let piece = |start: u32| TokenRange::new(start, (start + MAX_PIECE_TOKENS).min(span.end));
    pieces.filter_map(|start| Drift::of_piece(piece(start), recomputed)).collect()
}

impl Drift {
    /// `None` if nobody could follow or nobody shows the way.
    fn of_piece(piece: TokenRange, recomputed: &[TokenRange]) -> Option<Self> {
        let is_sample = |position: &u32| recomputed.iter().any(|range| range.contains(*position));
        let (samples, targets): (Vec<u32>, Vec<u32>) = piece.positions().partition(is_sample);
        let is_useful = !samples.is_empty() && !targets.is_empty();
        is_useful.then(|| Self { weights: weights(&samples, &targets), samples, targets })
    }
}

fn covariance(a: u32, b: u32) -> f64 {
    (-f64::from(a.abs_diff(b)) / LENGTH).exp() + COMMON
}

/// `GAIN · K(targets, samples) (K(samples, samples) + NOISE)⁻¹`
fn weights(samples: &[u32], targets: &[u32]) -> Vec<f32> {
    let n = samples.len();
    let factor = cholesky(samples);
    let mut weights = Vec::with_capacity(targets.len() * n);
    let mut x = vec![0.0; n];
    for &target in targets {
        for i in 0..n {
            let known: f64 = (0..i).map(|j| factor[i * n + j] * x[j]).sum();
            x[i] = (covariance(target, samples[i]) - known) / factor[i * n + i];
        }
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|j| factor[j * n + i] * x[j]).sum();
            x[i] = (x[i] - known) / factor[i * n + i];
        }
        weights.extend(x.iter().map(|x| (GAIN * x) as f32));
    }
    weights
}

/// The lower triangle `L` with `L Lᵀ = K(samples, samples) + NOISE`, which is positive definite.
fn cholesky(samples: &[u32]) -> Vec<f64> {
    let n = samples.len();
    let mut factor = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| factor[i * n + k] * factor[j * n + k]).sum();
            let noise = if i == j { NOISE } else { 0.0 };
            let rest = covariance(samples[i], samples[j]) + noise - known;
            factor[i * n + j] = if i == j { rest.sqrt() } else { rest / factor[j * n + j] };
        }
    }
    factor
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a value at each sample position makes of the targets of a span, by position.
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

    #[test]
    fn a_common_difference_is_followed_by_all_that_are_near() {
        let found = followed((100, 200), &[(120, 136), (160, 176)], |_| 1.0);
        assert_eq!(found.len(), 68);
        for (position, value) in found {
            assert!(value > 0.4 && value < GAIN, "{position}: {value}");
        }
    }

    #[test]
    fn a_slow_drift_is_interpolated() {
        let found = followed((0, 128), &[(0, 16), (112, 128)], |position| f64::from(position));
        assert!(found.windows(2).all(|pair| pair[0].1 < pair[1].1), "{found:?}");
    }

    #[test]
    fn one_token_alone_says_little_and_less_far_away() {
        let found = followed((0, 200), &[(100, 101)], |_| 1.0);
        let at = |position: u32| found.iter().find(|(p, _)| *p == position).unwrap().1;
        assert!(at(101) < 0.6 && at(150) < 0.5 * at(101) && at(0) > 0.1, "{} {} {}", at(101), at(150), at(0));
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

    #[test]
    fn weights_solve_the_regression() {
        let (samples, target) = ([3, 5, 40], 9);
        let found = weights(&samples, &[target]);
        for (i, &a) in samples.iter().enumerate() {
            let row = samples
                .iter()
                .enumerate()
                .map(|(j, &b)| (covariance(a, b) + if i == j { NOISE } else { 0.0 }) * f64::from(found[j]) / GAIN);
            assert!((row.sum::<f64>() - covariance(target, a)).abs() < 1e-6);
        }
    }
}
