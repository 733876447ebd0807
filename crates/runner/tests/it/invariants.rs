//! What must hold exactly whenever KV is reused, on small random models. The numbers are those of the project's list of invariants.

use crate::common::{Random, World, all_families};
use engine::{BlockCopy, Drift, Probe, ProbedSequence, Readers, SpanCopy};
use runner::testing::tiny_config;
use runner::{Architecture, Backend, KvDtype, ModelConfig, RopeLayout, RopeScaling};
use tokens::{BlockId, DonorId, RequestId, TokenId, TokenRange};

const BLOCK: u32 = 32;

fn prompt(len: usize, seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..len).map(|_| random.below(97)).collect()
}

/// Everything but `holes`, ascending.
fn except(len: usize, holes: std::ops::Range<usize>) -> Vec<usize> {
    (0..len).filter(|row| !holes.contains(row)).collect()
}

#[test]
fn i1_recomputing_any_subset_over_exact_kv_changes_no_bit() {
    for (config, dtype) in all_families() {
        let mut world = World::new(&config, dtype);
        let (tokens, table) = (prompt(150, 1), world.table(150));
        let all: Vec<usize> = (0..150).collect();
        let dense = world.logits(&tokens, &table, &all);
        let mut random = Random(2);
        for _ in 0..8 {
            let share = 1 + random.below(9);
            let subset: Vec<usize> = all.iter().copied().filter(|_| random.below(10) < share).chain([149]).collect();
            let mut subset = subset;
            subset.dedup();
            let again = world.logits(&tokens, &table, &subset);
            for (row, logits) in subset.iter().zip(again) {
                assert_eq!(logits, dense[*row], "{:?} {dtype:?}: row {row} of {} recomputed", config.architecture, subset.len());
            }
        }
    }
}

#[test]
fn i2_recomputing_everything_is_dense() {
    for (config, dtype) in all_families() {
        let mut world = World::new(&config, dtype);
        let (donor, target) = (prompt(150, 1), [prompt(40, 2), prompt(150, 1)[20..120].to_vec(), prompt(9, 3)].concat());
        let (donor_table, table, dense_table) = (world.table(150), world.table(target.len()), world.table(target.len()));
        let all: Vec<usize> = (0..target.len()).collect();
        let dense = world.logits(&target, &dense_table, &all);
        world.prefill(&donor, &donor_table);
        world.move_span(&donor_table, 20, &table, 40, &target[40..140]);
        assert_eq!(world.logits(&target, &table, &all), dense);
    }
}

#[test]
fn i3_reusing_everything_in_an_equal_context_is_a_prefix_hit() {
    for (config, dtype) in all_families() {
        let mut world = World::new(&config, dtype);
        let target = prompt(140, 1);
        let (donor_table, table) = (world.table(140), world.table(140));
        let dense = world.prefill(&target, &donor_table);
        world.move_span(&donor_table, 0, &table, 0, &target[..130]);
        let last = world.logits(&target, &table, &(130..140).collect::<Vec<_>>());
        assert_eq!(last.last(), dense.last());
    }
}

fn probe_of(tokens: &[u32], table: &[BlockId], reused: std::ops::Range<u32>, readers: Readers) -> ProbedSequence {
    ProbedSequence {
        request_id: RequestId(0),
        token_ids: tokens[BLOCK as usize..].iter().map(|id| TokenId(*id)).collect(),
        first_position: BLOCK,
        reused: vec![TokenRange::new(reused.start, reused.end)],
        block_table: table.to_vec(),
        probe: Probe { check_layer: 1, readers },
    }
}

#[test]
fn i1_a_probe_of_exact_kv_finds_no_deviation_and_changes_no_bit() {
    for (config, dtype) in all_families() {
        for readers in [Readers::None, Readers::AllRows, Readers::FreshRows, Readers::FreshRowsAllLayers] {
            let mut world = World::new(&config, dtype);
            let (tokens, table) = (prompt(150, 1), world.table(150));
            let dense = world.prefill(&tokens, &table);
            let found = world.backend.probe(&probe_of(&tokens, &table, 40..120, readers)).unwrap();
            let rounding = if dtype == KvDtype::F32 { 1e-6 } else { 2e-3 };
            assert_eq!(found.len(), 80);
            for token in &found {
                assert!(token.value_l2 <= rounding * token.value_norm && token.value_norm > 0.0, "{readers:?}: {token:?}");
                assert_eq!(token.attention > 0.0, readers != Readers::None);
            }
            let rest: Vec<usize> = (120..150).collect();
            assert_eq!(world.logits(&tokens, &table, &rest), dense[120..], "{readers:?} {dtype:?}");
        }
    }
}

