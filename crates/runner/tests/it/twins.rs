//! The same weights on GPU and CPU: f32 throughout on the CPU, bf16 weights, activations and pool on the GPU.
//!
//! Rounding to bf16 changes each value by up to 2^-8, at random; over three layers that adds up to some hundredths of a row of logits. A
//! wrong index, mask or rotation gives unrelated rows: a distance above 1.

use crate::common::{NUM_BLOCKS, SEED, World, distance};
use crate::engine::{self, Answer, Engine};
use crate::gpu::{self, families};
use crate::invariants::{ALL_READERS, donor_and_target, probe_of};
use ::engine::{Drift, Readers, Repair, SamplingParams, SpanOutcome};
use runner::testing::{tiny_backend, tiny_cuda_backend};
use runner::{DeviceStep, KvDtype, ModelSpec};
use tokens::{BlockId, SharingMode, TokenId};

/// Largest distance of a row of logits from the CPU's.
const MAX_DISTANCE: f32 = 5e-2;
/// Largest mean divergence of the next token's distribution from the CPU's, in nats.
const MAX_MEAN_KL: f64 = 1e-3;
/// Number of rows of a long step.
const CHUNK: usize = 300;

/// One model on both devices, and the distances between them.
struct Twins {
    cpu: World,
    gpu: World,
    kl_sum: f64,
    num_rows: usize,
    largest: f32,
}

/// Returns KL(p || q) of the distributions of two rows of logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |row: &[f32]| row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    let (log_p, log_q) = (log_sum(p), log_sum(q));
    p.iter().zip(q).map(|(p, q)| (f64::from(*p) - log_p, f64::from(*q) - log_q)).map(|(p, q)| p.exp() * (p - q)).sum()
}

impl Twins {
    fn new(config: &ModelSpec) -> Self {
        Self { cpu: World::new(config, KvDtype::F32), gpu: gpu::world(config), kl_sum: 0.0, num_rows: 0, largest: 0.0 }
    }

    /// Runs `act` on both.
    fn both<T>(&mut self, mut act: impl FnMut(&mut World) -> T) -> (T, T) {
        (act(&mut self.cpu), act(&mut self.gpu))
    }

    /// Computes rows of some sequences on both and compares their logits.
    #[track_caller]
    fn batch(&mut self, what: &str, batch: &[(&[u32], &[BlockId], &[usize])]) {
        let (expected, found) = self.both(|world| world.logits_of_batch(batch).concat());
        self.compare(what, &expected, &found);
    }

    #[track_caller]
    fn compare(&mut self, what: &str, expected: &[Vec<f32>], found: &[Vec<f32>]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
            let distance = distance(found, expected);
            let config = &self.cpu.config;
            assert!(distance <= MAX_DISTANCE, "{what}: row {row} is off by {distance}: {config:?}");
            self.largest = self.largest.max(distance);
            self.kl_sum += divergence(expected, found);
            self.num_rows += 1;
        }
    }

    /// Computes a sequence on both, in steps of up to [`CHUNK`] rows, without comparing its logits.
    fn fill(&mut self, tokens: &[u32], table: &[BlockId], rows: std::ops::Range<usize>) {
        let rows: Vec<usize> = rows.collect();
        for chunk in rows.chunks(CHUNK) {
            self.both(|world| world.logits(tokens, table, chunk));
        }
    }

    fn table(&mut self, len: usize) -> Vec<BlockId> {
        let (table, same) = self.both(|world| world.table(len));
        assert_eq!(table, same, "both worlds have given the same blocks");
        table
    }
}

