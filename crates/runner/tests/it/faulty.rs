//! Weights that contain NaN: the request that meets it fails, and no other request is affected.

use engine::{EngineCore, EngineEvent, FinishReason, SamplingParams, SchedulerConfig};
use runner::testing::{poisoned_backend, tiny_config};
use runner::{Architecture, ModelRunner, RopeLayout};
use testkit::RequestBuilder;
use tokens::{BlockSize, RequestId, Timestamp, TokenId};

const POISON: u32 = 13;

/// Returns the tokens of the requests and their finish reasons, in order. All of them run at once.
fn answers(requests: &[(Vec<u32>, SamplingParams)]) -> Vec<(Vec<TokenId>, Option<FinishReason>)> {
    let config = tiny_config(Architecture::Llama, RopeLayout::Half);
    let runner = ModelRunner::new(Box::new(poisoned_backend(&config, 42, POISON, 64)), BlockSize::DEFAULT);
    let mut core =
        EngineCore::new(SchedulerConfig { max_num_batched_tokens: 96, ..SchedulerConfig::new(64, 1024) }, runner).unwrap();
    for (id, (prompt, sampling)) in requests.iter().enumerate() {
        let prompt: Vec<_> = prompt.iter().copied().map(TokenId).collect();
        core.add_request(
            RequestBuilder::new(id as u64, &prompt).sampling(|to| *to = sampling.clone()).build(),
            Timestamp::default(),
        );
    }
    let mut answers = vec![(Vec::new(), None); requests.len()];
    while core.has_work() {
        for event in core.step(Timestamp::default()).unwrap() {
            let RequestId(id) = event.request_id();
            match event {
                EngineEvent::Token { token, .. } => answers[id as usize].0.push(token),
                EngineEvent::Finished { reason, .. } => answers[id as usize].1 = Some(reason),
                EngineEvent::Admitted { .. } | EngineEvent::PromptLogProbs { .. } => {}
            }
        }
    }
    answers
}

#[test]
fn what_is_no_number_ends_the_request_that_meets_it() {
    let clean = |seed: u32| -> Vec<u32> { (0..50).map(|i| 20 + (i * 7 + seed) % 70).collect() };
    let poisoned = [clean(5), vec![POISON], clean(6)].concat();
    let greedy = SamplingParams::greedy(5);
    let drawn = SamplingParams { temperature: 1.0, top_p: 0.9, logprobs: Some(3), ..greedy.clone() };
    let scored = SamplingParams { prompt_logprobs: Some(2), ..greedy.clone() };
    let good = [(clean(1), greedy.clone()), (clean(2), drawn.clone())];
    let alone = answers(&good);
    assert!(alone.iter().all(|(_, reason)| *reason == Some(FinishReason::Length)));
    let [first, second] = good;
    let beside = answers(&[first, (poisoned.clone(), greedy), (poisoned.clone(), drawn), (poisoned, scored), second]);
    assert_eq!([&beside[0], &beside[4]], [&alone[0], &alone[1]]);
    for (said, reason) in &beside[1..4] {
        assert_eq!((said.len(), *reason), (0, Some(FinishReason::Faulty)));
    }
}
