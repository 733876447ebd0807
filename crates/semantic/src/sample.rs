//! Samples of moved tokens that are measured for their neighbours.
//!
//! A token deviates nearly as much as its neighbours, and rows are selected in runs: one measured token of a few is enough to rank them,
//! and a probe of these costs as small a part of a full probe.

use tokens::TokenRange;

use crate::TokenDeviation;

/// Returns the measured positions of `reused`: of each `stride` neighbours in one range, the first. Ascending, as the ranges are.
pub fn sampled_positions(reused: &[TokenRange], stride: u32) -> impl Iterator<Item = u32> + '_ {
    reused.iter().flat_map(move |range| range.positions().step_by(stride.max(1) as usize))
}

/// Returns one entry for each position of `reused`: that of the measured token that represents it. `measured` has one for each of
/// [`sampled_positions`].
///
/// # Panics
/// If `measured` has fewer.
#[must_use]
pub fn spread(reused: &[TokenRange], stride: u32, measured: &[TokenDeviation]) -> Vec<TokenDeviation> {
    let mut rest = measured;
    let mut all = Vec::new();
    for range in reused {
        let (of_range, others) = rest.split_at(range.len().div_ceil(stride.max(1)) as usize);
        rest = others;
        all.extend((0..range.len()).map(|offset| of_range[(offset / stride.max(1)) as usize]));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stride: u32, expected: &[u32], spread_out: &[f32]) {
        let reused = [TokenRange::new(3, 8), TokenRange::new(10, 12)];
        let positions: Vec<_> = sampled_positions(&reused, stride).collect();
        assert_eq!(positions, expected);
        let value = |&position: &u32| TokenDeviation { value_l2: position as f32, ..TokenDeviation::default() };
        let measured: Vec<_> = positions.iter().map(value).collect();
        let all: Vec<_> = spread(&reused, stride, &measured).iter().map(|found| found.value_l2).collect();
        assert_eq!(all, spread_out);
    }

    #[test]
    fn each_token_is_like_the_measured_one_before_it_in_its_range() {
        check(1, &[3, 4, 5, 6, 7, 10, 11], &[3., 4., 5., 6., 7., 10., 11.]);
        check(2, &[3, 5, 7, 10], &[3., 3., 5., 5., 7., 10., 10.]);
        check(4, &[3, 7, 10], &[3., 3., 3., 3., 7., 10., 10.]);
        check(9, &[3, 10], &[3., 3., 3., 3., 3., 10., 10.]);
    }
}
