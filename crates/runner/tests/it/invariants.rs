//! Properties that must hold exactly whenever KV is reused, on small random models, numbered as in the project's list of invariants.
//!
//! Each is a function of a [`World`], so that every device is tested against it. If row counts are equal, no device may change a bit; if
//! they differ, a device whose products depend on the row count may round otherwise.

use std::ops::Range;

use crate::common::{Random, World, on_all_families, with_head_dim};
use engine::{BlockEntry, Depth, Drift, LogProb, Probe, ProbedSequence, Readers, SpanCopy, TokenLogProbs};
use runner::testing::tiny_config;
use runner::{Architecture, DeviceStep, KvDtype, ModelSpec, RopeLayout, RopeScaling, RopeSpec, ScoreRow};
use tokens::{BlockId, BlockSize, DonorId, RequestId, TokenId, TokenRange};

const BLOCK: u32 = 32;

/// Returns all indices but `holes`, ascending.
fn except(len: usize, holes: Range<usize>) -> Vec<usize> {
    (0..len).filter(|row| !holes.contains(row)).collect()
}

/// Returns the elements of `all` at the given indices.
fn pick(all: &[Vec<f32>], rows: &[usize]) -> Vec<Vec<f32>> {
    rows.iter().map(|row| all[*row].clone()).collect()
}

fn on_f32_families(mut check: impl FnMut(&mut World)) {
    for (config, _) in crate::common::all_families().into_iter().filter(|(_, dtype)| *dtype == KvDtype::F32) {
        check(&mut World::new(&config, KvDtype::F32));
    }
}

pub(crate) fn any_subset_can_be_recomputed(world: &mut World) {
    let (tokens, table) = (world.prompt(150, 1), world.table(150));
    let dense = world.prefill(&tokens, &table);
    let mut random = Random(2);
    for _ in 0..8 {
        let share = 1 + random.below(9);
        let mut subset: Vec<usize> = (0..150).filter(|_| random.below(10) < share).chain([149]).collect();
        subset.dedup();
        let again = world.logits(&tokens, &table, &subset);
        world.assert_near(&again, &pick(&dense, &subset), &format!("{} rows recomputed", subset.len()));
    }
}

#[test]
fn i1_recomputing_any_subset_over_exact_kv_changes_no_bit() {
    on_all_families(any_subset_can_be_recomputed);
}

pub(crate) fn recomputing_everything_is_dense(world: &mut World) {
    let donor = world.prompt(150, 1);
    let target = [world.prompt(40, 2), donor[20..120].to_vec(), world.prompt(9, 3)].concat();
    let (donor_table, table, dense_table) = (world.table(150), world.table(target.len()), world.table(target.len()));
    let dense = world.prefill(&target, &dense_table);
    world.prefill(&donor, &donor_table);
    world.move_span(&donor_table, 20, &table, 40, &target[40..140]);
    assert_eq!(world.prefill(&target, &table), dense);
}

#[test]
fn i2_recomputing_everything_is_dense() {
    on_all_families(recomputing_everything_is_dense);
}

pub(crate) fn an_equal_context_is_a_prefix_hit(world: &mut World) {
    let target = world.prompt(140, 1);
    let (donor_table, table) = (world.table(140), world.table(140));
    let dense = world.prefill(&target, &donor_table);
    world.move_span(&donor_table, 0, &table, 0, &target[..130]);
    let last = world.logits(&target, &table, &(130..140).collect::<Vec<_>>());
    world.assert_near(&last, &dense[130..], "behind a span that stays where it was");
}

#[test]
fn i3_reusing_everything_in_an_equal_context_is_a_prefix_hit() {
    on_all_families(an_equal_context_is_a_prefix_hit);
}

pub(crate) const ALL_READERS: [Readers; 4] = [Readers::None, Readers::AllRows, Readers::FreshRows, Readers::FreshRowsAllLayers];

pub(crate) fn probe_of(tokens: &[u32], table: &[BlockId], reused: Range<u32>, readers: Readers) -> ProbedSequence {
    ProbedSequence {
        request_id: RequestId(0),
        token_ids: tokens[BLOCK as usize..].iter().map(|id| TokenId(*id)).collect(),
        first_position: BLOCK,
        reused: vec![TokenRange::new(reused.start, reused.end)],
        block_table: BlockEntry::table_of(table.iter().copied(), BlockSize::DEFAULT),
        probe: Probe { depth: Depth::Layer(1), readers, stride: 1 },
    }
}

