//! Evidence that a mean lies above its bound, gathered one value at a time.
//!
//! The test is a bet (Waudby-Smith and Ramdas 2024, arXiv 2010.09686, the "hedged capital" of one side): each value `x` multiplies a
//! capital by `1 + b (x/m − 1)`, where `m` is the bound of the mean and `b` a fixed share of the capital. While the mean given the past
//! is at most `m`, the capital does not grow in expectation, whatever the distribution of the values. A
//! fresh stake joins at every value, so that a class that was good for long and turns bad is found nearly as fast as a new one
//! (Shin, Ramdas and Rinaldo, arXiv 2203.03532, the Shiryaev–Roberts e-detector).
//!
//! Error rate: under the bound, capital less stakes is a nonnegative supermartingale, so by Ville's inequality the capital reaches `1/α`
//! within the first `n` values with probability at most `α (1 + n / 1000)`.

/// Shares of the capital that are bet, and the weights of these bets. Chosen by bootstrap of published answers (`benches/scale/guard.md`):
/// the large bet finds a mean of three times the bound in a few dozen values, the small one any mean that is a tenth above it.
const BETS: [Bet; 2] = [Bet { share: 0.25, weight: 0.85 }, Bet { share: 0.05, weight: 0.15 }];

/// Capital that joins at each value, for one unit at the start.
const STAKE: f64 = 1e-3;

struct Bet {
    share: f64,
    weight: f64,
}

/// Evidence against the hypothesis that a mean is at most its bound: the capital of each of [`BETS`]. Under the hypothesis, a capital grows
/// in expectation by its stakes only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Evidence {
    capitals: [f64; BETS.len()],
}

impl Default for Evidence {
    /// Starts without evidence.
    fn default() -> Self {
        Self { capitals: [1.0; BETS.len()] }
    }
}

impl Evidence {
    /// Adds `value`, at least 0, against the bound `bound` of its mean. A bound of 0 takes no bet; an infinite one is never missed.
    pub(crate) fn add(&mut self, value: f64, bound: f64) {
        let excess = value / bound - 1.0;
        if !excess.is_finite() {
            return;
        }
        for (capital, bet) in self.capitals.iter_mut().zip(&BETS) {
            *capital = (*capital + STAKE) * (1.0 + bet.share * excess);
        }
    }

    /// Returns the capital as a share of `1/error_rate`: at 1 or above, the mean is confidently above its bound.
    pub(crate) fn strength(&self, error_rate: f64) -> f64 {
        let capital: f64 = self.capitals.iter().zip(&BETS).map(|(capital, bet)| capital * bet.weight).sum();
        capital * error_rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Counts the values until the evidence against a mean of 1 suffices at an error rate of 5 %, at most `max`.
    fn values_until_sure(max: usize, mut value: impl FnMut(usize) -> f64) -> Option<usize> {
        let mut evidence = Evidence::default();
        (0..max).position(|idx| {
            evidence.add(value(idx), 1.0);
            evidence.strength(0.05) >= 1.0
        })
    }

    #[test]
    fn a_constant_below_the_bound_is_never_found_and_one_at_it_when_the_stakes_suffice() {
        assert_eq!(values_until_sure(100_000, |_| 0.99), None);
        assert_eq!(values_until_sure(18_000, |_| 1.0), None);
    }

    #[test]
    fn the_farther_above_the_bound_the_sooner_it_is_found() {
        let found = [1.1, 1.5, 3.0, 20.0].map(|value| values_until_sure(2000, |_| value).expect("it is above the bound"));
        assert!(found.is_sorted_by(|a, b| a > b), "{found:?}");
        assert!(found[2] <= 8 && found[3] >= 1, "{found:?}");
    }

    /// Half of the values are 0 and half 2: the mean is exactly the bound. Likewise with one 20 in twenty values.
    #[test]
    fn a_mean_at_the_bound_is_found_no_more_often_than_stated() {
        for (period, num_runs) in [(2, 2000), (20, 2000)] {
            let mut random = Random(11 + period as u64);
            let mut value = || if random.below(period) == 0 { period as f64 } else { 0.0 };
            let num_found = (0..num_runs).filter(|_| values_until_sure(1000, |_| value()).is_some()).count();
            assert!(num_found as f64 <= 0.1 * f64::from(num_runs), "{num_found} of {num_runs} at 1 in {period}");
        }
    }

    #[test]
    fn a_long_good_past_does_not_buy_a_bad_future() {
        let found = values_until_sure(2000, |idx| if idx < 1000 { 0.2 } else { 3.0 }).unwrap();
        assert!((1001..1064).contains(&found), "{found}");
    }

    #[test]
    fn a_bound_that_asks_for_nothing_finds_nothing() {
        for bound in [f64::INFINITY, 0.0] {
            let mut evidence = Evidence::default();
            (0..100).for_each(|_| evidence.add(0.0, bound));
            assert!(evidence.strength(0.05) < 1.0, "{bound}");
        }
    }
}
