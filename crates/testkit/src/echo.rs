//! Executor with predictable answers.

use std::collections::HashMap;

use engine::{
    Executor, ExecutorError, ExecutorLimits, LogProb, ModelRunnerOutput, NewRequest, OverlappingExecutor, ProbedSequence,
    ProbedSpans, SampledToken, ScheduledSequence, SchedulerOutput, TokenDeviation, TokenLogProbs, WatchedSpans,
};
use tokens::{BlockSize, RequestId, TokenId};

/// Rule for the tokens of [`EchoExecutor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Id of the last token plus one, modulo `vocab_size`.
    Successor {
        /// Number of ids.
        vocab_size: u32,
    },
    /// Prompt from its beginning, over and over.
    Prompt,
}

/// Executor that answers by [`Reply`], with log probabilities if requested, and records every step.
///
/// Panics on input that a runner could not execute: a request that was not announced, or a block table too short for its rows.
#[derive(Debug)]
pub struct EchoExecutor {
    reply: Reply,
    /// Rows in a block, to check block tables.
    block_size: usize,
    requests: HashMap<RequestId, NewRequest>,
    steps: Vec<SchedulerOutput>,
    overlaps: bool,
    /// Token that makes requests with it in their prompts faulty.
    poison: Option<TokenId>,
    /// Step that was launched.
    launched: Option<SchedulerOutput>,
    /// Steps that were prepared while another one ran.
    prepared: Vec<u64>,
}

impl EchoExecutor {
    /// Creates an executor for blocks of `block_size` tokens.
    #[must_use]
    pub fn new(reply: Reply, block_size: usize) -> Self {
        Self {
            reply,
            block_size,
            requests: HashMap::new(),
            steps: Vec::new(),
            overlaps: false,
            poison: None,
            launched: None,
            prepared: Vec::new(),
        }
    }

    /// Lets the executor compute while its caller goes on.
    #[must_use]
    pub fn overlapping(self) -> Self {
        Self { overlaps: true, ..self }
    }

    /// Reports requests whose prompts contain `token` as faulty.
    #[must_use]
    pub fn poisoned_by(self, token: TokenId) -> Self {
        Self { poison: Some(token), ..self }
    }

    fn is_faulty(&self, sequence: &ScheduledSequence) -> bool {
        let prompt = &self.request(sequence.request_id).prompt_token_ids;
        sequence.sample && self.poison.is_some_and(|poison| prompt.contains(&poison))
    }

    /// Returns the numbers of the steps that were prepared while the previous one ran.
    #[must_use]
    pub fn prepared(&self) -> &[u64] {
        &self.prepared
    }

    /// Returns all steps so far.
    #[must_use]
    pub fn steps(&self) -> &[SchedulerOutput] {
        &self.steps
    }

    /// Counts requests that were announced and not yet finished.
    #[must_use]
    pub fn num_known_requests(&self) -> usize {
        self.requests.len()
    }

    /// Returns the token after the last row of `sequence`.
    fn next_token(&self, sequence: &ScheduledSequence) -> TokenId {
        let row = sequence.rows.last().expect("a scheduled sequence has rows");
        let prompt = &self.request(sequence.request_id).prompt_token_ids;
        match self.reply {
            Reply::Successor { vocab_size } => TokenId((row.token.0 + 1) % vocab_size),
            Reply::Prompt => prompt[(row.position as usize + 1) % prompt.len()],
        }
    }

    fn sample(&self, sequence: &ScheduledSequence) -> SampledToken {
        let token = self.next_token(sequence);
        let num_top = self.request(sequence.request_id).sampling.logprobs;
        let logprobs = num_top.map(|num_top| certain(token, num_top));
        SampledToken { request_id: sequence.request_id, token, margin: f32::INFINITY, logprobs, completes: false }
    }

    fn prompt_logprobs(&self, sequence: &ScheduledSequence) -> Option<(RequestId, Vec<(u32, TokenLogProbs)>)> {
        let NewRequest { prompt_token_ids, sampling, .. } = self.request(sequence.request_id);
        let num_top = sampling.prompt_logprobs?;
        let following = sequence.rows.iter().map(|row| row.position + 1);
        let entries = following.filter_map(|position| {
            let &token = prompt_token_ids.get(position as usize)?;
            Some((position, certain(token, num_top)))
        });
        Some((sequence.request_id, entries.collect()))
    }

    fn request(&self, request_id: RequestId) -> &NewRequest {
        self.requests.get(&request_id).expect("a scheduled request was announced")
    }

    fn check(&self, sequence: &ScheduledSequence) {
        let positions: Vec<_> = sequence.rows.iter().map(|row| row.position as usize).collect();
        assert!(positions.is_sorted_by(|a, b| a < b), "rows of {} do not ascend", sequence.request_id);
        let num_slots = sequence.block_table.len() * self.block_size;
        assert!(positions.iter().all(|&position| position < num_slots), "rows of {} have no slot", sequence.request_id);
    }
}

