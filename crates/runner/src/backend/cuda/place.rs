//! Placement of a model on a GPU: weights, buffers, algorithms, and a pool in the remaining memory.

use std::sync::Arc;
use std::time::Duration;

use engine::KvFormat;
use kernels::cuda::{
    CudaSlice, DecodePart, Device, DeviceError, HostPool, Matmul, Partials, Pool, PoolShape, RopeTable, Sampler, Timer, Upload,
    bf16,
};
use tokens::BlockSize;

use super::CudaBackend;
use super::activations::{Activations, MAX_LOGIT_ROWS};
use super::decoder::{Decoder, Kernels};
use super::graphs::{Bucket, DecodeGraphs};
use super::host_tier::HostTier;
use super::kept_rows::KeptRows;
use super::step::{BLOCK, MAX_RECORDED_ROWS, Step};
use super::weights::Weights;
use crate::checkpoint::{self, Checkpoint, Role};
use crate::embedding_table::EmbeddingTable;
use crate::options::{GpuOptions, LoadOptions};
use crate::placed::Placed;
use crate::sizing::{num_host_blocks, size_pool};
use crate::{LoadError, ModelSpec, RopeSpec};

/// Returns true if there is a driver and a GPU.
pub(crate) fn has_device() -> bool {
    Device::open(0).is_ok()
}

/// Loads a model into the memory of a GPU.
pub(crate) fn place(
    options: &LoadOptions,
    gpu: GpuOptions,
    config: &ModelSpec,
    from: &dyn Checkpoint,
    progress: &mut dyn FnMut(f32),
) -> Result<Placed, LoadError> {
    refuse(config)?;
    let device = Device::open(gpu.ordinal)?;
    let weights = Weights::read(config, from, &device, progress)?;
    let weight_bytes = weights.bytes();
    let largest = LargestStep {
        num_rows: options.max_num_batched_tokens.max(options.max_num_seqs),
        num_sequences: options.max_num_seqs,
        num_tokens: options.max_model_len.unwrap_or(config.max_position).min(config.max_position),
    };
    let mut decoder = decoder(&device, config, weights, largest)?;
    tune(&mut decoder, largest.num_rows)?;
    let buffers = Buffers::new(&device, config, largest)?;
    let kv_bytes = kv_bytes(&device, gpu)?;
    let cache_groups = config.cache_groups(KvFormat::Bf16);
    let (num_blocks, max_model_len) = size_pool(config, &cache_groups, kv_bytes, options.max_model_len)?;
    let num_host_blocks = num_host_blocks(&cache_groups, options.host_kv_bytes);
    let name = device.name()?;
    let backend = assemble(device, decoder, buffers, num_blocks)?;
    Ok(Placed {
        device: name,
        backend: Box::new(backend.with_host_tier(num_host_blocks as usize)?),
        num_blocks,
        num_host_blocks,
        max_model_len,
        weight_bytes,
        embedding: if options.keeps_embedding { Some(embedding_table(config, from)?) } else { None },
        cache_groups,
    })
}

/// Loads a model onto GPU 0 without tuning its products, for tests, which are short.
pub(crate) fn place_untuned(
    config: &ModelSpec,
    from: &dyn Checkpoint,
    num_blocks: usize,
    largest: LargestStep,
) -> Result<CudaBackend, LoadError> {
    refuse(config)?;
    let device = Device::open(0)?;
    let weights = Weights::read(config, from, &device, &mut |_| {})?;
    let decoder = decoder(&device, config, weights, largest)?;
    let buffers = Buffers::new(&device, config, largest)?;
    Ok(assemble(device, decoder, buffers, num_blocks)?)
}

/// Limits that buffers are sized for.
#[derive(Clone, Copy)]
pub(crate) struct LargestStep {
    pub(crate) num_rows: usize,
    pub(crate) num_sequences: usize,
    /// Number of tokens of the longest sequence.
    pub(crate) num_tokens: usize,
}

