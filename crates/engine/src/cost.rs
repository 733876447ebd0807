//! Predicted time of work on this machine, fitted to measured steps.
//!
//! The model of a step's time is a sum: `t = c · x` with `x = (1, rows, attention pairs, copied tokens, probed tokens, prompt
//! steps, scored rows)`. Least squares with forgetting fits the coefficients, starting from the shape of a transformer, of which
//! only the scale is unknown: one step suffices to determine the speed of the machine, and a hundred its deviations from the
//! shape.

/// Work of a step or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    /// Tokens computed.
    pub(crate) rows: u64,
    /// Number of positions these attend to, in total.
    pub(crate) attention_pairs: u64,
    /// Tokens whose KV is moved from donors or between blocks.
    pub(crate) copied_tokens: u64,
    /// Tokens of which the first layers are computed to measure moved spans.
    pub(crate) probed_tokens: u64,
    /// Steps that compute more than one row of a sequence, or probe: a GPU launches them operation by operation and decode steps as one
    /// graph, so that a short prompt takes as long as its launches.
    pub(crate) prompt_steps: u64,
    /// Prompt rows after which the log probabilities of all tokens are computed.
    pub(crate) scored_rows: u64,
}

/// Number of kinds of work, the step itself first.
const KINDS: usize = 7;

/// Time of one unit of each kind, in rows. Chosen: the arithmetic of models of 0.5 to 8 billion parameters (5e-5 for a pair: 0.5
/// MFLOP of 16 GFLOP a row at 8B, 86 kFLOP of 1 GFLOP at 0.5B); a probe of two or three of two dozen layers; a step whose
/// overhead is that of some dozen rows, and three times as much again if it computes prompts: enough for the fit to find an overhead of
/// a thousand rows from the few prompts between long answers; a vocabulary that takes half of a row's arithmetic.
const SHAPE: [f64; KINDS] = [20.0, 1.0, 5e-5, 0.02, 0.125, 64.0, 0.5];

/// A row's time before the first timed step. Any value would do: it scales all predictions alike.
const ROW_MICROS_AT_FIRST: f64 = 100.0;

/// Weight of a step relative to the next one in the fit. Chosen: some 200 steps are remembered.
const MEMORY: f64 = 0.995;

/// Weight of the shape relative to the measured steps. Chosen: small enough that the steps determine every coefficient that they can
/// distinguish, even if the shape is wrong by a factor of 50; the shape determines the others.
const SHAPE_WEIGHT: f64 = 1e-5;

/// Limit of a step's time relative to its prediction: a longer step was interrupted, and counts as this long. Chosen.
const MAX_SURPRISE: f64 = 4.0;

/// Steps before the limit applies.
const NUM_UNSURPRISED: u64 = 16;

/// Sweeps of coordinate descent per step. They start from the last solution, so few are enough.
const NUM_SWEEPS: usize = 8;

/// Measured times of steps, and the fitted model of work.
#[derive(Clone, Debug)]
pub(crate) struct StepCostModel {
    /// Microseconds of one unit of each kind. Never negative.
    coefficients: [f64; KINDS],
    /// `Σ x xᵀ` over the measured steps. In this and the next two sums, newer steps weigh more.
    moments: [[f64; KINDS]; KINDS],
    /// `Σ t x`
    products: [f64; KINDS],
    /// `Σ t²`
    square: f64,
    num_steps: u64,
}

impl Default for StepCostModel {
    fn default() -> Self {
        Self {
            coefficients: SHAPE.map(|rows| rows * ROW_MICROS_AT_FIRST),
            moments: Default::default(),
            products: Default::default(),
            square: 0.0,
            num_steps: 0,
        }
    }
}

impl Work {
    /// Returns the work of `rows` tokens that together with the tokens before them end at position `end`, most of them near the
    /// end.
    pub(crate) fn of_rows(rows: u32, end: u32) -> Self {
        let (rows, end) = (u64::from(rows), u64::from(end));
        Self { rows, attention_pairs: rows * (2 * end + 1 - rows.min(end)) / 2, ..Self::default() }
    }

