//! Drives a backend through one step.

use std::collections::HashMap;

use engine::{
    Executor, ExecutorError, ExecutorLimits, ModelRunnerOutput, OverlappingExecutor, ProbedSpans, RejectedSpan, SampledToken,
    ScheduledSequence, SchedulerOutput, TokenLogProbs, Transfer, WatchedSpans,
};
use tokens::{BlockSize, RequestId};
use tracing::warn;

use crate::sampler::{RequestState, SampleRow, Sampled, ScoreRow};
use crate::timings::Stopwatch;
use crate::{Backend, BackendError, InputBatch, InputSequence, StepTimings};

/// Executes steps on one backend, and keeps the sampling state of running requests.
pub struct ModelRunner {
    backend: Box<dyn Backend>,
    block_size: BlockSize,
    requests: HashMap<RequestId, RequestState>,
    /// Timings of the last step that has ended.
    timings: StepTimings,
    /// Step that was launched.
    launched: Option<Begun>,
    /// Step id and its batch, whose tokens are not yet known.
    prepared: Option<(u64, InputBatch)>,
}

/// A step whose tokens are being sampled.
#[derive(Default)]
struct Begun {
    /// Output without the tokens.
    output: ModelRunnerOutput,
    timings: StepTimings,
    /// Requests that the tokens belong to.
    sampled: Vec<RequestId>,
    /// Rows and parameters of the sampling.
    rows: Vec<SampleRow>,
    /// True if the device is sampling.
    is_device_choosing: bool,
}

