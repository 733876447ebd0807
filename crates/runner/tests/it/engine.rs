//! The whole engine on small random models: what a client observes when KV is reused.

use std::time::Duration;

use crate::common::{Random, all_families};
use ::engine::{
    DecodeRepair, EngineCore, EngineEvent, ExecutorLimits, FinishReason, HostConfig, KvUsage, Repair, RepairPolicy, Request,
    SamplingParams, SchedulerConfig, SpanOutcome, TokenLogProbs,
};
use runner::backend::cpu::CpuBackend;
use runner::testing::{tiny_backend, tiny_config};
use runner::{Architecture, Device, DeviceFault, DeviceOutput, DeviceStep, KvDtype, ModelRunner, ModelSpec, RopeLayout};
#[cfg(feature = "cuda")]
use runner::{DeviceOptions, GpuOptions, LoadOptions, WeightFiles};
use testkit::RequestBuilder;
use tokens::{BlockSize, RequestId, SharingMode, Timestamp, TokenId};

pub(crate) const NUM_BLOCKS: usize = 64;

pub(crate) struct Engine {
    core: EngineCore<ModelRunner>,
    pub(crate) repair: Repair,
    next_id: u64,
}

/// Result of one request.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<(TokenId, Option<TokenLogProbs>)>,
    pub(crate) usage: KvUsage,
}

impl Answer {
    /// Returns the answer without the outcome of the span search.
    fn without_outcome(self) -> Self {
        Self { usage: KvUsage { outcome: None, ..self.usage }, ..self }
    }
}

impl Engine {
    fn new(config: &ModelSpec, dtype: KvDtype) -> Self {
        Self::with_device(Box::new(tiny_backend(config, 42, dtype, NUM_BLOCKS)))
    }

    pub(crate) fn with_device(device: Box<dyn Device>) -> Self {
        Self::with_host_tier(device, 0)
    }

    /// Creates an engine; `device` must have that host tier.
    fn with_host_tier(device: Box<dyn Device>, num_blocks: u32) -> Self {
        Self::with_runner(ModelRunner::new(device, BlockSize::DEFAULT), num_blocks)
    }

    fn with_runner(runner: ModelRunner, num_blocks: u32) -> Self {
        let host = HostConfig { num_blocks, ..HostConfig::default() };
        let config =
            SchedulerConfig { max_num_batched_tokens: 96, max_num_seqs: 8, host, ..SchedulerConfig::new(NUM_BLOCKS, 1024) };
        Self { core: EngineCore::new(config, runner).unwrap(), repair: Repair::structural(), next_id: 0 }
    }

    fn submit(&mut self, prompt: &[u32], mode: SharingMode, scope: u64) -> RequestId {
        let sampling = SamplingParams { logprobs: Some(5), ..SamplingParams::greedy(6) };
        self.submit_sampled(prompt, mode, scope, sampling)
    }

    pub(crate) fn submit_sampled(
        &mut self,
        prompt: &[u32],
        mode: SharingMode,
        scope: u64,
        sampling: SamplingParams,
    ) -> RequestId {
        let request_id = RequestId(self.next_id);
        self.next_id += 1;
        let prompt: Vec<TokenId> = prompt.iter().map(|id| TokenId(*id)).collect();
        let request = RequestBuilder::new(request_id.0, &prompt).sharing(mode).scope(scope).sampling(|to| *to = sampling).build();
        let request = Request { repair: self.repair, ..request };
        self.core.fits(&request).unwrap();
        self.core.add_request(request, Timestamp::default());
        request_id
    }

