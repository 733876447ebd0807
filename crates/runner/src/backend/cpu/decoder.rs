//! The decoder: embedding, layers, head.

use kernels::cpu::{
    AttentionShape, DriftSample, Heads, Init, Linear, QuerySequence, RopeTable, add_attention_received, add_rms_norm, attention,
    gated, matmul, rms_norm, rms_norm_heads, rope,
};

use tokens::BlockSize;

use super::CpuBackend;
use super::workspace::{Workspace, resized};
use crate::{InputBatch, InputSequence, ModelSpec};

/// Slots per block.
const BLOCK: usize = BlockSize::DEFAULT.as_usize();

impl CpuBackend {
    pub(super) fn run_layers(&mut self, batch: &InputBatch) {
        let mut workspace = std::mem::take(&mut self.workspace);
        self.embed(&batch.token_ids, &mut workspace.hidden);
        workspace.watched = watched_sequences(batch);
        for i in 0..self.config.num_layers() {
            self.project(i, &batch.positions, &mut workspace);
            self.follow_drift(i, batch, &workspace);
            self.write_kv(i, &batch.slot_mapping, &workspace);
            self.watch(i, batch, &mut workspace);
            self.attend(i, batch, &mut workspace);
            self.feed_forward(i, &mut workspace);
        }
        self.workspace = workspace;
    }

    /// Adds the attention that the last rows of watched sequences pay in one layer.
    fn watch(&self, i: usize, batch: &InputBatch, w: &mut Workspace) {
        let share = 1.0 / (self.config.num_layers() * self.config.num_heads) as f32;
        for (idx, paid) in &mut w.watched {
            let sequence = &batch.sequences[*idx];
            let row = sequence.first_row + sequence.num_rows - 1;
            let query =
                QuerySequence { first_row: row, positions: &batch.positions[row..=row], block_table: &sequence.block_table };
            let mut received = vec![0.0; paid.len()];
            add_attention_received(&self.threads, self.attention_shape(i), &w.qkv, &self.kv[i], &query, &mut received);
            paid.iter_mut().zip(received).for_each(|(paid, received)| *paid += received * share);
        }
    }

    /// Computes `qkv = rope(Wqkv norm(hidden))`.
    pub(super) fn project(&self, i: usize, positions: &[u32], w: &mut Workspace) {
        let (config, threads) = (&self.config, &self.threads);
        let (rows, width) = (positions.len(), config.qkv_width());
        let layer = &self.weights.layers[i];
        let normed = resized(&mut w.normed, w.hidden.len());
        rms_norm(threads, &w.hidden, &layer.attention_norm, config.rms_norm_eps, normed);
        let qkv = resized(&mut w.qkv, rows * width);
        matmul(threads, normed, rows, &layer.qkv, layer.qkv_bias.as_deref().map_or(Init::Zero, Init::Bias), qkv);
        let (heads, kv_heads, head_dim) = (config.num_heads, config.num_kv_heads, config.head_dim);
        let k_column = heads * head_dim;
        if let Some((q_norm, k_norm)) = &layer.qk_norm {
            let q = Heads { stride: width, column: 0, count: heads, dim: head_dim };
            let k = Heads { column: k_column, count: kv_heads, ..q };
            rms_norm_heads(threads, qkv, q, q_norm, config.rms_norm_eps);
            rms_norm_heads(threads, qkv, k, k_norm, config.rms_norm_eps);
        }
        // K heads follow the Q heads, so one pass rotates both.
        let q_and_k = Heads { stride: width, column: 0, count: heads + kv_heads, dim: head_dim };
        rope(threads, qkv, q_and_k, positions, self.rope(i));
    }

    /// Writes K and V of the rows to their slots.
    pub(super) fn write_kv(&mut self, i: usize, slot_mapping: &[u32], w: &Workspace) {
        let (k_column, v_column) = self.kv_columns();
        self.kv[i].write(&self.threads, slot_mapping, &w.qkv[k_column..], &w.qkv[v_column..], self.config.qkv_width());
    }

