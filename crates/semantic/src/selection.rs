//! Which reused tokens are recomputed.
//!
//! KV of a moved span was computed under another left context. Recomputing a few of its tokens, with everything before them in view,
//! repairs most of the error, if they are the right ones. Every rule here is a score for each reused token and a way to spend a
//! budget of tokens on the highest ones. Two kinds of measurement feed the scores: how far a token's K and V at an early layer are
//! from a fresh computation, and how much attention it receives. [`RepairPolicy::probe`] says what a rule needs.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fmt;
use std::str::FromStr;

use tokens::TokenRange;

use crate::deviation::{Deviation, unit_of};
use crate::{MatchClass, SpanConfig};

/// A rule and its budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repair {
    /// Who is chosen.
    pub policy: RepairPolicy,
    /// Tokens chosen at most, as a share of the prompt. Rows that are computed in any case do not count.
    pub ratio: f32,
    /// No more are chosen once the deviation of the others is at most this; 0 spends the whole budget.
    pub max_deviation: f32,
    /// Everything is computed if the deviation is above this at the end of the budget; 0 never gives up.
    pub bail_out: f32,
    /// Everything is computed if what stays deviates by more than this per token of the prompt at a quarter of the model's depth; 0 never
    /// looks there. See [`Repair::deep_probe`].
    pub deep_bail_out: f32,
    /// If the two likeliest first tokens are nearer than this in their logits, and the deviation is not negligible, the budget is
    /// doubled once before anything is said; 0 never looks.
    pub min_margin: f32,
    /// Of so many moved neighbours one is measured, and stands for the others; at least 1. Rules that ask who reads measure all.
    pub sample: u32,
    /// Whether tokens that are not recomputed follow those that are; see [`crate::follow_drift`].
    pub drift: bool,
    /// What goes on after the first token; `None` leaves the rest as it is.
    pub decode: Option<DecodeRepair>,
}

/// Of the tokens in short pieces, [`RepairPolicy::Impact`] recomputes this share besides its ratio. Measured on Qwen2.5-Coder-0.5B: FAQ
/// entries and tool schemas in another order have a KL of .069 and .106 at a ratio of .15, and of .012 and .054 at .3.
const SHORT_PIECE_RATIO: f32 = 0.25;

/// Tokens of a prompt after these count in part for the budget of [`RepairPolicy::Impact`]: what deviates most is near the borders of runs,
/// and a longer prompt has longer runs rather than more. Measured on ten documents of 600 tokens each, where a KL of .12 to .26 does not
/// follow the budget from .05 to .3 of the prompt.
const WHOLE_BUDGET_TOKENS: u32 = 2048;
/// The part they count. Chosen.
const LONG_PROMPT_PART: f32 = 0.1;

impl Repair {
    /// The same with a budget for what `plan` copies in short pieces, in a prompt of `prompt_len` tokens, and a smaller one for a long prompt.
    /// Downstream of an edit all of it is spent: one word more changes what a rule says and hardly its KV at an early layer.
    #[must_use]
    pub fn for_plan(self, plan: &crate::ReusePlan, prompt_len: u32) -> Self {
        if self.policy != RepairPolicy::Impact {
            return self;
        }
        let whole = prompt_len.min(WHOLE_BUDGET_TOKENS);
        let counted = whole as f32 + LONG_PROMPT_PART * (prompt_len - whole) as f32;
        let short = SHORT_PIECE_RATIO * plan.num_short_tokens() as f32;
        let ratio = (self.ratio * counted + short) / prompt_len.max(1) as f32;
        let is_edited = plan.class() == Some(MatchClass::DownstreamOfEdit);
        Self { ratio, max_deviation: if is_edited { 0.0 } else { self.max_deviation }, ..self }
    }
}

/// Repair while tokens are generated: the query has moved on since the prompt, and other tokens matter now.
///
/// KVShare (arXiv 2503.16525) recomputes 3 tokens in every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeRepair {
    /// Tokens recomputed at once.
    pub tokens: u32,
    /// Steps from one time to the next, at least 1.
    pub every: u32,
    /// Rows of all sequences in a step up to which it may take place, and then only while nobody waits; 0 never looks.
    pub max_batch_rows: u32,
}

