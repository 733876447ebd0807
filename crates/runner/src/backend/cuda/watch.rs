//! Attention paid by the last rows of watched sequences.

use std::sync::Arc;

use kernels::cuda::{AttentionReceived, CudaSlice, CudaView, Device, DeviceError, Pool, QueryRows, Upload};

use super::decoder::Decoder;
use super::rows::{StepRows, paged_queries};
use super::step::Step;
use crate::{InputBatch, ModelSpec};

/// Attention received from some rows of one sequence, summed over layers and heads.
pub(super) struct Received {
    /// Sums by position.
    pub(super) sums: CudaSlice<f32>,
    scratch: CudaSlice<f32>,
}

impl Received {
    pub(super) fn new(device: &Device, num_kv_heads: usize, num_positions: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            sums: device.zeros(num_positions)?,
            scratch: device.zeros(AttentionReceived::scratch_len(num_kv_heads, num_positions))?,
        })
    }

    /// Adds the attention that rows pay in a layer whose keys are in the pool and whose log-sum-exp attention has stored.
    pub(super) fn add(
        &mut self,
        layer: usize,
        query_rows: QueryRowSet<'_>,
        decoder: &Decoder,
        step: &StepRows<'_>,
        pool: &Pool,
    ) -> Result<(), DeviceError> {
        let a = &decoder.activations;
        let paged = paged_queries(&decoder.config, layer, &a.qkv, step, pool);
        let QueryRowSet { rows, run, table, len } = query_rows;
        let query_rows = QueryRows { rows, run, num_rows: rows.len(), lse: &a.lse, table, len };
        decoder.kernels.received.add(&paged, query_rows, &mut self.scratch, &mut self.sums)
    }
}

/// Rows whose attention is summed.
#[derive(Clone, Copy)]
pub(super) struct QueryRowSet<'a> {
    /// Rows of the step, by position.
    pub(super) rows: &'a CudaView<'a, u32>,
    /// First of them, if they are contiguous.
    pub(super) run: Option<usize>,
    /// Table of their sequence.
    pub(super) table: usize,
    /// Position of the last row plus one.
    pub(super) len: usize,
}

/// One watched sequence of a step.
pub(super) struct Watched {
    table: usize,
    len: usize,
    /// Its last row, on the device.
    row: Upload,
    received: Received,
}

impl Watched {
    /// Creates zeroed sums for the watched sequences of `batch`.
    pub(super) fn all(
        device: &Arc<Device>,
        config: &ModelSpec,
        step: &Step,
        batch: &InputBatch,
    ) -> Result<Vec<Self>, DeviceError> {
        let mut all = Vec::new();
        for (sequence, input) in batch.sequences.iter().enumerate().filter(|(_, input)| input.watch) {
            let last = input.first_row + input.num_rows - 1;
            let len = batch.positions[last] as usize + 1;
            let mut row = Upload::new(device, 1)?;
            row.stage([1], |[row]| row[0] = step.places[last])?;
            let received = Received::new(device, config.num_kv_heads, len)?;
            all.push(Self { table: step.table_of[sequence] as usize, len, row, received });
        }
        Ok(all)
    }

    /// Adds the attention that the row pays in one layer; after the last layer, the sums are complete.
    pub(super) fn add(&mut self, layer: usize, decoder: &Decoder, step: &StepRows<'_>, pool: &Pool) -> Result<(), DeviceError> {
        let row = self.row.words(0..1);
        self.received.add(layer, QueryRowSet { rows: &row, run: None, table: self.table, len: self.len }, decoder, step, pool)
    }

    /// Returns attention to positions `0..`, averaged over heads and layers.
    pub(super) fn paid(&self, device: &Device, config: &ModelSpec) -> Result<Vec<f32>, DeviceError> {
        let share = 1.0 / (config.num_layers() * config.num_heads) as f32;
        Ok(device.download(&self.received.sums)?.into_iter().map(|sum| sum * share).collect())
    }
}
