//! Log probabilities of the models, compared with those that Hugging Face transformers computes from the same files.
//!
//! `tests/reference/` makes the stored side and describes its bytes. `cargo test --test integration reference -- --nocapture` prints
//! the figures.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{BlockEntry, Executor, LogProb, NewRequest, Row, SamplingParams, ScheduledSequence, SchedulerOutput};
use runner::{CpuOptions, DeviceOptions, GpuOptions, KvDtype, LoadOptions, ModelRunner, WeightFiles};
use tokens::{BlockId, BlockSize, RequestId, TokenId};

use crate::daemon::pull;

/// Rows of one step, as in the daemon's default: longer sequences are computed in chunks.
const CHUNK: usize = 512;

fn fixtures() -> PathBuf {
    crate::places::repository().join("tests/fixtures")
}

const KV_BYTES: u64 = 64 << 20;
/// First GPU.
const GPU: DeviceOptions = DeviceOptions::Cuda(GpuOptions { ordinal: 0, memory_utilization: 0.5, kv_bytes: Some(KV_BYTES) });

fn cpu(kv_dtype: KvDtype) -> DeviceOptions {
    DeviceOptions::Cpu(CpuOptions { threads: 2, kv_dtype, kv_bytes: KV_BYTES })
}

fn load(weights: WeightFiles, device: DeviceOptions) -> ModelRunner {
    let options = LoadOptions {
        weights,
        device,
        max_model_len: None,
        max_num_batched_tokens: 512,
        max_num_seqs: 64,
        keeps_embedding: false,
        host_kv_bytes: 0,
    };
    runner::load(&options, &mut |_| {}).expect("the model loads").runner
}

/// Runner's output at one position.
struct Found {
    /// Log probability of the next token.
    next: f32,
    /// Most likely tokens in its place, descending.
    top: Vec<LogProb>,
}

/// Returns, for each token of `ids` but the first, its log probability and those of the `num_top` most likely in its place.
fn score(runner: &mut ModelRunner, request: u64, ids: &[u32], num_top: u32) -> Vec<Found> {
    let request_id = RequestId(request);
    let tokens: Arc<[TokenId]> = ids.iter().copied().map(TokenId).collect();
    let sampling = SamplingParams { prompt_logprobs: Some(num_top), ..SamplingParams::greedy(1) };
    let new = NewRequest { request_id, prompt_token_ids: Arc::clone(&tokens), sampling: Arc::new(sampling) };
    let rows: Vec<_> = (0u32..).zip(tokens.iter()).map(|(position, &token)| Row { token, position }).collect();
    let blocks = (0u32..).take(BlockSize::DEFAULT.blocks_for(rows.len())).map(BlockId);
    let block_table = BlockEntry::table_of(blocks, BlockSize::DEFAULT);
    let mut scores = Vec::new();
    for (step, chunk) in rows.chunks(CHUNK).enumerate() {
        let is_last = (step + 1) * CHUNK >= rows.len();
        let sequence = ScheduledSequence {
            request_id,
            rows: chunk.to_vec(),
            block_table: block_table.clone(),
            sample: is_last,
            watch: Vec::new(),
            drift: Vec::new(),
        };
        let output = SchedulerOutput {
            step: request * 100 + step as u64,
            new_requests: if step == 0 { vec![new.clone()] } else { Vec::new() },
            sequences: vec![sequence],
            ..SchedulerOutput::default()
        };
        let output = runner.execute_model(&output).expect("the device does not fail");
        scores.extend(output.prompt_logprobs.into_iter().flat_map(|(_, entries)| entries));
    }
    runner.execute_model(&SchedulerOutput { finished: vec![request_id], ..SchedulerOutput::default() }).expect("nothing to do");
    assert_eq!(scores.iter().map(|(position, _)| *position).collect::<Vec<_>>(), (1..ids.len() as u32).collect::<Vec<_>>());
    scores.into_iter().map(|(_, entry)| Found { next: entry.chosen.logprob, top: entry.top }).collect()
}

/// Reader of little-endian values from the front of a file.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("the file is as long as it says");
        self.0 = rest;
        *head
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn f32(&mut self) -> f32 {
        f32::from_le_bytes(self.bytes())
    }

    fn u32s(&mut self, count: u32) -> Vec<u32> {
        (0..count).map(|_| self.u32()).collect()
    }
}

