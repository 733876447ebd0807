//! Executor that forces given answers on requests, and records their own choices.

use std::collections::BTreeMap;

use engine::{Executor, ExecutorError, ExecutorLimits, LogProb, ModelRunnerOutput, SampledToken, SchedulerOutput};
use tokens::{RequestId, TokenId};

/// Executor over `inner` that replaces the tokens sampled for requests with a given answer (teacher forcing).
///
/// The engine sees the answer's tokens only, so the positions of two runs with one answer can be compared one by one.
pub(crate) struct Forced<E> {
    inner: E,
    requests: BTreeMap<RequestId, Script>,
}

/// Token sampled at one position, before its replacement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    /// Sampled token.
    pub(crate) token: TokenId,
    /// Most likely tokens, descending; as many as the request asked for.
    pub(crate) top: Vec<LogProb>,
}

/// Answer of a request, and its choices so far.
struct Script {
    answer: Vec<TokenId>,
    choices: Vec<Choice>,
}

impl<E> Forced<E> {
    /// Wraps `inner`, without forced requests.
    pub(crate) fn new(inner: E) -> Self {
        Self { inner, requests: BTreeMap::new() }
    }

    /// Forces `answer` on the request. To be called before its first step.
    pub(crate) fn force(&mut self, request_id: RequestId, answer: Vec<TokenId>) {
        self.requests.insert(request_id, Script { answer, choices: Vec::new() });
    }

    /// Removes the request and returns its own choice at each position of the answer. `None` if it was not forced.
    pub(crate) fn take(&mut self, request_id: RequestId) -> Option<Vec<Choice>> {
        self.requests.remove(&request_id).map(|script| script.choices)
    }

    fn replace(&mut self, sampled: &mut SampledToken) {
        let Some(script) = self.requests.get_mut(&sampled.request_id) else { return };
        // After the end of its answer, a request goes on by itself.
        let Some(&token) = script.answer.get(script.choices.len()) else { return };
        let top = sampled.logprobs.as_ref().map(|logprobs| logprobs.top.clone()).unwrap_or_default();
        script.choices.push(Choice { token: sampled.token, top });
        sampled.token = token;
    }
}

impl<E: Executor> Executor for Forced<E> {
    fn limits(&self) -> ExecutorLimits {
        self.inner.limits()
    }

    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        for request_id in &step.retracted {
            if let Some(script) = self.requests.get_mut(request_id) {
                script.choices.pop();
            }
        }
        let mut output = self.inner.execute_model(step)?;
        output.sampled.iter_mut().for_each(|sampled| self.replace(sampled));
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use engine::{EngineCore, EngineEvent, SchedulerConfig};
    use testkit::{EchoExecutor, Reply, RequestBuilder};
    use tokens::Timestamp;

    use super::*;

    fn ids(numbers: &[u32]) -> Vec<TokenId> {
        numbers.iter().copied().map(TokenId).collect()
    }

    /// Runs a request after the prompt `3 7` where each token follows from the last one.
    /// `expected`: its tokens, and its own choices.
    #[track_caller]
    fn check(answer: Option<&[u32]>, max_tokens: u32, expected: (&[u32], Option<&[u32]>)) {
        let config = SchedulerConfig::new(8, 128);
        let echo = EchoExecutor::new(Reply::Successor { vocab_size: 100 }, config.block_size.as_usize());
        let mut engine = EngineCore::new(config, Forced::new(echo)).unwrap();
        let request = RequestBuilder::new(1, &ids(&[3, 7])).max_tokens(max_tokens).sampling(|s| s.logprobs = Some(2)).build();
        if let Some(answer) = answer {
            engine.executor_mut().force(RequestId(1), ids(answer));
        }
        engine.add_request(request, Timestamp::default());
        let mut said = Vec::new();
        while engine.has_work() {
            for event in engine.step(Timestamp::default()).unwrap() {
                if let EngineEvent::Token { token, .. } = event {
                    said.push(token);
                }
            }
        }
        let choices = engine.executor_mut().take(RequestId(1));
        let chosen = choices.as_ref().map(|choices| choices.iter().map(|choice| choice.token).collect::<Vec<_>>());
        assert_eq!((said, chosen), (ids(expected.0), expected.1.map(ids)));
        for choice in choices.unwrap_or_default() {
            assert_eq!((choice.top.len(), choice.top[0].token), (2, choice.token));
        }
        assert_eq!(engine.executor_mut().take(RequestId(1)), None);
    }

    #[test]
    fn the_engine_sees_the_answer_and_each_choice_follows_from_it() {
        check(Some(&[20, 30, 31]), 3, (&[20, 30, 31], Some(&[8, 21, 31])));
    }

    #[test]
    fn a_request_without_an_answer_is_left_alone() {
        check(None, 3, (&[8, 9, 10], None));
    }

    #[test]
    fn an_answer_that_ends_early_leaves_the_rest_to_the_model() {
        check(Some(&[20]), 3, (&[20, 21, 22], Some(&[8])));
    }
}