/// Buffers of a step besides the decoder's own.
struct Buffers {
    upload: Upload,
    extra: Upload,
    sampler: Sampler,
    differences: CudaSlice<f32>,
    graphs: DecodeGraphs,
    kept: KeptRows,
}

impl Buffers {
    fn new(device: &Arc<Device>, config: &ModelSpec, largest: LargestStep) -> Result<Self, DeviceError> {
        let words = upload_words(largest, most_parts(device, config, largest)?);
        Ok(Self {
            upload: Upload::new(device, UPLOADS_IN_FLIGHT * words)?,
            extra: Upload::new(device, UPLOADS_IN_FLIGHT * words)?,
            sampler: Sampler::new(device, MAX_LOGIT_ROWS)?,
            differences: device.zeros(largest.num_rows * 2 * config.num_kv_heads * config.head_dim)?,
            graphs: DecodeGraphs::new(largest.num_sequences),
            kept: KeptRows::new(device, largest.num_rows, config.hidden_size)?,
        })
    }
}

/// Builds a backend with an empty pool of `num_blocks` blocks.
fn assemble(device: Arc<Device>, decoder: Decoder, buffers: Buffers, num_blocks: usize) -> Result<CudaBackend, DeviceError> {
    let ModelSpec { num_kv_heads, head_dim, .. } = decoder.config;
    let num_layers = decoder.config.num_layers();
    let Buffers { upload, extra, sampler, differences, graphs, kept } = buffers;
    let shape = PoolShape { num_layers, num_blocks, num_kv_heads, head_dim };
    Ok(CudaBackend {
        pool: Pool::new(&device, shape)?,
        host: HostTier::new(HostPool::new(&device, shape, 0)?),
        step: Step::default(),
        scoring: Timer::new(&device)?,
        scoring_time: Duration::ZERO,
        logits: Vec::new(),
        begun: None,
        upload,
        extra,
        sampler,
        differences,
        graphs,
        kept,
        decoder,
        device,
    })
}

/// Reads the input embeddings again, for reading on the host.
fn embedding_table(config: &ModelSpec, from: &dyn Checkpoint) -> Result<EmbeddingTable, LoadError> {
    Ok(EmbeddingTable::new(Arc::new(checkpoint::matrix(from, Role::Embedding, config.vocab_size, config.hidden_size)?)))
}

