//! Answers under a grammar, by the whole engine on a small random model.

use engine::{EngineCore, EngineEvent, FinishReason, SamplingParams, SchedulerConfig};
use grammar::{Constraint, Grammar, Vocabulary};
use runner::testing::{tiny_backend, tiny_config};
use runner::{Architecture, Device, KvDtype, ModelRunner, RopeLayout};
use testkit::RequestBuilder;
use tokens::{BlockSize, RequestId, SharingMode, Timestamp, TokenId};

const EOS: u32 = 96;

/// Vocabulary of the small model: token `t` is the character `' ' + t`, and the last one ends an answer.
fn vocabulary() -> Vocabulary {
    static CHARACTERS: [u8; 96] = {
        let mut characters = [0; 96];
        let mut idx = 0;
        while idx < 96 {
            characters[idx] = b' ' + idx as u8;
            idx += 1;
        }
        characters
    };
    let text = |token: TokenId| CHARACTERS.get(token.0 as usize..=token.0 as usize).unwrap_or_default();
    Vocabulary::new(97, text, &[TokenId(EOS)])
}

fn regex(expression: &str) -> Grammar {
    vocabulary().compile(&Constraint::Regex(expression.to_owned())).unwrap()
}

/// A prompt with its sampling.
type PromptRequest = (Vec<u32>, SamplingParams);

/// Answers all of `asked` at once in a pool of `num_blocks`, in order; also returns the number of preemptions.
fn answers(device: Box<dyn Device>, num_blocks: usize, asked: &[PromptRequest]) -> (Vec<(String, FinishReason)>, u64) {
    let config = SchedulerConfig { max_num_batched_tokens: 96, max_num_seqs: 8, ..SchedulerConfig::new(num_blocks, 256) };
    let mut core = EngineCore::new(config, ModelRunner::new(device, BlockSize::DEFAULT)).unwrap();
    for (id, (prompt, sampling)) in (0..).zip(asked) {
        let prompt: Vec<TokenId> = prompt.iter().copied().map(TokenId).collect();
        let request = RequestBuilder::new(id, &prompt).sharing(SharingMode::Prefix).sampling(|to| *to = sampling.clone()).build();
        core.add_request(request, Timestamp::default());
    }
    let mut found: Vec<(String, Option<FinishReason>)> = vec![(String::new(), None); asked.len()];
    while core.has_work() {
        for event in core.step(Timestamp::default()).unwrap() {
            match event {
                EngineEvent::Token { request_id: RequestId(id), token, .. } if token.0 != EOS => {
                    found[id as usize].0.push(char::from(b' ' + token.0 as u8));
                }
                EngineEvent::Finished { request_id: RequestId(id), reason, .. } => found[id as usize].1 = Some(reason),
                _ => {}
            }
        }
    }
    let num_preemptions = core.stats().preemptions;
    (found.into_iter().map(|(text, reason)| (text, reason.expect("each request ends"))).collect(), num_preemptions)
}

fn cpu(num_blocks: usize) -> Box<dyn Device> {
    Box::new(tiny_backend(&tiny_config(Architecture::Qwen2, RopeLayout::Half), 42, KvDtype::F16, num_blocks))
}

fn drawn(seed: u64, grammar: Option<Grammar>) -> SamplingParams {
    SamplingParams { temperature: 1.5, seed, grammar, stop_token_ids: vec![TokenId(EOS)], ..SamplingParams::greedy(40) }
}

fn prompt(seed: u32) -> Vec<u32> {
    (0..70).map(|i| (seed * 31 + i * i) % 90).collect()
}

/// True if `text` is three to seven letters of a to f, and an x.
fn is_sentence(text: &str) -> bool {
    let letters = text.strip_suffix('x').unwrap_or("?");
    (3..=7).contains(&letters.len()) && letters.bytes().all(|byte| (b'a'..=b'f').contains(&byte))
}

#[test]
fn every_answer_is_a_sentence_and_ends_when_nothing_may_follow() {
    let grammar = regex("[a-f]{3,7}x");
    let penalised = |seed: u32| SamplingParams {
        presence_penalty: 2.0,
        logit_bias: vec![(TokenId(u32::from(b'z' - b' ')), 100.0)],
        top_k: [0, 3][seed as usize % 2],
        logprobs: Some(3),
        ..drawn(seed.into(), Some(grammar.clone()))
    };
    let asked: Vec<PromptRequest> = (0..24).map(|seed| (prompt(seed), penalised(seed))).collect();
    let (found, _) = answers(cpu(64), 64, &asked);
    for (text, reason) in &found {
        assert!(is_sentence(text) && *reason == FinishReason::Complete, "{text:?} {reason:?}");
    }
    assert!(
        found.iter().map(|(text, _)| text).collect::<std::collections::BTreeSet<_>>().len() > 12,
        "they are drawn: {found:?}"
    );
}

