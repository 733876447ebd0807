//! Decode steps as recorded graphs, one for each bucket of batch size and context length.

use std::collections::HashMap;

use kernels::cuda::{DecodePart, DeviceError, Graph, NO_SEQUENCE, decode_parts};

use super::decoder::StepRows;
use super::step::{BLOCK, Step};
use super::{CudaBackend, UploadedStep};

/// Maximum number of rows of a recorded step. Chosen: with more rows, launch overhead is hidden by kernel time.
pub(super) const MAX_ROWS: usize = 256;
/// Blocks of the smallest context bucket. Chosen: below, attention is no part of a step's time.
const MIN_BLOCKS: usize = 16;

/// Number of rows and blocks that a graph has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    pub(super) rows: usize,
    pub(super) blocks: usize,
}

impl Bucket {
    /// Returns the smallest bucket that holds `rows` rows of up to `blocks` blocks.
    pub(super) fn of(rows: usize, blocks: usize) -> Self {
        let rows = if rows <= 4 { rows.next_power_of_two() } else { rows.next_multiple_of(8) };
        Self { rows, blocks: blocks.next_power_of_two().max(MIN_BLOCKS) }
    }

    /// Returns the row counts of all buckets.
    pub(super) fn all_rows() -> impl Iterator<Item = usize> {
        [1, 2, 4].into_iter().chain((8..=MAX_ROWS).step_by(8))
    }
}

/// Graphs recorded so far.
pub(super) struct DecodeGraphs {
    /// `None` for a bucket that was run once: its products have their algorithms from then on, and it can be recorded.
    recorded: HashMap<Bucket, Option<Graph>>,
    max_rows: usize,
}

impl DecodeGraphs {
    pub(super) fn new(max_rows: usize) -> Self {
        Self { recorded: HashMap::new(), max_rows: max_rows.min(MAX_ROWS) }
    }

    /// Returns true if a step has one row per sequence and a number of rows that is recorded.
    pub(super) fn fits(&self, step: &Step) -> bool {
        step.runs.is_empty() && step.num_rows() > 0 && step.num_rows() <= self.max_rows
    }
}

impl CudaBackend {
    pub(super) fn run_decode(&mut self, step: &Step) -> Result<(), DeviceError> {
        // A recorded graph cannot wait for transfers.
        self.wait_for_transfers()?;
        let last = step.positions.iter().max().expect("a step has rows");
        let bucket = Bucket::of(step.num_rows(), *last as usize / BLOCK + 1);
        let rows = self.upload_decode(step, bucket)?;
        match self.graphs.recorded.get(&bucket) {
            Some(Some(graph)) => return graph.launch(),
            Some(None) => {
                let device = self.device.clone();
                let graph = Graph::record(&device, || self.run_decode_layers(&rows))?;
                graph.launch()?;
                self.graphs.recorded.insert(bucket, Some(graph));
            }
            None => {
                self.run_decode_layers(&rows)?;
                self.graphs.recorded.insert(bucket, None);
            }
        }
        Ok(())
    }

    fn run_decode_layers(&mut self, rows: &UploadedStep) -> Result<(), DeviceError> {
        let Self { decoder, pool, upload, .. } = self;
        let rows: StepRows<'_> = rows.on(upload);
        decoder.embed(&rows)?;
        (0..decoder.config.num_layers()).try_for_each(|i| decoder.layer(i, &rows, pool, None, false))
    }

    /// Uploads the step's arrays, padded with rows of no sequence.
    fn upload_decode(&mut self, step: &Step, bucket: Bucket) -> Result<UploadedStep, DeviceError> {
        const NOWHERE: u32 = NO_SEQUENCE;
        let Bucket { rows, blocks } = bucket;
        let num_rows = step.num_rows();
        let mut at = step.positions.clone();
        at.resize(rows, NOWHERE);
        let (kv_heads, multiprocessors) = (self.decoder.config.num_kv_heads, self.decoder.num_multiprocessors);
        let mut parts = decode_parts(&at, kv_heads, multiprocessors);
        parts.resize(DecodePart::most(rows, kv_heads, multiprocessors), DecodePart::NONE);
        let lengths = [rows, rows, rows, rows * blocks, 0, 3 * parts.len()];
        let ranges = self.upload.put_first(lengths, |[ids, positions, slots, tables, _, to_parts]| {
            to_parts.chunks_exact_mut(3).zip(&parts).for_each(|(to, part)| to.copy_from_slice(&part.words()));
            let fill = |to: &mut [u32], from: &[u32], rest: u32| {
                to[..num_rows].copy_from_slice(from);
                to[num_rows..].fill(rest);
            };
            fill(ids, &step.token_ids, 0);
            positions.copy_from_slice(&at);
            fill(slots, &step.slots, NOWHERE);
            for (to, from) in tables.chunks_exact_mut(blocks).zip(step.tables.chunks_exact(step.max_blocks)) {
                let known = from.len().min(blocks);
                to[..known].copy_from_slice(&from[..known]);
                to[known..].fill(0);
            }
        })?;
        let [token_ids, positions, slots, tables, tiles, parts] = ranges;
        let ranges = [token_ids, positions, slots, tables, tiles];
        Ok(UploadedStep { num_rows: rows, max_blocks: blocks, num_single: rows, ranges, parts, ..UploadedStep::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_are_chosen_for() {
        for rows in 1..=MAX_ROWS {
            for blocks in [1, 15, 16, 17, 1000] {
                let bucket = Bucket::of(rows, blocks);
                assert!(bucket.rows >= rows && bucket.blocks >= blocks && Bucket::all_rows().any(|known| known == bucket.rows));
                assert!(bucket.rows < rows + 8 && bucket.blocks < (2 * blocks).max(MIN_BLOCKS + 1));
            }
        }
    }
}
