//! Residual streams of probed rows, from which the step that recomputes some of them resumes.
//!
//! A probe computes all rows up to its check layer, and leaves exact keys and values of the earlier layers in the pool. Rows that it
//! selects and that run in the next step, with no others beside them, skip those layers.

use engine::ProbedSequence;
use kernels::cuda::{CudaSlice, Device, DeviceError};
use tokens::{BlockSize, RequestId};

use super::step::{Resumed, Step};
use crate::InputBatch;
use crate::batch::dense_table;

/// Rows kept by probes. The buffer is allocated once, for the largest step, as that of activations is.
pub(super) struct KeptRows {
    /// `[rows, hidden]`, including what the layers before the check layer add.
    hidden: CudaSlice<f32>,
    width: usize,
    places: Places,
}

/// Positions of kept rows in the buffer.
#[derive(Default)]
struct Places {
    max_rows: usize,
    /// Probes of the last step.
    usable: Vec<ProbeRows>,
    /// Probes of this step.
    new: Vec<ProbeRows>,
}

/// Rows of one probe.
struct ProbeRows {
    request_id: RequestId,
    /// Block table of the sequence: a preempted sequence gets other blocks.
    block_table: Vec<u32>,
    first_position: u32,
    num_rows: usize,
    /// Kept row of the first position.
    first_row: usize,
    /// Layer at which they resume.
    layer: usize,
}

impl KeptRows {
    pub(super) fn new(device: &Device, max_rows: usize, width: usize) -> Result<Self, DeviceError> {
        Ok(Self { hidden: device.zeros(max_rows * width)?, width, places: Places { max_rows, ..Places::default() } })
    }

    pub(super) fn hidden(&self) -> &CudaSlice<f32> {
        &self.hidden
    }

    pub(super) fn begin_step(&mut self) {
        self.places.begin_step();
    }

    /// Keeps all rows of a probe, the first of `hidden`, if there is room.
    pub(super) fn keep(
        &mut self,
        device: &Device,
        sequence: &ProbedSequence,
        layer: usize,
        hidden: &CudaSlice<f32>,
    ) -> Result<(), DeviceError> {
        let Some(first_row) = self.places.take(sequence, layer) else { return Ok(()) };
        let len = sequence.token_ids.len() * self.width;
        let mut to = self.hidden.slice_mut(first_row * self.width..first_row * self.width + len);
        Ok(device.stream().memcpy_dtod(&hidden.slice(..len), &mut to)?)
    }

    /// Returns the rows from which `step`, made of `batch`, resumes, if all its rows were kept in the last step.
    pub(super) fn resumed(&self, batch: &InputBatch, step: &Step) -> Option<Resumed> {
        self.places.resumed(batch, step)
    }
}

impl Places {
    /// Drops rows of probes before the last step: their sequences may have lost their blocks.
    fn begin_step(&mut self) {
        self.usable = std::mem::take(&mut self.new);
    }

    /// Reserves room for the rows of a probe, after those that are already kept.
    fn take(&mut self, sequence: &ProbedSequence, layer: usize) -> Option<usize> {
        let num_rows = sequence.token_ids.len();
        let first_row = self.usable.iter().chain(&self.new).map(|kept| kept.first_row + kept.num_rows).max().unwrap_or(0);
        if layer == 0 || first_row + num_rows > self.max_rows {
            return None;
        }
        let block_table = dense_table(&sequence.block_table, BlockSize::DEFAULT);
        let ProbedSequence { request_id, first_position, .. } = *sequence;
        self.new.push(ProbeRows { request_id, block_table, first_position, num_rows, first_row, layer });
        Some(first_row)
    }

