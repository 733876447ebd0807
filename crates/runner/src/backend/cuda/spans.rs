//! Moved spans and the tokens that follow their recomputed ones.

use std::ops::Range;

use engine::SpanCopy;
use kernels::cuda::{CudaSlice, DeviceError, FreshRows, MovedTokens, Upload, drift_tiles};
use tokens::BlockId;

use super::CudaBackend;
use super::decoder::qkv_shape;
use super::rows::{UploadedFollowers, UploadedStep};
use super::step::{BLOCK, Step};
use crate::InputBatch;

/// Values per row from [`kernels::cuda::Deviation`]: norms of the differences of K and V, the latter's sum of absolute values, norms of V
/// and K, and padding.
pub(super) const MEASURES: usize = 6;

impl CudaBackend {
    /// Moves all spans in one launch.
    pub(super) fn move_all_spans(&mut self, spans: &[SpanCopy]) -> Result<(), DeviceError> {
        let len = spans.iter().map(|span| span.token_ids.len()).sum();
        let delta = |span: &SpanCopy| i64::from(span.dst_pos) - i64::from(span.src_pos);
        let ropes = self.decoder.ropes.iter();
        let rotations = ropes.flat_map(|rope| spans.iter().flat_map(|span| rope.rotation(delta(span))));
        let rotations: Vec<u32> = rotations.flat_map(|pair| pair.map(f32::to_bits)).collect();
        let ranges = self.put_extra([len, len, len, rotations.len()], |[from, to, of, to_rotations]| {
            let mut row = 0;
            for (i, span) in (0..).zip(spans) {
                for token in 0..span.token_ids.len() {
                    from[row] = slot_of(&span.src_blocks, span.src_pos, token);
                    to[row] = slot_of(&span.dst_blocks, span.dst_pos, token);
                    of[row] = i;
                    row += 1;
                }
            }
            to_rotations.copy_from_slice(&rotations);
        })?;
        let [from, to, of, rotations] = ranges;
        let tokens = MovedTokens {
            src_slots: self.extra.words(from),
            dst_slots: self.extra.words(to),
            spans: self.extra.words(of),
            rotations: self.extra.view(rotations),
            num_spans: spans.len(),
        };
        self.decoder.kernels.spans.move_tokens(&mut self.pool, &tokens, self.decoder.config.rope_layout)
    }

    /// Launches the comparison of moved K and V with fresh ones in layer 0. Returns the measures on the device, part by part.
    pub(super) fn begin_layer0_check(&mut self, spans: &[SpanCopy]) -> Result<Vec<CudaSlice<f32>>, DeviceError> {
        let tokens = spans.iter().enumerate().flat_map(|(span, copy)| (0..copy.token_ids.len()).map(move |i| (span, i)));
        let tokens: Vec<(usize, usize)> = tokens.collect();
        tokens.chunks(self.decoder.activations.num_rows).map(|tokens| self.measure_layer0(spans, tokens)).collect()
    }