    /// Runs until all requests have finished.
    pub(crate) fn finish(&mut self) -> Vec<(RequestId, Answer)> {
        let mut answers: Vec<(RequestId, Answer)> = Vec::new();
        while self.core.has_work() {
            for event in self.core.step(Timestamp::default()).unwrap() {
                let mut answer = |id: RequestId| -> usize {
                    answers.iter().position(|(known, _)| *known == id).unwrap_or_else(|| {
                        answers.push((id, Answer { tokens: Vec::new(), usage: KvUsage::default() }));
                        answers.len() - 1
                    })
                };
                match event {
                    EngineEvent::Token { request_id, token, logprobs } => {
                        let i = answer(request_id);
                        answers[i].1.tokens.push((token, logprobs));
                    }
                    EngineEvent::Finished { request_id, usage, reason } => {
                        assert!(matches!(reason, FinishReason::Length | FinishReason::Aborted));
                        let i = answer(request_id);
                        answers[i].1.usage = usage;
                    }
                    EngineEvent::Admitted { .. } | EngineEvent::PromptLogProbs { .. } => {}
                }
            }
        }
        answers.sort_by_key(|(id, _)| *id);
        answers
    }

    fn answer(&mut self, prompt: &[u32], mode: SharingMode, scope: u64) -> Answer {
        self.submit(prompt, mode, scope);
        self.finish().pop().unwrap().1
    }

    /// Returns the number of span lookups with this outcome.
    pub(crate) fn spans(&self, outcome: SpanOutcome) -> u64 {
        self.core.stats().span_lookups.get(outcome)
    }

    /// Returns the number of blocks without an owner.
    fn idle_blocks(&self) -> usize {
        let blocks = self.core.stats().blocks;
        blocks.free + blocks.cached
    }
}

fn text(len: usize, seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.below(97)).collect()
}

/// Returns a document after one question, and the same document after another.
fn donor_and_recipient() -> (Vec<u32>, Vec<u32>) {
    let document = text(160, 1);
    ([text(40, 2), document.clone(), text(20, 3)].concat(), [text(57, 4), document, text(30, 5)].concat())
}

#[test]
fn a_step_tells_where_its_time_went() {
    let mut engine = Engine::new(&tiny_config(Architecture::Qwen2, RopeLayout::Half), KvDtype::F16);
    engine.repair = Repair { deep_bail_out: 0.0, ..Repair::recommended() };
    let (donor, recipient) = donor_and_recipient();
    engine.answer(&donor, SharingMode::Span, 1);
    engine.submit(&recipient, SharingMode::Span, 1);
    engine.core.step(Timestamp::default()).unwrap();
    let first = engine.core.executor().timings();
    assert!(first.moves > Duration::ZERO && first.check > Duration::ZERO && first.scoring > Duration::ZERO, "{first:?}");
    assert!(first.scoring < first.probe, "{first:?}");
    engine.core.step(Timestamp::default()).unwrap();
    let second = engine.core.executor().timings();
    assert_eq!((second.moves, second.check), (Duration::ZERO, Duration::ZERO), "each step has its own");
    assert!(second.forward > Duration::ZERO && second.total() >= second.forward + second.sample, "{second:?}");
}

#[test]
fn i6_a_miss_gives_the_bits_of_sharing_switched_off() {
    for (config, dtype) in all_families() {
        for seed in 0..4 {
            let prompt = text(100 + 40 * seed as usize, seed);
            let off = Engine::new(&config, dtype).answer(&prompt, SharingMode::Off, 0);
            let mut engine = Engine::new(&config, dtype);
            engine.answer(&text(150, 100 + seed), SharingMode::Span, 0);
            let span = engine.answer(&prompt, SharingMode::Span, 0);
            assert!(span.usage.outcome.is_some());
            assert_eq!(span.without_outcome(), off);
        }
    }
}

#[test]
fn a_prefix_hit_gives_the_bits_of_a_miss() {
    for (config, dtype) in all_families() {
        let mut engine = Engine::new(&config, dtype);
        for len in [64, 65, 96, 110, 128] {
            let prompt = text(len, 7);
            let miss = engine.answer(&prompt, SharingMode::Prefix, len as u64);
            let hit = engine.answer(&prompt, SharingMode::Prefix, len as u64);
            assert_eq!(miss.usage.prefix_tokens, 0);
            assert!(hit.usage.prefix_tokens as usize >= len / 32 * 32 - 1, "{len}: {:?}", hit.usage);
            assert_eq!(hit.tokens, miss.tokens, "prompt of {len}");
        }
    }
}

