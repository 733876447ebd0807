//! Forecasts of the cost of waiting requests, and their maximum waits.

use std::time::Duration;

use tokens::{SharingMode, Timestamp};

use super::Scheduler;
use super::timing::TimedStep;
use crate::cost::Work;
use crate::donors::FoundSpans;
use crate::queue::Forecast;
use crate::sequence::Sequence;
use crate::{SchedulePolicy, SchedulerOutput};

/// Unit of hit rates in ranks.
const WHOLE: u64 = 1_000_000;

impl Scheduler {
    /// Updates the cost model with the last step, if this one follows at its end.
    pub(super) fn observe_last_step(&mut self, now: Timestamp) {
        let Some(TimedStep { began, work, prefill_micros }) = self.timed_step.take() else { return };
        let passed = now.since(began).as_secs_f64() * 1e6;
        if passed == 0.0 || work == Work::default() {
            return;
        }
        self.step_costs.observe(work, passed);
        if self.queue.len() > 0 {
            self.slowdown.observe(passed, prefill_micros as f64);
        }
    }

    /// Returns the record of `step` that the cost model is updated with at its end.
    pub(super) fn timed(&self, step: &SchedulerOutput, began: Timestamp) -> TimedStep {
        let (work, prefill) = self.work_of(step);
        TimedStep { began, work, prefill_micros: self.step_costs.micros(prefill) }
    }

    /// Returns the work of `step`, and the part of it that prompts cause.
    pub(super) fn work_of(&self, step: &SchedulerOutput) -> (Work, Work) {
        let moved = step.span_copies.iter().map(|copy| copy.token_ids.len() as u64);
        let copied = step.block_copies.iter().map(|copy| u64::from(copy.num_tokens));
        let is_deep = |probe: &&crate::ProbedSequence| probe.probe.depth == semantic::Depth::Quarter;
        let num_rows = |probe: &crate::ProbedSequence| probe.num_rows() as u64;
        let deep = step.probes.iter().filter(is_deep).map(num_rows).sum::<u64>();
        let all = step.probes.iter().map(num_rows).sum::<u64>();
        let is_of_prompts = !step.probes.is_empty() || step.sequences.iter().any(|scheduled| scheduled.rows.len() > 1);
        let mut work = Work {
            copied_tokens: moved.chain(copied).sum(),
            probed_tokens: all - deep,
            // A quarter of the layers of each.
            rows: deep / 4,
            prompt_steps: is_of_prompts.into(),
            ..Work::default()
        };
        let mut prefill = work;
        for scheduled in &step.sequences {
            // Void rows belong to decode.
            let sequence = self.sequences.get(&scheduled.request_id);
            let num_prompt_tokens = sequence.map_or(0, Sequence::num_prompt_tokens);
            for row in &scheduled.rows {
                let is_scored = sequence.is_some_and(|sequence| sequence.scores_at(row.position));
                let one = Work { scored_rows: is_scored.into(), ..Work::of_rows(1, row.position + 1) };
                work += one;
                if row.position < num_prompt_tokens {
                    prefill += one;
                }
            }
        }
        (work, prefill)
    }

    /// Forecasts rank and work of a request, by policy.
    pub(super) fn forecast(&self, sequence: &Sequence) -> Forecast {
        if self.config.policy == SchedulePolicy::Fcfs {
            return Forecast { rank: 0, micros: self.uncached_micros(sequence) };
        }
        let prefix_end = self.predict_prefix_hit(sequence);
        let micros = self.step_costs.micros(expected_work(sequence, prefix_end));
        let rank = match self.config.policy {
            SchedulePolicy::Fcfs | SchedulePolicy::KvHitRate => WHOLE - hit_rate(sequence, prefix_end),
            SchedulePolicy::RemainingWork => micros + sequence.arrived_micros,
        };
        Forecast { rank, micros }
    }

    /// Predicts the cost of its prompt if nothing of it is cached.
    pub(super) fn uncached_micros(&self, sequence: &Sequence) -> u64 {
        self.step_costs.micros(Work::of_rows(sequence.num_tokens(), sequence.num_tokens()))
    }

    /// Predicts the time until all requests in the engine have their first token, in microseconds.
    pub(super) fn queue_micros(&self) -> u64 {
        let running: u64 = self.running.iter().map(|id| self.micros_left(&self.sequences[id])).sum();
        ((self.queue.total_micros() + running) as f64 * self.slowdown.ratio()) as u64
    }

    /// Returns the time from which on a request that arrived at a queue of `queue_micros` goes first in its tenant.
    pub(super) fn deadline(&self, arrival: Timestamp, queue_micros: u64) -> Timestamp {
        if self.config.policy == SchedulePolicy::Fcfs {
            return Timestamp(Duration::MAX);
        }
        let relative = Duration::from_micros((self.config.max_overtake_ratio * queue_micros as f64) as u64);
        Timestamp(arrival.0.saturating_add(self.config.max_overtake.max(relative)))
    }

