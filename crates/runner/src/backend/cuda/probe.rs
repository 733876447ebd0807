//! Measurement of moved spans, as in the CPU backend.

use engine::{ProbedSequence, ProbedSpans, Readers, Row, TokenDeviation};
use kernels::cuda::{CudaSlice, DeviceError, FreshRows};
use tokens::{BlockSize, TokenRange};

use super::CudaBackend;
use super::decoder::qkv_shape;
use super::rows::UploadedStep;
use super::spans::MEASURES;
use super::step::Step;
use super::watch::{QueryRowSet, Received};
use crate::InputBatch;
use crate::batch::dense_table;

/// Attention received by position from 0 on, and the number of terms in each sum.
struct ReceivedAttention {
    received: Received,
    num_terms: usize,
}

impl CudaBackend {
    /// Measures the moved spans of a sequence.
    pub(super) fn probe(&mut self, sequence: &ProbedSequence) -> Result<ProbedSpans, DeviceError> {
        let num_tokens = sequence.first_position as usize + sequence.token_ids.len();
        let mut attention = ReceivedAttention {
            received: Received::new(&self.device, self.decoder.config.num_kv_heads, num_tokens)?,
            num_terms: 0,
        };
        if sequence.probe.readers == Readers::FreshRowsAllLayers {
            self.read_as_moved(sequence, &mut attention)?;
        }
        let mut deviations = self.compare(sequence, &mut attention)?;
        if sequence.probe.readers != Readers::None {
            let sums = self.device.download(&attention.received.sums)?;
            for (position, found) in sequence.measured().zip(&mut deviations) {
                found.attention = sums[position as usize] / attention.num_terms.max(1) as f32;
            }
        }
        Ok(ProbedSpans { request_id: sequence.request_id, deviations })
    }

    /// Runs the fresh rows through all layers over the moved spans as they are.
    fn read_as_moved(&mut self, sequence: &ProbedSequence, attention: &mut ReceivedAttention) -> Result<(), DeviceError> {
        let fresh: Vec<u32> = sequence.fresh().into_iter().flat_map(TokenRange::positions).collect();
        for positions in fresh.chunks(self.decoder.activations.num_rows) {
            let step = step_of(sequence, positions);
            let rows = self.upload_step(&step)?;
            let all: Vec<u32> = (0..positions.len() as u32).collect();
            let list = self.upload_list(&all)?;
            let Self { decoder, pool, upload, .. } = self;
            decoder.embed(&rows.on(upload))?;
            for i in 0..decoder.config.num_layers() {
                decoder.layer(i, &rows.on(upload), pool, None, true)?;
                let list = self.extra.words(list.clone());
                let query_rows = QueryRowSet { rows: &list, run: Some(0), table: 0, len: end(positions) };
                attention.received.add(i, query_rows, decoder, &rows.on(upload), pool)?;
                attention.num_terms += positions.len() * decoder.config.num_heads;
            }
        }
        Ok(())
    }

    /// Runs fresh and measured rows up to the check layer, and compares their fresh K and V with the moved ones.
    fn compare(
        &mut self,
        sequence: &ProbedSequence,
        attention: &mut ReceivedAttention,
    ) -> Result<Vec<TokenDeviation>, DeviceError> {
        let check_layer = self.decoder.config.check_layer(sequence.probe.depth);
        let all = sequence.rows();
        let mut deviations = Vec::new();
        for positions in all.chunks(self.decoder.activations.num_rows) {
            let step = step_of(sequence, positions);
            let rows = self.upload_step(&step)?;
            let Self { decoder, pool, upload, .. } = self;
            decoder.embed(&rows.on(upload))?;
            for i in 0..check_layer {
                decoder.layer(i, &rows.on(upload), pool, None, false)?;
            }
            decoder.project(check_layer, positions.len())?;
            if positions.len() == sequence.token_ids.len() {
                self.kept.keep(&self.device, sequence, check_layer, &decoder.activations.hidden)?;
            }
            decoder.rotate(check_layer, &rows.on(upload))?;
            self.scoring.start(&self.device)?;
            let measured = self.measure(check_layer, sequence, positions, &rows)?;
            let Self { decoder, pool, upload, .. } = self;
            decoder.scatter(check_layer, &rows.on(upload), pool)?;
            self.add_received(check_layer, sequence, positions, &rows, attention)?;
            self.scoring.stop(&self.device)?;
            // Read after all launches.
            if let Some(measured) = measured {
                deviations.extend(self.deviations(&measured)?);
            }
            self.scoring_time += self.scoring.elapsed()?;
        }
        Ok(deviations)
    }

