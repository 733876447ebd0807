//! Selects the reused tokens to recompute.
//!
//! KV of a moved span was computed under another left context. Recomputing a few of its tokens, which attend to everything before them,
//! repairs most of the error, if they are the right ones. Every rule here is a score for each reused token and spends a budget of tokens on
//! the highest ones. Two kinds of measurement feed the scores: the distance of a token's K and V at an early layer from a fresh
//! computation, and the attention it receives. [`RepairPolicy::probe`] returns those that a rule needs.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use tokens::TokenRange;

use crate::deviation::{Deviation, unit_of};
use crate::{Repair, RepairPolicy, TokenDeviation};

/// Rows to recompute, and the deviation of the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelectedRows {
    /// Selected rows, sorted, disjoint.
    pub ranges: Vec<TokenRange>,
    /// Deviation of the tokens that stay: the sum of `‖ΔV‖₂²` at the check layer in units of the mean `‖V‖₂²`, so 1 is the deviation of one
    /// wholly wrong token. 0 if nothing was measured; infinite if a measurement of a token that stays is not a finite number.
    pub deviation: f32,
}

/// Selects the tokens of `reused`, which is sorted and disjoint, to recompute in a prompt of `prompt_len` tokens.
///
/// `measured` has one entry for each reused token, in their order. The result is sorted, disjoint, inside `reused`, and holds at
/// most `ratio * prompt_len` tokens, except for [`RepairPolicy::Full`], which takes all.
///
/// # Panics
/// If `measured` is not as long as `reused`.
#[must_use]
pub fn select_rows(repair: Repair, prompt_len: u32, reused: &[TokenRange], measured: &[TokenDeviation]) -> SelectedRows {
    let num_reused: u32 = reused.iter().map(|range| range.len()).sum();
    assert_eq!(measured.len(), num_reused as usize, "every reused token is measured");
    if repair.policy == RepairPolicy::Full {
        return SelectedRows { ranges: reused.to_vec(), deviation: 0.0 };
    }
    let unit = unit_of(measured);
    let mut left: Deviation = measured.iter().map(Deviation::of).sum();
    if repair.policy.probe().is_none() {
        return SelectedRows { ranges: Vec::new(), deviation: left.in_units(unit) };
    }
    let mut budget = repair.policy.budget(repair.ratio, prompt_len);
    // Few of many are selected, so they are not sorted.
    let mut runs = BinaryHeap::from(scored_runs(repair.policy, reused, measured));
    let mut chosen = Vec::new();
    while budget > 0
        && let Some(run) = runs.pop()
    {
        if left.in_units(unit) <= repair.max_deviation && repair.max_deviation > 0.0 {
            break;
        }
        if run.range.len() <= budget {
            budget -= run.range.len();
            left = left - run.deviation;
            chosen.push(run.range);
        }
    }
    chosen.sort_unstable();
    SelectedRows { ranges: merge_touching(chosen), deviation: left.in_units(unit) }
}

struct Run {
    range: TokenRange,
    /// Mean over its tokens; infinite if one of them is infinitely far from a fresh one, under any rule.
    score: f32,
    deviation: Deviation,
}

/// Orders by score, then the earlier run first. Each position has one run.
impl Ord for Run {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(Reverse(self.range).cmp(&Reverse(other.range)))
    }
}

impl PartialOrd for Run {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Run {}

fn scored_runs(policy: RepairPolicy, reused: &[TokenRange], measured: &[TokenDeviation]) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut rest = measured;
    for &range in reused {
        for start in range.positions().step_by(policy.run_tokens() as usize) {
            let run = TokenRange::new(start, (start + policy.run_tokens()).min(range.end));
            let (of_run, behind) = rest.split_at(run.len() as usize);
            rest = behind;
            let sum: f32 = run.positions().zip(of_run).map(|(position, found)| policy.score(position, found)).sum();
            let deviation: Deviation = of_run.iter().map(Deviation::of).sum();
            let mean = sum / run.len() as f32;
            let score = if deviation.is_finite() && mean.is_finite() { mean } else { f32::INFINITY };
            runs.push(Run { range: run, score, deviation });
        }
    }
    runs
}

