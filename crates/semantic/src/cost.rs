//! Whether copying pays: what a prompt costs computed in full and computed around its spans.
//!
//! A step's time is taken as linear in what is done in it,
//! `ms = c0 + c1 computed tokens + c2 attended pairs + c3 copied tokens`,
//! and the four coefficients are learned from the steps that ran, by recursive least squares with directional forgetting (Kulhavy and
//! Karny 1984). With features `x`, uncertainty `P`, `r = x' P x` and forgetting `f`:
//! `c += P x (ms - x' c) / (1 + r)` and `P -= P x x' P / (1 / e + r)` where `e = f - (1 - f) / r`.
//! Plain exponential forgetting would let `P` grow in every direction that is not observed: after an hour of decode steps, their noise
//! would be taken for the cost of a prompt. This forgets only what is observed anew.
//!
//! Each step counts by its relative error, so that long prompts do not drown short ones; and no coefficient becomes negative.

use std::ops::{Add, Mul};

use tokens::TokenRange;

use crate::{RejectReason, ReusePlan};

/// Features: one, thousands of computed tokens, millions of attended pairs, thousands of copied tokens. So scaled, that their
/// coefficients are of similar size.
const NUM_FEATURES: usize = 4;
/// Uncertainty at the start, in multiples of the coefficients. Chosen: the first steps shall count for nearly everything.
const PRIOR_SPREAD: f64 = 10.0;
/// Relative error that a step's time has without anything having changed. Chosen.
const NOISE_RATIO: f64 = 0.1;
/// Steps shorter than this count as if they took it: below, the clock and the operating system are measured.
const SHORTEST_MS: f64 = 0.1;

/// What is done in one step, or for one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Work {
    /// Rows that go through all layers.
    pub computed_tokens: f64,
    /// Keys that these rows attend to, summed over the rows: `pos + 1` for the row at `pos`.
    pub attended_pairs: f64,
    /// Tokens whose KV is copied from a donor.
    pub copied_tokens: f64,
}

/// How the rows of reused tokens are repaired, as far as it is known before.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct RepairWork {
    /// Reused tokens that are recomputed besides the mandatory rows.
    pub num_selected: u32,
    /// Share of layers in which all rows are computed, to measure deviations.
    pub dense_layer_ratio: f64,
}

/// What one prompt costs, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Everything right of the prefix hit computed.
    pub full_ms: f64,
    /// As planned.
    pub reuse_ms: f64,
}

/// Settings of the gate. Any value is valid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostConfig {
    /// Reuse must save this many milliseconds.
    pub min_saved_ms: f64,
    /// And this share of the full computation.
    pub min_saved_ratio: f64,
    /// What a step's weight is multiplied by with each later step; taken into `0.5..=1`. .98 remembers some 50 steps of a kind.
    pub forgetting: f64,
    /// Where the coefficients start.
    pub prior: Coefficients,
}

impl Default for CostConfig {
    fn default() -> Self {
        Self { min_saved_ms: 5.0, min_saved_ratio: 0.15, forgetting: 0.98, prior: Coefficients::default() }
    }
}

/// The model of a step's time. None is negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Milliseconds of a step that does nothing.
    pub fixed_ms: f64,
    /// Milliseconds for 1,000 computed tokens, attention apart.
    pub ms_per_1k_computed: f64,
    /// Milliseconds for 1,000,000 attended pairs.
    pub ms_per_1m_attended: f64,
    /// Milliseconds for 1,000 copied tokens.
    pub ms_per_1k_copied: f64,
}

impl Default for Coefficients {
    /// Chosen: about half a billion parameters on a few CPU cores. The first steps replace it.
    fn default() -> Self {
        Self { fixed_ms: 1.0, ms_per_1k_computed: 1000.0, ms_per_1m_attended: 30.0, ms_per_1k_copied: 5.0 }
    }
}

