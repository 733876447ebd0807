//! Updates the scheduler with the result of a step.

use std::collections::BTreeSet;

use tokens::{RequestId, SharingMode};

use super::{OpenStep, Scheduler};
use crate::cost::Work;
use crate::donors::segments_of;
use crate::sequence::covers;
use crate::{
    EngineEvent, FinishReason, KvUsage, ModelRunnerOutput, ProbedSequence, RejectedSpan, SampledToken, ScheduledSequence,
    SchedulerOutput, SpanOutcome,
};

impl Scheduler {
    /// Processes the result of `step`, the first open one. Call exactly once for each step.
    ///
    /// # Panics
    /// If `output` does not answer `step`: the executor is broken, and the pool cannot be trusted any more.
    pub fn update_from_output(&mut self, step: &SchedulerOutput, output: ModelRunnerOutput) -> Vec<EngineEvent> {
        let how = self.open_steps.pop_front().expect("a step is open");
        std::mem::take(&mut self.pins).into_iter().rev().for_each(|pin| self.pool.free(pin));
        if let Some(transfer) = output.transfer {
            self.host_link.observe(transfer);
        }
        self.num_last_scheduled = step.num_scheduled_tokens();
        for (request_id, logprobs) in output.prompt_logprobs {
            let Some(sequence) = self.sequences.get_mut(&request_id) else {
                assert_eq!(how, OpenStep::Ahead, "log probabilities are of a scheduled request");
                continue;
            };
            sequence.keep_prompt_logprobs(logprobs);
        }
        let rejected: BTreeSet<_> = output.rejected_spans.iter().map(|rejected| rejected.request_id).collect();
        output.rejected_spans.iter().for_each(|rejected| self.reject_span(rejected));
        let mut probed = output.probed.into_iter();
        for probe in step.probes.iter().filter(|probe| !rejected.contains(&probe.request_id)) {
            let found = probed.next().expect("every probe is answered");
            assert_eq!(found.request_id, probe.request_id, "probes are answered in their order");
            match probe.probe.depth {
                semantic::Depth::Layer(_) => self.repair(probe, &found.deviations),
                semantic::Depth::Quarter => self.apply_deep_probe(probe, &found.deviations),
            }
        }
        assert!(probed.next().is_none(), "nobody asked for a probe");
        for watched in output.watched.iter().filter(|watched| !rejected.contains(&watched.request_id)) {
            let sequence = self.sequences.get_mut(&watched.request_id).expect("a watched sequence is known");
            sequence.choose_due(&watched.attention);
        }
        let mut void = rejected;
        for request_id in output.faulty {
            self.fail(request_id);
            void.insert(request_id);
        }
        let mut sampled = output.sampled.into_iter();
        for scheduled in step.sequences.iter().filter(|scheduled| !void.contains(&scheduled.request_id)) {
            let token = scheduled.sample.then(|| sampled.next().expect("one token is sampled for each sequence that asks"));
            if how == OpenStep::Chosen || self.goes_on(scheduled) {
                self.update_sequence(scheduled, token);
            }
        }
        assert!(sampled.next().is_none(), "a token was sampled for nobody");
        std::mem::take(&mut self.answered).into_iter().for_each(|(tenant, micros)| self.queue.charge(tenant, micros));
        self.verifier.absorb(&mut self.events);
        self.forget_healed();
        if self.sequences.is_empty() {
            self.timed_step = None; // What follows is a pause.
        }
        std::mem::take(&mut self.events)
    }

    /// True if a row that was scheduled ahead is at the frontier of a sequence that has not ended.
    fn goes_on(&self, scheduled: &ScheduledSequence) -> bool {
        let sequence = self.sequences.get(&scheduled.request_id);
        sequence.is_some_and(|sequence| sequence.num_computed_tokens() == scheduled.rows[0].position)
    }

    /// Ends a request with non-finite logits. Its KV may be non-finite too, so lookups must not find it. A row that was scheduled
    /// ahead may belong to a request that has ended.
    fn fail(&mut self, request_id: RequestId) {
        let Some(sequence) = self.sequences.get_mut(&request_id) else { return };
        tracing::error!(%request_id, num_tokens = sequence.num_tokens(), "the model's logits are no numbers: the request ends");
        sequence.request.store = false;
        let is_its_own = move |owner: &kv::BlockOwner| owner.request == request_id;
        self.finish(request_id, FinishReason::Faulty);
        self.donors.erase(is_its_own);
        self.pool.erase(is_its_own);
    }

    /// Rejects a donor that failed the check: its receiver computes everything after its prefix hit, and no other request copies
    /// from it.
    fn reject_span(&mut self, rejected: &RejectedSpan) {
        let request_id = rejected.request_id;
        tracing::info!(%request_id, donor = %rejected.donor, error = rejected.max_relative_error, "donor rejected");
        self.donors.remove(rejected.donor);
        let sequence = self.sequences.get_mut(&request_id).expect("a rejected span has a receiver");
        if sequence.reused().is_empty() {
            return; // Another donor of the same request was rejected before.
        }
        self.span_lookups.count(SpanOutcome::FailedCheck);
        let class = sequence.continued().map(|continued| continued.class);
        let usage = sequence.usage.as_mut().expect("it was admitted");
        let computed_tokens = usage.computed_tokens + usage.span_tokens;
        let outcome = Some(SpanOutcome::FailedCheck);
        *usage = KvUsage {
            span_tokens: 0,
            recomputed_tokens: 0,
            donors: 0,
            deviation: None,
            deep_deviation: None,
            computed_tokens,
            outcome,
            ..*usage
        };
        usage.class = class;
        self.compute_in_full(request_id);
    }

