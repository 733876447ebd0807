//! The device of machines without an accelerator: f32 activations, weights as stored, a paged pool in main memory.

mod decoder;
mod place;
mod probe;
mod weights;
mod workspace;

use std::time::{Duration, Instant};

use engine::{BlockCopy, BlockFetch, BlockOffload, ExecutorLimits, KvFormat, SpanCopy, TokenLogProbs, Transfer};
use kernels::cpu::{KvDtype, KvLayer, KvShape, RopeTable, SpanMove, Threads};
use tokens::{BlockId, BlockSize};

pub(crate) use self::place::place;
pub(crate) use self::weights::Weights;
#[cfg(feature = "cuda")]
pub(crate) use self::weights::refuse_unknown;
use self::workspace::Workspace;
use crate::sampler::scored_rows;
use crate::spec::RopeSpec;
use crate::timings::Stopwatch;
use crate::{Device, DeviceFault, DeviceOutput, DeviceStep, LoadError, ModelSpec, SampleRow, Sampled, ScoreRow};

/// Returns the format of a pool whose elements are of `dtype`.
pub(crate) fn kv_format(dtype: KvDtype) -> KvFormat {
    match dtype {
        KvDtype::F16 => KvFormat::F16,
        KvDtype::F32 => KvFormat::F32,
    }
}

/// A model in main memory.
pub struct CpuBackend {
    config: ModelSpec,
    weights: Weights,
    /// Tables of the model's rotations.
    ropes: Vec<RopeTable>,
    kv: Vec<KvLayer>,
    /// Host tier: here more memory of the same kind.
    host: Vec<KvLayer>,
    kv_dtype: KvDtype,
    threads: Threads,
    workspace: Workspace,
    scoring_time: Duration,
    /// Results of the step that was begun, and the rows that are still to be sampled.
    begun: Option<(DeviceOutput, Vec<SampleRow>)>,
}

impl CpuBackend {
    /// Creates a backend with a pool of `num_blocks` blocks for `weights`, and tables for positions below `max_model_len`.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub(crate) fn new(
        config: ModelSpec,
        weights: Weights,
        kv_dtype: KvDtype,
        num_blocks: usize,
        max_model_len: usize,
        num_threads: usize,
    ) -> Result<Self, LoadError> {
        let threads = Threads::new(num_threads).map_err(|error| LoadError::Threads(error.to_string()))?;
        let shape = KvShape { num_blocks, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim };
        let kv = (0..config.num_layers()).map(|_| KvLayer::new(kv_dtype, shape)).collect();
        let table = |rope: &RopeSpec| RopeTable::new(config.rope_layout, rope.inv_freq(config.head_dim), max_model_len);
        let ropes = config.ropes.iter().map(table).collect();
        Ok(Self {
            config,
            weights,
            ropes,
            kv,
            host: Vec::new(),
            kv_dtype,
            threads,
            workspace: Workspace::default(),
            scoring_time: Duration::ZERO,
            begun: None,
        })
    }

    /// Returns the largest distance of a moved K or V of a span from a fresh one in layer 0, relative to the fresh one.
    fn span_deviation(&mut self, span: &SpanCopy) -> f32 {
        let block_size = BlockSize::DEFAULT.get();
        let first_block = span.dst_pos / block_size;
        let mut worst = 0f32;
        let width = self.config.num_kv_heads * self.config.head_dim;
        let positions: Vec<u32> = (0..span.token_ids.len() as u32).map(|i| span.dst_pos + i).collect();
        let token_ids: Vec<u32> = span.token_ids.iter().map(|token| token.0).collect();
        let fresh = self.layer0_kv(&token_ids, &positions);
        for (row, position) in positions.iter().enumerate() {
            let block = span.dst_blocks[(position / block_size - first_block) as usize].0;
            let (k, v) = self.read_slot(0, block * block_size + position % block_size);
            let (fresh_k, fresh_v) = fresh[row * 2 * width..][..2 * width].split_at(width);
            for distance in [relative_distance(&k, fresh_k), relative_distance(&v, fresh_v)] {
                // NaN counts as the worst distance.
                if distance.is_nan() {
                    return distance;
                }
                worst = worst.max(distance);
            }
        }
        worst
    }

    /// Returns the backend with a host tier of `num_blocks` blocks. Memory becomes resident only when it is written.
    #[must_use]
    pub fn with_host_tier(self, num_blocks: usize) -> Self {
        let layers = self.kv.iter().map(|layer| KvLayer::new(self.kv_dtype, KvShape { num_blocks, ..layer.shape() }));
        Self { host: layers.collect(), ..self }
    }

    /// Returns keys and values of one slot of a layer, for tests that read the pool.
    #[must_use]
    pub fn read_slot(&self, layer: usize, slot: u32) -> (Vec<f32>, Vec<f32>) {
        let width = self.config.num_kv_heads * self.config.head_dim;
        let (mut k, mut v) = (vec![0.0; width], vec![0.0; width]);
        self.kv[layer].read(slot, &mut k, &mut v);
        (k, v)
    }

    fn offload_blocks(&mut self, offloads: &[BlockOffload]) {
        for (layer, host) in self.kv.iter().zip(&mut self.host) {
            offloads.iter().for_each(|offload| host.copy_block_from(layer, offload.src.0, offload.dst.0));
        }
    }

    fn zero_blocks(&mut self, blocks: &[BlockId]) {
        for layer in &mut self.kv {
            blocks.iter().for_each(|block| layer.zero_block(block.0));
        }
    }

    fn fetch_blocks(&mut self, fetches: &[BlockFetch]) -> Option<Transfer> {
        let started = Instant::now();
        for (layer, host) in self.kv.iter_mut().zip(&self.host) {
            fetches.iter().for_each(|fetch| layer.copy_block_from(host, fetch.src.0, fetch.dst.0));
        }
        let seconds = started.elapsed().as_secs_f64();
        let block_bytes = || self.config.cache_groups(kv_format(self.kv_dtype)).block_bytes(BlockSize::DEFAULT);
        (!fetches.is_empty()).then(|| Transfer { bytes: fetches.len() as u64 * block_bytes(), seconds })
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        for layer in &mut self.kv {
            for copy in copies {
                layer.copy_block(copy.src.0, copy.dst.0, copy.num_tokens as usize);
            }
        }
    }

    fn move_spans(&mut self, spans: &[SpanCopy]) {
        let ids = |blocks: &[BlockId]| blocks.iter().map(|block| block.0).collect::<Vec<u32>>();
        for span in spans {
            let (src_blocks, dst_blocks) = (ids(&span.src_blocks), ids(&span.dst_blocks));
            let span = SpanMove {
                src_blocks: &src_blocks,
                src_pos: span.src_pos as usize,
                dst_blocks: &dst_blocks,
                dst_pos: span.dst_pos as usize,
                len: span.token_ids.len(),
            };
            let threads = &self.threads;
            let ropes = self.config.layers.iter().map(|layer| &self.ropes[layer.rope]);
            let mut layers: Vec<_> = self.kv.iter_mut().zip(ropes).collect();
            threads.for_each_mut(&mut layers, |(layer, rope)| layer.move_span(threads.isa(), span, rope));
        }
    }

    /// Returns logits of some rows of the last step, `[rows.len(), vocab_size]`, for tests.
    pub fn logits(&mut self, rows: &[usize]) -> &[f32] {
        self.run_head(rows)
    }

    /// Computes the head's product on all threads, then splits the rows over them.
    fn score(&mut self, rows: &[ScoreRow]) -> Vec<TokenLogProbs> {
        let vocab_size = self.config.vocab_size;
        let mut scores = Vec::with_capacity(rows.len());
        for rows in rows.chunks(scored_rows(vocab_size)) {
            let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
            self.run_head(&indices);
            let logits = self.workspace.logits.chunks_exact(vocab_size);
            let mut scored: Vec<_> = rows.iter().zip(logits).map(|(row, logits)| (row, logits, None)).collect();
            self.threads.for_each_mut(&mut scored, |(row, logits, score)| *score = Some(row.score(logits)));
            scores.extend(scored.into_iter().filter_map(|(_, _, score)| score));
        }
        scores
    }

    /// Splits the rows over the threads, as [`Self::score`] does.
    fn sample(&mut self, rows: &[SampleRow]) -> Vec<Sampled> {
        if rows.is_empty() {
            return Vec::new();
        }
        let vocab_size = self.config.vocab_size;
        let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
        self.run_head(&indices);
        let logits = self.workspace.logits.chunks_exact_mut(vocab_size);
        let mut sampled: Vec<_> = rows.iter().zip(logits).map(|(row, logits)| (row, logits, None)).collect();
        self.threads.for_each_mut(&mut sampled, |(row, logits, sampled)| *sampled = Some(row.choose(logits)));
        sampled.into_iter().filter_map(|(_, _, sampled)| sampled).collect()
    }
}