impl Coefficients {
    fn as_array(self) -> [f64; NUM_FEATURES] {
        [self.fixed_ms, self.ms_per_1k_computed, self.ms_per_1m_attended, self.ms_per_1k_copied]
    }
}

impl Work {
    /// Computing rows at `range`.
    #[must_use]
    pub fn rows(range: TokenRange) -> Self {
        let (start, end) = (f64::from(range.start), f64::from(range.end.max(range.start)));
        Self {
            computed_tokens: end - start,
            attended_pairs: (end * (end + 1.0) - start * (start + 1.0)) / 2.0,
            copied_tokens: 0.0,
        }
    }

    /// What `plan` leaves to do of a prompt of `prompt_len` tokens whose first `from` are there.
    ///
    /// Selected rows are taken to stand all over the spans.
    #[must_use]
    pub fn of_plan(plan: &ReusePlan, from: u32, prompt_len: u32, repair: RepairWork) -> Self {
        let spans = plan.spans.iter().map(|span| Self::rows(span.target_range()));
        let in_spans = spans.fold(Self::default(), Self::add);
        let selected =
            if in_spans.computed_tokens > 0.0 { f64::from(repair.num_selected) / in_spans.computed_tokens } else { 0.0 };
        let mandatory = plan.mandatory_rows(from, prompt_len).into_iter().map(Self::rows).fold(Self::default(), Self::add);
        let dense = repair.dense_layer_ratio.clamp(0.0, 1.0);
        let repaired = in_spans * (dense + (1.0 - dense) * selected.min(1.0));
        Self { copied_tokens: in_spans.computed_tokens, ..mandatory + repaired }
    }

    fn features(&self) -> [f64; NUM_FEATURES] {
        [1.0, self.computed_tokens / 1e3, self.attended_pairs / 1e6, self.copied_tokens / 1e3]
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            computed_tokens: self.computed_tokens + other.computed_tokens,
            attended_pairs: self.attended_pairs + other.attended_pairs,
            copied_tokens: self.copied_tokens + other.copied_tokens,
        }
    }
}

impl Mul<f64> for Work {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self {
            computed_tokens: self.computed_tokens * factor,
            attended_pairs: self.attended_pairs * factor,
            copied_tokens: self.copied_tokens * factor,
        }
    }
}

impl Estimate {
    /// What reuse saves; negative if it costs.
    #[must_use]
    pub fn saved_ms(&self) -> f64 {
        self.full_ms - self.reuse_ms
    }
}

/// What steps cost, learned from those that ran.
#[derive(Clone, Debug, PartialEq)]
pub struct CostModel {
    config: CostConfig,
    coefficients: [f64; NUM_FEATURES],
    /// `P`: symmetric, positive semidefinite, in units of the coefficients' products.
    uncertainty: [[f64; NUM_FEATURES]; NUM_FEATURES],
    num_observed: u64,
}

impl CostModel {
    /// A model that has seen nothing.
    #[must_use]
    pub fn new(config: CostConfig) -> Self {
        let coefficients = config.prior.as_array().map(|value| if value.is_finite() { value.max(0.0) } else { 0.0 });
        let mut uncertainty = [[0.0; NUM_FEATURES]; NUM_FEATURES];
        for (i, row) in uncertainty.iter_mut().enumerate() {
            row[i] = start_variance(coefficients[i]);
        }
        Self { config, coefficients, uncertainty, num_observed: 0 }
    }

    /// Learns that `work`, done in one step, took `ms`. What cannot have been measured is ignored.
    pub fn observe(&mut self, work: Work, ms: f64) {
        let features = work.features();
        if !ms.is_finite() || ms < 0.0 || features.iter().any(|feature| !feature.is_finite() || *feature < 0.0) {
            return;
        }
        self.num_observed += 1;
        let predicted = self.predict(work);
        // Divided by the larger of both, no step can be wrong by more than all of itself: a stall moves a settled model little.
        let scale = NOISE_RATIO * predicted.max(ms).max(SHORTEST_MS);
        self.update(features.map(|feature| feature / scale), (ms - predicted) / scale);
    }