    /// Compares K and V of the reused rows in work with what the pool holds for them, if there are such rows.
    fn measure(
        &mut self,
        layer: usize,
        sequence: &ProbedSequence,
        positions: &[u32],
        rows: &UploadedStep,
    ) -> Result<Option<CudaSlice<f32>>, DeviceError> {
        let reused = rows_in(positions, &sequence.reused);
        if reused.is_empty() {
            return Ok(None);
        }
        let list = self.upload_list(&reused)?;
        let Self { decoder, pool, upload, extra, device, .. } = self;
        let mut measured: CudaSlice<f32> = device.zeros(reused.len() * MEASURES)?;
        let fresh = FreshRows {
            buffer: &decoder.activations.qkv,
            shape: qkv_shape(&decoder.config),
            rows: extra.words(list),
            slots: rows.on(upload).slots,
        };
        decoder.kernels.deviation.measure(&fresh, pool, layer, &mut measured.slice_mut(..))?;
        Ok(Some(measured))
    }

    /// Copies the measurements to the host; attention is filled in later.
    fn deviations(&self, measured: &CudaSlice<f32>) -> Result<Vec<TokenDeviation>, DeviceError> {
        let root_head_dim = (self.decoder.config.head_dim as f32).sqrt();
        let of_row = |row: &[f32]| TokenDeviation {
            attention: 0.0,
            key_l2: row[0],
            value_l2: row[1],
            value_l1: row[2],
            value_norm: row[3],
            root_head_dim,
        };
        Ok(self.device.download(measured)?.chunks_exact(MEASURES).map(of_row).collect())
    }

    /// Adds the attention that the readers among the rows in work pay in the check layer.
    fn add_received(
        &mut self,
        layer: usize,
        sequence: &ProbedSequence,
        positions: &[u32],
        rows: &UploadedStep,
        attention: &mut ReceivedAttention,
    ) -> Result<(), DeviceError> {
        let (run, readers): (_, Vec<u32>) = match sequence.probe.readers {
            Readers::AllRows => (Some(0), (0..positions.len() as u32).collect()),
            Readers::FreshRows => (None, rows_in(positions, &sequence.fresh())),
            Readers::None | Readers::FreshRowsAllLayers => return Ok(()),
        };
        let Some(last) = readers.last() else { return Ok(()) };
        let len = positions[*last as usize] as usize + 1;
        let list = self.upload_list(&readers)?;
        let Self { decoder, pool, upload, extra, .. } = self;
        decoder.log_sums(layer, &rows.on(upload), pool)?;
        let query_rows = QueryRowSet { rows: &extra.words(list), run, table: 0, len };
        attention.received.add(layer, query_rows, decoder, &rows.on(upload), pool)?;
        attention.num_terms += readers.len() * decoder.config.num_heads;
        Ok(())
    }

    fn upload_list(&mut self, list: &[u32]) -> Result<std::ops::Range<usize>, DeviceError> {
        let [range] = self.put_extra([list.len()], |[to]| to.copy_from_slice(list))?;
        Ok(range)
    }
}

/// Returns the last position plus one.
fn end(positions: &[u32]) -> usize {
    positions.last().map_or(0, |position| *position as usize + 1)
}

/// Returns the rows whose position lies in one of `ranges`.
fn rows_in(positions: &[u32], ranges: &[TokenRange]) -> Vec<u32> {
    let is_in = |position: &u32| ranges.iter().any(|range| range.contains(*position));
    (0..).zip(positions).filter(|(_, position)| is_in(position)).map(|(row, _)| row).collect()
}

fn step_of(sequence: &ProbedSequence, positions: &[u32]) -> Step {
    let token = |position: u32| sequence.token_ids[(position - sequence.first_position) as usize];
    let rows: Vec<Row> = positions.iter().map(|&position| Row { token: token(position), position }).collect();
    let mut batch = InputBatch::default();
    batch.push(&rows, dense_table(&sequence.block_table, BlockSize::DEFAULT), BlockSize::DEFAULT);
    Step::of_runs(&batch)
}
