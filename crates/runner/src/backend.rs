//! What a device must be able to do.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use std::time::Duration;

use engine::{
    BlockCopy, BlockFetch, BlockOffload, ExecutorLimits, ProbedSequence, SpanCopy, TokenDeviation, TokenLogProbs, Transfer,
};

use tokens::BlockId;

use crate::{InputBatch, SampleRow, Sampled, ScoreRow};

/// A fault of the device. After one, what the pool holds is unknown.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// One model with its KV pool on one device.
///
/// Calls come from one thread, in the order of a step: offloads, zeros, fetches, copies, probes, `forward`, `logits`, `score` and `sample`.
pub trait Backend: Send {
    /// Sizes its pool and its buffers are built for.
    fn limits(&self) -> ExecutorLimits;

    /// Tokens in the vocabulary: the length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// Copies whole blocks to the host tier, in all layers, or begins to: what is asked for later and writes over their sources comes
    /// behind that, layer by layer.
    ///
    /// # Errors
    /// If the device fails.
    fn offload_blocks(&mut self, offloads: &[BlockOffload]) -> Result<(), BackendError>;

    /// Copies whole blocks from the host tier, in all layers, or begins to: what is asked for later and reads their targets comes behind
    /// that, layer by layer.
    ///
    /// Returns what fetches took that ended since the last call, these among them if they have; `None` if none has.
    ///
    /// # Errors
    /// If the device fails.
    fn fetch_blocks(&mut self, fetches: &[BlockFetch]) -> Result<Option<Transfer>, BackendError>;

    /// Fills blocks with zeros, in all layers: they held what their next owner must not see.
    ///
    /// # Errors
    /// If the device fails.
    fn zero_blocks(&mut self, blocks: &[BlockId]) -> Result<(), BackendError>;

    /// Copies leading slots of blocks, in all layers.
    ///
    /// # Errors
    /// If the device fails.
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), BackendError>;

    /// Copies spans to their new positions in all layers, rotating their keys. No slot is both a source and a destination.
    ///
    /// # Errors
    /// If the device fails.
    fn move_spans(&mut self, spans: &[SpanCopy]) -> Result<(), BackendError>;

    /// Begins the layer-0 check of moved spans: the pool is compared as it is now.
    ///
    /// # Errors
    /// If the device fails.
    fn begin_check(&mut self, spans: &[SpanCopy]) -> Result<(), BackendError>;

    /// What the check of `spans` found that was begun: for each of them the largest difference between its K or V and a fresh computation,
    /// relative to the fresh one's length, over its tokens.
    ///
    /// K and V of layer 0 depend on token and position alone, so they prove ids, positions, rotation and weights, whatever the
    /// donor's left context was.
    ///
    /// # Errors
    /// If the device fails.
    fn finish_check(&mut self, spans: &[SpanCopy]) -> Result<Vec<f32>, BackendError>;

    /// A check from its beginning to its end.
    ///
    /// # Errors
    /// If the device fails.
    fn span_deviations(&mut self, spans: &[SpanCopy]) -> Result<Vec<f32>, BackendError> {
        self.begin_check(spans)?;
        self.finish_check(spans)
    }

    /// The largest [`Backend::span_deviations`] that storage in the pool's format explains.
    fn max_span_deviation(&self) -> f32;

    /// Measures the moved spans of a sequence: one entry for each reused token, in the order of positions.
    ///
    /// Computes all rows up to the keys and values of the check layer and leaves them in the pool; with
    /// [`engine::Readers::FreshRowsAllLayers`], computes before that the fresh rows through all layers.
    ///
    /// # Errors
    /// If the device fails.
    fn probe(&mut self, sequence: &ProbedSequence) -> Result<Vec<TokenDeviation>, BackendError>;

    /// What it took since the last call to compare moved spans with fresh rows and to ask these rows, by the device's own clock where it
    /// has one: a probe less the layers that it computes.
    fn take_scoring_time(&mut self) -> Duration;

    /// A new step begins. What a probe left for the rows it was made for can be used in the step after it, and not later.
    fn begin_step(&mut self) {}

    /// Runs all rows of `batch` through all layers, writing their K and V to the pool. Hidden states stay on the device.
    ///
    /// # Errors
    /// If the device fails.
    fn forward(&mut self, batch: &InputBatch) -> Result<(), BackendError>;

    /// Attention that the last row of a watched sequence of the last `forward` paid to positions `0..`, averaged over heads and layers.
    ///
    /// # Panics
    /// If the sequence was not watched.
    fn attention_paid(&self, sequence: usize) -> &[f32];

    /// Logits of some rows of the last `forward`, `[rows.len(), vocab_size]`, for the caller to adjust in place.
    ///
    /// # Errors
    /// If the device fails.
    fn logits(&mut self, rows: &[usize]) -> Result<&mut [f32], BackendError>;

    /// Log probabilities of known tokens, one for each of some rows of the last `forward`, in their order.
    ///
    /// Rows are as many as a prompt has tokens, so a backend holds logits of some of them at a time.
    ///
    /// # Errors
    /// If the device fails.
    fn score(&mut self, rows: &[ScoreRow]) -> Result<Vec<TokenLogProbs>, BackendError> {
        score_on_host(self, rows)
    }

    /// Chooses a token from each of some rows of the last `forward`, in their order.
    ///
    /// A device whose logits should not cross to the host every step does this its own way, to the same result but for rounding.
    ///
    /// # Errors
    /// If the device fails.
    fn sample(&mut self, rows: &[SampleRow]) -> Result<Vec<Sampled>, BackendError> {
        sample_on_host(self, rows)
    }

    /// Begins to choose as [`Backend::sample`] does, and returns while the device computes; `false` if this device does not choose from
    /// these rows by itself. What was begun is finished before anything else is asked for.
    ///
    /// # Errors
    /// If the device fails.
    fn begin_sample(&mut self, rows: &[SampleRow]) -> Result<bool, BackendError> {
        let _ = rows;
        Ok(false)
    }

    /// What was chosen since [`Backend::begin_sample`].
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If nothing was begun.
    fn finish_sample(&mut self) -> Result<Vec<Sampled>, BackendError> {
        unreachable!("nothing was begun")
    }

    /// Whether the device computes by itself while the host goes on.
    fn computes_beside_host(&self) -> bool {
        false
    }

    /// Waits until all that was asked for is done. Only what returns numbers waits by itself.
    ///
    /// # Errors
    /// If the device fails, or anything since the last call did.
    fn synchronize(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}

/// Rows of logits that are scored together, at most about 16 MiB of them. Chosen: so many share one reading of the head's weights.
pub(crate) fn scored_rows(vocab_size: usize) -> usize {
    const SCORED_LOGITS: usize = 4 << 20;
    (SCORED_LOGITS / vocab_size).clamp(1, 256)
}

/// Scores logits that are brought to the host.
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

/// Chooses from logits that are brought to the host.
pub(crate) fn sample_on_host(backend: &mut (impl Backend + ?Sized), rows: &[SampleRow]) -> Result<Vec<Sampled>, BackendError> {
    let indices: Vec<usize> = rows.iter().map(|row| row.row).collect();
    let vocab_size = backend.vocab_size();
    let logits = backend.logits(&indices)?;
    Ok(rows.iter().zip(logits.chunks_exact_mut(vocab_size)).map(|(row, logits)| row.choose(logits)).collect())
}
