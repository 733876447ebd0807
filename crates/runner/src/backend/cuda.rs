//! The device of NVIDIA GPUs: bf16 weights and activations, f32 sums and residual stream, a paged pool in GPU memory.

mod activations;
mod decode;
mod decoder;
mod graphs;
mod host_tier;
mod kept_rows;
mod place;
mod prefill;
mod probe;
mod rows;
mod sampling;
mod spans;
mod step;
mod watch;
mod weights;

use std::sync::Arc;
use std::time::Duration;

use engine::{BlockCopy, ExecutorLimits, Transfer};
use kernels::cuda::{CudaSlice, CudaView, Device, DeviceError, HostPool, Pool, Sampler, Timer, Upload, bf16, decode_parts};
use tokens::BlockId;

use self::activations::MAX_LOGIT_ROWS;
use self::decoder::Decoder;
use self::graphs::DecodeGraphs;
use self::host_tier::HostTier;
use self::kept_rows::KeptRows;
use self::rows::UploadedStep;
use self::step::{BLOCK, Step};
use self::watch::Watched;
use crate::timings::Stopwatch;
use crate::{DeviceFault, DeviceOutput, DeviceStep, InputBatch, SampleRow};

pub(crate) use self::place::{LargestStep, has_device, place, place_untuned};

/// A model in GPU memory.
pub struct CudaBackend {
    device: Arc<Device>,
    decoder: Decoder,
    pool: Pool,
    host: HostTier,
    /// Arrays of a step, at fixed addresses for recorded graphs.
    upload: Upload,
    /// Arrays that are rarely needed: spans, drift, lists of rows.
    extra: Upload,
    graphs: DecodeGraphs,
    /// New minus old values of the rows that moved tokens follow.
    differences: CudaSlice<f32>,
    sampler: Sampler,
    kept: KeptRows,
    /// The last step, for calls that refer to its rows.
    step: Step,
    /// Timer of the comparisons and attention sums in a probe.
    scoring: Timer,
    scoring_time: Duration,
    logits: Vec<f32>,
    /// Output of the step that was begun, until it is finished.
    begun: Option<PendingOutput>,
}

/// Output of a step that was begun, until its tokens are known.
struct PendingOutput {
    /// Output without the tokens.
    output: DeviceOutput,
    /// Rows that tokens are sampled from.
    rows: Vec<SampleRow>,
    /// True if the device is sampling them.
    is_sampling: bool,
}

impl From<DeviceError> for DeviceFault {
    fn from(error: DeviceError) -> Self {
        Self(error.to_string())
    }
}