/// What is recomputed, and what that leaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelectedRows {
    /// Sorted, disjoint.
    pub ranges: Vec<TokenRange>,
    /// How much is left as it was: of the tokens that stay, the sum of `‖ΔV‖₂²` at the check layer in units of the mean `‖V‖₂²`, so
    /// 1 is what one wholly wrong token would be. 0 where nothing was measured; infinite if a token stays of which something measured is
    /// not a finite number.
    pub deviation: f32,
}

/// The rules, by the names of their sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RepairPolicy {
    /// Nothing but the prompt's last token: the whole span is used as the donor had it.
    None,
    /// Every token: full computation by the machinery of repair.
    Full,
    /// Any, by a hash of the position. The baseline every rule has to beat.
    Random,
    /// The first tokens of each span (EPIC, arXiv 2410.15332, LegoLink), and no others.
    Epic,
    /// `‖ΔV‖₂²` at layer 1, single tokens (CacheBlend, arXiv 2405.16444, in its released form).
    CacheBlend,
    /// `α ‖ΔV‖₁` at layer 1, single tokens; α is the attention a token receives there from all rows (KVShare, arXiv 2503.16525).
    Dhd,
    /// Attention received from fresh rows at layer 3, single tokens (SparseX, arXiv 2606.01751, without its dense layers).
    QueryLayer,
    /// The same gathered over all layers in a first pass of the fresh rows (ProphetKV, arXiv 2602.02579).
    Query,
    /// Attention from fresh rows × `(‖ΔV‖₂ + ‖ΔK‖₂ ‖V‖₂ / √d)` at layer 3, in runs.
    ImpactLayer,
    /// Attention gathered over all layers × `‖ΔV‖₂` at layer 1, in runs: fresh rows run twice.
    TwoPass,
    /// `‖ΔV‖₂²` at layer 1, in runs: with a bound on the deviation that is left, and neighbours that follow, the best found.
    Impact,
}

/// What has to be measured before tokens can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Rows are computed up to the keys and values of this layer, to compare them with the moved ones.
    pub depth: Depth,
    /// Whose attention counts.
    pub readers: Readers,
    /// Of so many moved neighbours one is measured; at least 1.
    pub stride: u32,
}

/// A layer of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// This one, counted from 0, or the last one.
    Layer(u32),
    /// The first one after a quarter of them; not before the third one, since nothing deviates at the first and little at the second.
    Quarter,
}

impl Depth {
    /// Its number in a model of `num_layers`, counted from 0.
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
    /// Nobody's.
    None,
    /// All rows', at the check layer.
    AllRows,
    /// Those of rows that no donor has, at the check layer.
    FreshRows,
    /// Those of rows that no donor has, at every layer: they run once over the moved spans as they are.
    FreshRowsAllLayers,
}

/// What was measured of one reused token. Norms are over all heads of the check layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenDeviation {
    /// Attention received, averaged over readers, heads and layers: what a reader pays to all positions together is 1.
    pub attention: f32,
    /// `‖K_fresh − K_moved‖₂`
    pub key_l2: f32,
    /// `‖V_fresh − V_moved‖₂`
    pub value_l2: f32,
    /// `‖V_fresh − V_moved‖₁`
    pub value_l1: f32,
    /// `‖V_fresh‖₂`
    pub value_norm: f32,
    /// `√d`, the root of the width of a head.
    pub root_head_dim: f32,
}

/// Tokens of a run: runs cost nothing in quality and are cheaper to execute than single tokens.
const RUN_TOKENS: u32 = 16;

impl Repair {
    /// The rule that did best by its work in the project's own evaluation: [`RepairPolicy::Impact`] over a quarter of the prompt at most, less
    /// of a long one, by one measured token in eight, until little deviates; neighbours that follow; and full computation where much deviates
    /// deeper in the model all the same.
    #[must_use]
    pub const fn recommended() -> Self {
        Self {
            policy: RepairPolicy::Impact,
            ratio: 0.25,
            max_deviation: 0.12,
            deep_bail_out: 0.01,
            sample: 8,
            drift: true,
            ..Self::structural()
        }
    }