#[test]
fn i1_following_exact_kv_changes_no_bit() {
    for (config, dtype) in all_families().into_iter().filter(|(_, dtype)| *dtype == KvDtype::F32) {
        let mut world = World::new(&config, dtype);
        let (tokens, table) = (prompt(150, 1), world.table(150));
        let dense = world.prefill(&tokens, &table);
        let (samples, targets): (Vec<u32>, Vec<u32>) = (40..120).partition(|position| position % 5 == 0);
        let drift = Drift { weights: vec![0.5 / samples.len() as f32; samples.len() * targets.len()], samples, targets };
        let rows: Vec<usize> = (40..150).filter(|row| *row >= 120 || row % 5 == 0).collect();
        let again = world.logits_following(&tokens, &table, &rows, vec![drift]);
        for (row, logits) in rows.iter().zip(again) {
            assert_eq!(logits, dense[*row], "{:?}: row {row}", config.architecture);
        }
    }
}

#[test]
fn moved_tokens_follow_what_recomputed_ones_show() {
    let config = tiny_config(Architecture::Qwen2, RopeLayout::Half);
    let mut world = World::new(&config, KvDtype::F32);
    let span = prompt(80, 2);
    let (donor, target) = ([prompt(70, 1), span.clone()].concat(), [prompt(40, 3), span, prompt(30, 4)].concat());
    let (donor_table, table) = (world.table(150), world.table(150));
    world.prefill(&donor, &donor_table);
    world.prefill(&target[..40], &table);
    world.move_span(&donor_table, 70, &table, 40, &target[40..120]);
    let moved = world.read(1, &table, 90);
    let drift = Drift { samples: vec![80], targets: vec![90], weights: vec![0.5] };
    let sample_before = world.read(1, &table, 80);
    world.logits_following(&target, &table, &[80], vec![drift]);
    let sample_after = world.read(1, &table, 80);
    let followed = world.read(1, &table, 90);
    for i in 0..moved.1.len() {
        let expected = moved.1[i] + 0.5 * (sample_after.1[i] - sample_before.1[i]);
        assert!((followed.1[i] - expected).abs() < 1e-5, "value {i}: {} is not {expected}", followed.1[i]);
    }
    assert_ne!(followed.0, moved.0, "keys follow too");
}

#[test]
fn a_probe_sees_where_the_left_context_matters() {
    for (config, dtype) in all_families() {
        let mut world = World::new(&config, dtype);
        let span = prompt(80, 2);
        let (donor, target) = ([prompt(70, 1), span.clone()].concat(), [prompt(40, 3), span, prompt(30, 4)].concat());
        let (donor_table, table) = (world.table(150), world.table(150));
        world.prefill(&donor, &donor_table);
        world.prefill(&target[..BLOCK as usize], &table);
        world.move_span(&donor_table, 70, &table, 40, &target[40..120]);
        let found = world.backend.probe(&probe_of(&target, &table, 40..120, Readers::AllRows)).unwrap();
        let mean = |range: std::ops::Range<usize>| {
            found[range.clone()].iter().map(|token| token.value_l2 / token.value_norm).sum::<f32>() / range.len() as f32
        };
        assert!(mean(0..10) > 1.2 * mean(70..80), "the first tokens of a span differ most: {} {}", mean(0..10), mean(70..80));
        // Each reader pays 1 in all; what these positions do not receive, others do.
        let received: f32 = found.iter().map(|token| token.attention).sum();
        assert!(received > 0.1 && received < 0.95, "{received}");
        assert!(found[0].attention > found[79].attention, "early positions have more readers");
    }
}

fn scalings() -> Vec<ModelConfig> {
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position: 256.0 };
    let factors = RopeScaling::Factors((0..8).map(|i| 1.0 + f64::from(i)).collect());
    let mut configs = Vec::new();
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        for rope_scaling in [RopeScaling::None, RopeScaling::Linear(4.0), llama3.clone(), factors.clone()] {
            for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3] {
                configs.push(ModelConfig { rope_scaling: rope_scaling.clone(), ..tiny_config(architecture, layout) });
            }
        }
    }
    configs
}