    /// Selects the tokens to recompute in the moved spans of a request.
    fn repair(&mut self, probe: &ProbedSequence, measured: &[semantic::TokenDeviation]) {
        let request_id = probe.request_id;
        let sequence = self.sequences.get_mut(&request_id).expect("a probed sequence is known");
        let repair = sequence.repair();
        let measured = &semantic::spread(sequence.reused(), probe.probe.stride, measured);
        let mut selected = semantic::select_rows(repair, sequence.num_planned_tokens(), sequence.reused(), measured);
        let is_beyond = repair.bail_out > 0.0 && selected.deviation > repair.bail_out;
        let gives_up = is_beyond || !selected.deviation.is_finite();
        if gives_up {
            selected = semantic::SelectedRows { ranges: probe.reused.clone(), deviation: 0.0 };
        }
        let num_selected = sequence.recompute(&selected.ranges);
        sequence.keep_measured(measured);
        sequence.keep_residual(&probe.reused, measured);
        let is_computed = sequence.reused().is_empty();
        let usage = sequence.usage.as_mut().expect("it was admitted");
        usage.recompute(num_selected);
        usage.deviation = Some(selected.deviation);
        sequence.deep_probe = sequence.request.repair.deep_probe(selected.deviation).filter(|_| !is_computed);
        if is_computed {
            let outcome = if gives_up { SpanOutcome::BailedOut } else { SpanOutcome::Recomputed };
            usage.outcome = Some(outcome);
            self.span_lookups.count(outcome);
            self.compute_in_full(request_id);
        }
        // The probe computed readers left of all spans already, and their inputs will not change.
        let first_span = probe.reused.first().map_or(0, |range| range.start);
        if probe.probe.readers == semantic::Readers::FreshRowsAllLayers && first_span > probe.first_position {
            self.advance(request_id, first_span - 1);
        }
    }

    /// Recomputes everything if the remaining moved tokens of a request deviate too much deeper in the model.
    fn apply_deep_probe(&mut self, probe: &ProbedSequence, measured: &[semantic::TokenDeviation]) {
        let request_id = probe.request_id;
        let sequence = self.sequences.get_mut(&request_id).expect("a probed sequence is known");
        let measured = semantic::spread(&probe.reused, probe.probe.stride, measured);
        let positions = probe.reused.iter().flat_map(|range| range.positions());
        let staying = positions.zip(measured).filter(|(position, _)| covers(sequence.reused(), *position));
        let staying: Vec<_> = staying.map(|(_, found)| found).collect();
        let deviation = semantic::deep_deviation(sequence.num_prompt_tokens(), &staying);
        let is_trusted = deviation <= sequence.repair().deep_bail_out;
        let num_computed = if is_trusted { 0 } else { sequence.recompute(&probe.reused) };
        let usage = sequence.usage.as_mut().expect("it was admitted");
        usage.deep_deviation = Some(deviation);
        if is_trusted {
            return;
        }
        usage.recompute(num_computed);
        usage.deviation = Some(0.0);
        usage.outcome = Some(SpanOutcome::BailedOut);
        self.span_lookups.count(SpanOutcome::BailedOut);
        self.compute_in_full(request_id);
    }

    /// Drops the donors of a request on whose spans no computed token depends: everything after the prefix hit will be exact,
    /// unless the prefix itself is approximate.
    fn compute_in_full(&mut self, request_id: RequestId) {
        let sequence = self.sequences.get_mut(&request_id).expect("a running sequence is known");
        sequence.drop_spans();
        if !sequence.is_exact() {
            return;
        }
        self.pool.exchange_approximate(&mut sequence.lease);
        if sequence.request.store {
            let first = self.config.block_size.full_blocks(sequence.prefix_end() as usize);
            self.in_flight.insert(request_id, &sequence.block_hashes()[first..]);
            self.in_flight.insert_prompt(&sequence.request);
        }
    }