/// Checks that a sampled probe measures the same at its positions as a probe of all tokens.
pub(crate) fn a_sampled_probe_finds_what_a_whole_one_does(world: &mut World) {
    let (tokens, table) = (world.prompt(150, 1), world.table(150));
    let mut donor = tokens.clone();
    donor[BLOCK as usize..40].copy_from_slice(&world.prompt(150, 7)[BLOCK as usize..40]);
    let mut probe = probe_of(&tokens, &table, 40..120, Readers::None);
    world.prefill(&donor, &table);
    let whole = world.probe(&probe);
    world.prefill(&donor, &table);
    probe.probe.stride = 8;
    let sampled = world.probe(&probe);
    assert_eq!((whole.len(), sampled.len()), (80, 10));
    // Further down than at the second layer, sampled rows read KV of others that is still the donor's: they deviate less.
    let reads_exact = world.config.check_layer(probe.probe.depth) == 1;
    for (found, expected) in sampled.iter().zip(whole.iter().step_by(8)) {
        let bound = world.rounding.stored * expected.value_norm;
        assert!(found.value_l2 > 2.0 * bound, "its left context was another one: {found:?}");
        let rounding = bound + world.rounding.batch * expected.value_norm;
        let less = if reads_exact { rounding } else { expected.value_l2 };
        let is_near = (expected.value_l2 - less..=expected.value_l2 + rounding).contains(&found.value_l2);
        assert!(is_near, "{found:?} is not {expected:?}");
    }
}

pub(crate) fn a_probe_of_exact_kv_finds_nothing(world: &mut World) {
    let has_window = world.config.num_local_layers() > 0;
    for readers in ALL_READERS {
        let (tokens, table) = (world.prompt(150, 1), world.table(150));
        let dense = world.prefill(&tokens, &table);
        let found = world.probe(&probe_of(&tokens, &table, 40..120, readers));
        assert_eq!(found.len(), 80);
        for token in &found {
            let bound = world.rounding.stored * token.value_norm;
            assert!(token.value_l2 <= bound && token.value_norm > 0.0, "{readers:?}: {token:?}");
            // Fresh rows alone may be further away than a window.
            let is_read = match readers {
                Readers::None => Some(false),
                Readers::FreshRows if has_window => None,
                _ => Some(true),
            };
            assert!(is_read.is_none_or(|is_read| (token.attention > 0.0) == is_read), "{readers:?}: {token:?}");
        }
        let rest: Vec<usize> = (120..150).collect();
        let after = world.logits(&tokens, &table, &rest);
        world.assert_near(&after, &dense[120..], &format!("after a probe with {readers:?}"));
    }
}

#[test]
fn i1_a_probe_of_exact_kv_finds_no_deviation_and_changes_no_bit() {
    on_all_families(a_probe_of_exact_kv_finds_nothing);
}

#[test]
fn a_sample_measures_what_a_probe_of_all_does() {
    on_all_families(a_sampled_probe_finds_what_a_whole_one_does);
}

pub(crate) fn following_exact_kv_changes_nothing(world: &mut World) {
    let (tokens, table) = (world.prompt(150, 1), world.table(150));
    let dense = world.prefill(&tokens, &table);
    let (samples, targets): (Vec<u32>, Vec<u32>) = (40..120).partition(|position| position % 5 == 0);
    let drift = Drift { weights: vec![0.5 / samples.len() as f32; samples.len() * targets.len()], samples, targets };
    let rows: Vec<usize> = (40..150).filter(|row| *row >= 120 || row % 5 == 0).collect();
    let again = world.logits_following(&tokens, &table, &rows, vec![drift]);
    world.assert_near(&again, &pick(&dense, &rows), "rows that others follow");
}

#[test]
fn i1_following_exact_kv_changes_no_bit() {
    on_f32_families(following_exact_kv_changes_nothing);
}