fn merge_touching(sorted: Vec<TokenRange>) -> Vec<TokenRange> {
    let mut merged: Vec<TokenRange> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a prompt of 100 tokens with 10..50 and 60..80 reused; `values` lists positions whose V deviates and whose attention counts.
    #[track_caller]
    fn check(policy: RepairPolicy, ratio: f32, values: &[(u32, f32, f32)], expected: &[(u32, u32)]) {
        let reused = [TokenRange::new(10, 50), TokenRange::new(60, 80)];
        let measured: Vec<_> = reused
            .iter()
            .flat_map(|range| range.positions())
            .map(|position| {
                let named = values.iter().find(|(named, ..)| *named == position);
                let &(_, value, attention) = named.unwrap_or(&(position, 0.01, 0.01));
                TokenDeviation { attention, value_l1: value, value_l2: value, ..TokenDeviation::default() }
            })
            .collect();
        let selected = select_rows(Repair { policy, ratio, ..Repair::structural() }, 100, &reused, &measured);
        let expected: Vec<_> = expected.iter().map(|&(start, end)| TokenRange::new(start, end)).collect();
        assert_eq!(selected.ranges, expected);
    }

    #[test]
    fn the_budget_is_not_spent_on_what_does_not_matter() {
        let reused = [TokenRange::new(0, 64)];
        let measured: Vec<_> = (0..64)
            .map(|position| TokenDeviation {
                value_l2: if position < 20 { 1.0 } else { 0.2 },
                value_norm: 2.0,
                attention: if position < 20 { 1.0 } else { 0.5 },
                ..TokenDeviation::default()
            })
            .collect();
        let select = |max_deviation| {
            let repair = Repair { policy: RepairPolicy::Impact, ratio: 0.5, max_deviation, ..Repair::structural() };
            select_rows(repair, 128, &reused, &measured)
        };
        let near = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        assert_eq!(select(0.0).ranges, [TokenRange::new(0, 64)]);
        near(select(0.0).deviation, 0.0);
        // 20 tokens of 1/4 and 44 of 1/100 are 5.44; the first run takes 4 away, the second 1.12.
        assert_eq!(select(2.0).ranges, [TokenRange::new(0, 16)]);
        near(select(2.0).deviation, 1.44);
        assert_eq!(select(1.0).ranges, [TokenRange::new(0, 32)]);
        assert_eq!(select(6.0).ranges, []);
        near(select(6.0).deviation, 5.44);
    }

    #[test]
    fn rules_without_a_budget_take_all_or_nothing() {
        check(RepairPolicy::None, 0.5, &[(20, 9.0, 9.0)], &[]);
        check(RepairPolicy::Epic, 0.5, &[(20, 9.0, 9.0)], &[]);
        check(RepairPolicy::Full, 0.0, &[], &[(10, 50), (60, 80)]);
    }

    #[test]
    fn cacheblend_goes_by_deviation_alone() {
        check(RepairPolicy::CacheBlend, 0.02, &[(20, 9.0, 0.0), (21, 8.0, 0.0), (70, 7.0, 99.0)], &[(20, 22)]);
    }

    #[test]
    fn query_goes_by_attention_alone() {
        check(RepairPolicy::Query, 0.02, &[(20, 9.0, 0.0), (49, 0.0, 5.0), (60, 0.0, 6.0)], &[(49, 50), (60, 61)]);
    }

    #[test]
    fn dhd_needs_both() {
        check(RepairPolicy::Dhd, 0.01, &[(20, 9.0, 0.0), (49, 0.0, 9.0), (60, 2.0, 2.0)], &[(60, 61)]);
    }

    #[test]
    fn impact_takes_whole_runs_within_its_budget() {
        check(RepairPolicy::Impact, 0.16, &[(63, 5.0, 5.0), (12, 4.0, 4.0)], &[(60, 76)]);
        check(RepairPolicy::Impact, 0.20, &[(63, 5.0, 5.0), (12, 4.0, 4.0)], &[(60, 80)]);
        check(RepairPolicy::Impact, 0.32, &[(63, 5.0, 5.0), (12, 4.0, 4.0)], &[(10, 26), (60, 76)]);
    }

    #[test]
    fn a_budget_of_nothing_chooses_nothing() {
        check(RepairPolicy::Impact, 0.0, &[(63, 5.0, 5.0)], &[]);
        check(RepairPolicy::Random, 0.0, &[], &[]);
    }

    #[test]
    fn a_budget_for_all_chooses_all() {
        for policy in RepairPolicy::ALL.into_iter().filter(|policy| !matches!(policy, RepairPolicy::None | RepairPolicy::Epic)) {
            check(policy, 1.0, &[(63, 5.0, 5.0)], &[(10, 50), (60, 80)]);
        }
    }

    #[test]
    fn what_is_not_a_number_is_recomputed_first() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
            check(RepairPolicy::CacheBlend, 0.01, &[(20, bad, 0.0), (30, 1.0, 0.0)], &[(20, 21)]);
            check(RepairPolicy::Dhd, 0.01, &[(20, 0.0, bad), (30, 1.0, 1.0)], &[(20, 21)]);
        }
    }

    /// Covers every measured quantity, and every rule that measures.
    #[test]
    fn what_is_left_is_infinitely_far_if_something_of_it_is_not_a_number() {
        let reused = [TokenRange::new(0, 64)];
        let fields: [fn(&mut TokenDeviation) -> &mut f32; 5] =
            [|d| &mut d.attention, |d| &mut d.key_l2, |d| &mut d.value_l2, |d| &mut d.value_l1, |d| &mut d.value_norm];
        for policy in RepairPolicy::ALL.into_iter().filter(|policy| *policy != RepairPolicy::Full) {
            for field in fields {
                let mut measured = vec![TokenDeviation { value_norm: 1.0, ..TokenDeviation::default() }; 64];
                let select = |measured: &[TokenDeviation], ratio| {
                    select_rows(Repair { policy, ratio, ..Repair::structural() }, 64, &reused, measured).deviation
                };
                assert_eq!(select(&measured, 0.0), 0.0, "{policy:?}");
                *field(&mut measured[40]) = f32::NAN;
                assert_eq!(select(&measured, 0.0), f32::INFINITY, "{policy:?}");
                if policy.probe().is_some() && policy != RepairPolicy::Random {
                    assert_eq!(select(&measured, 0.25), 0.0, "{policy:?}: it was recomputed");
                }
            }
        }
    }
}
