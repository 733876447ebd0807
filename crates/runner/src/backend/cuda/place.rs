//! A model onto a GPU: weights, buffers, algorithms, and a pool of what memory is left.

use std::sync::Arc;

use kernels::cuda::{
    CudaSlice, DecodePart, Device, DeviceError, HostPool, Matmul, Partials, Pool, PoolShape, RopeTable, Sampler, Upload, bf16,
};
use tokens::BlockSize;

use super::CudaBackend;
use super::activations::{Activations, MAX_LOGIT_ROWS};
use super::decode::{self, Bucket, DecodeGraphs};
use super::decoder::{Decoder, Kernels};
use super::step::{BLOCK, Step};
use super::weights::Weights;
use crate::checkpoint::{self, Checkpoint, Role};
use crate::embedding_table::EmbeddingTable;
use crate::load::{Placed, num_host_blocks, size_pool};
use crate::{GpuOptions, LoadError, LoadOptions, ModelConfig};

/// Whether there is a driver and a GPU.
pub(crate) fn has_device() -> bool {
    Device::open(0).is_ok()
}

/// Loads a model into the memory of a GPU.
pub(crate) fn place(
    options: &LoadOptions,
    gpu: GpuOptions,
    config: &ModelConfig,
    from: &dyn Checkpoint,
    progress: &mut dyn FnMut(f32),
) -> Result<Placed, LoadError> {
    refuse(config)?;
    let device = Device::open(gpu.ordinal)?;
    let weights = Weights::read(config, from, &device, progress)?;
    let weight_bytes = weights.bytes();
    let max_rows = options.max_num_batched_tokens.max(options.max_num_seqs);
    let longest = options.max_model_len.unwrap_or(config.max_position).min(config.max_position);
    let mut decoder = decoder(&device, config, weights, (max_rows, options.max_num_seqs), longest)?;
    tune(&mut decoder, max_rows)?;
    let upload = Upload::new(&device, upload_words(max_rows, options.max_num_seqs, longest))?;
    let sampler = Sampler::new(&device, MAX_LOGIT_ROWS)?;
    let differences = device.zeros(max_rows * 2 * config.num_kv_heads * config.head_dim)?;
    let kv_bytes = match gpu.kv_bytes {
        Some(bytes) => bytes,
        None => left_for_pool(&device, gpu.memory_utilization)?,
    };
    let (num_blocks, max_model_len) = size_pool(config, size_of::<bf16>(), kv_bytes, options.max_model_len)?;
    let shape =
        PoolShape { num_layers: config.num_layers, num_blocks, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim };
    let num_host_blocks = num_host_blocks(config, size_of::<bf16>(), options.host_kv_bytes);
    let name = device.name()?;
    let backend = CudaBackend {
        pool: Pool::new(&device, shape)?,
        host: HostPool::new(&device, shape, 0)?,
        extra: Upload::new(&device, upload.capacity())?,
        graphs: DecodeGraphs::new(options.max_num_seqs),
        step: Step::default(),
        watched: Vec::new(),
        logits: Vec::new(),
        sampler,
        differences,
        upload,
        decoder,
        device,
    };
    Ok(Placed {
        backend: Box::new(backend.with_host_tier(num_host_blocks as usize)?),
        num_blocks,
        num_host_blocks,
        max_model_len,
        weight_bytes,
        embedding: if options.keeps_embedding { Some(embedding_table(config, from)?) } else { None },
        kv_dtype_bytes: size_of::<bf16>(),
        device: name,
    })
}

/// The input embeddings once more, for those who read them on the host.
fn embedding_table(config: &ModelConfig, from: &dyn Checkpoint) -> Result<EmbeddingTable, LoadError> {
    Ok(EmbeddingTable::new(Arc::new(checkpoint::matrix(from, Role::Embedding, config.vocab_size, config.hidden_size)?)))
}