/// Returns a donor and a target with the same 80 tokens, at position 70 in the donor and 40 in the target.
pub(crate) fn donor_and_target(world: &World) -> (Vec<u32>, Vec<u32>) {
    let span = world.prompt(80, 2);
    let donor = [world.prompt(70, 1), span.clone()].concat();
    (donor, [world.prompt(40, 3), span, world.prompt(30, 4)].concat())
}

pub(crate) fn moved_tokens_follow(world: &mut World) {
    let (donor, target) = donor_and_target(world);
    let (donor_table, table) = (world.table(150), world.table(150));
    world.prefill(&donor, &donor_table);
    world.logits(&target, &table, &(0..40).collect::<Vec<_>>());
    world.move_span(&donor_table, 70, &table, 40, &target[40..120]);
    let moved = world.read(1, &table, 90);
    let drift = Drift { samples: vec![80], targets: vec![90], weights: vec![0.5] };
    let sample_before = world.read(1, &table, 80);
    world.logits_following(&target, &table, &[80], vec![drift]);
    let sample_after = world.read(1, &table, 80);
    let followed = world.read(1, &table, 90);
    let expected: Vec<f32> = (0..moved.1.len()).map(|i| moved.1[i] + 0.5 * (sample_after.1[i] - sample_before.1[i])).collect();
    world.assert_moved(&followed.1, &expected, "values that follow");
    assert_ne!(followed.0, moved.0, "keys follow too");
    assert_ne!(sample_after.1, sample_before.1, "the test needs a donor whose left context matters");
}

#[test]
fn moved_tokens_follow_what_recomputed_ones_show() {
    on_f32_families(moved_tokens_follow);
}

pub(crate) fn a_probe_sees_the_left_context(world: &mut World) {
    let (donor, target) = donor_and_target(world);
    let (donor_table, table) = (world.table(150), world.table(150));
    world.prefill(&donor, &donor_table);
    world.logits(&target, &table, &(0..BLOCK as usize).collect::<Vec<_>>());
    world.move_span(&donor_table, 70, &table, 40, &target[40..120]);
    let found = world.probe(&probe_of(&target, &table, 40..120, Readers::AllRows));
    let mean = |range: Range<usize>| {
        found[range.clone()].iter().map(|token| token.value_l2 / token.value_norm).sum::<f32>() / range.len() as f32
    };
    assert!(mean(0..10) > 1.2 * mean(70..80), "the first tokens of a span differ most: {} {}", mean(0..10), mean(70..80));
    // Each reader pays 1 in total; the rest goes to other positions.
    let received: f32 = found.iter().map(|token| token.attention).sum();
    assert!(received > 0.1 && received < 0.95, "{received}");
    assert!(found[0].attention > found[79].attention, "early positions have more readers");
}

#[test]
fn a_probe_sees_where_the_left_context_matters() {
    on_all_families(a_probe_sees_the_left_context);
}

pub(crate) fn a_watched_row_pays_one_in_all(world: &mut World) {
    for rows in [70..71, 60..71, 0..71] {
        let (tokens, table) = (world.prompt(71, 1), world.table(71));
        world.prefill(&tokens, &table);
        let paid = world.attention_paid(&tokens, &table, &rows.collect::<Vec<_>>());
        assert_eq!(paid.len(), 71);
        let sum: f32 = paid.iter().sum();
        assert!((sum - 1.0).abs() < 1e-3 + world.rounding.batch, "{sum}");
        assert!(paid.iter().all(|paid| (0.0..0.9).contains(paid)), "random models look at many tokens: {paid:?}");
    }
}

#[test]
fn a_watched_row_pays_one_to_the_positions_before_it() {
    on_all_families(a_watched_row_pays_one_in_all);
}

/// Returns every frequency scaling, in both layouts, for each architecture.
pub(crate) fn scalings(head_dim: usize) -> Vec<ModelSpec> {
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position: 256.0 };
    let factors = RopeScaling::Factors((0..head_dim / 2).map(|i| 1.0 + i as f64).collect());
    let mut configs = Vec::new();
    for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
        for scaling in [RopeScaling::None, RopeScaling::Linear(4.0), llama3.clone(), factors.clone()] {
            for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3] {
                let ropes = vec![RopeSpec { theta: 10_000.0, scaling: scaling.clone() }];
                configs.push(ModelSpec { ropes, ..with_head_dim(head_dim, tiny_config(architecture, layout)) });
            }
        }
    }
    configs
}