    fn kinds(self) -> [f64; KINDS] {
        let Self { rows, attention_pairs, copied_tokens, probed_tokens, prompt_steps, scored_rows } = self;
        let [rows, pairs, copied, probed, steps, scored] =
            [rows, attention_pairs, copied_tokens, probed_tokens, prompt_steps, scored_rows].map(|n| n as f64);
        [1.0, rows, pairs, copied, probed, steps, scored]
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.attention_pairs += other.attention_pairs;
        self.copied_tokens += other.copied_tokens;
        self.probed_tokens += other.probed_tokens;
        self.prompt_steps += other.prompt_steps;
        self.scored_rows += other.scored_rows;
    }
}

impl StepCostModel {
    /// Predicts the microseconds that `work` adds to the steps it is part of.
    pub(crate) fn micros(&self, work: Work) -> u64 {
        self.exact_micros(work) as u64
    }

    /// Predicts the same without rounding, for work as small as a block.
    pub(crate) fn exact_micros(&self, work: Work) -> f64 {
        let kinds = work.kinds();
        (1..KINDS).map(|kind| self.coefficients[kind] * kinds[kind]).sum()
    }

    /// Predicts the microseconds of the prompt steps of `work` if nothing else runs, their fixed cost included.
    pub(crate) fn prompt_micros(&self, work: Work) -> f64 {
        self.coefficients[0] * work.prompt_steps as f64 + self.exact_micros(work)
    }

    /// Predicts the fixed cost of a step with prompts, in microseconds, without that of its rows.
    pub(crate) fn prompt_step_micros(&self) -> f64 {
        self.prompt_micros(Work { prompt_steps: 1, ..Work::default() })
    }

    /// Predicts the microseconds of a step of `work` alone.
    pub(crate) fn step_micros(&self, work: Work) -> u64 {
        self.coefficients[0] as u64 + self.micros(work)
    }

    /// True if enough steps were measured to trust the unit of predictions.
    pub(crate) fn is_fitted(&self) -> bool {
        self.num_steps >= NUM_UNSURPRISED
    }

    /// Updates the fit with a step of `work` that took `micros`.
    pub(crate) fn observe(&mut self, work: Work, micros: f64) {
        let x = work.kinds();
        let expected = dot(&self.coefficients, &x);
        let micros = if self.is_fitted() { micros.min(MAX_SURPRISE * expected) } else { micros };
        self.num_steps += 1;
        for (i, row) in self.moments.iter_mut().enumerate() {
            for (j, moment) in row.iter_mut().enumerate() {
                *moment = MEMORY * *moment + x[i] * x[j];
            }
            self.products[i] = MEMORY * self.products[i] + micros * x[i];
        }
        self.square = MEMORY * self.square + micros * micros;
        self.fit();
    }

    /// Minimizes `Σ (t - u·z)² + w Σ t² |u - 1|²` over `u >= 0`, with `z` the work of each kind in microseconds of the scaled
    /// shape. Cyclic coordinate descent: each step is the exact minimum in one coordinate (Friedman, Hastie, Tibshirani 2010,
    /// sec. 2).
    fn fit(&mut self) {
        let in_shape: f64 = (0..KINDS).map(|i| SHAPE[i] * dot(&self.moments[i], &SHAPE)).sum();
        let scale = dot(&self.products, &SHAPE) / in_shape;
        if scale <= 0.0 {
            return; // No step took any time.
        }
        let unit = SHAPE.map(|rows| rows * scale);
        if self.num_steps == 1 {
            self.coefficients = unit;
        }
        let weight = SHAPE_WEIGHT * self.square;
        for _ in 0..NUM_SWEEPS {
            for (i, unit) in unit.into_iter().enumerate() {
                let others = dot(&self.moments[i], &self.coefficients) - self.moments[i][i] * self.coefficients[i];
                let pull = (self.products[i] - others) * unit + weight;
                let stiffness = self.moments[i][i] * unit * unit + weight;
                self.coefficients[i] = unit * (pull / stiffness).max(0.0);
            }
        }
    }
}