/// Creates an engine whose pool was filled by other prompts after `prompt` was computed: `prompt` is in the host tier.
fn engine_with_offloaded(config: &ModelSpec, dtype: KvDtype, prompt: &[u32]) -> Engine {
    let backend = tiny_backend(config, 42, dtype, NUM_BLOCKS).with_host_tier(200);
    let mut engine = Engine::with_host_tier(Box::new(backend), 200);
    engine.answer(prompt, SharingMode::Prefix, 0);
    push_out(&mut engine, prompt);
    engine
}

/// Fills the pool with other prompts, until `prompt` is in the host tier.
fn push_out(engine: &mut Engine, prompt: &[u32]) {
    let before = engine.core.stats().host;
    for _ in 0..8 {
        let seed = 1000 + engine.next_id;
        engine.answer(&text(400, seed), SharingMode::Prefix, 9);
    }
    let host = engine.core.stats().host;
    assert!((host.offloads - before.offloads) as usize >= prompt.len() / 32 && host.fetches == before.fetches, "{host:?}");
}

#[test]
fn what_comes_back_from_the_host_gives_the_bits_of_a_miss() {
    for (config, dtype) in all_families() {
        for len in [96, 110, 250] {
            let prompt = text(len, 7);
            let miss = Engine::new(&config, dtype).answer(&prompt, SharingMode::Prefix, 0);
            let mut engine = engine_with_offloaded(&config, dtype, &prompt);
            let hit = engine.answer(&prompt, SharingMode::Prefix, 0);
            assert!(hit.usage.prefix_tokens as usize >= len / 32 * 32 - 1, "{len}: {:?}", hit.usage);
            assert_eq!(hit.tokens, miss.tokens, "{:?} {dtype:?}: prompt of {len}", config.architecture);
            assert_eq!(engine.core.stats().host.fetches, len as u64 / 32);
        }
    }
}

/// Creates an engine with a model of random weights on GPU 0, a pool of [`NUM_BLOCKS`] blocks and 200 in the host tier.
#[cfg(feature = "cuda")]
fn engine_on_gpu() -> Engine {
    let config = r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 104, "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": true}"#;
    let path = std::env::temp_dir().join(format!("kvshare-host-tier-{}.json", std::process::id()));
    std::fs::write(&path, config).unwrap();
    let block_bytes = 3 * 2 * 2 * 64 * 32 * 2;
    let gpu = GpuOptions { ordinal: 0, memory_utilization: 0.9, kv_bytes: Some(NUM_BLOCKS as u64 * block_bytes) };
    let options = LoadOptions {
        weights: WeightFiles::Random { config: path.clone(), seed: 1 },
        device: DeviceOptions::Cuda(gpu),
        max_model_len: Some(1024),
        max_num_batched_tokens: 96,
        max_num_seqs: 8,
        keeps_embedding: false,
        host_kv_bytes: 200 * block_bytes,
    };
    let loaded = runner::load(&options, &mut |_| {}).unwrap();
    std::fs::remove_file(path).unwrap();
    assert_eq!((loaded.num_blocks, loaded.num_host_blocks, loaded.block_bytes), (NUM_BLOCKS, 200, block_bytes));
    Engine::with_runner(loaded.runner, loaded.num_host_blocks)
}