pub(crate) fn moved_keys_agree_with_layer_0(world: &mut World) {
    for (src, dst) in [(40u32, 41u32), (41, 40), (40, 57), (3, 1003), (1003, 3)] {
        let span = world.prompt(64, 5);
        let deviation = world.deviation_of_move(&span, &span, src, dst);
        // Frequencies and angles are also rounded.
        let bound = world.rounding.stored.max(1e-5);
        assert!(deviation < bound, "{:?} from {src} to {dst}: {deviation}", world.config);
        assert!(deviation < world.device.max_span_deviation() / 5.0, "the bound leaves room for rounding");
    }
}

#[test]
fn i4_moved_keys_agree_with_layer_0_computed_afresh() {
    for config in scalings(16) {
        for dtype in [KvDtype::F32, KvDtype::F16] {
            moved_keys_agree_with_layer_0(&mut World::new(&config, dtype));
        }
    }
}

pub(crate) fn the_layer_0_check_sees(world: &mut World) {
    let span = world.prompt(64, 5);
    let mut other = span.clone();
    other[63] = (other[63] + 1) % world.config.vocab_size as u32;
    let deviation = world.deviation_of_move(&span, &other, 40, 57);
    assert!(deviation > world.device.max_span_deviation(), "one token differs: {deviation}");
    assert!(world.deviation_of_wrong_rotation(&span, 40, 0) <= world.device.max_span_deviation());
    // The result of a wrong layout, base or sign.
    let deviation = world.deviation_of_wrong_rotation(&span, 40, 1);
    assert!(deviation > world.device.max_span_deviation(), "rotated for another position: {deviation}");
}

#[test]
fn the_layer_0_check_sees_wrong_ids_and_wrong_rotation() {
    on_all_families(the_layer_0_check_sees);
}

pub(crate) fn the_layer_0_check_tells_which_is_wrong(world: &mut World) {
    let (donor, donor_table) = (world.prompt(300, 1), world.table(300));
    world.prefill(&donor, &donor_table);
    // In total more tokens than a step has rows; the third begins with another token than was moved.
    let mut spans: Vec<SpanCopy> = [(0u32, 64u32, 40u32), (33, 7, 90), (100, 150, 3), (64, 200, 70), (299, 1, 5)]
        .map(|(src, len, dst)| {
            let table = world.table((dst + len) as usize);
            let tokens = &donor[src as usize..(src + len) as usize];
            World::span(&donor_table, src, &table, dst, tokens)
        })
        .into();
    spans[2].token_ids[0].0 = (spans[2].token_ids[0].0 + 1) % world.config.vocab_size as u32;
    let found = world.move_spans(&spans);
    let bound = world.rounding.stored.max(1e-5);
    let are_right: Vec<bool> = found.iter().map(|deviation| *deviation < bound).collect();
    assert_eq!(are_right, [true, true, false, true, true], "{found:?}");
    assert!(found[2] > world.device.max_span_deviation(), "{found:?}");
}

#[test]
fn the_layer_0_check_of_many_spans_tells_which_is_wrong() {
    on_all_families(the_layer_0_check_tells_which_is_wrong);
}

pub(crate) fn there_and_back_is_the_identity(world: &mut World) {
    let span = world.prompt(64, 5);
    let (a, b, c) = (world.table(200), world.table(1200), world.table(200));
    world.prefill(&[world.prompt(100, 6), span.clone()].concat(), &a);
    world.move_span(&a, 100, &b, 1100, &span);
    world.move_span(&b, 1100, &c, 100, &span);
    for pos in 100..164 {
        for layer in 0..world.config.num_layers() {
            let ((k, v), (k2, v2)) = (world.read(layer, &a, pos), world.read(layer, &c, pos));
            assert_eq!(v, v2);
            world.assert_moved(&k2, &k, &format!("layer {layer} position {pos}"));
        }
    }
}

