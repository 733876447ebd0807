//! Translates steps of the scheduler for a device.

use std::collections::HashMap;
use std::time::Duration;

use engine::{
    Executor, ExecutorError, ExecutorLimits, ModelRunnerOutput, OverlappingExecutor, SampledToken, ScheduledSequence,
    SchedulerOutput, TokenLogProbs, WatchedSpans,
};
use tokens::{BlockSize, RequestId, TokenRange};

use crate::masks::MaskThreads;
use crate::sampler::{RequestState, Sampled, ScoreRow};
use crate::timings::Stopwatch;
use crate::{Device, DeviceFault, DeviceOutput, DeviceStep, InputBatch, InputSequence, StepTimings};

/// Executes steps on one device, and keeps the sampling state of running requests.
pub struct ModelRunner {
    device: Box<dyn Device>,
    block_size: BlockSize,
    requests: HashMap<RequestId, RequestState>,
    masks: MaskThreads,
    /// Timings of the last step that has ended.
    timings: StepTimings,
    /// Step that was launched.
    launched: Option<LaunchedStep>,
    /// Step id and its batch, whose tokens are not yet known.
    prepared: Option<(u64, InputBatch)>,
}

/// A step that the device has begun.
struct LaunchedStep {
    /// Results that each sequence asked for.
    asked: Vec<RequestedOutputs>,
    /// Time that building the batch took.
    building: Duration,
}

/// Results that the rows of one sequence are computed for.
struct RequestedOutputs {
    request_id: RequestId,
    is_sampled: bool,
    /// Positions of the prompt tokens that are scored.
    scored: Vec<u32>,
    /// Positions whose attention is reported.
    watched: Vec<TokenRange>,
}

impl ModelRunner {
    /// Creates a runner of `device`, whose pool has blocks of `block_size`.
    #[must_use]
    pub fn new(device: Box<dyn Device>, block_size: BlockSize) -> Self {
        Self {
            device,
            block_size,
            requests: HashMap::new(),
            masks: MaskThreads::new(),
            timings: StepTimings::default(),
            launched: None,
            prepared: None,
        }
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
            let state = RequestState::new(new.sampling.clone(), new.prompt_token_ids.clone(), &self.masks);
            self.requests.insert(new.request_id, state);
        }
    }

    /// Begins `step` on the device.
    fn begin(&mut self, step: &SchedulerOutput) -> Result<LaunchedStep, DeviceFault> {
        self.update_requests(step);
        let mut watch = Stopwatch::start();
        let mut batch = self.batch(step);
        let (mut asked, mut scored, mut sampled) = (Vec::new(), Vec::new(), Vec::new());
        for (input, sequence) in batch.sequences.iter().zip(&step.sequences) {
            let rows = self.scored_rows(sequence.request_id, input, &batch);
            asked.push(RequestedOutputs {
                request_id: sequence.request_id,
                is_sampled: sequence.sample,
                scored: rows.iter().map(|row| batch.positions[row.row] + 1).collect(),
                watched: sequence.watch.clone(),
            });
            scored.extend(rows);
            if sequence.sample {
                let last = input.first_row + input.num_rows - 1;
                sampled.push(self.state(sequence.request_id).sample_row(last, batch.positions[last]));
            }
        }
        batch.logit_rows = Some(self.logit_rows(step, &batch));
        let building = watch.lap();
        self.device.begin(DeviceStep {
            offloads: &step.offloads,
            zeros: &step.block_zeroes,
            fetches: &step.fetches,
            copies: &step.block_copies,
            spans: &step.span_copies,
            probes: &step.probes,
            batch,
            scored,
            sampled,
        })?;
        Ok(LaunchedStep { asked, building })
    }

    /// Returns the batch of `step`: the prepared one or a new one.
    fn batch(&mut self, step: &SchedulerOutput) -> InputBatch {
        match self.prepared.take() {
            Some((prepared, mut batch)) if prepared == step.step && batch.sequences.len() == step.sequences.len() => {
                batch.set_tokens(&step.sequences);
                batch
            }
            _ => InputBatch::new(&step.sequences, self.block_size),
        }
    }

    fn state(&self, request_id: RequestId) -> &RequestState {
        self.requests.get(&request_id).expect("a scheduled request was announced and has not finished")
    }

    /// Returns the rows that a token is sampled from, and the prompt rows that are scored.
    fn logit_rows(&self, step: &SchedulerOutput, batch: &InputBatch) -> Vec<usize> {
        let of_sequence = |(input, sequence): (&InputSequence, &ScheduledSequence)| {
            let end = input.first_row + input.num_rows;
            let is_scored = self.state(sequence.request_id).params.prompt_logprobs.is_some();
            if is_scored { input.first_row..end } else { end - usize::from(sequence.sample)..end }
        };
        batch.sequences.iter().zip(&step.sequences).flat_map(of_sequence).collect()
    }

    /// Returns the rows of one sequence whose next token is in its prompt and is scored.
    fn scored_rows(&self, request_id: RequestId, input: &InputSequence, batch: &InputBatch) -> Vec<ScoreRow> {
        let RequestState { params, prompt_token_ids, .. } = self.state(request_id);
        let Some(top) = params.prompt_logprobs else { return Vec::new() };
        let scored = |row: usize| {
            let next = batch.positions[row] + 1;
            let token = *prompt_token_ids.get(next as usize)?;
            (next >= params.prompt_logprobs_from).then_some(ScoreRow { row, token, top })
        };
        (input.first_row..input.first_row + input.num_rows).filter_map(scored).collect()
    }

    /// Waits for a step that was begun.
    fn end(&mut self, launched: LaunchedStep) -> Result<ModelRunnerOutput, DeviceFault> {
        let LaunchedStep { mut asked, building } = launched;
        let found = self.device.finish()?;
        self.timings = StepTimings { forward: building + found.timings.forward, ..found.timings };
        let DeviceOutput { transfer, rejected_spans, mut probed, attention, scores, sampled, .. } = found;
        // Results of a request whose span failed are void.
        let is_rejected = |request_id: RequestId| rejected_spans.iter().any(|span| span.request_id == request_id);
        asked.retain(|asked| !is_rejected(asked.request_id));
        probed.retain(|probed| !is_rejected(probed.request_id));
        let watched = watched(&asked, attention);
        let prompt_logprobs = prompt_logprobs(&asked, scores);
        let faulty = faulty_scores(&prompt_logprobs);
        let mut output =
            ModelRunnerOutput { faulty, rejected_spans, probed, watched, prompt_logprobs, transfer, sampled: Vec::new() };
        let sampling = asked.iter().filter(|asked| asked.is_sampled).map(|asked| asked.request_id);
        sampling.zip(sampled).for_each(|(request_id, sampled)| self.record(request_id, sampled, &mut output));
        Ok(output)
    }

    /// Adds a sampled token to the state of its request and to `output`, unless a row of the request was no number.
    fn record(&mut self, request_id: RequestId, sampled: Sampled, output: &mut ModelRunnerOutput) {
        let Sampled { token, margin, logprobs } = sampled;
        if margin.is_nan() && !output.faulty.contains(&request_id) {
            output.faulty.push(request_id);
        }
        if output.faulty.contains(&request_id) {
            return;
        }
        let completes = self.requests.get_mut(&request_id).expect("its row was made from its state").record(token);
        output.sampled.push(SampledToken { request_id, token, margin, logprobs, completes });
    }
}