impl CudaBackend {
    /// Returns the backend with a host tier of `num_blocks` blocks, all page-locked at once.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn with_host_tier(self, num_blocks: usize) -> Result<Self, DeviceError> {
        let host = HostTier::new(HostPool::new(&self.device, self.pool.shape(), num_blocks)?);
        Ok(Self { host, ..self })
    }

    /// Returns keys and values of one slot of a layer, for tests that read the pool.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If transfers to or from the host tier are pending: [`crate::Device::finish`] waits for them.
    pub fn read_slot(&self, layer: usize, slot: u32) -> Result<(Vec<f32>, Vec<f32>), DeviceFault> {
        assert!(self.host.is_idle(), "transfers are waited for before the pool is read");
        let shape = self.pool.shape();
        let (block, offset) = (slot as usize / BLOCK, slot as usize % BLOCK);
        let first_head = (layer * shape.num_blocks + block) * shape.num_kv_heads;
        let read = |numbers: CudaView<'_, bf16>| -> Result<Vec<f32>, DeviceError> {
            let mut found = Vec::with_capacity(shape.width());
            for head in first_head..first_head + shape.num_kv_heads {
                let first = (head * BLOCK + offset) * shape.head_dim;
                let of_head = numbers.slice(first..first + shape.head_dim);
                found.extend(self.device.stream().clone_dtoh(&of_head)?.into_iter().map(f32::from));
            }
            Ok(found)
        };
        let found = (read(self.pool.keys())?, read(self.pool.values())?);
        self.device.synchronize()?;
        Ok(found)
    }

    /// Orders later launches after all pending transfers, in all layers. Free if there are none.
    fn wait_for_transfers(&mut self) -> Result<(), DeviceError> {
        self.host.wait_for_all(&self.decoder.kernels.spans, &mut self.pool)
    }

    /// Runs any step, launch by launch. Each layer waits only for its own transfers to and from the host tier. Returns the attention that
    /// the last rows of watched sequences paid.
    fn run_step(&mut self, step: &Step, batch: &InputBatch) -> Result<Vec<Vec<f32>>, DeviceError> {
        let layers = self.decoder.config.num_layers();
        let first_layer = step.resumed.as_ref().map_or(0, |resumed| resumed.layer);
        let followers = self.upload_followers(step, batch)?;
        let rows = self.upload_step(step)?;
        let mut watched = Watched::all(&self.device, &self.decoder.config, step, batch)?;
        let Self { decoder, pool, host, upload, extra, differences, kept, device, .. } = self;
        let kept_rows = rows.kept.clone();
        let last = step.wanted.is_some().then(|| (rows.last(upload), upload.words(rows.wanted.clone())));
        let rows = rows.on(upload);
        match &step.resumed {
            None => decoder.embed(&rows)?,
            Some(_) => decoder.resume(device, kept.hidden(), &upload.words(kept_rows))?,
        }
        for i in first_layer..layers {
            host.wait_for_layer(&decoder.kernels.spans, pool, i)?;
            let mut following = followers.as_ref().map(|followers| followers.on(extra, differences));
            if let Some((last, wanted)) = last.as_ref().filter(|_| i + 1 == layers) {
                decoder.last_layer(i, last, wanted, pool, following.as_mut())?;
                continue;
            }
            decoder.layer(i, &rows, pool, following.as_mut(), !watched.is_empty())?;
            for watched in &mut watched {
                watched.add(i, decoder, &rows, pool)?;
            }
        }
        watched.iter().map(|watched| watched.paid(device, &decoder.config)).collect()
    }

    /// Downloads `f32` logits of rows of the last step, in the device's order, a few at a time.
    fn download_logits(&mut self, rows: &[u32]) -> Result<(), DeviceError> {
        let vocab = self.decoder.config.vocab_size;
        let mut logits = std::mem::take(&mut self.logits);
        logits.resize(rows.len() * vocab, 0.0);
        for (rows, out) in rows.chunks(MAX_LOGIT_ROWS).zip(logits.chunks_mut(MAX_LOGIT_ROWS * vocab)) {
            let [range] = self.put_extra([rows.len()], |[list]| list.copy_from_slice(rows))?;
            self.decoder.head(&self.extra.words(range), self.step.wanted.is_some())?;
            self.device
                .stream()
                .memcpy_dtoh(&self.decoder.activations.logits.slice(..out.len()), out)
                .map_err(DeviceError::from)?;
            self.device.synchronize()?;
        }
        self.logits = logits;
        Ok(())
    }

    fn zero_blocks(&mut self, blocks: &[BlockId]) -> Result<(), DeviceError> {
        if blocks.is_empty() {
            return Ok(());
        }
        self.wait_for_transfers()?;
        let [range] =
            self.put_extra([blocks.len()], |[list]| list.iter_mut().zip(blocks).for_each(|(to, block)| *to = block.0))?;
        self.decoder.kernels.spans.zero_blocks(&mut self.pool, &self.extra.words(range))
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), DeviceError> {
        if copies.is_empty() {
            return Ok(());
        }
        let triples: Vec<[u32; 3]> = copies.iter().map(|copy| [copy.src.0, copy.dst.0, copy.num_tokens]).collect();
        if !self.host.is_idle() {
            return self.host.copy_later(&self.device, &triples);
        }
        let [range] = self.put_extra([3 * triples.len()], |[list]| list.copy_from_slice(triples.as_flattened()))?;
        let layers = 0..self.decoder.config.num_layers();
        self.decoder.kernels.spans.copy_blocks(&mut self.pool, layers, &self.extra.view(range))
    }

    /// Runs all operations on whole blocks. Returns the timing of fetches that have ended.
    fn transfer_blocks(&mut self, step: &DeviceStep<'_>) -> Result<Option<Transfer>, DeviceError> {
        self.host.offload(&self.decoder.kernels.spans, &mut self.pool, step.offloads)?;
        self.zero_blocks(step.zeros)?;
        let transfer = self.host.fetch(&self.decoder.kernels.spans, &mut self.pool, step.fetches)?;
        self.copy_blocks(step.copies)?;
        Ok(transfer)
    }

    /// Moves, measures and checks spans.
    fn move_spans(&mut self, step: &DeviceStep<'_>, output: &mut DeviceOutput) -> Result<(), DeviceError> {
        let (timings, mut watch) = (&mut output.timings, Stopwatch::start());
        let mut checked = Vec::new();
        if !step.spans.is_empty() {
            self.wait_for_transfers()?;
            self.move_all_spans(step.spans)?;
            timings.moves = watch.lap();
            checked = self.begin_layer0_check(step.spans)?;
            timings.check = watch.lap();
        }
        for sequence in step.probes {
            self.wait_for_transfers()?;
            output.probed.push(self.probe(sequence)?);
        }
        timings.probe = watch.lap();
        timings.scoring = std::mem::take(&mut self.scoring_time);
        if !step.spans.is_empty() {
            // Read after the probes, since the host then waits less.
            output.span_deviations = self.finish_layer0_check(step.spans, &checked)?;
            timings.check += watch.lap();
        }
        Ok(())
    }

    /// Runs all rows of `batch` through all layers. Hidden states stay on the device. Returns the attention that the last rows of watched
    /// sequences paid.
    fn forward(&mut self, batch: &InputBatch) -> Result<Vec<Vec<f32>>, DeviceError> {
        let is_plain = batch.sequences.iter().all(|sequence| !sequence.watch && sequence.drift.is_empty());
        let is_watched = batch.sequences.iter().any(|sequence| sequence.watch);
        let mut step = if is_watched { Step::of_runs(batch) } else { Step::new(batch) };
        let mut attention = Vec::new();
        if is_plain && self.graphs.fits(&step) && !self.host.is_long() {
            self.run_decode(&step)?;
        } else {
            if let Some(rows) = batch.logit_rows.as_deref().filter(|_| !is_watched) {
                step.restrict_logits(rows);
            }
            step.resumed = self.kept.resumed(batch, &step).filter(|_| !is_watched);
            attention = self.run_step(&step, batch)?;
        }
        self.step = step;
        Ok(attention)
    }

    /// Returns logits of some rows of the last step, `[rows.len(), vocab_size]`, for tests.
    ///
    /// # Errors
    /// If the device fails.
    pub fn logits(&mut self, rows: &[usize]) -> Result<&[f32], DeviceFault> {
        Ok(self.logits_on_host(rows)?)
    }

    /// Returns the same logits, which the caller may change.
    fn logits_on_host(&mut self, rows: &[usize]) -> Result<&mut [f32], DeviceError> {
        let rows: Vec<u32> = rows.iter().map(|row| self.step.place(*row)).collect();
        self.download_logits(&rows)?;
        Ok(&mut self.logits)
    }
}

