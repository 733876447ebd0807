//! Divergence between two distributions over tokens, of which only the likeliest tokens are known.

use std::collections::BTreeMap;

use crate::LogProb;

/// Minimum probability of the remaining tokens, so that rounding errors do not count. Chosen: below what f32 logits resolve.
const MIN_REST: f64 = 1e-9;

/// Computes KL(full || reuse) in nats, over the partition into the tokens of `full` and all other tokens together.
///
/// `reuse` should report more tokens than `full`. A token of `full` that it does not report gets its least reported probability,
/// which that token cannot exceed: the term counts too little rather than too much, and only where `reuse` finds a likely token
/// very unlikely. The remaining tokens have what is left of 1, on either side at least `MIN_REST`.
///
/// Because it merges the remaining tokens, the result is a lower bound of the divergence over all tokens. It is NaN if one of the
/// log probabilities is.
#[must_use]
pub fn kl_divergence(full: &[LogProb], reuse: &[LogProb]) -> f64 {
    if full.iter().chain(reuse).any(|entry| entry.logprob.is_nan()) {
        return f64::NAN;
    }
    let reported: BTreeMap<_, _> = reuse.iter().map(|entry| (entry.token, f64::from(entry.logprob))).collect();
    let least = reported.values().copied().fold(0.0, f64::min);
    let (mut p_sum, mut q_sum, mut divergence) = (0.0, 0.0, 0.0);
    for entry in full {
        let log_p = f64::from(entry.logprob);
        let log_q = reported.get(&entry.token).copied().unwrap_or(least);
        let p = log_p.exp();
        p_sum += p;
        q_sum += log_q.exp();
        if p > 0.0 {
            divergence += p * (log_p - log_q);
        }
    }
    let (p_rest, q_rest) = ((1.0 - p_sum).max(MIN_REST), (1.0 - q_sum).max(MIN_REST));
    divergence + p_rest * (p_rest / q_rest).ln()
}

#[cfg(test)]
mod tests {
    use tokens::TokenId;

    use super::*;

    fn distribution(probabilities: &[(u32, f64)]) -> Vec<LogProb> {
        let entry = |(rank, &(token, p)): (u32, &(u32, f64))| LogProb { token: TokenId(token), logprob: p.ln() as f32, rank };
        (1..).zip(probabilities).map(entry).collect()
    }

    #[track_caller]
    fn check(full: &[(u32, f64)], reuse: &[(u32, f64)], expected: f64) {
        let found = kl_divergence(&distribution(full), &distribution(reuse));
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }

    #[test]
    fn equal_distributions_do_not_diverge() {
        check(&[(1, 0.5), (2, 0.3)], &[(1, 0.5), (2, 0.3), (3, 0.1)], 0.0);
        check(&[(1, 1.0)], &[(1, 1.0)], 0.0);
    }

    #[test]
    fn tokens_are_matched_by_id_and_the_rest_counts_as_one() {
        let expected = 0.5 * (0.5f64 / 0.2).ln() + 0.3 * (0.3f64 / 0.6).ln() + 0.2 * (0.2f64 / 0.2).ln();
        check(&[(1, 0.5), (2, 0.3)], &[(2, 0.6), (1, 0.2), (9, 0.15)], expected);
        check(&[(1, 0.9)], &[(1, 0.5), (2, 0.5)], 0.9 * (0.9f64 / 0.5).ln() + 0.1 * (0.1f64 / 0.5).ln());
    }

    #[test]
    fn a_token_that_reuse_does_not_report_gets_its_least_reported_probability() {
        let expected = 0.6 * (0.6f64 / 0.7).ln() + 0.4 * (0.4f64 / 0.1).ln() + 1e-9 * (1e-9f64 / 0.2).ln();
        check(&[(1, 0.6), (2, 0.4)], &[(1, 0.7), (3, 0.1)], expected);
    }

    #[test]
    fn what_is_not_a_number_on_either_side_is_no_agreement() {
        let (good, bad) = (distribution(&[(1, 0.9), (2, 0.1)]), distribution(&[(1, 0.9), (2, f64::NAN)]));
        assert!(kl_divergence(&good, &bad).is_nan() && kl_divergence(&bad, &good).is_nan());
        assert_eq!(kl_divergence(&good, &distribution(&[(1, 1.0), (2, 0.0)])), f64::INFINITY);
    }

    #[test]
    fn a_rest_of_nothing_is_finite() {
        check(&[(1, 0.9)], &[(1, 1.0)], 0.9 * 0.9f64.ln() + 0.1 * (0.1f64 / 1e-9).ln());
    }
}
