//! The invariants on a GPU, and handling of its faults.
//!
//! Norms, rotation, moves and attention in tiles give a row the same bits in any batch. But cuBLASLt sums a product in another order for
//! another row count, and a single-row sequence has its own attention kernel: a sum near the middle of two bf16 values may round to the
//! other one. So a step of the same row count must give the same bits, and one of another the same values up to such roundings.

use crate::common::{NUM_BLOCKS, Readable, Rounding, SEED, World, with_head_dim};
use crate::invariants as invariant;
use runner::backend::cuda::CudaBackend;
use runner::testing::{tiny_config, tiny_cuda_backend};
use runner::{Architecture, DeviceOptions, GpuOptions, LoadError, LoadOptions, ModelSpec, RopeLayout, WeightFiles, load};

impl Readable for CudaBackend {
    fn logits(&mut self, rows: &[usize]) -> &[f32] {
        self.logits(rows).unwrap()
    }

    fn read_slot(&self, layer: usize, slot: u32) -> (Vec<f32>, Vec<f32>) {
        self.read_slot(layer, slot).unwrap()
    }
}

/// A bf16 value is off by up to 2^-8.
///
/// `batch`: some roundings of three layers fall otherwise; more than one part in thirty would not be rounding. `moved`: rotated there,
/// stored, rotated back and stored again, each up to 2^-8 of the pair. `stored`: two roundings and the fresh computation's own.
pub(crate) const ROUNDING: Rounding = Rounding { batch: 3e-2, moved: 1.2e-2, stored: 1e-2 };

/// Returns one model of each family for each head_dim, with groups of all kinds, both layouts, and vocabularies that are multiples of four
/// or not.
pub(crate) fn families() -> Vec<ModelSpec> {
    let family = |architecture, layout, (num_heads, num_kv_heads), head_dim, vocab_size| ModelSpec {
        num_heads,
        num_kv_heads,
        vocab_size,
        tied_head: vocab_size % 4 != 0,
        ..with_head_dim(head_dim, tiny_config(architecture, layout))
    };
    vec![
        family(Architecture::Llama, RopeLayout::Interleaved, (9, 3), 64, 100),
        family(Architecture::Llama, RopeLayout::Half, (4, 2), 128, 97),
        family(Architecture::Qwen2, RopeLayout::Half, (7, 1), 64, 97),
        family(Architecture::Qwen2, RopeLayout::Half, (7, 1), 128, 100),
        family(Architecture::Qwen3, RopeLayout::Half, (4, 4), 64, 97),
        family(Architecture::Qwen3, RopeLayout::Interleaved, (16, 2), 128, 100),
        family(Architecture::Gemma3, RopeLayout::Half, (4, 1), 256, 97),
        family(Architecture::Gemma3, RopeLayout::Half, (8, 4), 128, 100),
    ]
}

pub(crate) fn world(config: &ModelSpec) -> World {
    let backend = tiny_cuda_backend(config, SEED, NUM_BLOCKS).expect("there is a GPU with some memory left");
    World::on(Box::new(backend), config, ROUNDING)
}

fn on_all_families(check: impl Fn(&mut World)) {
    families().iter().for_each(|config| check(&mut world(config)));
}