    /// The measurements that it needs; `None` if it never chooses anything.
    #[must_use]
    pub fn probe(&self) -> Option<Probe> {
        let probe = self.policy.probe()?;
        let stride = if probe.readers == Readers::None { self.sample.max(1) } else { 1 };
        Some(Probe { stride, ..probe })
    }

    /// Nothing but what is known before anything is computed: heads of spans, template tokens, the prompt's tail.
    #[must_use]
    pub const fn structural() -> Self {
        Self {
            policy: RepairPolicy::Epic,
            ratio: 0.0,
            max_deviation: 0.0,
            bail_out: 0.0,
            deep_bail_out: 0.0,
            min_margin: 0.0,
            sample: 1,
            drift: false,
            decode: None,
        }
    }
}

impl RepairPolicy {
    /// All of them.
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

    /// Its name in the API, in reports and in metrics.
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

    /// What it needs to know before it chooses; `None` if it never chooses anything.
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

    /// The settings of a plan under this rule: only [`RepairPolicy::None`] does without heads, and computes but the last token.
    #[must_use]
    pub fn spans(self, config: &SpanConfig) -> SpanConfig {
        match self {
            Self::None => SpanConfig { head_tokens: 0, tail_tokens: 1, ..config.clone() },
            _ => config.clone(),
        }
    }

    /// The most tokens that it chooses in a prompt of `prompt_len` tokens, with `ratio` as its share.
    #[must_use]
    pub fn budget(self, ratio: f32, prompt_len: u32) -> u32 {
        match self {
            Self::None | Self::Epic => 0,
            Self::Full => prompt_len,
            _ => (f64::from(ratio) * f64::from(prompt_len)).round() as u32,
        }
    }

    /// Whether it chooses among runs rather than among tokens.
    const fn run_tokens(self) -> u32 {
        match self {
            Self::ImpactLayer | Self::TwoPass | Self::Impact => RUN_TOKENS,
            _ => 1,
        }
    }

    /// How much is gained by recomputing a token; only the order counts.
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

/// `policy[@ratio][+drift][+sample=n][+deviation=d][+bail_out=d][+deep_bail_out=d][+margin=m][+decode=tokens/every]`, as in `impact@0.6+drift+deviation=0.12`.
impl FromStr for Repair {
    type Err = RepairError;

    fn from_str(text: &str) -> Result<Self, RepairError> {
        let mut parts = text.split('+');
        let rule = parts.next().unwrap_or_default();
        let (policy, ratio) = rule.split_once('@').map_or((rule, None), |(policy, ratio)| (policy, Some(ratio)));
        let mut repair = Self { policy: policy.parse()?, ..Self::structural() };
        if let Some(ratio) = ratio {
            let in_range = |ratio: &f32| (0.0..=1.0).contains(ratio);
            repair.ratio = ratio.parse().ok().filter(in_range).ok_or_else(|| RepairError::Ratio(ratio.to_owned()))?;
        }
        for part in parts {
            match part.split_once('=') {
                None if part == "drift" => repair.drift = true,
                Some(("deviation", bound)) => repair.max_deviation = parse_bound(part, bound)?,
                Some(("bail_out", bound)) => repair.bail_out = parse_bound(part, bound)?,
                Some(("deep_bail_out", bound)) => repair.deep_bail_out = parse_bound(part, bound)?,
                Some(("margin", bound)) => repair.min_margin = parse_bound(part, bound)?,
                Some(("sample", sample)) => repair.sample = parse_sample(part, sample)?,
                Some(("decode", decode)) => repair.decode = Some(decode_repair(decode)?),
                _ => return Err(RepairError::Part(part.to_owned())),
            }
        }
        Ok(repair)
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.policy.as_str())?;
        if self.policy.probe().is_some() && self.policy != RepairPolicy::Full {
            write!(f, "@{}", self.ratio)?;
        }
        f.write_str(if self.drift { "+drift" } else { "" })?;
        if self.sample != 1 {
            write!(f, "+sample={}", self.sample)?;
        }
        let bounds = [
            ("deviation", self.max_deviation),
            ("bail_out", self.bail_out),
            ("deep_bail_out", self.deep_bail_out),
            ("margin", self.min_margin),
        ];
        for (name, bound) in bounds.into_iter().filter(|(_, bound)| *bound > 0.0) {
            write!(f, "+{name}={bound}")?;
        }
        match self.decode {
            Some(DecodeRepair { tokens, every, .. }) => write!(f, "+decode={tokens}/{every}"),
            None => Ok(()),
        }
    }
}