/// Runs `check` on each family and checks that the distributions over all its rows are close.
fn on_all_families(check: impl Fn(&mut Twins)) {
    for config in families() {
        let mut twins = Twins::new(&config);
        check(&mut twins);
        let mean_kl = twins.kl_sum / twins.num_rows as f64;
        let (architecture, head_dim) = (config.architecture, config.head_dim);
        println!("{architecture:?} {head_dim}: {} rows, mean KL {mean_kl:.2e}, distance {:.2e}", twins.num_rows, twins.largest);
        assert!(twins.num_rows > 0 && mean_kl <= MAX_MEAN_KL, "mean KL {mean_kl} of {config:?}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_prompts_of_any_length_have_the_logits_of_the_cpu() {
    on_all_families(|twins| {
        for len in [1, 2, 31, 32, 33, 64, 65, 127, 129, 200, 300] {
            let (tokens, table) = (twins.cpu.prompt(len, len as u64), twins.table(len));
            twins.batch(&format!("prompt of {len}"), &[(&tokens, &table, &(0..len).collect::<Vec<_>>())]);
        }
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_chunks_have_the_logits_of_the_cpu() {
    on_all_families(|twins| {
        let tokens = twins.cpu.prompt(300, 1);
        for chunk in [7, 64, 100] {
            let table = twins.table(300);
            for rows in (0..300).collect::<Vec<_>>().chunks(chunk) {
                twins.batch(&format!("chunk of {chunk} from {}", rows[0]), &[(&tokens, &table, rows)]);
            }
        }
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_prompts_beside_decoding_have_the_logits_of_the_cpu() {
    on_all_families(|twins| {
        let prompts = [90, 70, 34, 120].map(|len| twins.cpu.prompt(len, len as u64));
        let tables = [90, 70, 34, 120].map(|len| twins.table(len));
        twins.fill(&prompts[0], &tables[0], 0..89);
        twins.fill(&prompts[2], &tables[2], 0..33);
        twins.fill(&prompts[3], &tables[3], 0..40);
        let rows: [Vec<usize>; 4] = [vec![89], (0..70).collect(), vec![33], (40..120).collect()];
        let batch: Vec<_> = (0..4).map(|i| (&prompts[i][..], &tables[i][..], &rows[i][..])).collect();
        twins.batch("decode, prompt, decode, chunk", &batch);
    });
}

/// Decodes `steps` tokens of sequences of the given lengths, step by step: the first step of a bucket is launched kernel by kernel, the
/// second is recorded, and later ones replay the recorded graph.
fn decode(twins: &mut Twins, lengths: &[usize], steps: usize) {
    let prompts: Vec<Vec<u32>> = lengths.iter().map(|len| twins.cpu.prompt(len + steps, *len as u64)).collect();
    let tables: Vec<_> = lengths.iter().map(|len| twins.table(len + steps)).collect();
    for ((prompt, table), len) in prompts.iter().zip(&tables).zip(lengths) {
        twins.fill(prompt, table, 0..*len);
    }
    for step in 0..steps {
        let rows: Vec<[usize; 1]> = lengths.iter().map(|len| [len + step]).collect();
        let batch: Vec<_> = (0..lengths.len()).map(|i| (&prompts[i][..], &tables[i][..], &rows[i][..])).collect();
        twins.batch(&format!("step {step} of {lengths:?}"), &batch);
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_decoding_has_the_logits_of_the_cpu_before_and_after_it_is_recorded() {
    on_all_families(|twins| {
        decode(twins, &[50], 5);
        decode(twins, &[20, 95, 64], 5);
        decode(twins, &[1, 31, 32, 33, 63, 64, 100, 130, 200], 5);
        // As many sequences as a recorded step: the graph must not depend on the earlier ones.
        decode(twins, &[129, 5, 77], 2);
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_decoding_goes_on_where_a_context_outgrows_its_bucket() {
    on_all_families(|twins| {
        decode(twins, &[508, 40], 8);
        decode(twins, &[1022], 5);
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_moved_span_is_read_as_on_the_cpu() {
    on_all_families(|twins| {
        let (donor, target) = donor_and_target(&twins.cpu);
        let (donor_table, table) = (twins.table(150), twins.table(150));
        twins.fill(&donor, &donor_table, 0..150);
        let span = World::span(&donor_table, 70, &table, 40, &target[40..120]);
        let (_, deviation) = twins.both(|world| world.move_spans(std::slice::from_ref(&span))[0]);
        let rows: Vec<usize> = (0..40).chain(120..150).collect();
        twins.batch("around a moved span", &[(&target, &table, &rows)]);
        assert!(deviation > 0.0 && deviation < twins.gpu.rounding.stored, "rounded, and no more: {deviation}");
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_probe_measures_what_the_cpu_does() {
    on_all_families(|twins| {
        // Longer than a step, so that it is computed in chunks.
        let (donor, span) = (twins.cpu.prompt(370, 1), 20..320);
        let target = [twins.cpu.prompt(57, 2), donor[span.clone()].to_vec(), twins.cpu.prompt(90, 3)].concat();
        for readers in ALL_READERS {
            twins.both(World::clear);
            let (donor_table, table) = (twins.table(370), twins.table(target.len()));
            twins.fill(&donor, &donor_table, 0..370);
            twins.fill(&target, &table, 0..57);
            twins.both(|world| world.move_span(&donor_table, 20, &table, 57, &donor[span.clone()]));
            let probe = probe_of(&target, &table, 57..357, readers);
            let (expected, found) = twins.both(|world| world.probe(&probe));
            assert_eq!((expected.len(), found.len()), (300, 300));
            let received: f32 = expected.iter().map(|token| token.attention).sum();
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what = || format!("{readers:?}, token {i}: {found:?} is not {expected:?}");
                let near = |a: f32, b: f32, scale: f32| (a - b).abs() <= MAX_DISTANCE * scale;
                assert!(near(found.value_norm, expected.value_norm, expected.value_norm), "{}", what());
                assert!(near(found.value_l2, expected.value_l2, expected.value_norm), "{}", what());
                assert!(near(found.value_l1, expected.value_l1, expected.value_norm * found.root_head_dim), "{}", what());
                // Normed keys are as long as the root of head_dim.
                assert!(near(found.key_l2, expected.key_l2, expected.key_l2 + 0.25 * found.root_head_dim), "{}", what());
                assert!(near(found.attention, expected.attention, expected.attention + received / 300.0), "{}", what());
            }
            let rest: Vec<usize> = (357..target.len()).collect();
            twins.batch(&format!("after a probe with {readers:?}"), &[(&target, &table, &rest)]);
        }
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_rows_go_on_where_their_probe_ended() {
    on_all_families(|twins| {
        let donor = twins.cpu.prompt(170, 1);
        let target = [twins.cpu.prompt(40, 2), donor[70..150].to_vec(), twins.cpu.prompt(30, 3)].concat();
        let rows: Vec<usize> = (40..150).filter(|row| row % 3 != 0 || *row >= 120).collect();
        // The step after the probe, and a later one, which starts from the first layer.
        for num_steps in [1, 2] {
            twins.both(World::clear);
            let (donor_table, table) = (twins.table(170), twins.table(target.len()));
            twins.fill(&donor, &donor_table, 0..170);
            twins.fill(&target, &table, 0..40);
            twins.both(|world| world.move_span(&donor_table, 70, &table, 40, &target[40..120]));
            let probe = probe_of(&target, &table, 40..120, Readers::AllRows);
            let probes = std::slice::from_ref(&probe);
            twins.both(|world| world.step(DeviceStep { probes, ..DeviceStep::default() }));
            for _ in 1..num_steps {
                twins.both(|world| world.step(DeviceStep::default()));
            }
            twins.batch(&format!("{num_steps} steps after a probe"), &[(&target, &table, &rows)]);
        }
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_moved_tokens_follow_as_on_the_cpu() {
    on_all_families(|twins| {
        let (donor, target) = donor_and_target(&twins.cpu);
        let (donor_table, table) = (twins.table(150), twins.table(150));
        twins.fill(&donor, &donor_table, 0..150);
        twins.fill(&target, &table, 0..40);
        twins.both(|world| world.move_span(&donor_table, 70, &table, 40, &target[40..120]));
        let (samples, targets): (Vec<u32>, Vec<u32>) = (40..120).partition(|position| position % 7 == 1);
        let weight = |i: usize| 0.01 + 0.13 * (i % 5) as f32;
        let weights = (0..samples.len() * targets.len()).map(weight).collect();
        let mut rows: Vec<usize> = samples.iter().map(|position| *position as usize).collect();
        rows.extend(120..150);
        let drift = Drift { samples, targets, weights };
        let (expected, found) = twins.both(|world| world.logits_following(&target, &table, &rows, vec![drift.clone()]));
        twins.compare("rows that others follow", &expected, &found);
        for position in [40, 75, 119] {
            for layer in 0..3 {
                let (expected, found) = twins.both(|world| world.read(layer, &table, position));
                let distances = [distance(&found.0, &expected.0), distance(&found.1, &expected.1)];
                assert!(distances.iter().all(|distance| *distance <= MAX_DISTANCE), "layer {layer}, {position}: {distances:?}");
            }
        }
        twins.batch("over what followed", &[(&target, &table, &[149])]);
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_watched_row_pays_what_it_pays_on_the_cpu() {
    on_all_families(|twins| {
        let (tokens, table) = (twins.cpu.prompt(200, 1), twins.table(200));
        twins.fill(&tokens, &table, 0..200);
        for rows in [199..200, 150..200] {
            let rows: Vec<usize> = rows.collect();
            let (expected, found) = twins.both(|world| world.attention_paid(&tokens, &table, &rows));
            assert_eq!(found.len(), 200);
            assert!(distance(&found, &expected) <= MAX_DISTANCE, "{}", distance(&found, &expected));
        }
        twins.batch("after watching", &[(&tokens, &table, &[199])]);
    });
}

/// Creates two engines of one model.
fn engines(config: &ModelSpec) -> [Engine; 2] {
    let num_blocks = engine::NUM_BLOCKS;
    let gpu = tiny_cuda_backend(config, SEED, num_blocks).expect("there is a GPU with some memory left");
    [Engine::with_device(Box::new(tiny_backend(config, SEED, KvDtype::F32, num_blocks))), Engine::with_device(Box::new(gpu))]
}

/// Returns the number of tokens sampled after equal histories, and how many of them are equal. Checks that log probabilities after equal
/// histories are close, and that a greedy choice differs only between tokens of nearly equal probability.
fn agreement(expected: &Answer, found: &Answer, is_greedy: bool) -> (usize, usize) {
    let (mut num_chosen, mut num_equal) = (0, 0);
    for ((expected, expected_logprobs), (found, found_logprobs)) in expected.tokens.iter().zip(&found.tokens) {
        let (a, b) = (expected_logprobs.as_ref().unwrap(), found_logprobs.as_ref().unwrap());
        num_chosen += 1;
        let gap = a.top[0].logprob - a.top[1].logprob;
        if expected != found {
            assert!(!is_greedy || gap < 0.1, "{found:?} is chosen, {expected:?} is likelier by {gap}");
            break;
        }
        num_equal += 1;
        assert!((a.chosen.logprob - b.chosen.logprob).abs() < 0.1, "{a:?} and {b:?}");
        assert_eq!((a.top.len(), b.top.len()), (5, 5));
        a.top.iter().zip(&b.top).for_each(|(a, b)| assert!((a.logprob - b.logprob).abs() < 0.1, "{a:?} and {b:?}"));
        assert!(gap < 0.1 || a.top[0].token == b.top[0].token, "{a:?} and {b:?}");
    }
    (num_chosen, num_equal)
}

/// Compares answers to the same prompts with the given sampling; at least `percent` of their tokens must be equal.
fn check_sampling(sampling: &SamplingParams, percent: usize) {
    let (mut num_chosen, mut num_equal) = (0, 0);
    for config in families() {
        let [expected, found] = engines(&config).map(|mut engine| {
            for i in 0..5u64 {
                let prompt = tokens_of(&config, 20 + 31 * i as usize, i);
                engine.submit_sampled(&prompt, SharingMode::Off, 0, SamplingParams { seed: i, ..sampling.clone() });
            }
            engine.finish()
        });
        for ((_, expected), (_, found)) in expected.iter().zip(&found) {
            assert_eq!((expected.tokens.len(), found.tokens.len()), (20, 20));
            let (chosen, equal) = agreement(expected, found, sampling.temperature == 0.0);
            num_chosen += chosen;
            num_equal += equal;
        }
    }
    println!("{num_equal} of {num_chosen} tokens are equal behind equal histories");
    assert!(num_equal * 100 >= num_chosen * percent, "{num_equal} of {num_chosen} tokens are equal");
}

fn tokens_of(config: &ModelSpec, len: usize, seed: u64) -> Vec<u32> {
    let mut random = crate::common::Random(seed);
    (0..len).map(|_| random.below(config.vocab_size as u32)).collect()
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_greedy_answers_are_those_of_the_cpu() {
    check_sampling(&SamplingParams { logprobs: Some(5), ..SamplingParams::greedy(20) }, 95);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_seeded_answers_are_those_of_the_cpu() {
    let sampling = SamplingParams {
        temperature: 0.8,
        top_p: 0.9,
        top_k: 40,
        min_p: 0.01,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        logit_bias: vec![(TokenId(3), 1.5), (TokenId(90), f32::NEG_INFINITY)],
        logprobs: Some(5),
        ..SamplingParams::greedy(20)
    };
    // A draw differs if a boundary moved across it: some forty boundaries, each moved by up to a hundredth. Two unrelated draws agree one
    // time in ten.
    check_sampling(&sampling, 60);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_document_behind_another_question_is_reused_and_repaired_as_on_the_cpu() {
    for config in families() {
        let document = tokens_of(&config, 160, 1);
        let donor = [tokens_of(&config, 40, 2), document.clone(), tokens_of(&config, 20, 3)].concat();
        let recipient = [tokens_of(&config, 57, 4), document, tokens_of(&config, 30, 5)].concat();
        let [expected, found] = engines(&config).map(|mut engine| {
            // With random weights, everything would be recomputed.
            engine.repair = Repair { deep_bail_out: 1e6, ..Repair::recommended() };
            let mut answers = Vec::new();
            for prompt in [&donor, &recipient] {
                let sampling = SamplingParams { logprobs: Some(5), ..SamplingParams::greedy(6) };
                engine.submit_sampled(prompt, SharingMode::Span, 0, sampling);
                answers.extend(engine.finish());
            }
            assert_eq!(engine.spans(SpanOutcome::FailedCheck), 0, "the layer-0 check agrees");
            answers
        });
        for ((_, expected), (_, found)) in expected.iter().zip(&found) {
            agreement(expected, found, true);
        }
        let (expected, found) = (&expected[1].1.usage, &found[1].1.usage);
        assert!(expected.span_tokens > 64 && found.span_tokens.abs_diff(expected.span_tokens) < 10, "{found:?}, {expected:?}");
        assert_eq!((found.donors, found.prefix_tokens), (1, expected.prefix_tokens));
        let (expected, found) = (expected.deep_deviation.unwrap(), found.deep_deviation.unwrap());
        // Zero where both looks are at the same layer: what the first one measured is fresh there.
        assert!((found - expected).abs() <= 0.05 * expected, "{found}, {expected}");
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_full_pool_is_used_to_its_last_block() {
    on_all_families(|twins| {
        let tokens = twins.cpu.prompt(64, 1);
        let last = [NUM_BLOCKS as u32 - 1, 0].map(BlockId);
        twins.batch("in the last and the first block", &[(&tokens, &last, &(0..64).collect::<Vec<_>>())]);
    });
}
