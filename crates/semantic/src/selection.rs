//! Selects the reused tokens to recompute.
//!
//! KV of a moved span was computed under another left context. Recomputing a few of its tokens, which attend to everything before them,
//! repairs most of the error, if they are the right ones. Every rule here is a score for each reused token and spends a budget of tokens on
//! the highest ones. Two kinds of measurement feed the scores: the distance of a token's K and V at an early layer from a fresh
//! computation, and the attention it receives. [`RepairPolicy::probe`] returns those that a rule needs.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::str::FromStr;

use tokens::{SPLITMIX64_STEP, TokenRange, splitmix64};

use crate::deviation::{Deviation, unit_of};
use crate::{Repair, SpanConfig};

/// Rows to recompute, and the deviation of the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelectedRows {
    /// Selected rows, sorted, disjoint.
    pub ranges: Vec<TokenRange>,
    /// Deviation of the tokens that stay: the sum of `‖ΔV‖₂²` at the check layer in units of the mean `‖V‖₂²`, so 1 is the deviation of one
    /// wholly wrong token. 0 if nothing was measured; infinite if a measurement of a token that stays is not a finite number.
    pub deviation: f32,
}

/// Repair rules, by the names of their sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RepairPolicy {
    /// The prompt's last token only: the span is used as in the donor.
    None,
    /// Every token: full computation by the machinery of repair.
    Full,
    /// Random tokens, by a hash of the position. The baseline every rule has to beat.
    Random,
    /// The first tokens of each span (EPIC, arXiv 2410.15332, LegoLink), and no others.
    Epic,
    /// `‖ΔV‖₂²` at layer 1, single tokens (CacheBlend, arXiv 2405.16444, in its released form).
    CacheBlend,
    /// `α ‖ΔV‖₁` at layer 1, single tokens; α is the attention a token receives there from all rows (KVShare, arXiv 2503.16525).
    Dhd,
    /// Attention received from fresh rows at layer 3, single tokens (SparseX, arXiv 2606.01751, without its dense layers).
    QueryLayer,
    /// Attention as for `QueryLayer`, summed over all layers in a first pass of the fresh rows (ProphetKV, arXiv 2602.02579).
    Query,
    /// Attention from fresh rows × `(‖ΔV‖₂ + ‖ΔK‖₂ ‖V‖₂ / √d)` at layer 3, in runs.
    ImpactLayer,
    /// Attention gathered over all layers × `‖ΔV‖₂` at layer 1, in runs: fresh rows run twice.
    TwoPass,
    /// `‖ΔV‖₂²` at layer 1, in runs: with a bound on the remaining deviation, and neighbours that follow, the best found.
    Impact,
}

/// Measurements needed before tokens can be selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Layer up to whose keys and values rows are computed, to compare them with the moved ones.
    pub depth: Depth,
    /// Rows whose attention counts.
    pub readers: Readers,
    /// Stride: one of this many moved neighbours is measured; at least 1.
    pub stride: u32,
}

/// A layer of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Layer by index, from 0, at most the last one.
    Layer(u32),
    /// First layer after a quarter of them; not before the third one, since nothing deviates at the first and little at the second.
    Quarter,
}

impl Depth {
    /// Returns its index in a model of `num_layers`, from 0.
    #[must_use]
    pub const fn layer(self, num_layers: usize) -> usize {
        let layer = match self {
            Self::Layer(layer) => layer as usize,
            Self::Quarter if num_layers < 8 => 2,
            Self::Quarter => num_layers / 4,
        };
        if layer < num_layers { layer } else { num_layers.saturating_sub(1) }
    }
}

/// Rows whose attention to reused tokens is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// No rows.
    None,
    /// All rows, at the check layer.
    AllRows,
    /// Rows that no donor has, at the check layer.
    FreshRows,
    /// Rows that no donor has, at every layer: they run once over the moved spans as they are.
    FreshRowsAllLayers,
}

/// Measurements of one reused token. Norms are over all heads of the check layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenDeviation {
    /// Attention received, averaged over readers, heads and layers: a reader's attention to all positions sums to 1.
    pub attention: f32,
    /// `‖K_fresh − K_moved‖₂`
    pub key_l2: f32,
    /// `‖V_fresh − V_moved‖₂`
    pub value_l2: f32,
    /// `‖V_fresh − V_moved‖₁`
    pub value_l1: f32,
    /// `‖V_fresh‖₂`
    pub value_norm: f32,
    /// `√d`, the root of `head_dim`.
    pub root_head_dim: f32,
}

/// Tokens of a run: runs do not lower quality and are cheaper to execute than single tokens.
const RUN_TOKENS: u32 = 16;