    /// Returns the largest distance of a moved K or V of each span from a fresh one in layer 0, relative to the fresh one.
    pub(super) fn finish_layer0_check(&self, spans: &[SpanCopy], checked: &[CudaSlice<f32>]) -> Result<Vec<f32>, DeviceError> {
        let mut measured = Vec::new();
        for part in checked {
            measured.extend(self.device.download(part)?);
        }
        let mut rest = &measured[..];
        let worst_of = |span: &SpanCopy| {
            let (of_span, behind) = rest.split_at(span.token_ids.len() * MEASURES);
            rest = behind;
            // NaN counts as the worst, and propagates.
            let worse = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) };
            of_span.chunks_exact(MEASURES).map(relative_error).fold(0.0, worse)
        };
        Ok(spans.iter().map(worst_of).collect())
    }

    /// Measures tokens, each given by its span and its index there, as `[tokens, MEASURES]`.
    fn measure_layer0(&mut self, spans: &[SpanCopy], tokens: &[(usize, usize)]) -> Result<CudaSlice<f32>, DeviceError> {
        let len = tokens.len();
        let ranges = self.upload.stage([len, len, len, 0, 0], |[ids, positions, slots, ..]| {
            for (row, (span, i)) in tokens.iter().enumerate() {
                let span = &spans[*span];
                ids[row] = span.token_ids[*i].0;
                positions[row] = span.dst_pos + *i as u32;
                slots[row] = slot_of(&span.dst_blocks, span.dst_pos, *i);
            }
        })?;
        let uploaded = UploadedStep { num_rows: len, ranges, ..UploadedStep::default() };
        let [list] = self.put_extra([len], |[list]| list.iter_mut().zip(0..).for_each(|(to, row)| *to = row))?;
        let Self { decoder, upload, extra, pool, device, .. } = self;
        let rows = uploaded.on(upload);
        decoder.layer0_kv(&rows)?;
        let mut measured: CudaSlice<f32> = device.zeros(len * MEASURES)?;
        let shape = kernels::cuda::QkvShape { num_heads: 0, ..qkv_shape(&decoder.config) };
        let fresh = FreshRows { buffer: &decoder.activations.qkv, shape, rows: extra.words(list), slots: rows.slots.slice(..) };
        decoder.kernels.deviation.measure(&fresh, pool, 0, &mut measured.slice_mut(..))?;
        Ok(measured)
    }

    /// Uploads the arrays of all moved tokens that follow rows of `batch`; `None` if none do.
    pub(super) fn upload_followers(&mut self, step: &Step, batch: &InputBatch) -> Result<Option<UploadedFollowers>, DeviceError> {
        let pieces =
            || batch.sequences.iter().enumerate().flat_map(|(idx, sequence)| sequence.drift.iter().map(move |d| (idx, d)));
        if pieces().next().is_none() {
            return Ok(None);
        }
        let mut rows = vec![-1i32; step.num_rows()];
        let (mut positions, mut slots, mut num_samples) = (Vec::new(), Vec::new(), 0);
        let mut weights: Vec<f32> = Vec::new();
        for (idx, drift) in pieces() {
            let sequence = &batch.sequences[idx];
            let of_sequence = &batch.positions[sequence.first_row..][..sequence.num_rows];
            for position in &drift.samples {
                let row = of_sequence.binary_search(position).expect("samples are rows of this step");
                rows[step.places[sequence.first_row + row] as usize] = num_samples;
                num_samples += 1;
            }
            positions.extend(&drift.targets);
            slots.extend(drift.targets.iter().map(|position| step.slot(step.table_of[idx], *position)));
            weights.extend(&drift.weights);
        }
        let tiles = drift_tiles(pieces().map(|(_, drift)| (drift.targets.len(), drift.samples.len())));
        let lengths = [rows.len(), 5 * tiles.len(), positions.len(), slots.len(), weights.len()];
        let ranges = self.put_extra(lengths, |[to_rows, to_tiles, to_positions, to_slots, to_weights]| {
            to_rows.iter_mut().zip(&rows).for_each(|(to, row)| *to = row.cast_unsigned());
            to_tiles.chunks_exact_mut(5).zip(&tiles).for_each(|(to, tile)| to.copy_from_slice(tile));
            to_positions.copy_from_slice(&positions);
            to_slots.copy_from_slice(&slots);
            to_weights.iter_mut().zip(&weights).for_each(|(to, weight)| *to = weight.to_bits());
        })?;
        Ok(Some(UploadedFollowers { ranges }))
    }

    /// Calls [`Upload::stage`] for arrays that are rarely needed and as long as prompts.
    pub(super) fn put_extra<const N: usize>(
        &mut self,
        lengths: [usize; N],
        write: impl FnOnce([&mut [u32]; N]),
    ) -> Result<[Range<usize>; N], DeviceError> {
        let (_, words) = Upload::layout(lengths);
        if self.extra.capacity() < words {
            self.device.synchronize()?;
            self.extra = Upload::new(&self.device, words.next_power_of_two())?;
        }
        self.extra.stage(lengths, write)
    }
}

/// Returns the larger relative error of K and V in one token's measures.
fn relative_error(measures: &[f32]) -> f32 {
    let [key, value, _, value_norm, key_norm, _] = measures else { unreachable!("the chunk's length") };
    let (key, value) = (key / key_norm.max(f32::MIN_POSITIVE), value / value_norm.max(f32::MIN_POSITIVE));
    if key.is_nan() || value.is_nan() { f32::NAN } else { key.max(value) }
}

/// Returns the slot of the `i`th token of a span whose blocks begin with the one of its first position.
fn slot_of(blocks: &[BlockId], first_position: u32, i: usize) -> u32 {
    let offset = first_position as usize % BLOCK + i;
    blocks[offset / BLOCK].0 * BLOCK as u32 + (offset % BLOCK) as u32
}