    /// One step of recursive least squares: `error` is what `x` leaves of the measured value, both in units of the noise.
    fn update(&mut self, x: [f64; NUM_FEATURES], error: f64) {
        let forgetting = self.config.forgetting.clamp(0.5, 1.0);
        let px = self.uncertainty.map(|row| dot(&row, &x));
        let r = dot(&x, &px);
        if r <= f64::EPSILON {
            return;
        }
        let information = forgetting - (1.0 - forgetting) / r;
        for (i, p) in px.iter().enumerate() {
            self.coefficients[i] = (self.coefficients[i] + p / (1.0 + r) * error).max(0.0);
            for (j, q) in px.iter().enumerate() {
                self.uncertainty[i][j] -= p * q * information / (1.0 + information * r);
            }
        }
    }

    /// What has been learned.
    #[must_use]
    pub fn coefficients(&self) -> Coefficients {
        let [fixed_ms, ms_per_1k_computed, ms_per_1m_attended, ms_per_1k_copied] = self.coefficients;
        Coefficients { fixed_ms, ms_per_1k_computed, ms_per_1m_attended, ms_per_1k_copied }
    }

    /// Steps it has learned from.
    #[must_use]
    pub fn num_observed(&self) -> u64 {
        self.num_observed
    }

    /// Milliseconds that `work` takes in one step.
    #[must_use]
    pub fn predict(&self, work: Work) -> f64 {
        dot(&self.coefficients, &work.features())
    }

    /// Milliseconds to compute a prompt of `prompt_len` tokens behind a prefix hit of `prefix` tokens.
    #[must_use]
    pub fn estimate_full(&self, prompt_len: u32, prefix: u32) -> f64 {
        self.predict(Work::rows(TokenRange::new(prefix, prompt_len)))
    }

    /// Milliseconds to compute the same prompt by `plan`.
    #[must_use]
    pub fn estimate_reuse(&self, plan: &ReusePlan, prompt_len: u32, prefix: u32, repair: RepairWork) -> f64 {
        self.predict(Work::of_plan(plan, prefix, prompt_len, repair))
    }

    /// `plan` with its estimate, without its spans if they would not save enough.
    #[must_use]
    pub fn gate(&self, mut plan: ReusePlan, prompt_len: u32, prefix: u32, repair: RepairWork) -> ReusePlan {
        if plan.rejected.is_some() {
            return plan;
        }
        let full_ms = self.estimate_full(prompt_len, prefix);
        let estimate = Estimate { full_ms, reuse_ms: self.estimate_reuse(&plan, prompt_len, prefix, repair) };
        plan.estimate = Some(estimate);
        if estimate.saved_ms() < self.config.min_saved_ms.max(self.config.min_saved_ratio * full_ms) {
            plan.spans.clear();
            plan.recomputed_tokens = 0;
            plan.rejected = Some(RejectReason::NotWorthIt);
        }
        plan
    }
}

/// A coefficient that starts at nothing is still uncertain.
fn start_variance(coefficient: f64) -> f64 {
    (PRIOR_SPREAD * coefficient.max(1e-3)).powi(2)
}

