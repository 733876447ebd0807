//! Executor that computes nothing and returns the time a device would take.

use std::collections::HashMap;
use std::time::Duration;

use engine::{
    Executor, ExecutorError, ExecutorLimits, ModelRunnerOutput, ProbedSequence, ProbedSpans, SampledToken, ScheduledSequence,
    SchedulerOutput, TokenDeviation,
};
use tokens::RequestId;

use crate::prompt::generated_token;
use crate::{CostModel, StepWork};

/// Executor that prices each step with a cost model and samples made-up tokens.
pub struct SimExecutor {
    cost: CostModel,
    prompts: HashMap<RequestId, PromptLen>,
    busy: Duration,
}

/// Lengths of a padded prompt.
#[derive(Clone, Copy)]
struct PromptLen {
    /// Tokens that have a cost.
    real: u32,
    /// Tokens with the padding of the last block; generated tokens follow.
    padded: u32,
}

impl SimExecutor {
    /// Creates an executor without steps.
    #[must_use]
    pub fn new(cost: CostModel) -> Self {
        Self { cost, prompts: HashMap::new(), busy: Duration::ZERO }
    }

    /// Announces a request whose prompt has `padded` tokens, of which only the first `real` have a cost.
    pub fn announce(&mut self, request_id: RequestId, real: u32, padded: u32) {
        self.prompts.insert(request_id, PromptLen { real, padded });
    }

    /// Returns the time of all steps together.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.busy
    }

    fn work_of_step(&self, step: &SchedulerOutput) -> StepWork {
        let from_donors: usize = step.span_copies.iter().map(|copy| copy.token_ids.len()).sum();
        let between_blocks: u64 = step.block_copies.iter().map(|copy| u64::from(copy.num_tokens)).sum();
        let mut work = StepWork { copied_tokens: from_donors as u64 + between_blocks, ..StepWork::default() };
        for sequence in &step.sequences {
            self.add_work(&mut work, sequence);
        }
        work
    }

    /// Adds the work of a sequence, at least one prompt token: if all but padding is cached, its last token still has to be computed.
    fn add_work(&self, work: &mut StepWork, sequence: &ScheduledSequence) {
        let len = self.prompts[&sequence.request_id];
        let before = *work;
        for row in &sequence.rows {
            let context = u64::from(row.position) + 1;
            if row.position < len.real {
                work.prefill_tokens += 1;
                work.attention_pairs += context;
            } else if row.position >= len.padded {
                work.decode_rows += 1;
                work.decode_context_tokens += context;
            }
        }
        if sequence.sample && (work.prefill_tokens, work.decode_rows) == (before.prefill_tokens, before.decode_rows) {
            work.prefill_tokens += 1;
            work.attention_pairs += u64::from(len.real);
        }
    }
}

impl Executor for SimExecutor {
    fn limits(&self) -> ExecutorLimits {
        ExecutorLimits::NONE
    }

    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        if !step.sequences.is_empty() {
            self.busy += self.cost.step_time(&self.work_of_step(step));
        }
        for request_id in &step.finished {
            self.prompts.remove(request_id);
        }
        let sampled = step.sequences.iter().filter(|sequence| sequence.sample).map(sample).collect();
        let probed = step.probes.iter().map(zero_deviations).collect();
        Ok(ModelRunnerOutput { sampled, probed, ..ModelRunnerOutput::default() })
    }
}

/// Returns a measurement in which no token differs from another.
fn zero_deviations(probe: &ProbedSequence) -> ProbedSpans {
    let deviations = probe.measured().map(|_| TokenDeviation::default()).collect();
    ProbedSpans { request_id: probe.request_id, deviations }
}

fn sample(sequence: &ScheduledSequence) -> SampledToken {
    let request_id = sequence.request_id;
    let last = sequence.rows.last().expect("a token is sampled from a row");
    SampledToken {
        request_id,
        token: generated_token(request_id, last.position),
        margin: f32::INFINITY,
        logprobs: None,
        completes: false,
    }
}

#[cfg(test)]
mod tests {
    use engine::Row;
    use tokens::TokenId;

    use super::*;

    /// Checks one sequence of a prompt of 600 tokens, padded to 1024.
    #[track_caller]
    fn check(positions: std::ops::Range<u32>, sample: bool, expected: StepWork) {
        let mut executor = SimExecutor::new(CostModel::default());
        executor.announce(RequestId(1), 600, 1024);
        let rows = positions.map(|position| Row { token: TokenId(0), position }).collect();
        let sequence = ScheduledSequence {
            request_id: RequestId(1),
            rows,
            block_table: Vec::new(),
            sample,
            watch: Vec::new(),
            drift: Vec::new(),
        };
        let step = SchedulerOutput { sequences: vec![sequence], ..SchedulerOutput::default() };
        assert_eq!(executor.work_of_step(&step), expected);
        assert_eq!(executor.execute_model(&step).unwrap().sampled.len(), usize::from(sample));
        assert_eq!(executor.busy(), CostModel::default().step_time(&expected));
    }

    #[test]
    fn padding_costs_nothing() {
        let expected = StepWork { prefill_tokens: 2, attention_pairs: 599 + 600, ..StepWork::default() };
        check(598..1024, true, expected);
        check(700..900, false, StepWork::default());
    }

    #[test]
    fn a_prompt_found_as_a_whole_costs_its_last_token() {
        check(1023..1024, true, StepWork { prefill_tokens: 1, attention_pairs: 600, ..StepWork::default() });
    }

    #[test]
    fn generated_tokens_are_decode_rows() {
        check(1024..1025, true, StepWork { decode_rows: 1, decode_context_tokens: 1025, ..StepWork::default() });
    }
}
