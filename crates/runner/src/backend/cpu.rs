//! The backend of machines without an accelerator: f32 activations, weights as stored, a paged pool in main memory.

mod decoder;
mod probe;
mod weights;

use std::time::{Duration, Instant};

use engine::{
    BlockCopy, BlockFetch, BlockOffload, ExecutorLimits, KvFormat, ProbedSequence, SpanCopy, TokenDeviation, TokenLogProbs,
    Transfer,
};
use kernels::cpu::{KvDtype, KvLayer, KvShape, RopeTable, SpanMove, Threads};
use tokens::{BlockId, BlockSize};

use self::decoder::Workspace;
pub(crate) use self::weights::Weights;
#[cfg(feature = "cuda")]
pub(crate) use self::weights::refuse_unknown;
use super::{Backend, BackendError, scored_rows};
use crate::spec::RopeSpec;
use crate::{InputBatch, LoadError, ModelSpec, SampleRow, Sampled, ScoreRow};

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
    /// Results of the check that was started.
    checked: Vec<f32>,
    scoring_time: Duration,
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
            checked: Vec::new(),
            scoring_time: Duration::ZERO,
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
}

impl Backend for CpuBackend {
    fn limits(&self) -> ExecutorLimits {
        let num_blocks = self.kv.first().map_or(usize::MAX, |layer| layer.shape().num_blocks);
        ExecutorLimits { block_size: Some(BlockSize::DEFAULT), num_blocks, ..ExecutorLimits::NONE }
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn offload_blocks(&mut self, offloads: &[BlockOffload]) -> Result<(), BackendError> {
        for (layer, host) in self.kv.iter().zip(&mut self.host) {
            offloads.iter().for_each(|offload| host.copy_block_from(layer, offload.src.0, offload.dst.0));
        }
        Ok(())
    }

    fn fetch_blocks(&mut self, fetches: &[BlockFetch]) -> Result<Option<Transfer>, BackendError> {
        let started = Instant::now();
        for (layer, host) in self.kv.iter_mut().zip(&self.host) {
            fetches.iter().for_each(|fetch| layer.copy_block_from(host, fetch.src.0, fetch.dst.0));
        }
        let seconds = started.elapsed().as_secs_f64();
        let block_bytes = || self.config.cache_groups(kv_format(self.kv_dtype)).block_bytes(BlockSize::DEFAULT);
        Ok((!fetches.is_empty()).then(|| Transfer { bytes: fetches.len() as u64 * block_bytes(), seconds }))
    }

    fn zero_blocks(&mut self, blocks: &[BlockId]) -> Result<(), BackendError> {
        for layer in &mut self.kv {
            blocks.iter().for_each(|block| layer.zero_block(block.0));
        }
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError> {
        for layer in &mut self.kv {
            for copy in copies {
                layer.copy_block(copy.src.0, copy.dst.0, copy.num_tokens as usize);
            }
        }
        Ok(())
    }

    fn move_spans(&mut self, spans: &[SpanCopy]) -> Result<(), BackendError> {
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
        Ok(())
    }

    fn begin_check(&mut self, spans: &[SpanCopy]) -> Result<(), BackendError> {
        self.checked = spans.iter().map(|span| self.span_deviation(span)).collect();
        Ok(())
    }

    fn finish_check(&mut self, _: &[SpanCopy]) -> Result<Vec<f32>, BackendError> {
        Ok(std::mem::take(&mut self.checked))
    }

    /// Returns a bound that rounding does not reach: f16 keeps 11 bits, a relative error of 5e-4 when stored and as much again when moved.
    /// Twenty times that is not rounding.
    fn max_span_deviation(&self) -> f32 {
        match self.kv_dtype {
            KvDtype::F16 => 2e-2,
            KvDtype::F32 => 1e-4,
        }
    }

    fn probe(&mut self, sequence: &ProbedSequence) -> Result<Vec<TokenDeviation>, BackendError> {
        Ok(self.run_probe(sequence))
    }

    fn take_scoring_time(&mut self) -> Duration {
        std::mem::take(&mut self.scoring_time)
    }

    fn forward(&mut self, batch: &InputBatch) -> Result<(), BackendError> {
        self.run_layers(batch);
        Ok(())
    }

    fn attention_paid(&self, sequence: usize) -> &[f32] {
        self.workspace.attention_paid(sequence)
    }

    fn logits(&mut self, rows: &[usize]) -> Result<&mut [f32], BackendError> {
        Ok(self.run_head(rows))
    }

    /// Computes the head's product on all threads, then splits the rows over them.
    fn score(&mut self, rows: &[ScoreRow]) -> Result<Vec<TokenLogProbs>, BackendError> {
        let vocab_size = self.config.vocab_size;
        let mut scores = Vec::with_capacity(rows.len());
        for rows in rows.chunks(scored_rows(vocab_size)) {
            let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
            self.run_head(&indices);
            let logits = self.workspace.logits().chunks_exact(vocab_size);
            let mut scored: Vec<_> = rows.iter().zip(logits).map(|(row, logits)| (row, logits, None)).collect();
            self.threads.for_each_mut(&mut scored, |(row, logits, score)| *score = Some(row.score(logits)));
            scores.extend(scored.into_iter().filter_map(|(_, _, score)| score));
        }
        Ok(scores)
    }

    /// Splits the rows over the threads, as [`Backend::score`] does.
    fn sample(&mut self, rows: &[SampleRow]) -> Result<Vec<Sampled>, BackendError> {
        let vocab_size = self.config.vocab_size;
        let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
        self.run_head(&indices);
        let logits = self.workspace.logits_mut().chunks_exact_mut(vocab_size);
        let mut sampled: Vec<_> = rows.iter().zip(logits).map(|(row, logits)| (row, logits, None)).collect();
        self.threads.for_each_mut(&mut sampled, |(row, logits, sampled)| *sampled = Some(row.choose(logits)));
        Ok(sampled.into_iter().filter_map(|(_, _, sampled)| sampled).collect())
    }
}

/// Returns `|a - b| / |b|` (Euclidean).
fn relative_distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(f32::MIN_POSITIVE)
}