#[test]
fn i4_moved_keys_agree_with_layer_0_computed_afresh() {
    for config in scalings() {
        for (src, dst) in [(40u32, 41u32), (41, 40), (40, 57), (3, 1003), (1003, 3)] {
            for (dtype, bound) in [(KvDtype::F32, 1e-5), (KvDtype::F16, 2e-3)] {
                let mut world = World::new(&config, dtype);
                let span = prompt(64, 5);
                let deviation = world.deviation_of_move(&span, &span, src, dst);
                assert!(deviation < bound, "{config:?} {dtype:?} from {src} to {dst}: {deviation}");
                assert!(deviation < world.backend.max_span_deviation() / 5.0, "the bound leaves room for rounding");
            }
        }
    }
}

#[test]
fn the_layer_0_check_sees_wrong_ids_and_wrong_rotation() {
    let config = tiny_config(Architecture::Llama, RopeLayout::Half);
    for dtype in [KvDtype::F32, KvDtype::F16] {
        let mut world = World::new(&config, dtype);
        let span = prompt(64, 5);
        let mut other = span.clone();
        other[63] = (other[63] + 1) % 97;
        let deviation = world.deviation_of_move(&span, &other, 40, 57);
        assert!(deviation > world.backend.max_span_deviation(), "one token differs: {deviation}");
        assert!(world.deviation_of_wrong_rotation(&span, 40, 0) <= world.backend.max_span_deviation());
        // As a wrong layout, base or sign would leave them.
        let deviation = world.deviation_of_wrong_rotation(&span, 40, 1);
        assert!(deviation > world.backend.max_span_deviation(), "rotated for another position: {deviation}");
    }
}

#[test]
fn i5_moving_there_and_back_is_the_identity() {
    for config in scalings() {
        let mut world = World::new(&config, KvDtype::F32);
        let span = prompt(64, 5);
        let (a, b, c) = (world.table(200), world.table(1200), world.table(200));
        world.prefill(&[prompt(100, 6), span.clone()].concat(), &a);
        world.move_span(&a, 100, &b, 1100, &span);
        world.move_span(&b, 1100, &c, 100, &span);
        for pos in 100..164 {
            for layer in 0..config.num_layers {
                let (k, v) = world.read(layer, &a, pos);
                let (k2, v2) = world.read(layer, &c, pos);
                assert_eq!(v, v2);
                assert!(k.iter().zip(&k2).all(|(a, b)| (a - b).abs() < 1e-5), "layer {layer} position {pos}");
            }
        }
    }
}

#[test]
fn i7_a_shared_prefix_and_a_span_equal_two_spans() {
    for (config, dtype) in all_families() {
        let mut world = World::new(&config, dtype);
        let (prefix, shared) = (prompt(64, 1), prompt(80, 2));
        let first = [prefix.clone(), prompt(20, 3)].concat();
        let second = [prompt(37, 4), shared.clone()].concat();
        let target = [prefix, shared, prompt(16, 5)].concat();
        let (first_table, second_table) = (world.table(84), world.table(117));
        world.prefill(&first, &first_table);
        world.prefill(&second, &second_table);
        let fresh: Vec<usize> = (144..160).collect();
        // The prefix in its own blocks, the span behind it.
        let mut hybrid = world.table(160);
        hybrid[..2].copy_from_slice(&first_table[..2]);
        world.move_span(&second_table, 37, &hybrid, 64, &target[64..144]);
        let hybrid = world.logits(&target, &hybrid, &fresh);
        // Both as spans, the first by zero.
        let spans = world.table(160);
        world.move_span(&first_table, 0, &spans, 0, &target[..64]);
        world.move_span(&second_table, 37, &spans, 64, &target[64..144]);
        assert_eq!(world.logits(&target, &spans, &fresh), hybrid);
    }
}

#[test]
fn i9_sequences_with_other_moves_in_one_batch_do_not_interact() {
    for (config, dtype) in all_families() {
        let mut world = World::new(&config, dtype);
        let donor = prompt(120, 1);
        let donor_table = world.table(120);
        world.prefill(&donor, &donor_table);
        let targets: Vec<(Vec<u32>, usize)> =
            [5usize, 40, 77].iter().map(|at| ([prompt(*at, 9), donor[20..100].to_vec(), prompt(16, 8)].concat(), *at)).collect();
        let place = |world: &mut World| -> Vec<Vec<BlockId>> {
            let tables: Vec<_> = targets.iter().map(|(target, _)| world.table(target.len())).collect();
            for ((target, at), table) in targets.iter().zip(&tables) {
                world.move_span(&donor_table, 20, table, *at as u32, &target[*at..at + 80]);
            }
            tables
        };
        let rows: Vec<Vec<usize>> = targets.iter().map(|(target, at)| except(target.len(), *at..at + 80)).collect();
        let tables = place(&mut world);
        let alone: Vec<_> = (0..3).map(|i| world.logits(&targets[i].0, &tables[i], &rows[i])).collect();
        let tables = place(&mut world);
        let batch: Vec<_> = (0..3).map(|i| (targets[i].0.as_slice(), tables[i].as_slice(), rows[i].as_slice())).collect();
        assert_eq!(world.logits_of_batch(&batch), alone);
    }
}