/// Output of transformers at one position.
struct Expected {
    top: Vec<(u32, f32)>,
    next: f32,
}

impl Expected {
    /// Computes the divergence in nats of `found` from this distribution, both over {the stored tokens, all the rest}.
    ///
    /// KL(P || Q) = sum over the parts of p (ln p - ln q)   (Kullback and Leibler 1951, eq. 2.3)
    fn divergence(&self, found: &[LogProb]) -> f64 {
        let (mut sum, mut rest_p, mut rest_q) = (0.0, 1.0, 1.0);
        for &(id, log_p) in &self.top {
            let log_q = found.iter().find(|entry| entry.token == TokenId(id)).map_or(f32::NEG_INFINITY, |entry| entry.logprob);
            let (log_p, log_q) = (f64::from(log_p), f64::from(log_q));
            sum += log_p.exp() * (log_p - log_q);
            rest_p -= log_p.exp();
            rest_q -= log_q.exp();
        }
        // Rounding may leave the rest of a certain position slightly below zero.
        let (rest_p, rest_q) = (rest_p.max(1e-9), rest_q.max(1e-9));
        sum + rest_p * (rest_p / rest_q).ln()
    }
}

/// Reads sequences, with the expected output at each of their positions but the last.
fn read_reference(path: &Path) -> Vec<(Vec<u32>, Vec<Expected>)> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = Reader(&bytes);
    assert_eq!((&reader.bytes::<8>(), reader.u32()), (b"KVSREF01", 1), "magic and version");
    let _vocab_size = reader.u32();
    let num_seqs = reader.u32();
    let lengths = reader.u32s(num_seqs);
    let sequences: Vec<_> = lengths.iter().map(|&length| reader.u32s(length)).collect();
    let mut position = |_| Expected { top: (0..32).map(|_| (reader.u32(), reader.f32())).collect(), next: reader.f32() };
    let mut with_positions = |ids: Vec<u32>| {
        let expected = (1..ids.len()).map(&mut position).collect();
        (ids, expected)
    };
    sequences.into_iter().map(&mut with_positions).collect()
}

/// Agreement over all positions of a model.
struct Agreement {
    num_positions: usize,
    /// Divergence in nats.
    mean_divergence: f64,
    max_divergence: f64,
    /// Share of positions with the same top-1 token.
    same_top_ratio: f64,
    /// Mean absolute difference of the next token's log probability.
    mean_next_error: f64,
}

impl Agreement {
    fn of(positions: &[(Expected, Found)]) -> Self {
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / positions.len() as f64;
        let divergences: Vec<_> = positions.iter().map(|(expected, found)| expected.divergence(&found.top)).collect();
        let mut same_top =
            positions.iter().map(|(expected, found)| f64::from(u8::from(TokenId(expected.top[0].0) == found.top[0].token)));
        let mut next_errors = positions.iter().map(|(expected, found)| f64::from((expected.next - found.next).abs()));
        Self {
            num_positions: positions.len(),
            mean_divergence: mean(&mut divergences.iter().copied()),
            max_divergence: divergences.iter().copied().fold(0.0, f64::max),
            same_top_ratio: mean(&mut same_top),
            mean_next_error: mean(&mut next_errors),
        }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} positions, KL mean {:.2e} max {:.2e} nat, same top-1 {:.2} %, following token off by {:.2e} nat",
            self.num_positions,
            self.mean_divergence,
            self.max_divergence,
            100.0 * self.same_top_ratio,
            self.mean_next_error
        )
    }
}

/// Our candidates at a position: enough that the 32 most likely of the reference are among them.
const NUM_TOP: u32 = 1024;

/// Least agreement with transformers over all positions.
struct Bound {
    /// Divergence in nats.
    mean_divergence: f64,
    max_divergence: f64,
    same_top_ratio: f64,
}

/// On the CPU only the order of sums differs. A window of 500 or 513 for 512, or a rotation base of 9e5 for 1e6, is beyond this.
const CPU: Bound = Bound { mean_divergence: 2e-6, max_divergence: 1e-3, same_top_ratio: 0.99 };
/// With bf16 throughout, the order of two tokens that are nearly as likely changes more often.
const BF16: Bound = Bound { mean_divergence: 1e-3, max_divergence: 5e-2, same_top_ratio: 0.97 };

