//! The operations that every device must implement.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use std::time::Duration;

use engine::{
    BlockCopy, BlockFetch, BlockOffload, ExecutorLimits, ProbedSequence, SpanCopy, TokenDeviation, TokenLogProbs, Transfer,
};

use tokens::BlockId;

use crate::{InputBatch, SampleRow, Sampled, ScoreRow};

/// A device fault. After one, the content of the pool is undefined.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// One model with its KV pool on one device.
///
/// Calls come from one thread, in the order of a step: offloads, zeros, fetches, copies, probes, `forward`, `logits`, `score` and `sample`.
pub trait Backend: Send {
    /// Returns the limits that the pool and the buffers are sized for.
    fn limits(&self) -> ExecutorLimits;

    /// Returns the number of tokens in the vocabulary: the length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// Copies whole blocks to the host tier in all layers, or starts the copies: later operations that overwrite their sources are ordered
    /// after them, layer by layer.
    ///
    /// # Errors
    /// If the device fails.
    fn offload_blocks(&mut self, offloads: &[BlockOffload]) -> Result<(), BackendError>;

    /// Copies whole blocks from the host tier in all layers, or starts the copies: later operations that read their targets are ordered
    /// after them, layer by layer.
    ///
    /// Returns the size and duration of fetches that ended since the last call, these among them if they have ended; `None` if none has.
    ///
    /// # Errors
    /// If the device fails.
    fn fetch_blocks(&mut self, fetches: &[BlockFetch]) -> Result<Option<Transfer>, BackendError>;

    /// Fills blocks with zeros in all layers, so that their next owner does not see their old content.
    ///
    /// # Errors
    /// If the device fails.
    fn zero_blocks(&mut self, blocks: &[BlockId]) -> Result<(), BackendError>;

    /// Copies the first slots of blocks, in all layers.
    ///
    /// # Errors
    /// If the device fails.
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError>;

    /// Copies spans to their new positions in all layers and rotates their keys. No slot is both a source and a destination.
    ///
    /// # Errors
    /// If the device fails.
    fn move_spans(&mut self, spans: &[SpanCopy]) -> Result<(), BackendError>;

    /// Starts the layer-0 check of moved spans: it compares the pool as it is now.
    ///
    /// # Errors
    /// If the device fails.
    fn begin_check(&mut self, spans: &[SpanCopy]) -> Result<(), BackendError>;

    /// Returns the result of the check of `spans` that was started: for each span the largest difference between its K or V and a fresh
    /// computation, relative to the norm of the fresh one, over its tokens.
    ///
    /// K and V of layer 0 depend on token and position alone, so they prove ids, positions, rotation and weights, independent of the
    /// donor's left context.
    ///
    /// # Errors
    /// If the device fails.
    fn finish_check(&mut self, spans: &[SpanCopy]) -> Result<Vec<f32>, BackendError>;

    /// Runs a check from start to end.
    ///
    /// # Errors
    /// If the device fails.
    fn span_deviations(&mut self, spans: &[SpanCopy]) -> Result<Vec<f32>, BackendError> {
        self.begin_check(spans)?;
        self.finish_check(spans)
    }

    /// Returns the largest [`Backend::span_deviations`] that rounding in the pool's format explains.
    fn max_span_deviation(&self) -> f32;

    /// Measures the moved spans of a sequence: one entry for each reused token, in the order of positions.
    ///
    /// Computes all rows up to the keys and values of the check layer and leaves them in the pool; with
    /// [`engine::Readers::FreshRowsAllLayers`], first computes the fresh rows through all layers.
    ///
    /// # Errors
    /// If the device fails.
    fn probe(&mut self, sequence: &ProbedSequence) -> Result<Vec<TokenDeviation>, BackendError>;

    /// Returns the time since the last call spent on comparing moved spans with fresh rows and on the attention of these rows, by the
    /// device's clock if it has one: the time of a probe less that of the layers it computes.
    fn take_scoring_time(&mut self) -> Duration;