    /// Updates the moved tokens that follow rows of this step, before the rows overwrite their own slots.
    fn follow_drift(&mut self, i: usize, batch: &InputBatch, w: &Workspace) {
        let (k_column, v_column) = self.kv_columns();
        let width = self.config.qkv_width();
        let slot = |table: &[u32], position: u32| table[position as usize / BLOCK] * BLOCK as u32 + position % BLOCK as u32;
        for sequence in &batch.sequences {
            let rows = &batch.positions[sequence.first_row..][..sequence.num_rows];
            let located = |position: &u32| (*position, slot(&sequence.block_table, *position));
            for drift in &sequence.drift {
                let row =
                    |position: &u32| sequence.first_row + rows.binary_search(position).expect("samples are rows of this step");
                let samples = drift.samples.iter().map(|position| {
                    let fresh = &w.qkv[row(position) * width..][..width];
                    let (position, slot) = located(position);
                    DriftSample { position, slot, k: &fresh[k_column..v_column], v: &fresh[v_column..] }
                });
                let targets: Vec<(u32, u32)> = drift.targets.iter().map(located).collect();
                let rope = &self.ropes[self.config.layers[i].rope];
                self.kv[i].follow_drift(&self.threads, rope, &samples.collect::<Vec<_>>(), &targets, &drift.weights);
            }
        }
    }

    /// Returns the columns at which keys and values begin in a row of `qkv`.
    pub(super) fn kv_columns(&self) -> (usize, usize) {
        let k_column = self.config.num_heads * self.config.head_dim;
        (k_column, k_column + self.config.num_kv_heads * self.config.head_dim)
    }

    /// Returns the shape of the queries of layer `i`, and the positions that they attend to.
    pub(super) fn attention_shape(&self, i: usize) -> AttentionShape {
        let config = &self.config;
        AttentionShape {
            num_heads: config.num_heads,
            scale: config.attention_scale,
            q_stride: config.qkv_width(),
            window: config.layers[i].mask.window(),
        }
    }

    /// Returns the rotation of layer `i`.
    fn rope(&self, i: usize) -> &RopeTable {
        &self.ropes[self.config.layers[i].rope]
    }

    /// Computes `hidden += Wo attention(qkv)`.
    pub(super) fn attend(&mut self, i: usize, batch: &InputBatch, w: &mut Workspace) {
        let (config, threads, layer) = (&self.config, &self.threads, &self.weights.layers[i]);
        let rows = batch.num_rows();
        let sequences: Vec<QuerySequence<'_>> = batch
            .sequences
            .iter()
            .map(|sequence| QuerySequence {
                first_row: sequence.first_row,
                positions: &batch.positions[sequence.first_row..][..sequence.num_rows],
                block_table: &sequence.block_table,
            })
            .collect();
        let attended = resized(&mut w.attended, rows * config.num_heads * config.head_dim);
        attention(threads, self.attention_shape(i), &w.qkv, &self.kv[i], &sequences, attended);
        let post_norm = layer.post_norms.as_ref().map(|(attention, _)| &attention[..]);
        self.add_product(rows, attended, &layer.output, post_norm, &mut w.unnormed, &mut w.hidden);
    }

    /// Computes `hidden += matrix input`, or with `post_norm` `hidden += norm(matrix input)`.
    fn add_product(
        &self,
        rows: usize,
        input: &[f32],
        matrix: &Linear,
        post_norm: Option<&[f32]>,
        unnormed: &mut Vec<f32>,
        hidden: &mut [f32],
    ) {
        let Some(weight) = post_norm else {
            return matmul(&self.threads, input, rows, matrix, Init::Accumulate, hidden);
        };
        let unnormed = resized(unnormed, hidden.len());
        matmul(&self.threads, input, rows, matrix, Init::Zero, unnormed);
        add_rms_norm(&self.threads, unnormed, weight, self.config.rms_norm_eps, hidden);
    }

