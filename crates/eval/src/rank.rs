//! Rank correlation of two figures.

/// Computes Spearman's rank correlation of pairs, from −1 to 1; `None` for fewer than three pairs, or if one side is constant.
pub(crate) fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 3 {
        return None;
    }
    let xs = ranks(pairs.iter().map(|pair| pair.0));
    let ys = ranks(pairs.iter().map(|pair| pair.1));
    let mean = (pairs.len() + 1) as f64 / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let spread = (product(&xs, &xs) * product(&ys, &ys)).sqrt();
    (spread > 0.0).then(|| product(&xs, &ys) / spread)
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<_> = values.collect();
    let rank = |x: &f64| {
        let below = values.iter().filter(|y| *y < x).count();
        let equal = values.iter().filter(|y| *y == x).count();
        below as f64 + (equal + 1) as f64 / 2.0
    };
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pairs: &[(f64, f64)], expected: Option<f64>) {
        match (spearman(pairs), expected) {
            (Some(found), Some(expected)) => assert!((found - expected).abs() < 1e-9, "{found}"),
            (found, expected) => assert_eq!(found, expected),
        }
    }

    #[test]
    fn only_the_order_counts() {
        check(&[(1.0, 10.0), (2.0, 100.0), (3.0, 1e6)], Some(1.0));
        check(&[(1.0, 3.0), (2.0, 2.0), (9.0, 1.0)], Some(-1.0));
    }

    #[test]
    fn ties_share_their_rank() {
        check(&[(1.0, 1.0), (1.0, 2.0), (2.0, 3.0)], Some(0.75f64.sqrt()));
    }

    #[test]
    fn what_does_not_vary_correlates_with_nothing() {
        check(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], None);
        check(&[(1.0, 1.0), (2.0, 2.0)], None);
    }
}