impl ModelRunner {
    /// Creates a runner of `backend`, whose pool has blocks of `block_size`.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, block_size: BlockSize) -> Self {
        Self { backend, block_size, requests: HashMap::new(), timings: StepTimings::default(), launched: None, prepared: None }
    }

    /// Returns the backend, for tests that read the pool.
    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// Returns the time spent in each phase of the last step.
    #[must_use]
    pub fn timings(&self) -> StepTimings {
        self.timings
    }

    /// Removes finished requests and adds new ones.
    fn update_requests(&mut self, step: &SchedulerOutput) {
        for request_id in &step.finished {
            self.requests.remove(request_id);
        }
        for request_id in &step.retracted {
            // The request may have been aborted since.
            if let Some(state) = self.requests.get_mut(request_id) {
                state.retract();
            }
        }
        for new in &step.new_requests {
            self.requests.insert(new.request_id, RequestState::new(new.sampling.clone(), new.prompt_token_ids.clone()));
        }
    }

    /// Executes all of `step` except waiting for its tokens.
    fn begin(&mut self, step: &SchedulerOutput) -> Result<Begun, BackendError> {
        self.update_requests(step);
        let mut timings = StepTimings::default();
        let mut watch = Stopwatch::start();
        self.backend.begin_step();
        let transfer = self.copy_blocks(step)?;
        timings.copies = watch.lap();
        let (rejected_spans, probed) = self.move_spans(step, &mut timings)?;
        watch.lap();
        let is_rejected = |request_id: RequestId| rejected_spans.iter().any(|span| span.request_id == request_id);
        let sequences: Vec<&ScheduledSequence> =
            step.sequences.iter().filter(|sequence| !is_rejected(sequence.request_id)).collect();
        let mut batch = self.batch(step.step, &sequences);
        batch.logit_rows = Some(self.logit_rows(&sequences, &batch));
        let output = ModelRunnerOutput { rejected_spans, probed, transfer, ..ModelRunnerOutput::default() };
        let mut begun = Begun { output, timings, ..Begun::default() };
        if batch.num_rows() > 0 {
            self.backend.forward(&batch)?;
            begun.timings.forward = watch.lap();
            begun.output.prompt_logprobs = self.score_prompts(&sequences, &batch)?;
            begun.output.faulty = faulty_scores(&begun.output.prompt_logprobs);
            begun.output.watched = self.watched(&sequences);
            self.begin_sample(&sequences, &batch, &mut begun)?;
            begun.timings.sample = watch.lap();
        }
        Ok(begun)
    }

    /// Runs the operations on whole blocks, before anything else. Returns the timing of fetches that have ended.
    fn copy_blocks(&mut self, step: &SchedulerOutput) -> Result<Option<Transfer>, BackendError> {
        self.backend.offload_blocks(&step.offloads)?;
        self.backend.zero_blocks(&step.block_zeroes)?;
        let transfer = self.backend.fetch_blocks(&step.fetches)?;
        self.backend.copy_blocks(&step.block_copies)?;
        Ok(transfer)
    }

    /// Returns the batch of these sequences: the prepared one or a new one.
    fn batch(&mut self, step: u64, sequences: &[&ScheduledSequence]) -> InputBatch {
        match self.prepared.take() {
            Some((prepared, mut batch)) if prepared == step && batch.sequences.len() == sequences.len() => {
                batch.set_tokens(sequences.iter().copied());
                batch
            }
            _ => InputBatch::new(sequences.iter().copied(), self.block_size),
        }
    }

    /// Waits for the tokens of a step that was started.
    fn end(&mut self, begun: Begun) -> Result<ModelRunnerOutput, BackendError> {
        let Begun { mut output, timings, sampled, rows, is_device_choosing } = begun;
        let mut watch = Stopwatch::start();
        let found = match is_device_choosing {
            true => self.backend.finish_sample()?,
            false if rows.is_empty() => Vec::new(),
            false => self.backend.sample(&rows)?,
        };
        for (request_id, Sampled { token, margin, logprobs }) in sampled.into_iter().zip(found) {
            if margin.is_nan() && !output.faulty.contains(&request_id) {
                output.faulty.push(request_id);
            }
            if output.faulty.contains(&request_id) {
                continue;
            }
            self.requests.get_mut(&request_id).expect("its row was made from its state").record(token);
            output.sampled.push(SampledToken { request_id, token, margin, logprobs });
        }
        // A step that samples nothing also ends only when it is computed: the scheduler learns from its time.
        self.backend.synchronize()?;
        self.timings = StepTimings { sample: timings.sample + watch.lap(), ..timings };
        Ok(output)
    }

    /// Moves all spans, and measures and checks them.
    fn move_spans(
        &mut self,
        step: &SchedulerOutput,
        timings: &mut StepTimings,
    ) -> Result<(Vec<RejectedSpan>, Vec<ProbedSpans>), BackendError> {
        self.begin_move(step, timings)?;
        let mut watch = Stopwatch::start();
        let mut probed = Vec::new();
        for probe in &step.probes {
            probed.push(ProbedSpans { request_id: probe.request_id, deviations: self.backend.probe(probe)? });
        }
        timings.probe = watch.lap();
        timings.scoring = self.backend.take_scoring_time();
        let rejected = self.rejected_spans(step, timings)?;
        probed.retain(|probed| !rejected.iter().any(|span| span.request_id == probed.request_id));
        Ok((rejected, probed))
    }

    /// Moves all spans, and starts checking each against a fresh computation of layer 0.
    fn begin_move(&mut self, step: &SchedulerOutput, timings: &mut StepTimings) -> Result<(), BackendError> {
        if step.span_copies.is_empty() {
            return Ok(());
        }
        let mut watch = Stopwatch::start();
        self.backend.move_spans(&step.span_copies)?;
        timings.moves = watch.lap();
        self.backend.begin_check(&step.span_copies)?;
        timings.check = watch.lap();
        Ok(())
    }

    /// Returns the spans that failed their check. The check is read after the probes, since the host then waits less; measurements of a
    /// sequence whose span failed are void.
    fn rejected_spans(&mut self, step: &SchedulerOutput, timings: &mut StepTimings) -> Result<Vec<RejectedSpan>, BackendError> {
        let mut rejected = Vec::new();
        if step.span_copies.is_empty() {
            return Ok(rejected);
        }
        let mut watch = Stopwatch::start();
        let deviations = self.backend.finish_check(&step.span_copies)?;
        timings.check += watch.lap();
        for (span, deviation) in step.span_copies.iter().zip(deviations) {
            if deviation.is_nan() || deviation > self.backend.max_span_deviation() {
                warn!(request_id = %span.request_id, donor = %span.donor, deviation, "a donor's KV disagrees with layer 0");
                rejected.push(RejectedSpan { request_id: span.request_id, donor: span.donor, max_relative_error: deviation });
            }
        }
        Ok(rejected)
    }

    /// Returns the attention that the last rows of watched sequences paid to the positions they asked about.
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

    /// Starts sampling the tokens of `sequences`, if the device can sample them itself.
    fn begin_sample(
        &mut self,
        sequences: &[&ScheduledSequence],
        batch: &InputBatch,
        begun: &mut Begun,
    ) -> Result<(), BackendError> {
        for (input, sequence) in batch.sequences.iter().zip(sequences).filter(|(_, sequence)| sequence.sample) {
            let state = self.requests.get(&sequence.request_id).expect("a scheduled request was announced and has not finished");
            let row = input.first_row + input.num_rows - 1;
            begun.rows.push(state.sample_row(row, batch.positions[row]));
            begun.sampled.push(sequence.request_id);
        }
        begun.is_device_choosing = !begun.rows.is_empty() && self.backend.begin_sample(&begun.rows)?;
        Ok(())
    }

    /// Returns the rows that a token is sampled from, and the prompt rows that are scored.
    fn logit_rows(&self, sequences: &[&ScheduledSequence], batch: &InputBatch) -> Vec<usize> {
        let of_sequence = |(input, sequence): (&InputSequence, &&ScheduledSequence)| {
            let end = input.first_row + input.num_rows;
            let is_scored = self.requests[&sequence.request_id].params.prompt_logprobs.is_some();
            if is_scored { input.first_row..end } else { end - usize::from(sequence.sample)..end }
        };
        batch.sequences.iter().zip(sequences).flat_map(of_sequence).collect()
    }

    /// Computes log probabilities of prompt tokens, for the sequences that asked, in one call.
    fn score_prompts(&mut self, sequences: &[&ScheduledSequence], batch: &InputBatch) -> Result<PromptLogProbs, BackendError> {
        let mut asked = Vec::new();
        for (input, sequence) in batch.sequences.iter().zip(sequences) {
            let rows = self.scored_rows(input, sequence, batch);
            if !rows.is_empty() {
                asked.push((sequence.request_id, rows));
            }
        }
        let all: Vec<ScoreRow> = asked.iter().flat_map(|(_, rows)| rows).copied().collect();
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let mut scores = self.backend.score(&all)?.into_iter();
        let with_scores = |(request_id, rows): (RequestId, Vec<ScoreRow>)| {
            let positions = rows.iter().map(|row| batch.positions[row.row] + 1);
            (request_id, positions.zip(scores.by_ref()).collect())
        };
        Ok(asked.into_iter().map(with_scores).collect())
    }

    /// Returns the rows of one sequence whose next token is in its prompt and is scored.
    fn scored_rows(&self, input: &InputSequence, sequence: &ScheduledSequence, batch: &InputBatch) -> Vec<ScoreRow> {
        let RequestState { params, prompt_token_ids, .. } = &self.requests[&sequence.request_id];
        let Some(top) = params.prompt_logprobs else { return Vec::new() };
        let scored = |row: usize| {
            let next = batch.positions[row] + 1;
            let token = *prompt_token_ids.get(next as usize)?;
            (next >= params.prompt_logprobs_from).then_some(ScoreRow { row, token, top })
        };
        (input.first_row..input.first_row + input.num_rows).filter_map(scored).collect()
    }
}