#[test]
#[cfg(feature = "cuda")]
#[ignore = "needs a CUDA device"]
fn cuda_what_comes_back_from_the_host_gives_the_bits_of_what_stayed() {
    let mut engine = engine_on_gpu();
    for (scope, len) in [96, 110, 250].into_iter().enumerate() {
        let (prompt, scope) = (text(len, 7), scope as u64);
        engine.answer(&prompt, SharingMode::Prefix, scope);
        let stayed = engine.answer(&prompt, SharingMode::Prefix, scope);
        push_out(&mut engine, &prompt);
        let before = engine.core.stats().host.fetches;
        assert_eq!(engine.answer(&prompt, SharingMode::Prefix, scope), stayed, "prompt of {len}");
        assert_eq!(engine.core.stats().host.fetches - before, len as u64 / 32);
    }
    assert_eq!(engine.idle_blocks(), NUM_BLOCKS);
}

#[test]
fn a_donor_in_the_host_gives_the_bits_of_one_on_the_device() {
    for (config, dtype) in all_families() {
        let (donor, recipient) = donor_and_recipient();
        let mut engine = Engine::new(&config, dtype);
        engine.answer(&donor, SharingMode::Prefix, 0);
        let expected = engine.answer(&recipient, SharingMode::Span, 0);
        assert!(expected.usage.span_tokens >= 120);
        let mut engine = engine_with_offloaded(&config, dtype, &donor);
        assert_eq!(engine.answer(&recipient, SharingMode::Span, 0), expected, "{:?} {dtype:?}", config.architecture);
        assert!(engine.core.stats().host.fetches > 0);
        assert_eq!(engine.core.stats().span_lookups.get(SpanOutcome::FailedCheck), 0);
        assert_eq!(engine.idle_blocks(), NUM_BLOCKS);
    }
}

#[test]
fn a_batch_gives_the_bits_of_each_request_alone() {
    for (config, dtype) in all_families() {
        let prompts: Vec<Vec<u32>> = (0..5).map(|i| text(30 + 37 * i, i as u64)).collect();
        let alone: Vec<_> =
            prompts.iter().map(|prompt| Engine::new(&config, dtype).answer(prompt, SharingMode::Off, 0)).collect();
        let mut engine = Engine::new(&config, dtype);
        for prompt in &prompts {
            engine.submit(prompt, SharingMode::Off, 0);
        }
        let batched: Vec<_> = engine.finish().into_iter().map(|(_, answer)| answer).collect();
        assert_eq!(batched, alone);
    }
}

#[test]
fn a_document_behind_another_question_is_reused() {
    for (config, dtype) in all_families() {
        let (donor, recipient) = donor_and_recipient();
        let mut engine = Engine::new(&config, dtype);
        engine.answer(&donor, SharingMode::Prefix, 0);
        let answer = engine.answer(&recipient, SharingMode::Span, 0);
        assert!(answer.usage.span_tokens >= 120, "{:?}", answer.usage);
        assert_eq!(answer.usage.donors, 1);
        assert_eq!(answer.usage.prefix_tokens + answer.usage.span_tokens + answer.usage.computed_tokens, recipient.len() as u32);
        assert_eq!(engine.spans(SpanOutcome::FailedCheck), 0, "{dtype:?}: the layer-0 check agrees");
    }
}

#[test]
fn what_a_recipient_leaves_behind_is_not_reused() {
    let config = tiny_config(Architecture::Llama, RopeLayout::Half);
    let (donor, recipient) = donor_and_recipient();
    let mut engine = Engine::new(&config, KvDtype::F32);
    engine.answer(&donor, SharingMode::Prefix, 0);
    let first = engine.answer(&recipient, SharingMode::Span, 0);
    assert!(first.usage.span_tokens > 0);
    // Only the exact part before the document is in the prefix index.
    let exact = engine.answer(&recipient, SharingMode::Prefix, 0);
    assert!(exact.usage.prefix_tokens <= 57 + 16, "{:?}", exact.usage);
    assert_eq!(exact.tokens, Engine::new(&config, KvDtype::F32).answer(&recipient, SharingMode::Off, 0).tokens);
}

