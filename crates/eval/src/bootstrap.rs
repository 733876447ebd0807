//! Confidence interval of a mean over a few requests.

use tokens::{SPLITMIX64_STEP, splitmix64};

/// Resamples of an interval. Chosen as is usual in the field: 10,000.
pub(crate) const NUM_RESAMPLES: u32 = 10_000;
/// Seed of the random generator: the same values give the same interval.
pub(crate) const SEED: u64 = 1;

/// Computes the 95 % percentile interval of the mean of `values`, by resampling with replacement (Efron 1979); `None` for no values.
///
/// For a difference between two runs, `values` are the differences of the same requests (paired).
pub(crate) fn mean_interval(values: &[f64]) -> Option<[f64; 2]> {
    if values.is_empty() {
        return None;
    }
    let mut random = SplitMix(SEED);
    let mut resampled_mean = || {
        let sum: f64 = values.iter().map(|_| values[random.below(values.len())]).sum();
        sum / values.len() as f64
    };
    let mut means: Vec<_> = (0..NUM_RESAMPLES).map(|_| resampled_mean()).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[(share * f64::from(NUM_RESAMPLES - 1)).round() as usize];
    Some([at(0.025), at(0.975)])
}

/// splitmix64 (Steele et al. 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        let next = splitmix64(self.0);
        self.0 = self.0.wrapping_add(SPLITMIX64_STEP);
        next
    }

    /// Draws uniformly from `0..n`, by the high half of a product; the bias is below `n / 2^64`.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_leave_no_doubt() {
        assert_eq!(mean_interval(&[0.25; 8]), Some([0.25, 0.25]));
        assert_eq!(mean_interval(&[]), None);
    }

    #[test]
    fn the_interval_is_that_of_the_normal_distribution_for_many_values() {
        let values: Vec<_> = (0..400).map(|i| f64::from(i % 2)).collect();
        let [low, high] = mean_interval(&values).unwrap();
        // The standard error of 400 tosses of a fair coin is 0.025.
        assert!((low - (0.5 - 1.96 * 0.025)).abs() < 0.005 && (high - (0.5 + 1.96 * 0.025)).abs() < 0.005, "{low} {high}");
    }

    #[test]
    fn the_same_values_give_the_same_interval() {
        let values = [0.1, 0.9, 0.4, 0.2];
        assert_eq!(mean_interval(&values), mean_interval(&values));
    }
}
