//! Schedules the step after a running one before the result of that is known.
//!
//! In decode, a step follows from the previous one except for its tokens: every sequence that goes on has one row more. So it is
//! scheduled while the device computes and begins once the tokens are known; the bookkeeping runs meanwhile.
//!
//! A sequence that ends with its token, or is aborted meanwhile, has a void row in the next step. Its blocks are free by then.
//! This is safe: a device runs steps in order, so a new owner of such a block writes it later, and the cached content of the
//! block, full blocks of computed tokens, lies before the row.

use tokens::Timestamp;

use super::{OpenStep, Scheduler};
use crate::sequence::Sequence;
use crate::{SampledToken, ScheduledSequence, SchedulerOutput};

/// Steps scheduled ahead in a row while requests wait that could not be admitted. Chosen: events that depend on the number of
/// steps alone, such as the end of a turn, are hardly delayed.
const MAX_AHEAD_WHILE_WAITING: u64 = 16;

impl Scheduler {
    /// Schedules the step after `step`, the last one scheduled, whose result is outstanding; `None` if it does not follow from
    /// `step`, if a request can be admitted, or if there is no room for it. In that case some sequences may have their next block
    /// already, and the resulting offloads and zeroes are part of the next step that is scheduled.
    ///
    /// Its tokens are not known: [`Scheduler::complete_ahead`] sets them.
    ///
    /// # Panics
    /// If another step than `step` is open.
    pub fn schedule_ahead(&mut self, step: &SchedulerOutput) -> Option<SchedulerOutput> {
        assert_eq!(self.open_steps.len(), 1, "one step is open, and the next one is not");
        if !self.config.run_ahead || !self.is_predictable(step) {
            return None;
        }
        let sequences = self.grow_all(step)?;
        if sequences.is_empty() {
            return None;
        }
        let mut next = SchedulerOutput { sequences, finished: std::mem::take(&mut self.finished), ..SchedulerOutput::default() };
        self.open_step(&mut next, OpenStep::Ahead);
        Some(next)
    }

    /// Sets the tokens of `next`, which was scheduled ahead, from `sampled`, the result of the previous step. Clears its
    /// sequences if all of them end with that. A sequence without a sampled token has failed, and its row is void.
    ///
    /// # Panics
    /// If `sampled` does not answer the previous step.
    pub fn complete_ahead(&self, next: &mut SchedulerOutput, sampled: &[SampledToken]) {
        let mut sampled = sampled.iter();
        let mut any_goes_on = false;
        for scheduled in &mut next.sequences {
            let request_id = scheduled.request_id;
            let mut rest = sampled.clone();
            let Some(found) = rest.find(|sampled| sampled.request_id == request_id) else { continue };
            sampled = rest;
            scheduled.rows[0].token = found.token;
            any_goes_on |= !found.completes && !self.sequences[&request_id].stops_with(found.token);
        }
        if !any_goes_on {
            next.sequences.clear();
        }
    }

    /// Records that `step`, which was scheduled ahead, began at `now`, when the previous one ended.
    pub fn begin_ahead(&mut self, step: &SchedulerOutput, now: Timestamp) {
        self.forget_expired(now);
        self.observe_last_step(now);
        self.update_min_offload_depth();
        self.time_step(step, now);
    }

    /// True if only the tokens of `step` are unknown, one for each running sequence, and no request is to be admitted next.
    fn is_predictable(&self, step: &SchedulerOutput) -> bool {
        let is_settled = |scheduled: &ScheduledSequence| {
            let sequence = self.sequences.get(&scheduled.request_id);
            scheduled.sample && scheduled.watch.is_empty() && sequence.is_none_or(Sequence::is_settled)
        };
        let num_known = step.sequences.iter().filter(|scheduled| self.sequences.contains_key(&scheduled.request_id)).count();
        let is_looked_after = self.num_steps - self.last_chosen <= MAX_AHEAD_WHILE_WAITING;
        let nobody_comes = self.queue.len() == 0 || self.is_stuck && is_looked_after;
        let nobody_waits = nobody_comes && num_known == self.running.len();
        let measures_nothing = step.probes.is_empty() && step.span_copies.is_empty() && self.retracted.is_empty();
        nobody_waits && measures_nothing && step.sequences.iter().all(is_settled)
    }

    /// Returns one more row for each sequence of `step` that goes on whatever its token is; `None` if there is no room for all of
    /// them.
    fn grow_all(&mut self, step: &SchedulerOutput) -> Option<Vec<ScheduledSequence>> {
        let mut sequences = Vec::with_capacity(step.sequences.len());
        for scheduled in &step.sequences {
            let Some(sequence) = self.sequences.get_mut(&scheduled.request_id) else { continue };
            if sequence.is_at_last_token(self.config.max_model_len) {
                continue;
            }
            let row = sequence.row_ahead();
            let missing = sequence.num_missing_blocks(row.position + 1, self.config.block_size);
            let kv::Allocation::Ready(()) = self.pool.grow(&mut sequence.lease, missing) else { return None };
            sequences.push(ScheduledSequence {
                request_id: scheduled.request_id,
                rows: vec![row],
                block_table: sequence.lease.block_table(row.position + 1),
                sample: true,
                watch: Vec::new(),
                drift: Vec::new(),
            });
        }
        Some(sequences)
    }
}