/// A number above 0.
fn parse_bound(part: &str, text: &str) -> Result<f32, RepairError> {
    let bound = text.parse().ok().filter(|bound: &f32| *bound > 0.0 && bound.is_finite());
    bound.ok_or_else(|| RepairError::Part(part.to_owned()))
}

/// A whole number from 1 on.
fn parse_sample(part: &str, text: &str) -> Result<u32, RepairError> {
    text.parse().ok().filter(|sample| *sample > 0).ok_or_else(|| RepairError::Part(part.to_owned()))
}

/// In every step, whatever else runs: what slack allows is a setting of the server.
fn decode_repair(text: &str) -> Result<DecodeRepair, RepairError> {
    let parse = || {
        let (tokens, every) = text.split_once('/')?;
        let (tokens, every) = (tokens.parse().ok()?, every.parse().ok().filter(|every| *every > 0)?);
        Some(DecodeRepair { tokens, every, max_batch_rows: 0 })
    };
    parse().ok_or_else(|| RepairError::Part(format!("decode={text}")))
}

/// What is wrong with a description of a [`Repair`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// Of the rule.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
    /// Of its budget.
    #[error("the ratio {0:?} of a repair policy is not a number from 0 to 1")]
    Ratio(String),
    /// Of what follows.
    #[error(
        "{0:?} of a repair policy is not \"drift\", \"sample=n\" with n from 1, \"decode=tokens/every\", or a number above 0 for \"deviation\", \"bail_out\", \"deep_bail_out\" or \"margin\""
    )]
    Part(String),
}

/// No policy has this name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no repair policy {0:?}; there are none, full, random, epic, cacheblend, dhd, query-layer, query, impact-layer, two-pass and impact"
)]
pub struct UnknownPolicy(pub String);

/// Chooses what to recompute of `reused`, which is sorted and disjoint, in a prompt of `prompt_len` tokens.
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
    // Few are taken of many, so they are not sorted.
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
    /// Mean over its tokens; infinite if one of them is infinitely far from a fresh one, whatever the rule.
    score: f32,
    deviation: Deviation,
}

/// The higher score is the greater one, then the earlier run. There is one at each place.
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

/// A number in 0..1 that depends on the position alone (splitmix64, Steele et al. 2014).
fn random_score(position: u32) -> f32 {
    let mut z = (u64::from(position) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
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

    /// A prompt of 100 tokens with 10..50 and 60..80 reused; `values` names positions whose V deviates and whose attention counts.
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

    /// Every measured quantity, and every rule that measures.
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
    fn a_repair_is_read_back_as_it_is_written() {
        for text in [
            "none",
            "epic",
            "full",
            "random@0.15",
            "impact@0.3+drift",
            "dhd@0.3+decode=3/1",
            "query@1+drift+decode=48/16",
            "impact@0.6+drift+sample=8+deviation=0.12+bail_out=2+deep_bail_out=0.02+margin=1.5",
        ] {
            assert_eq!(text.parse::<Repair>().map(|repair| repair.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn a_bad_repair_is_refused_with_its_bad_part() {
        for (text, part) in [
            ("best@0.1", "\"best\""),
            ("dhd@1.5", "\"1.5\""),
            ("dhd@NaN", "\"NaN\""),
            ("dhd@", "\"\""),
            ("dhd+decode=3", "decode=3"),
            ("dhd+decode=3/0", "decode=3/0"),
            ("dhd+drif", "\"drif\""),
            ("dhd+sample=0", "sample=0"),
            ("dhd+deviation=-1", "deviation=-1"),
            ("dhd+margin=inf", "margin=inf"),
        ] {
            let error = text.parse::<Repair>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
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
