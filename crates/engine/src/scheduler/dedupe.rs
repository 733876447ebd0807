//! Waits for spans that another request is about to have computed.

use std::time::Duration;

use tokens::{RequestId, SharingMode, Timestamp};

use super::Scheduler;
use super::forecast::expected_reuse;
use crate::SchedulerOutput;
use crate::parking::Until;
use crate::sequence::{Sequence, SpanWait};

/// Maximum wait as a fraction of computing the whole prompt: one part in this many. Chosen: the spans save several times as much.
const MAX_WAIT_PART: u64 = 5;

impl Scheduler {
    /// Returns the prompt that a request whose prefix hit ends at `from` waits for rather than join `step`, and until when. Each
    /// request looks once and waits once.
    pub(super) fn awaited_prompt(
        &mut self,
        request_id: RequestId,
        from: u32,
        now: Timestamp,
        step: &SchedulerOutput,
    ) -> Option<Until> {
        let mut wait = self.sequences[&request_id].span_wait;
        if wait == SpanWait::Possible {
            wait = self.spans_to_wait_for(request_id, from, now, step);
        }
        if let SpanWait::For { owner, until } = wait
            && (now >= until || !self.in_flight.contains_prompt(owner))
        {
            wait = SpanWait::Over;
        }
        self.sequences.get_mut(&request_id).expect("a waiting sequence is known").span_wait = wait;
        match wait {
            SpanWait::For { owner, until } => Some(Until::Prompt(owner, until)),
            SpanWait::Possible | SpanWait::Over => None,
        }
    }

    /// Decides on a wait: spans are worth it if donors have none as good and they come in time, after the end of the step being
    /// scheduled.
    fn spans_to_wait_for(&self, request_id: RequestId, from: u32, now: Timestamp, step: &SchedulerOutput) -> SpanWait {
        let sequence = &self.sequences[&request_id];
        if sequence.sharing() != SharingMode::Span || from + 1 >= sequence.num_prompt_tokens() {
            return SpanWait::Over;
        }
        let Some((owner, num_tokens)) = self.spans_in_flight(sequence, from) else { return SpanWait::Over };
        let num_gained = num_tokens.saturating_sub(expected_reuse(sequence, from));
        let bound = self.config.max_span_wait.min(Duration::from_micros(self.uncached_micros(sequence) / MAX_WAIT_PART));
        let step_micros = self.step_costs.step_micros(self.work_of(step).0);
        let owner_micros = self.micros_left(&self.sequences[&owner]) as f64 * self.slowdown.ratio().max(1.0);
        let needed = Duration::from_micros(step_micros.max(owner_micros as u64));
        match num_gained >= self.config.spans.min_span_tokens && needed <= bound {
            true => SpanWait::For { owner, until: Timestamp(now.0 + bound) },
            false => SpanWait::Over,
        }
    }

    /// Finds the request that is computing most tokens of `sequence` after `from` in the same scope, and the number of these
    /// tokens.
    fn spans_in_flight(&self, sequence: &Sequence, from: u32) -> Option<(RequestId, u32)> {
        if self.in_flight.has_no_prompt() {
            return None;
        }
        let tokens = &sequence.request.prompt_token_ids;
        let sampled =
            sequence.sketch.is_none().then(|| self.donors.sketch(tokens, &sequence.request.borders, &sequence.request.template));
        let sketch = sequence.sketch.as_ref().or(sampled.as_ref())?;
        self.in_flight.find_spans(&semantic::SpanQuery { scopes: &[sequence.request.scope], tokens, sketch, from })
    }
}