/// Returns the requests with a score that is not a number.
fn faulty_scores(scored: &PromptLogProbs) -> Vec<RequestId> {
    let is_faulty =
        |(_, found): &&(RequestId, Vec<(u32, TokenLogProbs)>)| found.iter().any(|(_, scores)| scores.chosen.logprob.is_nan());
    scored.iter().filter(is_faulty).map(|(request_id, _)| *request_id).collect()
}

type PromptLogProbs = Vec<(RequestId, Vec<(u32, TokenLogProbs)>)>;

impl Executor for ModelRunner {
    fn limits(&self) -> ExecutorLimits {
        self.backend.limits()
    }

    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        let begun = self.begin(step).map_err(fault)?;
        self.end(begun).map_err(fault)
    }

    fn as_overlapping(&mut self) -> Option<&mut dyn OverlappingExecutor> {
        if self.backend.computes_beside_host() { Some(self) } else { None }
    }
}

impl OverlappingExecutor for ModelRunner {
    fn launch(&mut self, step: &SchedulerOutput) -> Result<(), ExecutorError> {
        let begun = self.begin(step).map_err(fault)?;
        assert!(self.launched.replace(begun).is_none(), "one step runs at a time");
        Ok(())
    }

    fn prepare(&mut self, next: &SchedulerOutput) {
        self.prepared = Some((next.step, InputBatch::new(&next.sequences, self.block_size)));
    }

    fn collect(&mut self) -> Result<ModelRunnerOutput, ExecutorError> {
        let begun = self.launched.take().expect("a step was launched");
        self.end(begun).map_err(fault)
    }
}

fn fault(error: BackendError) -> ExecutorError {
    ExecutorError(Box::new(error))
}