    fn resumed(&self, batch: &InputBatch, step: &Step) -> Option<Resumed> {
        let layer = self.usable.first()?.layer;
        let mut rows = vec![0; step.num_rows()];
        for sequence in &batch.sequences {
            let kept = self.usable.iter().find(|kept| Some(kept.request_id) == sequence.request_id)?;
            if kept.layer != layer || !kept.block_table.starts_with(&sequence.block_table) {
                return None;
            }
            for row in sequence.first_row..sequence.first_row + sequence.num_rows {
                let idx = batch.positions[row].checked_sub(kept.first_position)? as usize;
                if idx >= kept.num_rows {
                    return None;
                }
                rows[step.places[row] as usize] = (kept.first_row + idx) as u32;
            }
        }
        Some(Resumed { layer, rows })
    }
}

#[cfg(test)]
mod tests {
    use engine::{BlockEntry, Depth, Probe, Readers, Row};
    use tokens::{BlockId, TokenId};

    use super::*;

    /// Builds a probe of all positions from `first_position` on; the request is named by the first block of its table.
    fn probe(table: &[u32], first_position: u32, num_tokens: usize) -> ProbedSequence {
        ProbedSequence {
            request_id: RequestId(table[0].into()),
            token_ids: vec![TokenId(5); num_tokens],
            first_position,
            reused: Vec::new(),
            block_table: BlockEntry::table_of(table.iter().map(|&block| BlockId(block)), BlockSize::DEFAULT),
            probe: Probe { depth: Depth::Layer(1), readers: Readers::None, stride: 1 },
        }
    }

    /// Checks the kept rows of a step of requests, each named by the first block of its table, with its positions.
    #[track_caller]
    fn check(places: &Places, sequences: &[(&[u32], &[u32])], expected: Option<&[u32]>) {
        let mut batch = InputBatch::default();
        for (table, positions) in sequences {
            let rows: Vec<Row> = positions.iter().map(|&position| Row { token: TokenId(5), position }).collect();
            batch.push(&rows, table.to_vec(), BlockSize::DEFAULT);
            batch.sequences.last_mut().unwrap().request_id = Some(RequestId(table[0].into()));
        }
        let found = places.resumed(&batch, &Step::new(&batch));
        assert_eq!(found, expected.map(|rows| Resumed { layer: 1, rows: rows.to_vec() }));
    }

    #[test]
    fn rows_of_probes_are_found_in_the_step_after_and_not_later() {
        let mut places = Places { max_rows: 100, ..Places::default() };
        assert_eq!(places.take(&probe(&[4, 7, 2], 32, 40), 1), Some(0));
        assert_eq!(places.take(&probe(&[9], 0, 30), 1), Some(40));
        check(&places, &[(&[4, 7], &[33])], None);
        places.begin_step();
        check(&places, &[(&[4, 7], &[32, 40]), (&[9], &[29])], Some(&[69, 0, 8]));
        places.begin_step();
        check(&places, &[(&[4, 7], &[32, 40])], None);
    }

    #[test]
    fn a_step_with_other_rows_begins_anew() {
        let mut places = Places { max_rows: 100, ..Places::default() };
        places.take(&probe(&[4, 7, 2], 32, 40), 1);
        places.begin_step();
        for other in [(&[4, 7][..], &[31, 33][..]), (&[4, 7, 2], &[72]), (&[4, 8], &[33])] {
            check(&places, &[other], None);
            check(&places, &[(&[4, 7], &[33]), other], None);
        }
    }

    #[test]
    fn a_request_that_got_the_blocks_of_another_begins_anew() {
        let mut places = Places { max_rows: 100, ..Places::default() };
        places.take(&ProbedSequence { request_id: RequestId(77), ..probe(&[4, 7], 0, 64) }, 1);
        places.begin_step();
        check(&places, &[(&[4, 7], &[33])], None);
    }

    #[test]
    fn what_is_in_use_is_not_overwritten() {
        let mut places = Places { max_rows: 100, ..Places::default() };
        assert_eq!((places.take(&probe(&[1], 0, 32), 0), places.take(&probe(&[1], 0, 60), 1)), (None, Some(0)));
        places.begin_step();
        assert_eq!((places.take(&probe(&[2], 0, 60), 1), places.take(&probe(&[2], 0, 40), 1)), (None, Some(60)));
        places.begin_step();
        assert_eq!(places.take(&probe(&[3], 0, 60), 1), None);
    }
}