    /// Starts a new step. What a probe kept for its rows can be used in the next step only.
    fn begin_step(&mut self) {}

    /// Runs all rows of `batch` through all layers and writes their K and V to the pool. Hidden states stay on the device.
    ///
    /// # Errors
    /// If the device fails.
    fn forward(&mut self, batch: &InputBatch) -> Result<(), BackendError>;

    /// Returns the attention that the last row of a watched sequence of the last `forward` paid to positions `0..`, averaged over heads and
    /// layers.
    ///
    /// # Panics
    /// If the sequence was not watched.
    fn attention_paid(&self, sequence: usize) -> &[f32];

    /// Computes logits of some rows of the last `forward`, `[rows.len(), vocab_size]`; the caller may change them in place.
    ///
    /// # Errors
    /// If the device fails.
    fn logits(&mut self, rows: &[usize]) -> Result<&mut [f32], BackendError>;

    /// Computes log probabilities of known tokens, one for each of some rows of the last `forward`, in their order.
    ///
    /// There are as many rows as a prompt has tokens, so a backend holds logits of some of them at a time.
    ///
    /// # Errors
    /// If the device fails.
    fn score(&mut self, rows: &[ScoreRow]) -> Result<Vec<TokenLogProbs>, BackendError> {
        score_on_host(self, rows)
    }

    /// Samples a token from each of some rows of the last `forward`, in their order.
    ///
    /// A device that should not copy its logits to the host every step overrides this; results may differ by rounding.
    ///
    /// # Errors
    /// If the device fails.
    fn sample(&mut self, rows: &[SampleRow]) -> Result<Vec<Sampled>, BackendError> {
        sample_on_host(self, rows)
    }

    /// Starts sampling as [`Backend::sample`] does and returns while the device computes; returns `false` if this device cannot sample
    /// these rows itself. The caller finishes it before any other call.
    ///
    /// # Errors
    /// If the device fails.
    fn begin_sample(&mut self, rows: &[SampleRow]) -> Result<bool, BackendError> {
        let _ = rows;
        Ok(false)
    }

    /// Returns the tokens of [`Backend::begin_sample`].
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If nothing was begun.
    fn finish_sample(&mut self) -> Result<Vec<Sampled>, BackendError> {
        unreachable!("nothing was begun")
    }

    /// Returns true if the device computes asynchronously to the host.
    fn computes_beside_host(&self) -> bool {
        false
    }

    /// Waits until all operations are done. Of the others, only those that return values wait.
    ///
    /// # Errors
    /// If the device fails, or anything since the last call did.
    fn synchronize(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}

/// Returns the number of rows of logits that are scored together, at most about 16 MiB of them. Chosen: so many share one read of the
/// head's weights.
pub(crate) fn scored_rows(vocab_size: usize) -> usize {
    const SCORED_LOGITS: usize = 4 << 20;
    (SCORED_LOGITS / vocab_size).clamp(1, 256)
}

/// Scores logits that were copied to the host.
pub(crate) fn score_on_host(
    backend: &mut (impl Backend + ?Sized),
    rows: &[ScoreRow],
) -> Result<Vec<TokenLogProbs>, BackendError> {
    let vocab_size = backend.vocab_size();
    let mut scores = Vec::with_capacity(rows.len());
    for rows in rows.chunks(scored_rows(vocab_size)) {
        let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
        let logits = backend.logits(&indices)?;
        scores.extend(rows.iter().zip(logits.chunks_exact(vocab_size)).map(|(row, logits)| row.score(logits)));
    }
    Ok(scores)
}

/// Samples from logits that were copied to the host.
pub(crate) fn sample_on_host(backend: &mut (impl Backend + ?Sized), rows: &[SampleRow]) -> Result<Vec<Sampled>, BackendError> {
    let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
    let vocab_size = backend.vocab_size();
    let logits = backend.logits(&indices)?;
    Ok(rows.iter().zip(logits.chunks_exact_mut(vocab_size)).map(|(row, logits)| row.choose(logits)).collect())
}