#[test]
fn i5_moving_there_and_back_is_the_identity() {
    for config in scalings(16) {
        there_and_back_is_the_identity(&mut World::new(&config, KvDtype::F32));
    }
}

pub(crate) fn a_prefix_and_a_span_equal_two_spans(world: &mut World) {
    let (prefix, shared) = (world.prompt(64, 1), world.prompt(80, 2));
    let first = [prefix.clone(), world.prompt(20, 3)].concat();
    let second = [world.prompt(37, 4), shared.clone()].concat();
    let target = [prefix, shared, world.prompt(16, 5)].concat();
    let (first_table, second_table) = (world.table(84), world.table(117));
    world.prefill(&first, &first_table);
    world.prefill(&second, &second_table);
    let fresh: Vec<usize> = (144..160).collect();
    // The prefix in its own blocks, followed by the span.
    let mut hybrid = world.table(160);
    hybrid[..2].copy_from_slice(&first_table[..2]);
    world.move_span(&second_table, 37, &hybrid, 64, &target[64..144]);
    let hybrid = world.logits(&target, &hybrid, &fresh);
    // Both as spans, the first moved by zero.
    let spans = world.table(160);
    world.move_span(&first_table, 0, &spans, 0, &target[..64]);
    world.move_span(&second_table, 37, &spans, 64, &target[64..144]);
    assert_eq!(world.logits(&target, &spans, &fresh), hybrid);
}

#[test]
fn i7_a_shared_prefix_and_a_span_equal_two_spans() {
    on_all_families(a_prefix_and_a_span_equal_two_spans);
}

pub(crate) fn moves_in_one_batch_do_not_interact(world: &mut World) {
    let (donor, donor_table) = (world.prompt(120, 1), world.table(120));
    world.prefill(&donor, &donor_table);
    let target = |at: usize| [world.prompt(at, 9), donor[20..100].to_vec(), world.prompt(16, 8)].concat();
    let targets = [5usize, 40, 77].map(|at| (target(at), at));
    let place = |world: &mut World| -> Vec<Vec<BlockId>> {
        let tables: Vec<_> = targets.iter().map(|(target, _)| world.table(target.len())).collect();
        for ((target, at), table) in targets.iter().zip(&tables) {
            world.move_span(&donor_table, 20, table, *at as u32, &target[*at..at + 80]);
        }
        tables
    };
    let rows: Vec<Vec<usize>> = targets.iter().map(|(target, at)| except(target.len(), *at..at + 80)).collect();
    let tables = place(world);
    let alone: Vec<_> = (0..3).map(|i| world.logits(&targets[i].0, &tables[i], &rows[i])).collect();
    let tables = place(world);
    let batch: Vec<_> = (0..3).map(|i| (targets[i].0.as_slice(), tables[i].as_slice(), rows[i].as_slice())).collect();
    for (found, alone) in world.logits_of_batch(&batch).iter().zip(&alone) {
        world.assert_near(found, alone, "in a batch");
    }
}

#[test]
fn i9_sequences_with_other_moves_in_one_batch_do_not_interact() {
    on_all_families(moves_in_one_batch_do_not_interact);
}

