//! Drives a backend through one step.

use std::collections::HashMap;

use engine::{
    Executor, ExecutorError, ModelRunnerOutput, ProbedSpans, RejectedSpan, SampledToken, ScheduledSequence, SchedulerOutput,
    TokenLogProbs, WatchedSpans,
};
use tokens::{BlockSize, RequestId, TokenId};
use tracing::warn;

use crate::sampler::{RequestState, log_probs};
use crate::{Backend, BackendError, InputBatch};

/// Executes steps on one backend, and keeps the sampling state of the requests in flight.
pub struct ModelRunner {
    backend: Box<dyn Backend>,
    block_size: BlockSize,
    requests: HashMap<RequestId, RequestState>,
}

/// Rows whose logits are computed at once when a prompt is scored. Chosen: a few MB for the largest vocabularies.
const SCORED_ROWS: usize = 16;

impl ModelRunner {
    /// A runner of `backend`, whose pool has blocks of `block_size`.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, block_size: BlockSize) -> Self {
        Self { backend, block_size, requests: HashMap::new() }
    }

    /// The backend, for tests that look into the pool.
    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
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
        self.backend.offload_blocks(&step.offloads)?;
        self.backend.zero_blocks(&step.block_zeroes)?;
        let transfer = self.backend.fetch_blocks(&step.fetches)?;
        self.backend.copy_blocks(&step.block_copies)?;
        let rejected_spans = self.move_spans(step)?;
        let is_rejected = |request_id: RequestId| rejected_spans.iter().any(|span| span.request_id == request_id);
        let sequences: Vec<&ScheduledSequence> =
            step.sequences.iter().filter(|sequence| !is_rejected(sequence.request_id)).collect();
        let mut probed = Vec::new();
        for probe in step.probes.iter().filter(|probe| !is_rejected(probe.request_id)) {
            probed.push(ProbedSpans { request_id: probe.request_id, deviations: self.backend.probe(probe)? });
        }
        let batch = InputBatch::new(sequences.iter().copied(), self.block_size);
        let mut output = ModelRunnerOutput { rejected_spans, probed, transfer, ..ModelRunnerOutput::default() };
        if batch.num_rows() == 0 {
            return Ok(output);
        }
        self.backend.forward(&batch)?;
        output.prompt_logprobs = self.score_prompts(&sequences, &batch)?;
        output.watched = self.watched(&sequences);
        output.sampled = self.sample(&sequences, &batch)?;
        Ok(output)
    }

    /// Moves all spans, then checks each against a fresh computation of layer 0.
    fn move_spans(&mut self, step: &SchedulerOutput) -> Result<Vec<RejectedSpan>, BackendError> {
        let mut rejected = Vec::new();
        for span in &step.span_copies {
            self.backend.move_span(span)?;
            let deviation = self.backend.span_deviation(span)?;
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
        let rows: Vec<usize> = last_rows.iter().map(|(row, _)| *row).collect();
        let vocab_size = self.backend.vocab_size();
        let logits = self.backend.logits(&rows)?;
        let mut sampled = Vec::with_capacity(rows.len());
        for ((row, sequence), logits) in last_rows.iter().zip(logits.chunks_exact_mut(vocab_size)) {
            let request_id = sequence.request_id;
            let state = self.requests.get_mut(&request_id).expect("a scheduled request was announced and has not finished");
            let (token, margin, logprobs) = state.sample(logits, batch.positions[*row]);
            sampled.push(SampledToken { request_id, token, margin, logprobs });
        }
        Ok(sampled)
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
