//! Sampling from a row of logits: adjustments, the likeliest token, a draw from what truncation leaves, log probabilities.

use std::cmp::Ordering;

/// Change of one token's logit before sampling; each token occurs at most once in a row.
///
/// `l += bias`, then `l / repetition` if it is positive and `l * repetition` if not (Keskar et al. 2019, sec. 4.1, as in Hugging Face),
/// then `l -= subtract`, where infinity masks the token.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Adjustment {
    /// Token; ids outside the vocabulary are ignored.
    pub token: u32,
    /// Added bias; 0 has no effect.
    pub bias: f32,
    /// Repetition penalty; 1 has no effect.
    pub repetition: f32,
    /// Subtracted value; 0 has no effect.
    pub subtract: f32,
}

impl Adjustment {
    /// Returns an adjustment without effect on `token`.
    #[must_use]
    pub fn none(token: u32) -> Self {
        Self { token, bias: 0.0, repetition: 1.0, subtract: 0.0 }
    }

    /// Changes its token's logit.
    pub fn apply(&self, logits: &mut [f32]) {
        let Some(logit) = logits.get_mut(self.token as usize) else { return };
        *logit += self.bias;
        *logit = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
        *logit -= self.subtract;
    }
}

/// Tokens that a draw may return, and their probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distribution {
    /// Divisor of the logits; at 0 or less nothing is drawn: the likeliest token is taken.
    pub temperature: f32,
    /// Number of likeliest tokens to keep; 0 keeps all.
    pub top_k: u32,
    /// Share of what top-k left; the smallest set of likeliest tokens that has it is kept; 1 keeps all.
    pub top_p: f32,
    /// Share of the likeliest token's probability below which tokens are dropped; 0 drops none.
    pub min_p: f32,
}

impl Distribution {
    /// Returns true if the likeliest token is taken.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// Returns true if some tokens may be dropped.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.top_k != 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}

/// Natural log probability of a token, and its rank; rank 1 is the likeliest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankedLogProb {
    /// Token id.
    pub token: u32,
    /// Log probability; at most 0.
    pub logprob: f32,
    /// 1 + the number of tokens with larger logits; in a list of likeliest tokens, the index in it from 1.
    pub rank: u32,
}

/// Returns the largest logit minus the second largest. NaN if the row cannot be sampled: one of its logits is NaN or positive infinity, or
/// no token is allowed.
#[must_use]
pub fn margin(logits: &[f32]) -> f32 {
    // Without a branch, so that it vectorises.
    let is_broken = logits.iter().fold(false, |is_broken, x| is_broken | x.is_nan() | (*x == f32::INFINITY));
    if is_broken {
        return f32::NAN;
    }
    let (first, second) = logits.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(first, second), x| {
        if *x > first { (*x, first) } else { (first, second.max(*x)) }
    });
    first - second
}

/// Sets the logits of all tokens that may not follow to negative infinity. Token `t` may follow if bit `t % 32` of `words[t / 32]` is set;
/// tokens beyond the words may not.
pub fn mask(logits: &mut [f32], words: &[u32]) {
    for (idx, logits) in logits.chunks_mut(32).enumerate() {
        match words.get(idx).copied().unwrap_or(0) {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            word => {
                let forbidden = logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
            }
        }
    }
}

/// Returns the likeliest token, the smallest id among equals.
#[must_use]
pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, x)| if *x > best.1 { (i, *x) } else { best });
    best.0 as u32
}

/// Number of candidates that top-k, top-p and min-p consider first: a truncated distribution rarely needs more.
const FIRST_CANDIDATES: usize = 1024;

