//! A model that reuse misleads.

use engine::{
    Executor, ExecutorError, ExecutorLimits, LogProb, ModelRunnerOutput, OverlappingExecutor, SchedulerOutput, TokenLogProbs,
};
use testkit::EchoExecutor;
use tokens::{RequestId, TokenId};

/// Returns the output of its inner model; while it is misled, it is certain of another token wherever it reads copied KV,
/// sampling or scoring.
pub(crate) struct Misled {
    pub(crate) inner: EchoExecutor,
    pub(crate) is_misled: bool,
    /// Number of requests that read copied KV.
    over_spans: Vec<RequestId>,
}

impl Misled {
    pub(crate) fn new(inner: EchoExecutor, is_misled: bool) -> Self {
        Self { inner, is_misled, over_spans: Vec::new() }
    }
}

impl Executor for Misled {
    fn limits(&self) -> ExecutorLimits {
        self.inner.limits()
    }

    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        self.over_spans.extend(step.span_copies.iter().map(|copy| copy.request_id));
        let mut output = self.inner.execute_model(step)?;
        let is_wrong = |id: &RequestId| self.is_misled && self.over_spans.contains(id);
        for sampled in output.sampled.iter_mut().filter(|sampled| is_wrong(&sampled.request_id)) {
            sampled.logprobs.iter_mut().for_each(mislead);
        }
        for (_, scored) in output.prompt_logprobs.iter_mut().filter(|(id, _)| is_wrong(id)) {
            scored.iter_mut().for_each(|(_, logprobs)| mislead(logprobs));
        }
        Ok(output)
    }

    fn as_overlapping(&mut self) -> Option<&mut dyn OverlappingExecutor> {
        if self.is_misled { None } else { self.inner.as_overlapping() }
    }
}

fn mislead(logprobs: &mut TokenLogProbs) {
    let certain = LogProb { token: TokenId(7), logprob: 0.0, rank: 1 };
    logprobs.top = vec![certain; logprobs.top.len()];
}