    /// Computes `hidden += Wdown (activation(Wgate norm(hidden)) * Wup norm(hidden))`.
    pub(super) fn feed_forward(&self, i: usize, w: &mut Workspace) {
        let (config, threads, layer) = (&self.config, &self.threads, &self.weights.layers[i]);
        let rows = w.hidden.len() / config.hidden_size;
        let normed = resized(&mut w.normed, w.hidden.len());
        rms_norm(threads, &w.hidden, &layer.feed_forward_norm, config.rms_norm_eps, normed);
        let gate_up = resized(&mut w.gate_up, rows * 2 * config.intermediate_size);
        matmul(threads, normed, rows, &layer.gate_up, Init::Zero, gate_up);
        let activated = resized(&mut w.activated, rows * config.intermediate_size);
        gated(threads, config.activation, gate_up, config.intermediate_size, activated);
        let post_norm = layer.post_norms.as_ref().map(|(_, feed_forward)| &feed_forward[..]);
        self.add_product(rows, activated, &layer.down, post_norm, &mut w.unnormed, &mut w.hidden);
    }

    /// Computes logits of some rows of the last step.
    pub(super) fn run_head(&mut self, rows: &[usize]) -> &mut [f32] {
        let (config, threads, w) = (&self.config, &self.threads, &mut self.workspace);
        let hidden: Vec<f32> =
            rows.iter().flat_map(|row| &w.hidden[row * config.hidden_size..][..config.hidden_size]).copied().collect();
        let normed = resized(&mut w.normed, hidden.len());
        rms_norm(threads, &hidden, &self.weights.output_norm, config.rms_norm_eps, normed);
        let logits = resized(&mut w.logits, rows.len() * config.vocab_size);
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        matmul(threads, normed, rows.len(), head, Init::Zero, logits);
        logits
    }

    /// Computes keys, rotated to `positions`, and values of layer 0 for some tokens: `[rows, K then V]`.
    pub(super) fn layer0_kv(&self, token_ids: &[u32], positions: &[u32]) -> Vec<f32> {
        let (config, threads, layer) = (&self.config, &self.threads, &self.weights.layers[0]);
        let mut hidden = Vec::new();
        self.embed(token_ids, &mut hidden);
        let mut normed = vec![0.0; hidden.len()];
        rms_norm(threads, &hidden, &layer.attention_norm, config.rms_norm_eps, &mut normed);
        let (kv_heads, head_dim) = (config.num_kv_heads, config.head_dim);
        let width = 2 * kv_heads * head_dim;
        let mut kv = vec![0.0; token_ids.len() * width];
        let bias = layer.qkv_bias.as_deref().map(|bias| &bias[config.num_heads * head_dim..]);
        matmul(threads, &normed, token_ids.len(), &self.weights.layer0_kv, bias.map_or(Init::Zero, Init::Bias), &mut kv);
        let k = Heads { stride: width, column: 0, count: kv_heads, dim: head_dim };
        if let Some((_, k_norm)) = &layer.qk_norm {
            rms_norm_heads(threads, &mut kv, k, k_norm, config.rms_norm_eps);
        }
        rope(threads, &mut kv, k, positions, self.rope(0));
        kv
    }

    /// Computes the residual stream before the first layer.
    pub(super) fn embed(&self, token_ids: &[u32], out: &mut Vec<f32>) {
        let ModelSpec { hidden_size, embedding_scale, .. } = self.config;
        let out = resized(out, token_ids.len() * hidden_size);
        for (token, row) in token_ids.iter().zip(out.chunks_exact_mut(hidden_size)) {
            self.weights.embedding.parts()[0].read_row(*token as usize, row);
        }
        if embedding_scale != 1.0 {
            out.iter_mut().for_each(|element| *element *= embedding_scale);
        }
    }
}

/// Returns a zeroed sum for each watched sequence, as long as the context of its last row.
fn watched_sequences(batch: &InputBatch) -> Vec<(usize, Vec<f32>)> {
    let watched = batch.sequences.iter().enumerate().filter(|(_, sequence)| sequence.watch);
    let last_position = |sequence: &InputSequence| batch.positions[sequence.first_row + sequence.num_rows - 1] as usize;
    watched.map(|(idx, sequence)| (idx, vec![0.0; last_position(sequence) + 1])).collect()
}