#[test]
fn a_constraint_changes_no_answer_beside_it() {
    let alone: Vec<PromptRequest> = (0..6).map(|seed| (prompt(seed), drawn(seed.into(), None))).collect();
    let grammar = regex("[0-9]{1,30}");
    let beside = (6..9).map(|seed| (prompt(seed), drawn(seed.into(), Some(grammar.clone()))));
    let mixed: Vec<PromptRequest> = alone.iter().cloned().chain(beside).collect();
    let (expected, found) = (answers(cpu(64), 64, &alone).0, answers(cpu(64), 64, &mixed).0);
    assert_eq!(found[..6], expected);
    assert!(found[6..].iter().all(|(text, _)| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())), "{found:?}");
}

#[test]
fn a_constraint_after_a_token_begins_with_it() {
    let trigger = TokenId(u32::from(b'k' - b' '));
    let grammar = regex("[0-9]{4}!").after(trigger);
    let likely = |seed: u32| SamplingParams { logit_bias: vec![(trigger, 4.0)], ..drawn(seed.into(), Some(grammar.clone())) };
    let mut asked: Vec<PromptRequest> = (0..16).map(|seed| (prompt(seed), likely(seed))).collect();
    // Before it, an answer is that without a constraint.
    asked.extend((0..16).map(|seed| (prompt(seed), SamplingParams { grammar: None, ..likely(seed) })));
    let (found, _) = answers(cpu(64), 64, &asked);
    let mut num_begun = 0;
    for (constrained, free) in found[..16].iter().zip(&found[16..]) {
        let Some((before, after)) = constrained.0.split_once('k') else {
            assert_eq!(constrained, free);
            continue;
        };
        assert!(free.0.starts_with(before), "{free:?}");
        num_begun += 1;
        let is_begun =
            after.bytes().enumerate().all(|(idx, byte)| if idx < 4 { byte.is_ascii_digit() } else { idx == 4 && byte == b'!' });
        assert!(is_begun && (constrained.1 == FinishReason::Length || after.len() == 5), "{constrained:?}");
    }
    assert!(num_begun > 4, "{num_begun}");
}

#[test]
fn a_preempted_answer_goes_on_in_its_grammar() {
    let grammar = regex("([a-c][0-9]){60}!");
    let sampling = |seed: u32| SamplingParams { max_tokens: 130, ..drawn(seed.into(), Some(grammar.clone())) };
    let asked: Vec<PromptRequest> = (0..6).map(|seed| (prompt(seed), sampling(seed))).collect();
    let (expected, none) = answers(cpu(64), 64, &asked);
    let (found, some) = answers(cpu(20), 20, &asked);
    assert!(none == 0 && some > 0, "{none} {some}");
    assert_eq!(found, expected);
    assert!(found.iter().all(|(text, reason)| text.len() == 121 && *reason == FinishReason::Complete), "{found:?}");
}

#[test]
fn an_end_waits_for_min_tokens_only_as_long_as_something_else_may_follow() {
    let ends = |min_tokens: u32, expression: &str| {
        let sampling = SamplingParams { min_tokens, max_tokens: 50, ..drawn(3, Some(regex(expression))) };
        answers(cpu(64), 64, &[(prompt(1), sampling)]).0.remove(0)
    };
    let (text, _) = ends(30, "[ab]*");
    assert!(text.len() >= 30, "{text:?}");
    assert_eq!(ends(30, "abc"), ("abc".to_owned(), FinishReason::Complete));
}

#[test]
fn an_answer_that_is_cut_is_the_beginning_of_a_sentence() {
    let sampling = SamplingParams { max_tokens: 5, ..drawn(9, Some(regex("[a-c]{10}"))) };
    let (text, reason) = answers(cpu(64), 64, &[(prompt(2), sampling)]).0.remove(0);
    assert_eq!((text.len(), reason), (5, FinishReason::Length));
}

/// The same answers on a device that computes beside the host, whose steps are launched ahead.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a CUDA device"]
fn cuda_constrained_answers_are_those_of_the_cpu() {
    let config = runner::ModelSpec { head_dim: 64, attention_scale: 0.125, ..tiny_config(Architecture::Qwen2, RopeLayout::Half) };
    let cuda = |num_blocks| Box::new(runner::testing::tiny_cuda_backend(&config, 42, num_blocks).unwrap()) as Box<dyn Device>;
    let grammar = regex("[a-f]{3,7}x");
    let greedy =
        |seed: u32| SamplingParams { temperature: 0.0, ..drawn(seed.into(), seed.is_multiple_of(2).then(|| grammar.clone())) };
    let asked: Vec<PromptRequest> = (0..12).map(|seed| (prompt(seed), greedy(seed))).collect();
    let (found, _) = answers(cuda(64), 64, &asked);
    for ((text, reason), (_, sampling)) in found.iter().zip(&asked) {
        if sampling.grammar.is_some() {
            assert!(is_sentence(text) && *reason == FinishReason::Complete, "{text:?} {reason:?}");
        }
    }
    let long = regex("([a-c][0-9]){60}!");
    let drawn = |seed: u32| SamplingParams { max_tokens: 130, ..drawn(seed.into(), Some(long.clone())) };
    let asked: Vec<PromptRequest> = (0..6).map(|seed| (prompt(seed), drawn(seed))).collect();
    let (found, some) = answers(cuda(20), 20, &asked);
    assert!(some > 0 && found.iter().all(|(text, reason)| text.len() == 121 && *reason == FinishReason::Complete), "{found:?}");
}