impl RepairPolicy {
    /// All rules.
    pub const ALL: [Self; 11] = [
        Self::None,
        Self::Full,
        Self::Random,
        Self::Epic,
        Self::CacheBlend,
        Self::Dhd,
        Self::QueryLayer,
        Self::Query,
        Self::ImpactLayer,
        Self::TwoPass,
        Self::Impact,
    ];

    /// Returns its name in the API, in reports and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Full => "full",
            Self::Random => "random",
            Self::Epic => "epic",
            Self::CacheBlend => "cacheblend",
            Self::Dhd => "dhd",
            Self::QueryLayer => "query-layer",
            Self::Query => "query",
            Self::ImpactLayer => "impact-layer",
            Self::TwoPass => "two-pass",
            Self::Impact => "impact",
        }
    }

    /// Returns the measurements it needs before it selects; `None` if it never selects a token.
    #[must_use]
    pub const fn probe(self) -> Option<Probe> {
        let (layer, readers) = match self {
            Self::None | Self::Epic => return None,
            Self::Full | Self::Random => (0, Readers::None),
            Self::CacheBlend | Self::Impact => (1, Readers::None),
            Self::Dhd => (1, Readers::AllRows),
            Self::QueryLayer | Self::ImpactLayer => (3, Readers::FreshRows),
            Self::Query | Self::TwoPass => (1, Readers::FreshRowsAllLayers),
        };
        Some(Probe { depth: Depth::Layer(layer), readers, stride: 1 })
    }

    /// True if it spends a share of the prompt, rather than all or nothing.
    #[must_use]
    pub const fn has_ratio(self) -> bool {
        !matches!(self, Self::None | Self::Epic | Self::Full)
    }

    /// Returns the settings of a plan under this rule: only [`RepairPolicy::None`] has no heads, and computes only the last token.
    #[must_use]
    pub fn spans(self, config: &SpanConfig) -> SpanConfig {
        match self {
            Self::None => SpanConfig { head_tokens: 0, tail_tokens: 1, ..config.clone() },
            _ => config.clone(),
        }
    }

    /// Returns the most tokens that it selects in a prompt of `prompt_len` tokens, with `ratio` as its share.
    #[must_use]
    pub fn budget(self, ratio: f32, prompt_len: u32) -> u32 {
        match self {
            Self::None | Self::Epic => 0,
            Self::Full => prompt_len,
            _ => (f64::from(ratio) * f64::from(prompt_len)).round() as u32,
        }
    }

    /// Returns the tokens of a run; 1 if it selects single tokens.
    const fn run_tokens(self) -> u32 {
        match self {
            Self::ImpactLayer | Self::TwoPass | Self::Impact => RUN_TOKENS,
            _ => 1,
        }
    }

    /// Returns the gain of recomputing a token; only the order counts.
    fn score(self, position: u32, found: &TokenDeviation) -> f32 {
        match self {
            Self::None | Self::Full | Self::Epic => 0.0,
            Self::Random => random_score(position),
            Self::CacheBlend | Self::Impact => found.value_l2 * found.value_l2,
            Self::Dhd => found.attention * found.value_l1,
            Self::QueryLayer | Self::Query => found.attention,
            Self::ImpactLayer => {
                found.attention * (found.value_l2 + found.key_l2 * found.value_norm / found.root_head_dim.max(f32::MIN_POSITIVE))
            }
            Self::TwoPass => found.attention * found.value_l2,
        }
    }
}

impl FromStr for RepairPolicy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name).ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

/// Unknown name of a policy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no repair policy {0:?}; there are none, full, random, epic, cacheblend, dhd, query-layer, query, impact-layer, two-pass and impact"
)]
pub struct UnknownPolicy(pub String);

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

/// Returns a number in 0..1 that depends on the position alone.
fn random_score(position: u32) -> f32 {
    (splitmix64(u64::from(position).wrapping_mul(SPLITMIX64_STEP)) >> 40) as f32 / (1u64 << 24) as f32
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
    fn a_depth_is_a_layer_of_the_model() {
        let layers = |depth: Depth| [1, 2, 4, 24, 30].map(|num_layers| depth.layer(num_layers));
        assert_eq!(layers(Depth::Layer(3)), [0, 1, 3, 3, 3]);
        assert_eq!(layers(Depth::Quarter), [0, 1, 2, 6, 7]);
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

    #[test]
    fn names_are_distinct_and_read_back() {
        for policy in RepairPolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            assert!(UnknownPolicy(String::new()).to_string().contains(policy.as_str()));
        }
        assert_eq!("best".parse::<RepairPolicy>(), Err(UnknownPolicy("best".to_owned())));
    }
}