fn dot(a: &[f64; NUM_FEATURES], b: &[f64; NUM_FEATURES]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use tokens::DonorId;

    use super::*;
    use crate::testing::Random;
    use crate::{MatchClass, ReuseSpan};

    const GPU: Coefficients =
        Coefficients { fixed_ms: 3.0, ms_per_1k_computed: 40.0, ms_per_1m_attended: 0.8, ms_per_1k_copied: 0.5 };
    const SLOW_CPU: Coefficients =
        Coefficients { fixed_ms: 9.0, ms_per_1k_computed: 9000.0, ms_per_1m_attended: 300.0, ms_per_1k_copied: 20.0 };

    fn true_ms(machine: Coefficients, work: Work) -> f64 {
        dot(&machine.as_array(), &work.features())
    }

    /// A decode step, a chunk of a prompt, or a prompt with copies.
    fn some_work(random: &mut Random) -> Work {
        let start = random.below(4000) as u32;
        let num_rows = [1 + random.below(30), 100 + random.below(900)][random.below(2)] as u32;
        let copied_tokens = [0.0, random.below(3000) as f64][random.below(2)];
        Work { copied_tokens, ..Work::rows(TokenRange::new(start, start + num_rows)) }
    }

    fn learn(model: &mut CostModel, machine: Coefficients, num_steps: usize, noise: f64, seed: u64) {
        let mut random = Random(seed);
        for _ in 0..num_steps {
            let work = some_work(&mut random);
            let factor = 1.0 + noise * (random.below(2001) as f64 / 1000.0 - 1.0);
            model.observe(work, true_ms(machine, work) * factor);
        }
    }

    /// After `num_steps`, predictions for other work are within `tolerance` of the truth, relatively.
    #[track_caller]
    fn check_learned(model: &CostModel, machine: Coefficients, tolerance: f64) {
        let mut random = Random(77);
        for _ in 0..200 {
            let work = some_work(&mut random);
            let (found, expected) = (model.predict(work), true_ms(machine, work));
            assert!((found / expected - 1.0).abs() < tolerance, "{found} for {expected}, {:?}", model.coefficients());
        }
    }

    #[test]
    fn a_machine_is_learned_in_some_fifty_steps() {
        for machine in [GPU, SLOW_CPU] {
            let mut model = CostModel::new(CostConfig::default());
            learn(&mut model, machine, 50, 0.0, 1);
            check_learned(&model, machine, 0.05);
        }
    }

    #[test]
    fn noise_is_averaged_out() {
        let mut model = CostModel::new(CostConfig::default());
        learn(&mut model, GPU, 1000, 0.3, 2);
        check_learned(&model, GPU, 0.15);
    }

    #[test]
    fn a_change_of_speed_is_followed() {
        let mut model = CostModel::new(CostConfig::default());
        learn(&mut model, GPU, 500, 0.05, 3);
        let slower = Coefficients { ms_per_1k_computed: 160.0, ms_per_1m_attended: 3.0, ..GPU };
        learn(&mut model, slower, 1500, 0.05, 4);
        check_learned(&model, slower, 0.1);
    }

    #[test]
    fn a_stall_moves_a_settled_model_little() {
        let mut model = CostModel::new(CostConfig::default());
        learn(&mut model, GPU, 500, 0.05, 5);
        model.observe(Work::rows(TokenRange::new(0, 500)), 30_000.0);
        check_learned(&model, GPU, 0.2);
    }

    #[test]
    fn steps_of_one_kind_for_a_long_time_do_not_unsettle_the_rest() {
        let mut model = CostModel::new(CostConfig::default());
        learn(&mut model, GPU, 300, 0.02, 6);
        let decode = Work { computed_tokens: 1.0, attended_pairs: 500.0, copied_tokens: 0.0 };
        let mut random = Random(9);
        (0..20_000).for_each(|_| model.observe(decode, true_ms(GPU, decode) * (0.9 + random.below(200) as f64 / 1000.0)));
        let prefill = Work::rows(TokenRange::new(0, 2000));
        let (found, expected) = (model.predict(prefill), true_ms(GPU, prefill));
        assert!(found / expected > 0.5 && found / expected < 2.0, "{found} for {expected}");
        learn(&mut model, GPU, 50, 0.02, 7);
        check_learned(&model, GPU, 0.1);
    }

    #[test]
    fn no_observation_makes_a_coefficient_senseless() {
        let mut random = Random(8);
        let mut model = CostModel::new(CostConfig::default());
        for _ in 0..5000 {
            let ms = [0.0, 1e-9, 1e9, f64::NAN, f64::INFINITY, -5.0, random.below(100) as f64][random.below(7)];
            model.observe(some_work(&mut random), ms);
            assert!(model.coefficients().as_array().iter().all(|value| value.is_finite() && *value >= 0.0));
            assert!((0..NUM_FEATURES).all(|i| model.uncertainty[i][i] >= -1e-6 && model.uncertainty[i][i].is_finite()));
        }
    }

    fn plan(spans: &[(u32, u32)]) -> ReusePlan {
        let span = |&(start, end): &(u32, u32)| ReuseSpan {
            donor: DonorId(1),
            donor_pos: 0,
            target_pos: start,
            num_tokens: end - start,
            class: MatchClass::Composition,
        };
        ReusePlan { spans: spans.iter().map(span).collect(), ..ReusePlan::default() }
    }

    #[test]
    fn the_work_of_a_plan_is_that_of_its_rows() {
        let work = |repair| Work::of_plan(&plan(&[(100, 300), (400, 900)]), 50, 1000, repair);
        let rows: Vec<u32> = (50..100).chain(300..400).chain(900..1000).collect();
        let attended: u32 = rows.iter().map(|pos| pos + 1).sum();
        let expected = Work { computed_tokens: 250.0, attended_pairs: f64::from(attended), copied_tokens: 700.0 };
        assert_eq!(work(RepairWork::default()), expected);
        assert_eq!(work(RepairWork { num_selected: 140, dense_layer_ratio: 0.0 }).computed_tokens, 250.0 + 140.0);
        assert_eq!(work(RepairWork { num_selected: 0, dense_layer_ratio: 0.25 }).computed_tokens, 250.0 + 175.0);
        let all = work(RepairWork { num_selected: 700, dense_layer_ratio: 0.1 });
        assert_eq!(Work { copied_tokens: 0.0, ..all }, Work::rows(TokenRange::new(50, 1000)));
    }

    /// A plan for 1000 tokens on a machine of 0.1 ms a token.
    #[track_caller]
    fn check_gate(spans: &[(u32, u32)], repair: RepairWork, expected: Option<RejectReason>) {
        let prior = Coefficients { fixed_ms: 2.0, ms_per_1k_computed: 100.0, ms_per_1m_attended: 0.0, ms_per_1k_copied: 1.0 };
        let model = CostModel::new(CostConfig { prior, ..CostConfig::default() });
        let plan = model.gate(plan(spans), 1000, 0, repair);
        assert_eq!((plan.rejected, plan.spans.is_empty()), (expected, expected.is_some()));
        assert_eq!(plan.estimate.map(|estimate| estimate.full_ms), Some(102.0));
    }

    #[test]
    fn what_saves_too_little_is_not_reused() {
        check_gate(&[(100, 300)], RepairWork::default(), None);
        check_gate(&[(100, 250)], RepairWork::default(), Some(RejectReason::NotWorthIt));
        check_gate(&[(100, 300)], RepairWork { num_selected: 100, dense_layer_ratio: 0.0 }, Some(RejectReason::NotWorthIt));
    }

    #[test]
    fn what_saves_less_than_the_clock_can_show_is_not_reused() {
        let prior = Coefficients { ms_per_1k_computed: 5.0, ms_per_1m_attended: 0.0, ..Coefficients::default() };
        let model = CostModel::new(CostConfig { prior, ..CostConfig::default() });
        let plan = model.gate(plan(&[(0, 900)]), 1000, 0, RepairWork::default());
        assert_eq!(plan.rejected, Some(RejectReason::NotWorthIt));
    }

    #[test]
    fn a_plan_that_was_rejected_keeps_its_reason() {
        let rejected = ReusePlan { rejected: Some(RejectReason::Edited), ..ReusePlan::default() };
        let model = CostModel::new(CostConfig::default());
        assert_eq!(model.gate(rejected.clone(), 1000, 0, RepairWork::default()), rejected);
    }
}
