//! Drives a backend through one step.

use std::collections::HashMap;

use engine::{
    Executor, ExecutorError, ModelRunnerOutput, ProbedSpans, RejectedSpan, SampledToken, ScheduledSequence, SchedulerOutput,
    TokenLogProbs, WatchedSpans,
};
use tokens::{BlockSize, RequestId, TokenId};
use tracing::warn;

use crate::sampler::{RequestState, SampleRow, Sampled, log_probs};
use crate::timings::Stopwatch;
use crate::{Backend, BackendError, InputBatch, InputSequence, StepTimings};

/// Executes steps on one backend, and keeps the sampling state of the requests in flight.
pub struct ModelRunner {
    backend: Box<dyn Backend>,
    block_size: BlockSize,
    requests: HashMap<RequestId, RequestState>,
    timings: StepTimings,
}

/// Rows whose logits are computed at once when a prompt is scored. Chosen: a few MB for the largest vocabularies.
const SCORED_ROWS: usize = 16;

impl ModelRunner {
    /// A runner of `backend`, whose pool has blocks of `block_size`.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, block_size: BlockSize) -> Self {
        Self { backend, block_size, requests: HashMap::new(), timings: StepTimings::default() }
    }

    /// The backend, for tests that look into the pool.
    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// Where the time of the last step went.
    #[must_use]
    pub fn timings(&self) -> StepTimings {
        self.timings
    }

    fn run(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, BackendError> {
        for request_id in &step.finished {
            self.requests.remove(request_id);
        }
        for request_id in &step.retracted {
            // A request that was aborted since is known no more.
            if let Some(state) = self.requests.get_mut(request_id) {
                state.retract();
            }
        }
        for new in &step.new_requests {
            self.requests.insert(new.request_id, RequestState::new(new.sampling.clone(), new.prompt_token_ids.clone()));
        }
        self.timings = StepTimings::default();
        let mut watch = Stopwatch::start();
        self.backend.begin_step();
        self.backend.offload_blocks(&step.offloads)?;
        self.backend.zero_blocks(&step.block_zeroes)?;
        let transfer = self.backend.fetch_blocks(&step.fetches)?;
        self.backend.copy_blocks(&step.block_copies)?;
        self.timings.copies = watch.lap();
        self.begin_move(step)?;
        watch.lap();
        let mut probed = Vec::new();
        for probe in &step.probes {
            probed.push(ProbedSpans { request_id: probe.request_id, deviations: self.backend.probe(probe)? });
        }
        self.timings.probe = watch.lap();
        let rejected_spans = self.rejected_spans(step)?;
        watch.lap();
        let is_rejected = |request_id: RequestId| rejected_spans.iter().any(|span| span.request_id == request_id);
        let sequences: Vec<&ScheduledSequence> =
            step.sequences.iter().filter(|sequence| !is_rejected(sequence.request_id)).collect();
        probed.retain(|probed| !is_rejected(probed.request_id));
        let mut batch = InputBatch::new(sequences.iter().copied(), self.block_size);
        batch.logit_rows = Some(self.logit_rows(&sequences, &batch));
        let mut output = ModelRunnerOutput { rejected_spans, probed, transfer, ..ModelRunnerOutput::default() };
        if batch.num_rows() == 0 {
            self.backend.synchronize()?;
            return Ok(output);
        }
        self.backend.forward(&batch)?;
        self.timings.forward = watch.lap();
        output.prompt_logprobs = self.score_prompts(&sequences, &batch)?;
        output.watched = self.watched(&sequences);
        output.sampled = self.sample(&sequences, &batch)?;
        // A step that samples nothing ends when it is computed, too: the scheduler learns from its time.
        self.backend.synchronize()?;
        self.timings.sample = watch.lap();
        Ok(output)
    }

    /// Moves all spans, and begins to check each against a fresh computation of layer 0.
    fn begin_move(&mut self, step: &SchedulerOutput) -> Result<(), BackendError> {
        if step.span_copies.is_empty() {
            return Ok(());
        }
        let mut watch = Stopwatch::start();
        self.backend.move_spans(&step.span_copies)?;
        self.timings.moves = watch.lap();
        self.backend.begin_check(&step.span_copies)?;
        self.timings.check = watch.lap();
        Ok(())
    }

    /// Spans that did not pass their check. It is read behind the probes, which a device has to wait for less then; what they measured of a
    /// sequence whose span did not pass is void.
    fn rejected_spans(&mut self, step: &SchedulerOutput) -> Result<Vec<RejectedSpan>, BackendError> {
        let mut rejected = Vec::new();
        if step.span_copies.is_empty() {
            return Ok(rejected);
        }
        let mut watch = Stopwatch::start();
        let deviations = self.backend.finish_check(&step.span_copies)?;
        self.timings.check += watch.lap();
        for (span, deviation) in step.span_copies.iter().zip(deviations) {
            if deviation.is_nan() || deviation > self.backend.max_span_deviation() {
                warn!(request_id = %span.request_id, donor = %span.donor, deviation, "a donor's KV disagrees with layer 0");
                rejected.push(RejectedSpan { request_id: span.request_id, donor: span.donor, max_relative_error: deviation });
            }
        }
        Ok(rejected)
    }

    /// What the last rows of watched sequences paid to the positions they asked about.
    fn watched(&self, sequences: &[&ScheduledSequence]) -> Vec<WatchedSpans> {
        let watched = sequences.iter().enumerate().filter(|(_, sequence)| !sequence.watch.is_empty());
        watched
            .map(|(idx, sequence)| {
                let paid = self.backend.attention_paid(idx);
                let attention = sequence.watch.iter().flat_map(|range| &paid[range.as_usize()]).copied().collect();
                WatchedSpans { request_id: sequence.request_id, attention }
            })
            .collect()
    }

    fn sample(&mut self, sequences: &[&ScheduledSequence], batch: &InputBatch) -> Result<Vec<SampledToken>, BackendError> {
        let last_rows: Vec<(usize, &ScheduledSequence)> = batch
            .sequences
            .iter()
            .zip(sequences)
            .filter(|(_, sequence)| sequence.sample)
            .map(|(input, sequence)| (input.first_row + input.num_rows - 1, *sequence))
            .collect();
        if last_rows.is_empty() {
            return Ok(Vec::new());
        }
        let state = |request_id| self.requests.get(request_id).expect("a scheduled request was announced and has not finished");
        let rows: Vec<SampleRow> =
            last_rows.iter().map(|(row, sequence)| state(&sequence.request_id).sample_row(*row, batch.positions[*row])).collect();
        let found = self.backend.sample(&rows)?;
        let mut sampled = Vec::with_capacity(found.len());
        for ((_, sequence), Sampled { token, margin, logprobs }) in last_rows.iter().zip(found) {
            let request_id = sequence.request_id;
            self.requests.get_mut(&request_id).expect("its row was made from its state").record(token);
            sampled.push(SampledToken { request_id, token, margin, logprobs });
        }
        Ok(sampled)
    }

    /// Rows that a token is sampled from, and those of prompts that are scored.
    fn logit_rows(&self, sequences: &[&ScheduledSequence], batch: &InputBatch) -> Vec<usize> {
        let of_sequence = |(input, sequence): (&InputSequence, &&ScheduledSequence)| {
            let end = input.first_row + input.num_rows;
            let is_scored = self.requests[&sequence.request_id].params.prompt_logprobs.is_some();
            if is_scored { input.first_row..end } else { end - usize::from(sequence.sample)..end }
        };
        batch.sequences.iter().zip(sequences).flat_map(of_sequence).collect()
    }

    /// Log probabilities of prompt tokens, for the sequences that asked.
    fn score_prompts(&mut self, sequences: &[&ScheduledSequence], batch: &InputBatch) -> Result<PromptLogProbs, BackendError> {
        let vocab_size = self.backend.vocab_size();
        let mut scored = Vec::new();
        for (input, sequence) in batch.sequences.iter().zip(sequences) {
            let state = &self.requests[&sequence.request_id];
            let Some(top) = state.params.prompt_logprobs else { continue };
            let prompt = &state.prompt_token_ids;
            let from = state.params.prompt_logprobs_from;
            let next = |row: usize| {
                let position = batch.positions[row] + 1;
                prompt.get(position as usize).copied().filter(|_| position >= from)
            };
            let rows: Vec<(usize, TokenId)> =
                (input.first_row..input.first_row + input.num_rows).filter_map(|row| Some((row, next(row)?))).collect();
            let mut found = Vec::with_capacity(rows.len());
            for rows in rows.chunks(SCORED_ROWS) {
                let indices: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
                let logits = self.backend.logits(&indices)?;
                for ((row, token), logits) in rows.iter().zip(logits.chunks_exact(vocab_size)) {
                    found.push((batch.positions[*row] + 1, log_probs(logits, *token, top)));
                }
            }
            scored.push((sequence.request_id, found));
        }
        Ok(scored)
    }
}

type PromptLogProbs = Vec<(RequestId, Vec<(u32, TokenLogProbs)>)>;

impl Executor for ModelRunner {
    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        self.run(step).map_err(|error| ExecutorError(Box::new(error)))
    }
}