/// Refuses configurations that these kernels do not compute.
fn refuse(config: &ModelSpec) -> Result<(), LoadError> {
    let group = config.num_heads / config.num_kv_heads;
    if !matches!(config.head_dim, 64 | 128 | 256) {
        return Err(LoadError::unsupported(format!("a head of {} on a GPU (64, 128 and 256 are)", config.head_dim)));
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

fn decoder(device: &Arc<Device>, config: &ModelSpec, weights: Weights, largest: LargestStep) -> Result<Decoder, DeviceError> {
    let LargestStep { num_rows: max_rows, num_tokens: longest, .. } = largest;
    let num_multiprocessors = device.num_multiprocessors()?;
    let most_parts = most_parts(device, config, largest)?;
    let table = |rope: &RopeSpec| RopeTable::new(device, config.rope_layout, rope.inv_freq(config.head_dim), longest + BLOCK);
    Ok(Decoder {
        ropes: config.ropes.iter().map(table).collect::<Result<_, _>>()?,
        activations: Activations::new(device, config, max_rows.next_multiple_of(8))?,
        matmul: Matmul::new(device)?,
        kernels: Kernels::new(device, config)?,
        partials: Partials::new(device, most_parts * config.num_heads, config.head_dim)?,
        config: config.clone(),
        num_multiprocessors,
        weights,
    })
}

/// Returns the number of parts of the rows of the largest decode step.
fn most_parts(device: &Device, config: &ModelSpec, largest: LargestStep) -> Result<usize, DeviceError> {
    let num_rows = largest.num_sequences.max(MAX_RECORDED_ROWS);
    Ok(DecodePart::most(num_rows, config.num_kv_heads, device.num_multiprocessors()?))
}

/// Number of largest arrays that may be in transfer at once: those of a check, of a probe and of a step.
const UPLOADS_IN_FLIGHT: usize = 3;

/// Returns the words of the arrays of the largest step: three per row, its tiles, parts, wanted and kept rows, and the block tables of all
/// sequences, as wide as those of a recorded step.
fn upload_words(largest: LargestStep, most_parts: usize) -> usize {
    let rows = largest.num_rows.next_multiple_of(8);
    let blocks = Bucket::of(1, BlockSize::DEFAULT.blocks_for(largest.num_tokens)).blocks;
    // A tile has at least one token; each wanted row has a tile and a place. Alignment to whole vectors takes up to three more.
    let of_rows = (3 + 4 + 4 + 1 + 1) * rows;
    of_rows + largest.num_sequences.next_multiple_of(8).max(1) * (blocks + 1) + 3 * most_parts + 64
}

/// Row counts of long prompts that products are tuned for, besides those of [`Decoder::product_rows`]. Chosen: cuBLASLt's own choice is as
/// fast for those in between.
const PREFILL_ROWS: [usize; 3] = [2048, 4096, 8192];

/// Finds the best algorithm of each product, for each size of a decode step and some of prefill.
fn tune(decoder: &mut Decoder, max_rows: usize) -> Result<(), DeviceError> {
    let Decoder { config, weights, activations: a, matmul, .. } = decoder;
    let (hidden, wide, width) = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim);
    let of_layers =
        |get: fn(&super::weights::Layer) -> &CudaSlice<bf16>| weights.layers.iter().map(get).take(4).collect::<Vec<_>>();
    for rows in Bucket::all_rows().chain(Decoder::padded_rows()).chain(PREFILL_ROWS).filter(|rows| *rows <= max_rows) {
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

/// Returns the bytes of the pool: those requested, or what the memory share leaves after all earlier allocations.
fn kv_bytes(device: &Device, gpu: GpuOptions) -> Result<u64, LoadError> {
    device.synchronize()?;
    let (free, total) = device.memory()?;
    match gpu.kv_bytes {
        Some(bytes) if bytes > free as u64 => Err(LoadError::CacheTooLarge { wanted: bytes, free: free as u64 }),
        Some(bytes) => Ok(bytes),
        None => Ok(free.saturating_sub((total as f64 * (1.0 - gpu.memory_utilization)) as usize) as u64),
    }
}

#[cfg(test)]
mod tests {
    use kernels::cuda::Upload;

    use super::*;

    #[test]
    fn the_arrays_of_the_largest_steps_have_room() {
        for (num_rows, num_sequences, num_tokens) in [(1, 1, 32), (8, 8, 256), (64, 4, 32_768), (8192, 256, 32_768)] {
            for num_kv_heads in [1, 3, 8] {
                let largest = LargestStep { num_rows, num_sequences, num_tokens };
                let room = upload_words(largest, DecodePart::most(num_sequences.max(MAX_RECORDED_ROWS), num_kv_heads, 132));
                let bucket = Bucket::of(num_sequences, BlockSize::DEFAULT.blocks_for(num_tokens));
                let (rows, parts) = (bucket.rows, DecodePart::most(bucket.rows, num_kv_heads, 132));
                let (_, decode) = Upload::layout([rows, rows, rows, rows * bucket.blocks, 0, 3 * parts]);
                let tables = num_sequences * BlockSize::DEFAULT.blocks_for(num_tokens);
                let prefill = [num_rows, num_rows, num_rows, tables, 4 * num_rows, 0, 4 * num_rows, num_rows];
                let (_, prefill) = Upload::layout(prefill);
                assert!(
                    decode <= room && prefill <= room,
                    "{num_rows} {num_sequences} {num_tokens}: {decode}, {prefill}, {room}"
                );
            }
        }
    }
}