    /// Predicts the time until a running sequence has computed all its known tokens.
    pub(super) fn micros_left(&self, sequence: &Sequence) -> u64 {
        self.step_costs.micros(Work::of_rows(sequence.num_rows_left(), sequence.num_tokens()))
    }

    fn predict_prefix_hit(&self, sequence: &Sequence) -> u32 {
        if sequence.sharing() == SharingMode::Off {
            return 0;
        }
        let num_blocks = self.pool.index().count_leading(sequence.hashed()) as u32;
        let prefix_end = (num_blocks * self.config.block_size.get()).min(sequence.num_tokens() - 1);
        let kept = self.kept_for(sequence, num_blocks as usize);
        kept.map_or(prefix_end, |(kept, _)| kept.num_tokens.max(prefix_end))
    }

    /// Renews the forecasts of some waiting requests, if the pool's content has changed.
    pub(super) fn refresh_forecasts(&mut self) {
        let version = self.pool.index().version();
        if self.config.policy == SchedulePolicy::Fcfs || version == self.predicted_version {
            return;
        }
        self.predicted_version = version;
        for (key, request_id) in self.queue.next_to_refresh(self.config.max_estimates_per_step) {
            let forecast = self.forecast(&self.sequences[&request_id]);
            self.queue.set_forecast(key, forecast);
        }
    }
}

impl Scheduler {
    /// Returns the plan of `found` for a prompt after a prefix hit of `prefix_end`, rejected if it does not pay by the fitted
    /// step costs.
    pub(super) fn gated(&self, found: &FoundSpans, sequence: &Sequence, prefix_end: u32) -> semantic::ReusePlan {
        let plan = found.plan.clone();
        if !self.step_costs.is_fitted() {
            return plan;
        }
        let repair = sequence.request.repair.for_plan(&plan, sequence.num_prompt_tokens());
        let num_reused = plan.spans.iter().map(|span| span.num_tokens).sum();
        let millis = |num_reused| self.step_costs.prompt_micros(self.steps_with(sequence, repair, prefix_end, num_reused)) / 1e3;
        let fetch_ms = self.host_link.fetch_micros(found.num_fetched()) / 1e3;
        let estimate = semantic::Estimate { full_ms: millis(0), reuse_ms: millis(num_reused) + fetch_ms };
        self.config.gate.apply(plan, estimate)
    }

    /// Returns [`work_with`] and the steps it takes. A probe has its own, since the rows to compute are known only after it.
    fn steps_with(&self, sequence: &Sequence, repair: semantic::Repair, prefix_end: u32, num_reused: u32) -> Work {
        let work = work_with(sequence, repair, prefix_end, num_reused);
        let row_steps = work.rows.div_ceil(self.config.max_num_batched_tokens as u64);
        Work { prompt_steps: row_steps + u64::from(work.probed_tokens > 0), ..work }
    }
}

/// Predicts the work until the first token after a prefix hit. Spans are copied, perhaps measured, and recomputed in part.
fn expected_work(sequence: &Sequence, prefix_end: u32) -> Work {
    work_with(sequence, sequence.request.repair, prefix_end, expected_reuse(sequence, prefix_end))
}

/// Predicts the same with `num_reused` tokens of spans, repaired by `repair`.
fn work_with(sequence: &Sequence, repair: semantic::Repair, prefix_end: u32, num_reused: u32) -> Work {
    let num_tokens = sequence.num_tokens();
    let num_repaired = num_reused.min((num_tokens as f32 * repair.ratio) as u32);
    let num_fresh = num_tokens - prefix_end - num_reused;
    let probed = |probe: semantic::Probe| u64::from(num_fresh) + u64::from(num_reused.div_ceil(probe.stride));
    Work {
        copied_tokens: num_reused.into(),
        probed_tokens: repair.probe().filter(|_| num_reused > 0).map_or(0, probed),
        ..Work::of_rows(num_fresh + num_repaired, num_tokens)
    }
}

/// Predicts the span tokens after a prefix hit of `prefix_end`. Assumes that a hit that has grown since they were found covers
/// them first.
pub(super) fn expected_reuse(sequence: &Sequence, prefix_end: u32) -> u32 {
    let Some(spans) = sequence.expected_spans else { return 0 };
    let grown = prefix_end.saturating_sub(spans.prefix_end);
    spans.num_tokens.saturating_sub(grown).min(sequence.num_tokens() - 1 - prefix_end)
}

/// Returns the share of the known tokens whose KV is found, in parts of [`WHOLE`].
fn hit_rate(sequence: &Sequence, prefix_end: u32) -> u64 {
    let hits = prefix_end + expected_reuse(sequence, prefix_end);
    u64::from(hits) * WHOLE / u64::from(sequence.num_tokens())
}