pub(crate) fn recomputation_helps(world: &mut World) {
    let shares = [0u32, 25, 50, 75, 100];
    let mut errors = [0f64; 5];
    for seed in 0..12 {
        world.clear();
        let shared = world.prompt(120, seed);
        let donor = [world.prompt(70, 100 + seed), shared.clone()].concat();
        let target = [world.prompt(40, 200 + seed), shared, world.prompt(16, 300 + seed)].concat();
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
fn i13_more_recomputation_means_less_error() {
    let config = tiny_config(Architecture::Llama, RopeLayout::Half);
    recomputation_helps(&mut World::new(&config, KvDtype::F32));
}

pub(crate) fn a_copied_block_continues(world: &mut World) {
    let (tokens, table) = (world.prompt(80, 1), world.table(80));
    let dense = world.prefill(&tokens, &table);
    let mut copy = table.clone();
    copy[1] = world.table(1)[0];
    world.copy_block(table[1], copy[1], 20);
    let rest: Vec<usize> = (52..80).collect();
    let continued = world.logits(&tokens, &copy, &rest);
    world.assert_near(&continued, &dense[52..], "behind a copied block");
    assert_eq!(copy[0], table[0]);
}

#[test]
fn a_copied_block_continues_as_the_original() {
    on_all_families(a_copied_block_continues);
}

pub(crate) fn zeroed_blocks_hold_nothing(world: &mut World) {
    let (tokens, table) = (world.prompt(96, 1), world.table(96));
    world.prefill(&tokens, &table);
    let kept = [world.read(1, &table, 31), world.read(1, &table, 64)];
    world.step(DeviceStep { zeros: &table[1..2], ..DeviceStep::default() });
    for layer in 0..world.config.num_layers() {
        for pos in 32..64 {
            let (k, v) = world.read(layer, &table, pos);
            assert!(k.iter().chain(&v).all(|x| *x == 0.0), "layer {layer} position {pos}");
        }
    }
    assert_eq!([world.read(1, &table, 31), world.read(1, &table, 64)], kept);
    assert!(kept.iter().all(|(k, v)| k.iter().chain(v).any(|x| *x != 0.0)));
}

#[test]
fn zeroed_blocks_hold_nothing_and_others_stay() {
    on_all_families(zeroed_blocks_hold_nothing);
}

pub(crate) fn chunks_give_one_pass(world: &mut World) {
    let (tokens, table) = (world.prompt(130, 1), world.table(130));
    let dense = world.prefill(&tokens, &table);
    for chunk in [1, 7, 33, 64] {
        let table = world.table(130);
        let rows: Vec<usize> = (0..130).collect();
        let chunked: Vec<_> = rows.chunks(chunk).flat_map(|rows| world.logits(&tokens, &table, rows)).collect();
        world.assert_near(&chunked, &dense, &format!("chunks of {chunk}"));
    }
}

#[test]
fn chunks_of_any_size_give_the_bits_of_one_pass() {
    on_all_families(chunks_give_one_pass);
}

/// Checks scores of more rows than are scored at once against those of their logits; a device that scores by itself rounds otherwise.
pub(crate) fn scores_are_those_of_the_logits(world: &mut World) {
    let (tokens, table) = (world.prompt(300, 9), world.table(300));
    let logits = world.prefill(&tokens, &table);
    let asked = |row: usize| ScoreRow { row, token: TokenId(tokens[(row + 1) % 300]), top: row as u32 % 7 };
    let asked: Vec<ScoreRow> = (0..300).map(asked).collect();
    let scores = world.scores(&tokens, &table, asked.clone());
    assert_eq!(scores.len(), asked.len());
    for (row, found) in asked.iter().zip(scores) {
        let expected = row.score(&logits[row.row]);
        let all =
            |score: &TokenLogProbs| -> Vec<LogProb> { std::iter::once(score.chosen).chain(score.top.iter().copied()).collect() };
        let values = |score: &TokenLogProbs| -> Vec<f32> { all(score).iter().map(|one| one.logprob).collect() };
        let names = |score: &TokenLogProbs| -> Vec<_> { all(score).iter().map(|one| (one.token, one.rank)).collect() };
        assert_eq!(names(&found), names(&expected), "row {}", row.row);
        let apart = values(&found).iter().zip(values(&expected)).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart <= world.rounding.batch * 1e-3, "row {} is off by {apart}", row.row);
    }
}

#[test]
fn scores_of_many_rows_have_the_bits_of_each_row_alone() {
    on_all_families(scores_are_those_of_the_logits);
    // Vocabulary so large that the rows are scored in several chunks.
    let config = ModelSpec { vocab_size: 60_001, ..tiny_config(Architecture::Llama, RopeLayout::Half) };
    scores_are_those_of_the_logits(&mut World::new(&config, KvDtype::F16));
}

pub(crate) fn a_span_copy_names_blocks(world: &mut World) {
    // The contract between planner and runner, written out once with literal block ids.
    let tokens = world.prompt(100, 1);
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
    assert!(world.move_spans(std::slice::from_ref(&span))[0] < world.rounding.stored.max(1e-5));
}

#[test]
fn a_span_copy_names_blocks_from_the_one_that_holds_its_start() {
    on_all_families(a_span_copy_names_blocks);
}