impl Device for CpuBackend {
    fn limits(&self) -> ExecutorLimits {
        let num_blocks = self.kv.first().map_or(usize::MAX, |layer| layer.shape().num_blocks);
        ExecutorLimits { block_size: Some(BlockSize::DEFAULT), num_blocks, ..ExecutorLimits::NONE }
    }

    /// Returns a bound that rounding does not reach: f16 keeps 11 bits, a relative error of 5e-4 when stored and as much again when moved.
    /// Twenty times that is not rounding.
    fn max_span_deviation(&self) -> f32 {
        match self.kv_dtype {
            KvDtype::F16 => 2e-2,
            KvDtype::F32 => 1e-4,
        }
    }

    fn begin(&mut self, mut step: DeviceStep<'_>) -> Result<(), DeviceFault> {
        let mut output = DeviceOutput::default();
        let (timings, mut watch) = (&mut output.timings, Stopwatch::start());
        self.offload_blocks(step.offloads);
        self.zero_blocks(step.zeros);
        output.transfer = self.fetch_blocks(step.fetches);
        self.copy_blocks(step.copies);
        timings.copies = watch.lap();
        if !step.spans.is_empty() {
            self.move_spans(step.spans);
            timings.moves = watch.lap();
            // Before the probes, which overwrite what was moved.
            output.span_deviations = step.spans.iter().map(|span| self.span_deviation(span)).collect();
            timings.check = watch.lap();
        }
        output.probed = step.probes.iter().map(|probe| self.probe(probe)).collect();
        timings.probe = watch.lap();
        timings.scoring = std::mem::take(&mut self.scoring_time);
        output.rejected_spans = step.reject(&output.span_deviations, self.max_span_deviation());
        if step.batch.num_rows() > 0 {
            self.run_layers(&step.batch);
            output.attention = self.workspace.take_attention_paid();
            timings.forward = watch.lap();
            output.scores = self.score(&step.scored);
            timings.sample = watch.lap();
        }
        self.begun = Some((output, step.sampled));
        Ok(())
    }

    fn finish(&mut self) -> Result<DeviceOutput, DeviceFault> {
        let (mut output, rows) = self.begun.take().expect("a step was begun");
        let mut watch = Stopwatch::start();
        output.sampled = self.sample(&rows);
        output.timings.sample += watch.lap();
        Ok(output)
    }
}

/// Returns `|a - b| / |b|` (Euclidean).
fn relative_distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(f32::MIN_POSITIVE)
}