/// Checks that `model` of the catalogue agrees with transformers on real text.
#[track_caller]
fn check_real_model(model: &str, device: DeviceOptions, bound: &Bound) {
    let file = pull(model);
    let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("a model's name is UTF-8");
    let reference = read_reference(&fixtures().join(format!("reference/{stem}.reference")));
    let mut runner = load(WeightFiles::Gguf(file.clone()), device);
    let mut positions = Vec::new();
    for (request, (ids, expected)) in (0..).zip(reference) {
        positions.extend(expected.into_iter().zip(score(&mut runner, request, &ids, NUM_TOP)));
    }
    let agreement = Agreement::of(&positions);
    println!("{model}: {agreement}");
    assert!(agreement.num_positions >= 2048, "{agreement}");
    assert!(agreement.mean_divergence <= bound.mean_divergence, "{agreement}");
    assert!(agreement.max_divergence <= bound.max_divergence, "{agreement}");
    assert!(agreement.same_top_ratio >= bound.same_top_ratio, "{agreement}");
}

const SMOLLM2: &str = "smollm2-135m-instruct";
const QWEN: &str = "qwen2.5-coder-0.5b-instruct";
const GEMMA: &str = "gemma-3-270m";

#[test]
fn smollm2_agrees_on_real_text() {
    check_real_model(SMOLLM2, cpu(KvDtype::F16), &CPU);
}

#[test]
fn qwen2_5_coder_agrees_on_real_text() {
    // Its logits are larger, and so is their rounding.
    check_real_model(QWEN, cpu(KvDtype::F16), &Bound { mean_divergence: 5e-6, ..CPU });
}

#[test]
fn gemma3_agrees_on_real_text() {
    check_real_model(GEMMA, cpu(KvDtype::F16), &CPU);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_smollm2_agrees_on_real_text() {
    check_real_model(SMOLLM2, GPU, &BF16);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_qwen2_5_coder_agrees_on_real_text() {
    check_real_model(QWEN, GPU, &BF16);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_gemma3_agrees_on_real_text() {
    check_real_model(GEMMA, GPU, &BF16);
}

/// Checks that the tiny model `name` has the stored logits, to within 1e-4 of the largest.
///
/// Compares log probabilities of the whole vocabulary: a constant added to all logits of a position has no effect.
#[track_caller]
fn check_tiny_model(folder: &Path) {
    let bytes = fs::read(folder.join("expected.bin")).expect("the fixture is there");
    let mut reader = Reader(&bytes);
    let (num_tokens, vocab_size) = (reader.u32(), reader.u32());
    let ids = reader.u32s(num_tokens);
    let expected: Vec<Vec<f32>> = ids.iter().map(|_| (0..vocab_size).map(|_| reader.f32()).collect()).collect();
    let mut runner = load(WeightFiles::Safetensors(folder.to_owned()), cpu(KvDtype::F32));
    let scale = expected.iter().flatten().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
    for (logits, found) in expected.iter().zip(score(&mut runner, 0, &ids, vocab_size)) {
        let total = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        assert_eq!(found.top.len(), vocab_size as usize);
        for entry in found.top {
            let expected = f64::from(logits[entry.token.0 as usize]) - total;
            let error = (f64::from(entry.logprob) - expected).abs() / f64::from(scale);
            assert!(error <= 1e-4, "{}: {entry:?}, expected {expected}", folder.display());
        }
    }
}

#[test]
fn llama_with_scaled_rope_has_the_logits_of_transformers() {
    check_tiny_model(&fixtures().join("tiny/llama3"));
}

#[test]
fn mistral_has_the_logits_of_transformers() {
    check_tiny_model(&fixtures().join("tiny/mistral"));
}

#[test]
fn qwen2_has_the_logits_of_transformers() {
    check_tiny_model(&fixtures().join("tiny/qwen2"));
}

#[test]
fn gemma3_has_the_logits_of_transformers() {
    check_tiny_model(&fixtures().join("tiny/gemma3"));
}

#[test]
fn qwen3_has_the_logits_of_transformers_under_either_spelling_of_its_configuration() {
    let folder = fixtures().join("tiny/qwen3");
    check_tiny_model(&folder);
    let newer = tempfile::tempdir().expect("a temporary folder");
    fs::copy(folder.join("config-rope-parameters.json"), newer.path().join("config.json")).expect("the fixture is there");
    for file in ["model.safetensors", "expected.bin"] {
        fs::copy(folder.join(file), newer.path().join(file)).expect("the fixture is there");
    }
    check_tiny_model(newer.path());
}