impl crate::Device for CudaBackend {
    fn limits(&self) -> ExecutorLimits {
        let max_rows = self.decoder.activations.num_rows;
        ExecutorLimits {
            block_size: Some(tokens::BlockSize::DEFAULT),
            num_blocks: self.pool.shape().num_blocks,
            max_rows,
            // Each sequence has a row.
            max_sequences: max_rows,
        }
    }

    /// Returns a bound that rounding does not reach: bf16 keeps 8 bits, a relative error of 4e-3 when stored and as much again when moved,
    /// and the fresh computation is rounded too. Another token, position or rotation is off by tenths.
    fn max_span_deviation(&self) -> f32 {
        5e-2
    }

    fn computes_beside_host(&self) -> bool {
        true
    }

    fn begin(&mut self, mut step: DeviceStep<'_>) -> Result<(), DeviceFault> {
        let mut output = DeviceOutput::default();
        let mut watch = Stopwatch::start();
        self.kept.begin_step();
        output.transfer = self.transfer_blocks(&step)?;
        output.timings.copies = watch.lap();
        self.move_spans(&step, &mut output)?;
        output.rejected_spans = step.reject(&output.span_deviations, self.max_span_deviation());
        watch.lap();
        let mut is_sampling = false;
        if step.batch.num_rows() > 0 {
            output.attention = self.forward(&step.batch)?;
            output.timings.forward = watch.lap();
            output.scores = self.score(&step.scored)?;
            is_sampling = self.begin_sampling(&step.sampled)?;
            output.timings.sample = watch.lap();
        }
        self.begun = Some(PendingOutput { output, rows: step.sampled, is_sampling });
        Ok(())
    }

