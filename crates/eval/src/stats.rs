//! Mean and percentiles of measured values.

use serde::{Deserialize, Serialize};

/// Summary of a sample, in the unit of its values. All zero for an empty sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Values.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Summary {
    /// Summarizes values in any order.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<_> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        if sorted.is_empty() {
            return Self::default();
        }
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        let at = |percent| percentile(&sorted, percent);
        Self { n: sorted.len(), mean, p50: at(50.0), p90: at(90.0), p99: at(99.0) }
    }
}

/// Returns the `percent`-th percentile of ascending values, linear between neighbours (method 7 of Hyndman and Fan 1996).
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = percent / 100.0 * (sorted.len() - 1) as f64;
    let below = rank.floor() as usize;
    let above = rank.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (rank - rank.floor())
}

/// Returns the median; 0 for no values.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Summary::of(values).p50
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[f64], percent: f64, expected: f64) {
        assert!((percentile(values, percent) - expected).abs() < 1e-9, "{}", percentile(values, percent));
    }

    #[test]
    fn percentiles_are_linear_between_neighbours() {
        check(&[1.0, 2.0, 3.0, 4.0], 50.0, 2.5);
        check(&[1.0, 2.0, 3.0, 4.0], 90.0, 3.7);
        check(&[10.0, 20.0], 99.0, 19.9);
        check(&[7.0], 99.0, 7.0);
        check(&[1.0, 2.0, 3.0], 100.0, 3.0);
    }

    #[test]
    fn order_does_not_matter() {
        let summary = Summary::of([3.0, 1.0, 2.0]);
        assert_eq!((summary.n, summary.mean, summary.p50), (3, 2.0, 2.0));
    }

    #[test]
    fn nothing_measured_is_all_zero() {
        assert_eq!(Summary::of([]), Summary::default());
    }
}