/// Draws a token with `u` in 0..1: the first at which the sum of weights exceeds `u` of the total, in the order of tokens, or from the
/// likeliest on if tokens are dropped.
#[must_use]
pub fn draw(logits: &[f32], distribution: &Distribution, u: f64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from((logit - max) / distribution.temperature).exp();
    let total: f64 = logits.iter().map(|logit| weight(*logit)).sum();
    if !distribution.is_truncated() {
        return pick(logits.iter().enumerate().map(|(i, logit)| (i as u32, weight(*logit))), u * total);
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let limit = FIRST_CANDIDATES.max(distribution.top_k as usize);
    if limit < ids.len() {
        ids.select_nth_unstable_by(limit, |a, b| by_logit(logits, *a, *b));
    }
    let candidates = &mut ids[..limit.min(logits.len())];
    candidates.sort_unstable_by(|a, b| by_logit(logits, *a, *b));
    let kept = truncate(candidates.iter().map(|id| weight(logits[*id as usize])), total, distribution);
    // All that top-k leaves are candidates.
    if distribution.top_k != 0 || kept < candidates.len() || candidates.len() == logits.len() {
        let kept = &candidates[..kept];
        let sum: f64 = kept.iter().map(|id| weight(logits[*id as usize])).sum();
        return pick(kept.iter().map(|id| (*id, weight(logits[*id as usize]))), u * sum);
    }
    draw_wide(logits, weight, distribution, u, total, ids)
}

/// Draws as [`draw`] does if top-p or min-p keeps many tokens: finds boundaries by halving, so that only tokens near one are sorted.
fn draw_wide(
    logits: &[f32],
    weight: impl Fn(f32) -> f64,
    distribution: &Distribution,
    u: f64,
    total: f64,
    mut ids: Vec<u32>,
) -> u32 {
    let weight = |id: u32| weight(logits[id as usize]);
    let enough = f64::from(distribution.top_p) * total;
    let by_mass = num_until(&mut ids, logits, weight, |sum| sum >= enough);
    ids.truncate(by_mass);
    // Less likely tokens come last, so min-p also leaves a prefix.
    ids.retain(|id| weight(*id) >= f64::from(distribution.min_p));
    let kept: f64 = ids.iter().map(|id| weight(*id)).sum();
    let place = num_until(&mut ids, logits, weight, |sum| sum > u * kept);
    ids[place - 1]
}

/// Returns the number of the likeliest `ids` whose weights in descending order are `enough`; all if they never are. Moves them to the
/// front, the least likely of them last.
fn num_until(ids: &mut [u32], logits: &[f32], weight: impl Fn(u32) -> f64, enough: impl Fn(f64) -> bool) -> usize {
    let (mut start, mut end, mut before) = (0, ids.len(), 0.0);
    // The index in `start..end` at which the weights before `start`, and those up to it, are enough.
    while end - start > 1 {
        let middle = start + (end - start) / 2;
        ids[start..end].select_nth_unstable_by(middle - start, |a, b| by_logit(logits, *a, *b));
        let upper: f64 = ids[start..middle].iter().map(|id| weight(*id)).sum();
        if enough(before + upper) {
            end = middle;
        } else {
            start = middle;
            before += upper;
        }
    }
    end
}

/// Returns the number of the descending `weights` to keep; at least one.
fn truncate(weights: impl Iterator<Item = f64>, total: f64, distribution: &Distribution) -> usize {
    let top_k = if distribution.top_k == 0 { usize::MAX } else { distribution.top_k as usize };
    // Top-p is a share of what top-k left, as in vLLM; the likeliest weight is 1 by construction.
    let weights: Vec<f64> = weights.take(top_k).collect();
    let total = if top_k == usize::MAX { total } else { weights.iter().sum() };
    let mut sum = 0.0;
    let mut kept = 0;
    for weight in weights {
        if kept > 0 && (sum >= f64::from(distribution.top_p) * total || weight < f64::from(distribution.min_p)) {
            break;
        }
        sum += weight;
        kept += 1;
    }
    kept
}

/// Returns the first token at which the running sum of weights exceeds `target`.
fn pick(weights: impl Iterator<Item = (u32, f64)>, target: f64) -> u32 {
    let mut sum = 0.0;
    let mut last = 0;
    for (id, weight) in weights.filter(|(_, weight)| *weight > 0.0) {
        sum += weight;
        last = id;
        if sum > target {
            break;
        }
    }
    last
}

/// Returns the log probability of `chosen`, and of the `top` likeliest tokens in descending order.
#[must_use]
pub fn log_probs(logits: &[f32], chosen: u32, top: u32) -> (RankedLogProb, Vec<RankedLogProb>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_total = logits.iter().map(|logit| f64::from(logit - max).exp()).sum::<f64>().ln();
    let logprob = |id: u32| (f64::from(logits[id as usize] - max) - log_total) as f32;
    let ids = likeliest(logits, top as usize);
    let rank = 1 + logits.iter().filter(|logit| **logit > logits[chosen as usize]).count() as u32;
    let top = (1..).zip(ids).map(|(rank, token)| RankedLogProb { token, logprob: logprob(token), rank }).collect();
    (RankedLogProb { token: chosen, logprob: logprob(chosen), rank }, top)
}

/// Returns the `top` likeliest tokens in descending order, or all if there are fewer.
///
/// One pass keeps those above the last one known to be too unlikely; a long vocabulary is neither listed nor sorted.
fn likeliest(logits: &[f32], top: usize) -> Vec<u32> {
    let mut kept: Vec<u32> = Vec::new();
    if top == 0 {
        return kept;
    }
    // A multiple of `top` makes the selections rare.
    let most = 4 * top + 32;
    let mut least: Option<f32> = None;
    for (id, logit) in (0..).zip(logits) {
        // Ids ascend, so an equal logit comes after those that are kept.
        if least.is_some_and(|least| logit.total_cmp(&least).is_le()) {
            continue;
        }
        kept.push(id);
        if kept.len() == most {
            kept.select_nth_unstable_by(top - 1, |a, b| by_logit(logits, *a, *b));
            kept.truncate(top);
            least = Some(logits[kept[top - 1] as usize]);
        }
    }
    kept.sort_unstable_by(|a, b| by_logit(logits, *a, *b));
    kept.truncate(top);
    kept
}

/// Compares in descending order, the smallest id first among equals.
fn by_logit(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Distribution = Distribution { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Counts tokens drawn with 2,000 evenly spaced values of `u` from the distribution `e^logits`.
    fn histogram(logits: &[f32], distribution: Distribution) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for i in 0..2000 {
            counts[draw(logits, &distribution, f64::from(i) / 2000.0) as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let counts = histogram(&[0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()], ALL);
        for (count, expected) in counts.iter().zip([1000usize, 600, 400]) {
            assert!(count.abs_diff(expected) <= 1, "{counts:?}");
        }
    }

    #[test]
    fn top_k_keeps_the_likeliest() {
        let counts = histogram(&[0.0, 3.0, 1.0, 2.0], Distribution { top_k: 2, ..ALL });
        assert!(counts[0] == 0 && counts[2] == 0 && counts[1] > 0 && counts[3] > 0, "{counts:?}");
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let counts = histogram(&[0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()], Distribution { top_p: 0.6, ..ALL });
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn min_p_drops_what_is_unlikely_beside_the_likeliest() {
        let counts = histogram(&[0.0, -1.0, -3.0], Distribution { min_p: 0.2, ..ALL });
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn a_flat_distribution_wider_than_the_first_candidates_is_kept_whole() {
        let counts = histogram(&vec![0.0; 3 * FIRST_CANDIDATES], Distribution { top_p: 0.99, ..ALL });
        assert!(counts.iter().skip(2 * FIRST_CANDIDATES).any(|count| *count > 0));
    }

    /// Compares flat rows, with groups of equal logits, with the result of sorting all tokens.
    #[test]
    fn wide_draws_are_those_of_a_sorted_vocabulary() {
        for (seed, levels) in [(1, 1e6), (2, 20.0)] {
            let noise = crate::cpu::testing::noise(20_000, seed);
            let logits: Vec<f32> = noise.iter().map(|x| (x * levels).round() / levels * 3.0).collect();
            let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
            sorted.sort_by(|a, b| by_logit(&logits, *a, *b));
            let max = logits[sorted[0] as usize];
            for (top_k, top_p, min_p) in [(0, 0.9, 0.0), (0, 0.5, 0.1), (0, 1.0, 0.2), (9000, 0.8, 0.0), (0, 0.999_999, 0.0)] {
                let distribution = Distribution { top_k, top_p, min_p, temperature: 0.7 };
                let weight = |id: &u32| (f64::from((logits[*id as usize] - max) / 0.7)).exp();
                let kept = truncate(sorted.iter().map(weight), sorted.iter().map(weight).sum(), &distribution);
                let sum: f64 = sorted[..kept].iter().map(weight).sum();
                for i in 0..50 {
                    // Away from the boundaries, which other orders of additions shift by rounding.
                    let u = (f64::from(i) + 0.123_456_7) / 50.0;
                    let expected = pick(sorted[..kept].iter().map(|id| (*id, weight(id))), u * sum);
                    assert_eq!(draw(&logits, &distribution, u), expected, "{distribution:?} {u}");
                }
            }
        }
    }

    #[test]
    fn an_adjustment_adds_then_penalises_then_subtracts() {
        let mut logits = [1.0, -2.0, 3.0];
        for token in [0, 1, 7] {
            Adjustment { token, bias: 1.0, repetition: 2.0, subtract: 0.5 }.apply(&mut logits);
        }
        Adjustment { subtract: f32::INFINITY, ..Adjustment::none(2) }.apply(&mut logits);
        assert_eq!(logits, [0.5, -2.5, f32::NEG_INFINITY]);
    }

    #[test]
    fn the_likeliest_are_those_of_a_sorted_vocabulary() {
        for (len, levels) in [(1, 3.0), (40, 3.0), (5000, 1e6), (5000, 7.0), (5000, 1.0)] {
            // Few levels give many equal logits.
            let mut logits: Vec<f32> = crate::cpu::testing::noise(len, 5).iter().map(|x| (x * levels).round()).collect();
            logits.iter_mut().step_by(11).for_each(|logit| *logit = f32::NEG_INFINITY);
            let mut sorted: Vec<u32> = (0..len as u32).collect();
            sorted.sort_by(|a, b| by_logit(&logits, *a, *b));
            for top in [0, 1, 5, 20, 256, 6000] {
                assert_eq!(likeliest(&logits, top), sorted[..top.min(len)], "{top} of {len}");
            }
        }
    }

    #[test]
    fn a_row_that_is_no_distribution_has_no_margin() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for broken in [[nan, 0.0, 1.0], [0.0, 1.0, nan], [nan, nan, nan], [inf, 0.0, 0.0], [inf, inf, 0.0], [-inf, -inf, -inf]] {
            assert!(margin(&broken).is_nan(), "{broken:?}");
        }
        assert_eq!((margin(&[1.0, 3.0, -inf]), margin(&[-inf, 3.0, -inf])), (2.0, inf));
    }

    #[test]
    fn log_probs_are_normalised_and_ranked() {
        let (chosen, top) = log_probs(&[0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()], 0, 2);
        assert!((chosen.logprob - 0.2f32.ln()).abs() < 1e-6 && chosen.rank == 3);
        assert_eq!(top.iter().map(|p| (p.token, p.rank)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    }

    #[test]
    fn a_mask_leaves_the_logits_of_what_may_follow() {
        // A model may have more logits than the mask has bits.
        let mut logits = vec![1.0; 80];
        mask(&mut logits, &[1 | 1 << 31, u32::MAX]);
        for (token, logit) in logits.into_iter().enumerate() {
            assert_eq!(logit == 1.0, matches!(token, 0 | 31 | 32..64), "{token}");
        }
    }
}
