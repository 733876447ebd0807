//! Steps that are prepared while others run give the same tokens as steps run one after the other.

use std::collections::BTreeMap;

use engine::{
    EngineCore, EngineEvent, Executor, ExecutorError, ExecutorLimits, FinishReason, ModelRunnerOutput, OverlappingExecutor,
    Request, SamplingParams, SchedulerConfig, SchedulerOutput, TokenLogProbs,
};
use runner::testing::{tiny_backend, tiny_config};
use runner::{Architecture, Device, KvDtype, ModelRunner, RopeLayout};
use testkit::RequestBuilder;
use tokens::{BlockSize, RequestId, Timestamp, TokenId};

use crate::common::Random;

const NUM_BLOCKS: usize = 64;
/// Vocabulary size of the tiny models.
const VOCAB_SIZE: u32 = 97;

/// A runner that is driven as if its device were asynchronous. Counts the steps prepared ahead.
struct Overlapping {
    runner: ModelRunner,
    num_prepared: usize,
}

impl Executor for Overlapping {
    fn limits(&self) -> ExecutorLimits {
        self.runner.limits()
    }

    fn execute_model(&mut self, _step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        unreachable!("steps are launched")
    }

    fn as_overlapping(&mut self) -> Option<&mut dyn OverlappingExecutor> {
        Some(self)
    }
}

impl OverlappingExecutor for Overlapping {
    fn launch(&mut self, step: &SchedulerOutput) -> Result<(), ExecutorError> {
        self.runner.launch(step)
    }

    fn prepare(&mut self, next: &SchedulerOutput) {
        self.num_prepared += 1;
        self.runner.prepare(next);
    }

    fn collect(&mut self) -> Result<ModelRunnerOutput, ExecutorError> {
        self.runner.collect()
    }
}

/// Tokens of a request and its finish reason.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<TokenId>,
    logprobs: Vec<TokenLogProbs>,
    reason: Option<FinishReason>,
}

/// Returns requests that differ in all that decides a token.
fn requests() -> Vec<Request> {
    let greedy = SamplingParams::greedy(40);
    let drawn = SamplingParams { temperature: 1.0, top_p: 0.95, seed: 5, ..greedy.clone() };
    // A third of the vocabulary stops it, but not at once; its prompt is also scored.
    let stops = (0..VOCAB_SIZE).step_by(3).map(TokenId).collect();
    let sampling = [
        SamplingParams { logprobs: Some(3), ..greedy.clone() },
        SamplingParams { stop_token_ids: stops, min_tokens: 7, prompt_logprobs: Some(2), ..drawn.clone() },
        SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.7, presence_penalty: 0.4, ..drawn.clone() },
        SamplingParams { max_tokens: 9, logit_bias: vec![(TokenId(3), 4.0)], ..drawn.clone() },
        SamplingParams { max_tokens: 1, ..greedy },
        SamplingParams { seed: 6, max_tokens: 33, ..drawn },
    ];
    sampling.into_iter().zip(0..).map(|(sampling, id)| request(id, sampling)).collect()
}

fn request(id: u64, sampling: SamplingParams) -> Request {
    let mut random = Random(id);
    let len = 20 + 17 * id;
    let prompt: Vec<TokenId> = (0..len).map(|_| TokenId(random.below(VOCAB_SIZE))).collect();
    RequestBuilder::new(id, &prompt).sampling(|to| *to = sampling).build()
}

/// Returns answers to [`requests`], one of which arrives every five steps.
fn answers<E: Executor>(core: &mut EngineCore<E>) -> BTreeMap<RequestId, Answer> {
    let mut answers: BTreeMap<RequestId, Answer> = BTreeMap::new();
    let mut waiting = requests().into_iter();
    for step in 0.. {
        if step % 5 == 0 {
            waiting.next().into_iter().for_each(|request| core.add_request(request, Timestamp::default()));
        }
        if waiting.len() == 0 && !core.has_work() {
            break;
        }
        for event in core.step(Timestamp::default()).unwrap() {
            let answer = answers.entry(event.request_id()).or_default();
            match event {
                EngineEvent::Token { token, logprobs, .. } => {
                    answer.tokens.push(token);
                    answer.logprobs.extend(logprobs);
                }
                EngineEvent::Finished { reason, .. } => answer.reason = Some(reason),
                EngineEvent::PromptLogProbs { logprobs, .. } => answer.logprobs.extend(logprobs),
                EngineEvent::Admitted { .. } => {}
            }
        }
    }
    answers
}

fn config() -> SchedulerConfig {
    SchedulerConfig { max_num_batched_tokens: 96, max_num_seqs: 8, ..SchedulerConfig::new(NUM_BLOCKS, 1024) }
}

fn runner(device: Box<dyn Device>) -> ModelRunner {
    ModelRunner::new(device, BlockSize::DEFAULT)
}

#[test]
fn steps_made_ready_ahead_give_the_bits_of_steps_one_after_the_other() {
    let model = tiny_config(Architecture::Qwen2, RopeLayout::Half);
    let cpu = || runner(Box::new(tiny_backend(&model, 42, KvDtype::F32, NUM_BLOCKS)));
    let expected = answers(&mut EngineCore::new(config(), cpu()).unwrap());
    let mut core = EngineCore::new(config(), Overlapping { runner: cpu(), num_prepared: 0 }).unwrap();
    assert_eq!(answers(&mut core), expected);
    let num_tokens: Vec<_> = expected.values().map(|answer| answer.tokens.len()).collect();
    assert_eq!([0, 2, 3, 4, 5].map(|id| num_tokens[id]), [40, 40, 9, 1, 33]);
    assert!((8..40).contains(&num_tokens[1]), "the second one is stopped: {num_tokens:?}");
    assert_eq!(expected[&RequestId(0)].logprobs.len(), 40);
    assert!(core.executor().num_prepared > 30, "{} steps were made ready", core.executor().num_prepared);
}

#[test]
#[cfg(feature = "cuda")]
#[ignore = "needs a CUDA device"]
fn cuda_steps_made_ready_ahead_say_what_steps_one_after_the_other_do() {
    let (mut num_equal, mut num_all) = (0, 0);
    // Some have a vocabulary that the device samples from, others one that the host does.
    for model in crate::gpu::families() {
        let [ahead, after] = [true, false].map(|run_ahead| {
            let gpu = runner::testing::tiny_cuda_backend(&model, 42, NUM_BLOCKS).expect("there is a GPU with some memory left");
            let mut runner = runner(Box::new(gpu));
            assert!(runner.as_overlapping().is_some(), "a GPU computes beside the engine");
            let executor = Overlapping { runner, num_prepared: 0 };
            let mut core = EngineCore::new(SchedulerConfig { run_ahead, ..config() }, executor).unwrap();
            let answers = answers(&mut core);
            assert_eq!(core.executor().num_prepared > 30, run_ahead, "{} steps were made ready", core.executor().num_prepared);
            answers
        });
        for (a, b) in ahead.values().zip(after.values()) {
            num_equal += a.tokens.iter().zip(&b.tokens).take_while(|(a, b)| a == b).count();
            num_all += a.tokens.len();
        }
    }
    println!("{num_equal} of {num_all} tokens are equal behind equal histories");
    // A void row adds one row, for which cuBLASLt may pick another algorithm: then a draw on a boundary differs, and all tokens after it.
    assert!(num_equal * 10 >= num_all * 7, "{num_equal} of {num_all} tokens are equal");
}
