//! Decode steps: run launch by launch once, then recorded, then launched as graphs.

use kernels::cuda::{DecodePart, DeviceError, Graph, NO_SEQUENCE, decode_parts};

use super::CudaBackend;
use super::graphs::Bucket;
use super::rows::{StepRows, UploadedStep};
use super::step::{BLOCK, Step};

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
        let ranges = self.upload.stage_first(lengths, |[ids, positions, slots, tables, _, to_parts]| {
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
