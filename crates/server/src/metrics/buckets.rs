//! Bucket bounds of vLLM's histograms (vllm/v1/metrics/loggers.py, v0.11), so that its dashboards need no edit.

/// Time to the first token, in seconds.
pub(super) const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
    2560.0,
];

/// Time between tokens, in seconds.
pub(super) const INTER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];

/// Duration of a whole request or of a phase of it, in seconds.
pub(super) const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

/// Tokens per step.
pub(super) const ITERATION: &[f64] = &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// Deviation of reused KV, in tokens' worth of change.
pub(super) const DEVIATION: &[f64] = &[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// Number of answers requested.
pub(super) const N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// Returns 1, 2, 5, 10, 20, 50, … up to `max`.
pub(super) fn one_two_five(max: u32) -> Vec<f64> {
    (0u32..)
        .flat_map(|exponent| [1u64, 2, 5].map(|mantissa| mantissa * 10u64.saturating_pow(exponent)))
        .take_while(|&bound| bound <= u64::from(max.max(1)))
        .map(|bound| bound as f64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_end_at_the_maximum() {
        assert_eq!(one_two_five(99), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(one_two_five(100).last(), Some(&100.0));
        assert_eq!(one_two_five(0), [1.0]);
    }

    #[test]
    fn every_list_ascends() {
        for list in [TTFT, INTER_TOKEN, REQUEST, ITERATION, DEVIATION, N] {
            assert!(list.is_sorted());
        }
    }
}