#[test]
fn another_scope_or_epoch_finds_nothing() {
    // I8 and I15: tenant, scope, model, weights and tokenizer are all in the scope.
    let config = tiny_config(Architecture::Qwen2, RopeLayout::Half);
    let (donor, recipient) = donor_and_recipient();
    let mut engine = Engine::new(&config, KvDtype::F16);
    engine.answer(&donor, SharingMode::Prefix, 1);
    for (scope, prompt) in [(2, &donor), (3, &recipient)] {
        let usage = engine.answer(prompt, SharingMode::Span, scope).usage;
        assert_eq!((usage.prefix_tokens, usage.span_tokens), (0, 0));
    }
}

#[test]
fn i10_an_abort_while_spans_are_copied_leaks_no_block() {
    let config = tiny_config(Architecture::Llama, RopeLayout::Half);
    let (donor, recipient) = donor_and_recipient();
    for steps in 0..3 {
        let mut engine = Engine::new(&config, KvDtype::F16);
        engine.answer(&donor, SharingMode::Prefix, 0);
        let request_id = engine.submit(&recipient, SharingMode::Span, 0);
        for _ in 0..steps {
            engine.core.step(Timestamp::default()).unwrap();
        }
        assert!(engine.core.abort(request_id));
        engine.finish();
        assert_eq!(engine.idle_blocks(), NUM_BLOCKS, "after {steps} steps");
    }
}

#[test]
fn i11_a_donor_whose_blocks_are_gone_means_dense() {
    let config = tiny_config(Architecture::Llama, RopeLayout::Half);
    let (donor, recipient) = donor_and_recipient();
    let dense = Engine::new(&config, KvDtype::F16).answer(&recipient, SharingMode::Off, 0);
    let mut engine = Engine::new(&config, KvDtype::F16);
    engine.answer(&donor, SharingMode::Prefix, 0);
    // Enough other prompts to evict every block of the donor.
    for i in 0..12 {
        engine.answer(&text(300, 1000 + i), SharingMode::Prefix, 9);
    }
    let answer = engine.answer(&recipient, SharingMode::Span, 0);
    assert_eq!(answer.usage.outcome, Some(SpanOutcome::NotResident));
    assert_eq!(answer.without_outcome(), dense);
}

#[test]
fn i2_repairing_everything_is_dense_and_leaves_a_donor() {
    for (config, dtype) in all_families() {
        let (donor, recipient) = donor_and_recipient();
        let dense = Engine::new(&config, dtype).answer(&recipient, SharingMode::Off, 0);
        let mut engine = Engine::new(&config, dtype);
        engine.answer(&donor, SharingMode::Prefix, 0);
        engine.repair = Repair { policy: RepairPolicy::Full, ..Repair::structural() };
        let repaired = engine.answer(&recipient, SharingMode::Span, 0);
        assert_eq!(repaired.tokens, dense.tokens, "{:?} {dtype:?}", config.architecture);
        assert_eq!((repaired.usage.span_tokens, repaired.usage.computed_tokens), (0, recipient.len() as u32));
        let again = engine.answer(&recipient, SharingMode::Prefix, 0);
        assert_eq!((again.tokens, again.usage.prefix_tokens > 200), (dense.tokens, true), "what was computed in full is exact");
    }
}

#[test]
fn every_policy_recomputes_its_share_and_never_donates() {
    let config = tiny_config(Architecture::Qwen2, RopeLayout::Half);
    let (donor, recipient) = donor_and_recipient();
    let engine_with_donor = || {
        let mut engine = Engine::new(&config, KvDtype::F16);
        engine.answer(&donor, SharingMode::Prefix, 0);
        engine
    };
    let structural = engine_with_donor().answer(&recipient, SharingMode::Span, 0).usage;
    for policy in RepairPolicy::ALL.into_iter().filter(|policy| policy.probe().is_some() && *policy != RepairPolicy::Full) {
        let mut engine = engine_with_donor();
        engine.repair = Repair { policy, ratio: 0.2, ..Repair::structural() };
        let usage = engine.answer(&recipient, SharingMode::Span, 0).usage;
        let budget = recipient.len() as u32 / 5;
        let extra = usage.recomputed_tokens - structural.recomputed_tokens;
        assert!((budget - 15..=budget).contains(&extra), "{policy:?}: {extra} of {budget}");
        assert_eq!(usage.span_tokens + extra, structural.span_tokens);
        assert_eq!(engine.core.stats().num_donors, 1, "{policy:?}: what was repaired is approximate");
        assert_eq!(engine.idle_blocks(), NUM_BLOCKS);
    }
}