type PromptLogProbs = Vec<(RequestId, Vec<(u32, TokenLogProbs)>)>;

/// Returns the log probabilities of prompt tokens, for the sequences that asked.
fn prompt_logprobs(asked: &[RequestedOutputs], scores: Vec<TokenLogProbs>) -> PromptLogProbs {
    let mut scores = scores.into_iter();
    let scoring = asked.iter().filter(|asked| !asked.scored.is_empty());
    scoring.map(|asked| (asked.request_id, asked.scored.iter().copied().zip(scores.by_ref()).collect())).collect()
}

/// Returns the attention that the last rows of watched sequences paid to the positions they asked about.
fn watched(asked: &[RequestedOutputs], attention: Vec<Vec<f32>>) -> Vec<WatchedSpans> {
    let watching = asked.iter().filter(|asked| !asked.watched.is_empty());
    let of_ranges = |(asked, paid): (&RequestedOutputs, Vec<f32>)| WatchedSpans {
        request_id: asked.request_id,
        attention: asked.watched.iter().flat_map(|range| &paid[range.as_usize()]).copied().collect(),
    };
    watching.zip(attention).map(of_ranges).collect()
}

/// Returns the requests with a score that is not a number.
fn faulty_scores(scored: &PromptLogProbs) -> Vec<RequestId> {
    let is_faulty =
        |(_, found): &&(RequestId, Vec<(u32, TokenLogProbs)>)| found.iter().any(|(_, scores)| scores.chosen.logprob.is_nan());
    scored.iter().filter(is_faulty).map(|(request_id, _)| *request_id).collect()
}

impl Executor for ModelRunner {
    fn limits(&self) -> ExecutorLimits {
        self.device.limits()
    }

    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        let begun = self.begin(step).map_err(fault)?;
        self.end(begun).map_err(fault)
    }

    fn as_overlapping(&mut self) -> Option<&mut dyn OverlappingExecutor> {
        if self.device.computes_beside_host() { Some(self) } else { None }
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

fn fault(error: DeviceFault) -> ExecutorError {
    ExecutorError(Box::new(error))
}