    fn update_sequence(&mut self, scheduled: &ScheduledSequence, sampled: Option<SampledToken>) {
        let request_id = scheduled.request_id;
        let last_position = scheduled.rows.last().expect("a scheduled sequence has rows").position;
        let reaches_prompt_end = self.advance(request_id, last_position);
        if reaches_prompt_end {
            self.report_prompt(request_id);
        }
        let sequence = self.sequences.get_mut(&request_id).expect("a scheduled sequence is known");
        let mut is_complete = false;
        if let Some(SampledToken { request_id: sampled_for, token, margin, logprobs, completes }) = sampled {
            assert_eq!(sampled_for, request_id, "tokens are sampled in the order of the sequences");
            if let Some(selected) = sequence.reselect_on_low_margin(margin) {
                let num_selected = sequence.recompute(&selected);
                sequence.usage.as_mut().expect("it was admitted").recompute(num_selected);
                self.span_lookups.count(SpanOutcome::LowMargin);
                self.retracted.push(request_id);
                return;
            }
            let answered = Work::of_rows(1, sequence.num_tokens());
            *self.answered.entry(sequence.request.tenant).or_default() += self.step_costs.micros(answered);
            sequence.append(token, self.config.block_size);
            is_complete = completes;
            let logprobs = sequence.record(logprobs);
            self.events.push(EngineEvent::Token { request_id, token, logprobs });
            self.bound_recording(request_id);
        }
        let sequence = self.sequences.get_mut(&request_id).expect("a scheduled sequence is known");
        if sequence.num_computed_tokens() < sequence.num_prompt_tokens() {
            return;
        }
        if let Some(reason) = sequence.finish_reason(self.config.max_model_len, is_complete) {
            self.finish(request_id, reason);
        }
    }

    /// Stops recording the answer of `request_id` if the bytes kept for verification exceed the limit.
    fn bound_recording(&mut self, request_id: RequestId) {
        let is_recorded = self.sequences.get(&request_id).is_some_and(|sequence| sequence.recorded_logprobs.is_some());
        if is_recorded && !self.verifier.may_record(self.num_recording_bytes()) {
            self.sequences.get_mut(&request_id).expect("it was found above").recorded_logprobs = None;
        }
    }

    /// Moves the frontier, and caches the full blocks before it. Returns true if it reached the prompt's end for the first time.
    fn advance(&mut self, request_id: RequestId, last_position: u32) -> bool {
        let sequence = self.sequences.get_mut(&request_id).expect("a scheduled sequence is known");
        let block_size = self.config.block_size;
        let full_blocks = |num_tokens: u32| block_size.full_blocks(num_tokens as usize);
        let before = full_blocks(sequence.num_computed_tokens());
        let reaches_prompt_end = sequence.advance(last_position);
        let num_computed = sequence.num_computed_tokens();
        let (queue, is_stuck) = (&mut self.queue, &mut self.is_stuck);
        let computed = &sequence.block_hashes()[before..full_blocks(num_computed)];
        self.in_flight.remove(request_id, computed, |hash| *is_stuck &= !queue.wake_block(hash));
        if sequence.request.store {
            let on_duplicate = match sequence.sharing() {
                SharingMode::Off => kv::OnDuplicate::Keep,
                _ => kv::OnDuplicate::Exchange,
            };
            let (hashed, lease) = sequence.hashed_and_lease();
            self.pool.cache_full_blocks(lease, hashed, num_computed as usize, on_duplicate);
        }
        reaches_prompt_end
    }

    /// Reports a computed prompt: it may serve as donor, and its log probabilities are complete.
    fn report_prompt(&mut self, request_id: RequestId) {
        self.in_flight.remove_prompt(request_id);
        self.is_stuck &= !self.queue.wake_prompt(request_id);
        let sequence = self.sequences.get_mut(&request_id).expect("a scheduled sequence is known");
        if let Some(logprobs) = sequence.take_prompt_logprobs() {
            self.events.push(EngineEvent::PromptLogProbs { request_id, logprobs });
        }
        if sequence.request.store && sequence.is_exact() {
            let tokens = &sequence.request.prompt_token_ids[..];
            let segments = segments_of(&sequence.request.borders, &sequence.request.template);
            let embedding = sequence.request.embedding.as_deref();
            self.donors.keep(kv::HashedTokens { tokens, ..sequence.hashed() }, segments, sequence.request.owner(), embedding);
        }
    }

    /// Ends a request that is no longer in the queue.
    pub(super) fn finish(&mut self, request_id: RequestId, reason: FinishReason) {
        self.cancel_in_flight(request_id);
        let mut sequence = self.sequences.remove(&request_id).expect("only known requests end");
        let num_before = self.running.len();
        self.running.retain(|&running| running != request_id);
        if self.running.len() < num_before {
            self.queue.end_running(sequence.request.tenant);
        }
        self.is_stuck = false;
        if matches!(reason, FinishReason::Stop(_) | FinishReason::Complete | FinishReason::Length)
            && let Some(case) = self.comparison_of(&mut sequence)
            && self.config.block_size.blocks_for(case.request.prompt_token_ids.len())
                <= self.config.max_blocks(sequence.request.tenant)
        {
            self.verifier.submit(case, self.num_recording_bytes());
        }
        self.keep_or_free(&mut sequence, reason != FinishReason::Faulty);
        if sequence.known_to_runner {
            self.finished.push(request_id);
        }
        let nothing_yet = KvUsage { computed_tokens: sequence.num_prompt_tokens(), ..KvUsage::default() };
        let usage = sequence.usage.unwrap_or(nothing_yet);
        tracing::debug!(%request_id, ?reason, num_output_tokens = sequence.num_output_tokens(), "finished");
        self.events.push(EngineEvent::Finished { request_id, reason, usage });
    }
}