/// Names what these kernels do not compute.
fn refuse(config: &ModelConfig) -> Result<(), LoadError> {
    let group = config.num_heads / config.num_kv_heads;
    if !matches!(config.head_dim, 64 | 128) {
        return Err(LoadError::unsupported(format!("a head of {} on a GPU (64 and 128 are)", config.head_dim)));
    }
    if group > 64 {
        return Err(LoadError::unsupported(format!("{group} query heads over one key head on a GPU (64 are)")));
    }
    if !config.hidden_size.is_multiple_of(8) || !config.intermediate_size.is_multiple_of(8) {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        return Err(LoadError::unsupported(format!("layers of {hidden} and {wide} on a GPU (multiples of 8 are)")));
    }
    Ok(())
}

fn decoder(
    device: &Arc<Device>,
    config: &ModelConfig,
    weights: Weights,
    (max_rows, max_seqs): (usize, usize),
    longest: usize,
) -> Result<Decoder, DeviceError> {
    let num_multiprocessors = device.num_multiprocessors()?;
    let most_parts = DecodePart::most(max_seqs.max(decode::MAX_ROWS), config.num_kv_heads, num_multiprocessors);
    Ok(Decoder {
        rope: RopeTable::new(device, config.rope_layout, config.inv_freq(), longest + BLOCK)?,
        activations: Activations::new(device, config, max_rows.next_multiple_of(8))?,
        matmul: Matmul::new(device)?,
        kernels: Kernels::new(device, config)?,
        partials: Partials::new(device, most_parts * config.num_heads, config.head_dim)?,
        config: config.clone(),
        num_multiprocessors,
        weights,
    })
}

/// Words of the arrays of the largest step, and of one sequence's probe.
fn upload_words(max_rows: usize, max_seqs: usize, longest: usize) -> usize {
    let blocks = BlockSize::DEFAULT.blocks_for(longest).next_power_of_two() + 1;
    let rows = max_rows.next_multiple_of(8);
    16 * rows + max_seqs.next_multiple_of(8) * blocks + 64
}

/// Rows of prompts that products are tuned for; what is between takes the algorithm of the next.
const PREFILL_ROWS: [usize; 11] = [320, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 8192];

/// Finds the best algorithm of each product, for each size of a decode step and some of prefill.
fn tune(decoder: &mut Decoder, max_rows: usize) -> Result<(), DeviceError> {
    let Decoder { config, weights, activations: a, matmul, .. } = decoder;
    let (hidden, wide, width) = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim);
    let of_layers =
        |get: fn(&super::weights::Layer) -> &CudaSlice<bf16>| weights.layers.iter().map(get).take(4).collect::<Vec<_>>();
    for rows in Bucket::all_rows().chain(PREFILL_ROWS).filter(|rows| *rows <= max_rows) {
        matmul.tune(&a.normed, rows, &of_layers(|layer| &layer.qkv), (config.qkv_width(), hidden), &mut a.qkv)?;
        matmul.tune(&a.attended, rows, &of_layers(|layer| &layer.output), (hidden, width), &mut a.delta)?;
        matmul.tune(&a.normed, rows, &of_layers(|layer| &layer.gate_up), (2 * wide, hidden), &mut a.gate_up)?;
        matmul.tune(&a.activated, rows, &of_layers(|layer| &layer.down), (hidden, wide), &mut a.delta)?;
        if rows <= MAX_LOGIT_ROWS {
            let head = weights.head.as_ref().unwrap_or(&weights.embedding);
            matmul.tune(&a.normed, rows, &[head], (config.vocab_size, hidden), &mut a.logits)?;
        }
    }
    Ok(())
}

/// Bytes that the share of memory leaves beside all that was taken before.
fn left_for_pool(device: &Device, utilization: f64) -> Result<u64, DeviceError> {
    device.synchronize()?;
    let (free, total) = device.memory()?;
    let kept = (total as f64 * (1.0 - utilization)) as usize;
    Ok(free.saturating_sub(kept) as u64)
}