    /// Waits also for a step that samples nothing: the scheduler learns from its time. A step without rows leaves transfers pending.
    fn finish(&mut self) -> Result<DeviceOutput, DeviceFault> {
        let PendingOutput { mut output, rows, is_sampling } = self.begun.take().expect("a step was begun");
        let mut watch = Stopwatch::start();
        output.sampled = if is_sampling { self.finish_sampling()? } else { self.sample(&rows)? };
        self.wait_for_transfers()?;
        self.device.synchronize()?;
        self.upload.arrived();
        self.extra.arrived();
        output.timings.sample += watch.lap();
        Ok(output)
    }
}

impl CudaBackend {
    fn upload_step(&mut self, step: &Step) -> Result<UploadedStep, DeviceError> {
        let config = &self.decoder.config;
        let tiles = step.tiles(self.decoder.kernels.prefill.tile_tokens(config.num_heads / config.num_kv_heads));
        let num_rows = step.num_rows();
        let (wanted, last) = (step.wanted.as_deref().unwrap_or_default(), step.wanted_tiles());
        let kept = step.resumed.as_ref().map_or(&[][..], |resumed| &resumed.rows);
        let parts = decode_parts(&step.positions[..step.num_single], config.num_kv_heads, self.decoder.num_multiprocessors);
        let lengths = [
            num_rows,
            num_rows,
            num_rows,
            step.tables.len(),
            4 * tiles.len(),
            3 * parts.len(),
            4 * last.len(),
            wanted.len(),
            kept.len(),
        ];
        let ranges = self.upload.stage(lengths, |[ids, at, slots, tables, of, to_parts, of_last, to_wanted, to_kept]| {
            to_kept.copy_from_slice(kept);
            to_parts.chunks_exact_mut(3).zip(&parts).for_each(|(to, part)| to.copy_from_slice(&part.words()));
            ids.copy_from_slice(&step.token_ids);
            at.copy_from_slice(&step.positions);
            slots.copy_from_slice(&step.slots);
            tables.copy_from_slice(&step.tables);
            of.chunks_exact_mut(4).zip(&tiles).for_each(|(to, tile)| to.copy_from_slice(&tile.words()));
            of_last.chunks_exact_mut(4).zip(&last).for_each(|(to, tile)| to.copy_from_slice(&tile.words()));
            to_wanted.copy_from_slice(wanted);
        })?;
        let [token_ids, positions, slots, tables, tiles, parts, last_tiles, wanted, kept] = ranges;
        let ranges = [token_ids, positions, slots, tables, tiles];
        let (max_blocks, num_single) = (step.max_blocks, step.num_single);
        Ok(UploadedStep { num_rows, max_blocks, num_single, ranges, parts, last_tiles, wanted, kept })
    }
}