/// Runs `check` on a few of the scalings: each with both layouts, and each architecture.
fn on_scalings(check: impl Fn(&mut World)) {
    for head_dim in [64, 128] {
        invariant::scalings(head_dim).iter().step_by(4).for_each(|config| check(&mut world(config)));
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i1_recomputing_any_subset_over_exact_kv_changes_nothing() {
    on_all_families(invariant::any_subset_can_be_recomputed);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i1_a_probe_of_exact_kv_finds_no_deviation_and_changes_nothing() {
    on_all_families(invariant::a_probe_of_exact_kv_finds_nothing);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_sample_measures_what_a_probe_of_all_does() {
    on_all_families(invariant::a_sampled_probe_finds_what_a_whole_one_does);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i1_following_exact_kv_changes_nothing() {
    on_all_families(invariant::following_exact_kv_changes_nothing);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i2_recomputing_everything_is_dense() {
    on_all_families(invariant::recomputing_everything_is_dense);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i3_reusing_everything_in_an_equal_context_is_a_prefix_hit() {
    on_all_families(invariant::an_equal_context_is_a_prefix_hit);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i4_moved_keys_agree_with_layer_0_computed_afresh() {
    on_scalings(invariant::moved_keys_agree_with_layer_0);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i5_moving_there_and_back_is_the_identity() {
    on_scalings(invariant::there_and_back_is_the_identity);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i7_a_shared_prefix_and_a_span_equal_two_spans() {
    on_all_families(invariant::a_prefix_and_a_span_equal_two_spans);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i9_sequences_with_other_moves_in_one_batch_do_not_interact() {
    on_all_families(invariant::moves_in_one_batch_do_not_interact);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_i13_more_recomputation_means_less_error() {
    on_all_families(invariant::recomputation_helps);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_the_layer_0_check_sees_wrong_ids_and_wrong_rotation() {
    on_all_families(invariant::the_layer_0_check_sees);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_the_layer_0_check_of_many_spans_tells_which_is_wrong() {
    on_all_families(invariant::the_layer_0_check_tells_which_is_wrong);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_moved_tokens_follow_what_recomputed_ones_show() {
    on_all_families(invariant::moved_tokens_follow);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_probe_sees_where_the_left_context_matters() {
    on_all_families(invariant::a_probe_sees_the_left_context);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_watched_row_pays_one_to_the_positions_before_it() {
    on_all_families(invariant::a_watched_row_pays_one_in_all);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_copied_block_continues_as_the_original() {
    on_all_families(invariant::a_copied_block_continues);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_zeroed_blocks_hold_nothing_and_others_stay() {
    on_all_families(invariant::zeroed_blocks_hold_nothing);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_chunks_of_any_size_give_one_pass() {
    on_all_families(invariant::chunks_give_one_pass);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_scores_of_known_tokens_are_those_of_the_logits() {
    on_all_families(invariant::scores_are_those_of_the_logits);
    let config = ModelSpec { vocab_size: 60_001, ..families().swap_remove(0) };
    invariant::scores_are_those_of_the_logits(&mut world(&config));
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_span_copy_names_blocks_from_the_one_that_holds_its_start() {
    on_all_families(invariant::a_span_copy_names_blocks);
}

/// Loads a small model of a published shape; the error must contain `about`.
fn check_refusal(change: impl Fn(&mut serde_json::Value), gpu: GpuOptions, about: &str) {
    let mut config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100, "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5
    });
    change(&mut config);
    // Not in the build folder, which a machine that only runs this binary does not have.
    let name = format!("kvshare-{}-{}.json", std::process::id(), about.replace(' ', "-"));
    let file = std::env::temp_dir().join(name);
    std::fs::write(&file, config.to_string()).unwrap();
    let options = LoadOptions {
        weights: WeightFiles::Random { config: file.clone(), seed: 1 },
        device: DeviceOptions::Cuda(gpu),
        max_model_len: None,
        max_num_batched_tokens: 64,
        max_num_seqs: 4,
        keeps_embedding: false,
        host_kv_bytes: 0,
    };
    let loaded = load(&options, &mut |_| {});
    std::fs::remove_file(&file).unwrap();
    let Err(error) = loaded else { panic!("a model is loaded though {about}") };
    assert!(error.to_string().contains(about), "`{error}` does not say {about:?}");
    assert!(!matches!(error, LoadError::Io { .. } | LoadError::Corrupt { .. }), "{error}");
}

const GPU: GpuOptions = GpuOptions { ordinal: 0, memory_utilization: 0.5, kv_bytes: Some(64 << 20) };

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_pool_larger_than_memory_is_refused() {
    check_refusal(|_| {}, GpuOptions { kv_bytes: Some(900 << 40), ..GPU }, "does not fit the GPU's memory");
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_a_pool_of_nothing_is_refused() {
    check_refusal(|_| {}, GpuOptions { kv_bytes: None, memory_utilization: 0.0, ..GPU }, "0 bytes of memory for the KV cache");
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_an_absent_gpu_is_named() {
    check_refusal(|_| {}, GpuOptions { ordinal: 99, ..GPU }, "there is no GPU 99");
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_shapes_that_the_kernels_do_not_compute_are_named() {
    check_refusal(|config| config["head_dim"] = 96.into(), GPU, "a head of 96 on a GPU");
    check_refusal(|config| config["intermediate_size"] = 252.into(), GPU, "layers of 128 and 252 on a GPU");
}
