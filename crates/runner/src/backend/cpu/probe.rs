//! Measurement of moved spans: their deviation from a fresh computation of the first layers, and the attention they receive.

use std::time::Instant;

use engine::{ProbedSequence, ProbedSpans, Readers, Row, TokenDeviation};
use kernels::cpu::{QuerySequence, add_attention_received};
use tokens::{BlockSize, TokenRange};

use super::CpuBackend;
use super::workspace::Workspace;
use crate::InputBatch;
use crate::batch::dense_table;

/// Rows computed at once. Chosen: activations of a long prompt stay within some MB, and a chunk keeps all threads busy.
const CHUNK_ROWS: usize = 512;

/// Attention received by each position from 0 on.
struct Received {
    sums: Vec<f32>,
    /// Number of rows, each counted once per head and layer.
    num_terms: usize,
}

impl CpuBackend {
    /// Measures the moved spans of a sequence.
    pub(super) fn probe(&mut self, sequence: &ProbedSequence) -> ProbedSpans {
        let num_tokens = sequence.first_position as usize + sequence.token_ids.len();
        let mut received = Received { sums: vec![0.0; num_tokens], num_terms: 0 };
        let mut workspace = std::mem::take(&mut self.workspace);
        if sequence.probe.readers == Readers::FreshRowsAllLayers {
            self.read_as_moved(sequence, &mut received, &mut workspace);
        }
        let mut deviations = self.compare(sequence, &mut received, &mut workspace);
        self.workspace = workspace;
        for (position, found) in sequence.measured().zip(&mut deviations) {
            found.attention = received.sums[position as usize] / received.num_terms.max(1) as f32;
        }
        ProbedSpans { request_id: sequence.request_id, deviations }
    }

    /// Runs the fresh rows through all layers over the moved spans as they are.
    fn read_as_moved(&mut self, sequence: &ProbedSequence, received: &mut Received, w: &mut Workspace) {
        let fresh: Vec<u32> = sequence.fresh().into_iter().flat_map(TokenRange::positions).collect();
        for positions in fresh.chunks(CHUNK_ROWS) {
            let batch = batch_of(sequence, positions);
            self.embed(&batch.token_ids, &mut w.hidden);
            for i in 0..self.config.num_layers() {
                self.project(i, &batch.positions, w);
                self.write_kv(i, &batch.slot_mapping, w);
                self.add_received(i, &batch, &w.qkv, received);
                self.attend(i, &batch, w);
                self.feed_forward(i, w);
            }
        }
    }

    /// Runs fresh and measured rows up to the check layer, and compares their fresh K and V with the moved ones.
    fn compare(&mut self, sequence: &ProbedSequence, received: &mut Received, w: &mut Workspace) -> Vec<TokenDeviation> {
        let check_layer = self.config.check_layer(sequence.probe.depth);
        let all = sequence.rows();
        let fresh = sequence.fresh();
        let mut deviations = Vec::new();
        for positions in all.chunks(CHUNK_ROWS) {
            let batch = batch_of(sequence, positions);
            self.embed(&batch.token_ids, &mut w.hidden);
            for i in 0..check_layer {
                self.project(i, &batch.positions, w);
                self.write_kv(i, &batch.slot_mapping, w);
                self.attend(i, &batch, w);
                self.feed_forward(i, w);
            }
            self.project(check_layer, &batch.positions, w);
            let began = Instant::now();
            deviations.extend(self.deviations(check_layer, sequence, &batch, w));
            self.write_kv(check_layer, &batch.slot_mapping, w);
            match sequence.probe.readers {
                Readers::AllRows => self.add_received(check_layer, &batch, &w.qkv, received),
                Readers::FreshRows => {
                    let rows =
                        (0..batch.num_rows()).filter(|row| fresh.iter().any(|range| range.contains(batch.positions[*row])));
                    self.add_received_of(check_layer, sequence, &batch, &w.qkv, &rows.collect::<Vec<_>>(), received);
                }
                Readers::None | Readers::FreshRowsAllLayers => {}
            }
            self.scoring_time += began.elapsed();
        }
        deviations
    }

    /// Compares K and V of the reused rows of `batch` with what the pool holds for them.
    fn deviations(&self, layer: usize, sequence: &ProbedSequence, batch: &InputBatch, w: &Workspace) -> Vec<TokenDeviation> {
        let (k_column, v_column) = self.kv_columns();
        let (qkv_width, kv_width) = (self.config.qkv_width(), v_column - k_column);
        let is_reused = |position: u32| sequence.reused.iter().any(|range| range.contains(position));
        let (mut k, mut v) = (vec![0.0; kv_width], vec![0.0; kv_width]);
        let mut found = Vec::new();
        for row in (0..batch.num_rows()).filter(|row| is_reused(batch.positions[*row])) {
            self.kv[layer].read(batch.slot_mapping[row], &mut k, &mut v);
            let fresh = &w.qkv[row * qkv_width..][..qkv_width];
            let (fresh_k, fresh_v) = (&fresh[k_column..v_column], &fresh[v_column..]);
            found.push(TokenDeviation {
                attention: 0.0,
                key_l2: l2(fresh_k.iter().zip(&k).map(|(a, b)| a - b)),
                value_l2: l2(fresh_v.iter().zip(&v).map(|(a, b)| a - b)),
                value_l1: fresh_v.iter().zip(&v).map(|(a, b)| (a - b).abs()).sum(),
                value_norm: l2(fresh_v.iter().copied()),
                root_head_dim: (self.config.head_dim as f32).sqrt(),
            });
        }
        found
    }

    /// Adds the attention that all rows of the one sequence in `batch` pay in a layer whose keys are in the pool.
    fn add_received(&self, layer: usize, batch: &InputBatch, qkv: &[f32], received: &mut Received) {
        let [sequence] = &batch.sequences[..] else { unreachable!("a probe is of one sequence") };
        let rows = QuerySequence { first_row: 0, positions: &batch.positions, block_table: &sequence.block_table };
        add_attention_received(&self.threads, self.attention_shape(layer), qkv, &self.kv[layer], &rows, &mut received.sums);
        received.num_terms += batch.num_rows() * self.config.num_heads;
    }

    /// Adds the attention that some rows pay.
    fn add_received_of(
        &self,
        layer: usize,
        sequence: &ProbedSequence,
        batch: &InputBatch,
        qkv: &[f32],
        rows: &[usize],
        received: &mut Received,
    ) {
        let width = self.config.qkv_width();
        let positions: Vec<u32> = rows.iter().map(|row| batch.positions[*row]).collect();
        let qkv: Vec<f32> = rows.iter().flat_map(|row| &qkv[row * width..][..width]).copied().collect();
        self.add_received(layer, &batch_of(sequence, &positions), &qkv, received);
    }
}

fn batch_of(sequence: &ProbedSequence, positions: &[u32]) -> InputBatch {
    let token = |position: u32| sequence.token_ids[(position - sequence.first_position) as usize];
    let rows: Vec<Row> = positions.iter().map(|&position| Row { token: token(position), position }).collect();
    let mut batch = InputBatch::default();
    batch.push(&rows, dense_table(&sequence.block_table, BlockSize::DEFAULT), BlockSize::DEFAULT);
    batch
}

/// Returns the Euclidean norm.
fn l2(numbers: impl Iterator<Item = f32>) -> f32 {
    numbers.map(|x| x * x).sum::<f32>().sqrt()
}