/// Returns an answer over moved spans under `deep_bail_out`, and that of full computation.
fn looked_at_deeper(deep_bail_out: f32) -> [Answer; 2] {
    let config = tiny_config(Architecture::Qwen2, RopeLayout::Half);
    let (donor, recipient) = donor_and_recipient();
    let dense = Engine::new(&config, KvDtype::F16).answer(&recipient, SharingMode::Off, 0);
    let mut engine = Engine::new(&config, KvDtype::F16);
    engine.answer(&donor, SharingMode::Prefix, 0);
    engine.repair = Repair { deep_bail_out, ..Repair::recommended() };
    let answer = engine.answer(&recipient, SharingMode::Span, 0);
    assert_eq!(engine.idle_blocks(), NUM_BLOCKS);
    let num_donors = if answer.usage.span_tokens == 0 { 2 } else { 1 };
    assert_eq!(engine.core.stats().num_donors, num_donors, "what was computed in full is exact");
    [answer, dense]
}

#[test]
fn what_deviates_deep_in_the_model_is_computed_to_the_bit() {
    // Random weights: moved KV differs strongly from fresh KV.
    let [bailed_out, dense] = looked_at_deeper(0.01);
    assert_eq!(bailed_out.tokens, dense.tokens);
    assert_eq!((bailed_out.usage.span_tokens, bailed_out.usage.outcome), (0, Some(SpanOutcome::BailedOut)));
    let [trusted, _] = looked_at_deeper(1e6);
    assert!(trusted.usage.span_tokens > 64 && trusted.usage.outcome == Some(SpanOutcome::Reused), "{:?}", trusted.usage);
    assert_eq!(trusted.usage.deep_deviation, bailed_out.usage.deep_deviation);
    let [without, _] = looked_at_deeper(0.0);
    assert_eq!((without.usage.deep_deviation, without.usage.span_tokens), (None, trusted.usage.span_tokens));
}

#[test]
fn i14_repair_in_decode_leaves_every_other_sequence_alone() {
    let config = tiny_config(Architecture::Qwen2, RopeLayout::Half);
    let (donor, recipient) = donor_and_recipient();
    let (unrelated, impact) = (text(90, 77), Repair { policy: RepairPolicy::Impact, ratio: 0.1, ..Repair::structural() });
    let decode = Some(DecodeRepair { tokens: 3, every: 1, max_batch_rows: 0 });
    let run = |decode| {
        let mut engine = Engine::new(&config, KvDtype::F16);
        engine.answer(&donor, SharingMode::Prefix, 0);
        engine.repair = impact;
        let alone = engine.submit(&recipient, SharingMode::Span, 0);
        let other = engine.submit(&unrelated, SharingMode::Prefix, 0);
        engine.repair = Repair { decode, ..impact };
        let repaired = engine.submit(&recipient, SharingMode::Span, 0);
        let mut answers = engine.finish().into_iter().collect::<std::collections::BTreeMap<_, _>>();
        let donor_again = engine.answer(&donor, SharingMode::Prefix, 0);
        assert_eq!(engine.idle_blocks(), NUM_BLOCKS);
        (answers.remove(&repaired).unwrap(), [answers.remove(&alone), answers.remove(&other), Some(donor_again)])
    };
    let ((without, others), (with, others_beside)) = (run(None), run(decode));
    assert_eq!(others_beside, others, "the donor, its blocks and sequences beside it keep their bits");
    assert_eq!(with.tokens[0], without.tokens[0], "the first token comes before any repair in decode");
    assert_ne!(with.tokens[1..], without.tokens[1..], "but repair does change something");
    // Five steps follow the first token; each recomputes three tokens.
    assert_eq!(without.usage.span_tokens - with.usage.span_tokens, 15);
}