/// Returns a measurement in which no token differs from another.
fn zero_deviations(probe: &ProbedSequence) -> ProbedSpans {
    let deviations = probe.measured().map(|_| TokenDeviation::default()).collect();
    ProbedSpans { request_id: probe.request_id, deviations }
}

/// Returns zero attention to all watched positions.
fn inattentive(sequence: &ScheduledSequence) -> WatchedSpans {
    let num_watched = sequence.watch.iter().map(|range| range.len() as usize).sum();
    WatchedSpans { request_id: sequence.request_id, attention: vec![0.0; num_watched] }
}

/// Returns log probabilities of a model that is certain of `token`.
fn certain(token: TokenId, num_top: u32) -> TokenLogProbs {
    let chosen = LogProb { token, logprob: 0.0, rank: 1 };
    let others = (1..num_top).map(|i| LogProb { token: TokenId(token.0.wrapping_add(i)), logprob: -100.0, rank: i + 1 });
    let top = std::iter::once(chosen).chain(others).take(num_top as usize).collect();
    TokenLogProbs { chosen, top }
}

impl Executor for EchoExecutor {
    fn limits(&self) -> ExecutorLimits {
        let block_size = u32::try_from(self.block_size).ok().and_then(BlockSize::new);
        ExecutorLimits { block_size, ..ExecutorLimits::NONE }
    }

    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        for request in &step.new_requests {
            self.requests.insert(request.request_id, request.clone());
        }
        step.sequences.iter().for_each(|sequence| self.check(sequence));
        let says = |sequence: &&ScheduledSequence| sequence.sample && !self.is_faulty(sequence);
        let sampled = step.sequences.iter().filter(says).map(|sequence| self.sample(sequence)).collect();
        let faulty =
            step.sequences.iter().filter(|sequence| self.is_faulty(sequence)).map(|sequence| sequence.request_id).collect();
        let prompt_logprobs = step.sequences.iter().filter_map(|sequence| self.prompt_logprobs(sequence)).collect();
        for finished in &step.finished {
            self.requests.remove(finished).expect("a finished request was announced");
        }
        self.steps.push(step.clone());
        let probed = step.probes.iter().map(zero_deviations).collect();
        let watched = step.sequences.iter().filter(|sequence| !sequence.watch.is_empty()).map(inattentive).collect();
        Ok(ModelRunnerOutput { sampled, faulty, prompt_logprobs, probed, watched, ..ModelRunnerOutput::default() })
    }

    fn as_overlapping(&mut self) -> Option<&mut dyn OverlappingExecutor> {
        self.overlaps.then_some(self)
    }
}

impl OverlappingExecutor for EchoExecutor {
    fn launch(&mut self, step: &SchedulerOutput) -> Result<(), ExecutorError> {
        assert!(self.launched.replace(step.clone()).is_none(), "two steps at once");
        Ok(())
    }

    fn prepare(&mut self, next: &SchedulerOutput) {
        let running = self.launched.as_ref().expect("it is prepared while another one runs");
        assert!(running.step < next.step, "steps come in their order");
        self.prepared.push(next.step);
    }

    fn collect(&mut self) -> Result<ModelRunnerOutput, ExecutorError> {
        let step = self.launched.take().expect("a step was launched");
        self.execute_model(&step)
    }
}

#[cfg(test)]
mod tests {
    use engine::{EngineCore, EngineEvent, SchedulerConfig};
    use tokens::Timestamp;

    use super::*;
    use crate::{RequestBuilder, prompt};

    /// Checks the output of one request of `max_tokens` tokens.
    #[track_caller]
    fn check(reply: Reply, text: &str, max_tokens: u32, expected: &str) {
        let config = SchedulerConfig::new(8, 128);
        let executor = EchoExecutor::new(reply, config.block_size.as_usize());
        let mut core = EngineCore::new(config, executor).unwrap();
        core.add_request(RequestBuilder::new(1, &prompt(text)).max_tokens(max_tokens).build(), Timestamp::default());
        let mut said = Vec::new();
        while core.has_work() {
            for event in core.step(Timestamp::default()).unwrap() {
                if let EngineEvent::Token { token, .. } = event {
                    said.push(token);
                }
            }
        }
        assert_eq!(said, prompt(expected));
        assert_eq!(core.executor().num_known_requests(), 0);
    }

    #[test]
    fn successors_wrap_around() {
        check(Reply::Successor { vocab_size: 10 }, "3 7", 4, "8 9 0 1");
    }

    #[test]
    fn a_prompt_is_echoed_from_its_beginning() {
        check(Reply::Prompt, "x y z", 5, "x y z x y");
    }
}