#[test]
fn i13_more_recomputation_means_less_error() {
    let config = tiny_config(Architecture::Llama, RopeLayout::Half);
    let shares = [0u32, 25, 50, 75, 100];
    let mut errors = [0f64; 5];
    for seed in 0..12 {
        let mut world = World::new(&config, KvDtype::F32);
        let donor = [prompt(70, 100 + seed), prompt(120, seed)].concat();
        let target = [prompt(40, 200 + seed), prompt(120, seed), prompt(16, 300 + seed)].concat();
        let (donor_table, dense_table) = (world.table(190), world.table(176));
        world.prefill(&donor, &donor_table);
        let dense = world.prefill(&target, &dense_table);
        for (share, error) in shares.iter().zip(&mut errors) {
            let table = world.table(176);
            world.move_span(&donor_table, 70, &table, 40, &target[40..160]);
            let mut random = Random(seed);
            let rows: Vec<usize> = (0..176).filter(|row| !(40..160).contains(row) || random.below(100) < *share).collect();
            let last = world.logits(&target, &table, &rows).pop().unwrap();
            *error += last.iter().zip(dense.last().unwrap()).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
        }
    }
    assert!(errors[0] > 1.0, "the test needs a donor whose left context matters: {errors:?}");
    assert_eq!(errors[4], 0.0, "recomputing everything is dense");
    for pair in errors.windows(2) {
        assert!(pair[1] <= pair[0] * 1.05, "error rises with recomputation: {errors:?}");
    }
}

#[test]
fn a_copied_block_continues_as_the_original() {
    for (config, dtype) in all_families() {
        let mut world = World::new(&config, dtype);
        let (tokens, table) = (prompt(80, 1), world.table(80));
        let dense = world.prefill(&tokens, &table);
        let mut copy = table.clone();
        copy[1] = world.table(1)[0];
        world.backend.copy_blocks(&[BlockCopy { src: table[1], dst: copy[1], num_tokens: 20 }]).unwrap();
        let rest: Vec<usize> = (52..80).collect();
        assert_eq!(world.logits(&tokens, &copy, &rest), dense[52..]);
        assert_eq!(copy[0], table[0]);
    }
}

#[test]
fn chunks_of_any_size_give_the_bits_of_one_pass() {
    for (config, dtype) in all_families() {
        let mut world = World::new(&config, dtype);
        let (tokens, table) = (prompt(130, 1), world.table(130));
        let dense = world.prefill(&tokens, &table);
        for chunk in [1, 7, 33, 64] {
            let table = world.table(130);
            let rows: Vec<usize> = (0..130).collect();
            let chunked: Vec<_> = rows.chunks(chunk).flat_map(|rows| world.logits(&tokens, &table, rows)).collect();
            assert_eq!(chunked, dense, "chunks of {chunk}");
        }
    }
}

#[test]
fn a_span_copy_names_blocks_from_the_one_that_holds_its_start() {
    // The contract between planner and runner, spelled out once with literal blocks.
    let config = tiny_config(Architecture::Llama, RopeLayout::Half);
    let mut world = World::new(&config, KvDtype::F32);
    let tokens = prompt(100, 1);
    let table: Vec<BlockId> = [9, 4, 7, 2].map(BlockId).into();
    world.prefill(&tokens, &table);
    let span = SpanCopy {
        request_id: RequestId(1),
        donor: DonorId(1),
        src_blocks: vec![BlockId(4), BlockId(7)],
        src_pos: BLOCK + 8,
        dst_blocks: vec![BlockId(20), BlockId(21)],
        dst_pos: 5 * BLOCK + 8,
        token_ids: tokens[40..90].iter().map(|id| TokenId(*id)).collect(),
    };
    world.backend.move_span(&span).unwrap();
    assert!(world.backend.span_deviation(&span).unwrap() < 1e-5);
}