/// A device whose copies never pass the check: they are compared with other tokens.
struct Distrusting(CpuBackend);

impl Device for Distrusting {
    fn limits(&self) -> ExecutorLimits {
        self.0.limits()
    }
    fn max_span_deviation(&self) -> f32 {
        self.0.max_span_deviation()
    }
    fn begin(&mut self, step: DeviceStep<'_>) -> Result<(), DeviceFault> {
        let mut spans = step.spans.to_vec();
        spans.iter_mut().flat_map(|span| &mut span.token_ids).for_each(|token| token.0 = (token.0 + 1) % 97);
        self.0.begin(DeviceStep { spans: &spans, ..step })
    }
    fn finish(&mut self) -> Result<DeviceOutput, DeviceFault> {
        self.0.finish()
    }
}

#[test]
fn i12_a_rejected_donor_means_dense() {
    let config = tiny_config(Architecture::Llama, RopeLayout::Half);
    let (donor, recipient) = donor_and_recipient();
    let dense = Engine::new(&config, KvDtype::F16).answer(&recipient, SharingMode::Off, 0);
    let mut engine = Engine::with_device(Box::new(Distrusting(tiny_backend(&config, 42, KvDtype::F16, NUM_BLOCKS))));
    engine.answer(&donor, SharingMode::Prefix, 0);
    // Runs beside another request, which must not be affected.
    let other = text(50, 77);
    let rejected = engine.submit(&recipient, SharingMode::Span, 0);
    let beside = engine.submit(&other, SharingMode::Off, 0);
    let answers = engine.finish();
    let of = |id: RequestId| &answers.iter().find(|(known, _)| *known == id).unwrap().1;
    assert_eq!(of(rejected).tokens, dense.tokens);
    assert_eq!(of(rejected).usage.span_tokens, 0);
    assert_eq!(of(beside), &Engine::new(&config, KvDtype::F16).answer(&other, SharingMode::Off, 0));
    assert_eq!(engine.spans(SpanOutcome::FailedCheck), 1);
}

#[test]
fn prompt_log_probabilities_do_not_depend_on_chunks() {
    let config = tiny_config(Architecture::Qwen3, RopeLayout::Half);
    let prompt = text(200, 5);
    let score = |max_num_batched_tokens: usize| {
        let runner = ModelRunner::new(Box::new(tiny_backend(&config, 42, KvDtype::F16, NUM_BLOCKS)), BlockSize::DEFAULT);
        let scheduler = SchedulerConfig { max_num_batched_tokens, max_num_seqs: 4, ..SchedulerConfig::new(NUM_BLOCKS, 1024) };
        let mut core = EngineCore::new(scheduler, runner).unwrap();
        let tokens: Vec<TokenId> = prompt.iter().map(|id| TokenId(*id)).collect();
        let request = RequestBuilder::new(1, &tokens).max_tokens(1).sharing(SharingMode::Span);
        let request = request.sampling(|sampling| sampling.prompt_logprobs = Some(3)).build();
        core.add_request(request, Timestamp::default());
        let mut found = Vec::new();
        while core.has_work() {
            for event in core.step(Timestamp::default()).unwrap() {
                if let EngineEvent::PromptLogProbs { logprobs, .. } = event {
                    found = logprobs;
                }
            }
        }
        found
    };
    let whole = score(512);
    assert_eq!(whole.len(), prompt.len() - 1);
    assert!(whole.iter().zip(&prompt[1..]).all(|(p, id)| p.chosen.token == TokenId(*id) && p.top.len() == 3));
    assert_eq!(score(64), whole);
}