fn dot(a: &[f64; KINDS], b: &[f64; KINDS]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fits `count` steps of prefill, decode and both, timed by `true_micros`; returns the prediction for 1000 rows after 3000
    /// others, relative to the truth.
    fn learn(count: u64, true_micros: impl Fn(Work) -> f64) -> f64 {
        let mut times = StepCostModel::default();
        for i in 0..count {
            let (rows, end) = ([512, 3, 40][(i % 3) as usize], 600 + (i * 977 % 5000) as u32);
            let work = Work { copied_tokens: i * 31 % 700, ..Work::of_rows(rows, end) };
            times.observe(work, 5000.0 + true_micros(work));
        }
        let asked = Work::of_rows(1000, 4000);
        times.micros(asked) as f64 / true_micros(asked)
    }

    #[track_caller]
    fn check(count: u64, true_micros: impl Fn(Work) -> f64, tolerance: f64) {
        let ratio = learn(count, true_micros);
        assert!((ratio - 1.0).abs() < tolerance, "{ratio}");
    }

    #[test]
    fn one_step_tells_the_scale() {
        check(1, |work| 900.0 * work.rows as f64 + 0.05 * work.attention_pairs as f64, 0.1);
    }

    #[test]
    fn many_steps_tell_where_the_machine_differs_from_the_shape() {
        check(300, |work| 10.0 * work.rows as f64 + 0.02 * work.attention_pairs as f64, 0.1);
        check(300, |work| 10.0 * work.rows as f64 + 0.00033 * work.attention_pairs as f64, 0.1);
        check(300, |work| 40.0 * work.rows as f64 + 5.0 * work.copied_tokens as f64, 0.1);
    }

    /// As a small model on a GPU: prompts of all lengths between long answers.
    #[test]
    fn what_a_prompt_step_costs_beside_its_rows_is_told_from_decode_steps() {
        let mut times = StepCostModel::default();
        for i in 0..2000u64 {
            let rows = 100 + (i * 977 % 4000) as u32;
            let prompt = Work { prompt_steps: 1, ..Work::of_rows(rows, rows) };
            let (work, micros) = match i % 40 {
                0 => (prompt, 2200.0 + 0.4 * prompt.rows as f64),
                _ => (Work::of_rows(1, 600), 1200.0),
            };
            times.observe(work, micros);
        }
        for (steps, rows, truth) in [(1, 2000, 3000.0), (2, 300, 4520.0)] {
            let micros = times.prompt_micros(Work { prompt_steps: steps, ..Work::of_rows(rows, 2000) });
            assert!((micros / truth - 1.0).abs() < 0.2, "{steps} steps of {rows} rows in all: {micros} for {truth}");
        }
    }

    #[test]
    fn a_machine_that_changes_is_followed() {
        let mut times = StepCostModel::default();
        let asked = Work::of_rows(100, 100);
        for row_micros in [10.0, 30.0] {
            for i in 0..2000 {
                let work = Work::of_rows([100, 2][i % 2], 100);
                times.observe(work, 100.0 + row_micros * work.rows as f64);
            }
            assert!((times.micros(asked) as f64 / (100.0 * row_micros) - 1.0).abs() < 0.1);
        }
    }

    #[test]
    fn an_interrupted_step_teaches_little() {
        let mut times = StepCostModel::default();
        let work = |i: u64| Work::of_rows([100, 2][i as usize % 2], 100);
        (0..200).for_each(|i| times.observe(work(i), 100.0 + 10.0 * work(i).rows as f64));
        let before = times.micros(work(0));
        times.observe(work(1), 60e6);
        assert!(times.micros(work(0)) < before * 11 / 10);
    }

    #[test]
    fn steps_without_time_teach_nothing() {
        let mut times = StepCostModel::default();
        times.observe(Work::of_rows(10, 10), 0.0);
        assert_eq!(times.micros(Work::of_rows(10, 10)), 10 * ROW_MICROS_AT_FIRST as u64);
    }

    #[test]
    fn pairs_are_counted_as_a_causal_mask_has_them() {
        assert_eq!(Work::of_rows(3, 3).attention_pairs, 1 + 2 + 3);
        assert_eq!(Work::of_rows(2, 10).attention_pairs, 9 + 10);
        assert_eq!(Work::of_rows(0, 10), Work::default());
    }
}
