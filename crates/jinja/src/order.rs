//! Sorting with comparisons that may fail or be unordered.

use std::cmp::Ordering;

use crate::error::Result;
use crate::value::Value;

/// Evaluates Python's `a < b`.
pub(crate) fn less(a: &Value, b: &Value) -> Result<bool> {
    Ok(a.compare(b, "<")? == Some(Ordering::Less))
}

/// Sorts `items` stably by `is_less`: a merge sort, because the standard one requires a total order.
///
/// # Errors
/// The first error of `is_less`.
pub(crate) fn sorted<T>(items: Vec<T>, is_less: impl Fn(&T, &T) -> Result<bool>) -> Result<Vec<T>> {
    let mut runs: Vec<Vec<T>> = items.into_iter().map(|item| vec![item]).collect();
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut pairs = runs.into_iter();
        while let Some(left) = pairs.next() {
            merged.push(match pairs.next() {
                Some(right) => merge(left, right, &is_less)?,
                None => left,
            });
        }
        runs = merged;
    }
    Ok(runs.pop().unwrap_or_default())
}

fn merge<T>(left: Vec<T>, right: Vec<T>, is_less: &impl Fn(&T, &T) -> Result<bool>) -> Result<Vec<T>> {
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let from = if is_less(b, a)? { &mut right } else { &mut left };
        merged.extend(from.next());
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_items_keep_their_order() {
        let items = vec![(2, 'a'), (1, 'b'), (2, 'c'), (1, 'd'), (0, 'e')];
        let sorted = sorted(items, |a, b| Ok(a.0 < b.0)).unwrap();
        assert_eq!(sorted, [(0, 'e'), (1, 'b'), (1, 'd'), (2, 'a'), (2, 'c')]);
    }
}
