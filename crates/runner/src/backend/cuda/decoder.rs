//! The decoder on a GPU: embedding, layers, head.

use std::sync::Arc;

use kernels::cuda::{
    AttentionReceived, CudaSlice, CudaView, DecodeAttention, Deviation, Device, DeviceError, Differences, Drift, Gated, Matmul,
    Norm, PartList, Partials, Pool, Qkv, QkvShape, QkvWeights, RopeTable, Scatter, Spans,
};

use super::activations::Activations;
use super::prefill::Prefill;
use super::rows::{Followers, StepRows, paged_queries};
use super::step::MAX_RECORDED_ROWS;
use super::weights::Weights;
use crate::{Mask, ModelSpec};

/// Weights of one model, with the kernels and buffers that compute with them.
pub(super) struct Decoder {
    pub(super) config: ModelSpec,
    pub(super) weights: Weights,
    /// Tables of the model's rotations.
    pub(super) ropes: Vec<RopeTable>,
    pub(super) activations: Activations,
    pub(super) matmul: Matmul,
    pub(super) kernels: Kernels,
    pub(super) partials: Partials,
    pub(super) num_multiprocessors: usize,
}

/// Kernels of the device.
pub(super) struct Kernels {
    pub(super) norm: Norm,
    pub(super) qkv: Qkv,
    /// Rows of K and V alone.
    pub(super) kv: Qkv,
    pub(super) gated: Gated,
    pub(super) prefill: Prefill,
    pub(super) decode: DecodeAttention,
    pub(super) received: AttentionReceived,
    pub(super) spans: Spans,
    pub(super) deviation: Deviation,
    pub(super) drift: Drift,
}

impl Kernels {
    pub(super) fn new(device: &Arc<Device>, config: &ModelSpec) -> Result<Self, DeviceError> {
        let shape = qkv_shape(config);
        let has_windows = config.layers.iter().any(|layer| layer.mask != Mask::Causal);
        let ropes: Vec<u32> = config.layers.iter().map(|layer| layer.rope as u32).collect();
        Ok(Self {
            norm: Norm::new(device)?,
            qkv: Qkv::new(device, shape)?,
            kv: Qkv::new(device, QkvShape { num_heads: 0, ..shape })?,
            gated: Gated::new(device, config.activation)?,
            prefill: Prefill::new(device, config.head_dim, has_windows)?,
            decode: DecodeAttention::new(device, config.head_dim)?,
            received: AttentionReceived::new(device, config.head_dim)?,
            spans: Spans::new(device, config.head_dim, &ropes)?,
            deviation: Deviation::new(device)?,
            drift: Drift::new(device, config.head_dim)?,
        })
    }
}

pub(super) fn qkv_shape(config: &ModelSpec) -> QkvShape {
    QkvShape { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim }
}

/// Steps of up to so many rows have their products padded, [`PADDING_ROWS`] beyond those of a decode step.
const MAX_PADDED_ROWS: usize = 2048;
/// Spacing of the tuned row counts. Chosen: the height of a tile of the fast algorithms.
const PADDING_ROWS: usize = 128;

impl Decoder {
    /// Returns the row counts that products are padded to.
    pub(super) fn padded_rows() -> impl Iterator<Item = usize> {
        (MAX_RECORDED_ROWS + PADDING_ROWS..=MAX_PADDED_ROWS).step_by(PADDING_ROWS)
    }

    /// Returns the rows of the products of a step of `num_rows`: a tuned row count, if one is near. The padding rows do not affect those of
    /// the step.
    fn product_rows(&self, num_rows: usize) -> usize {
        let padded = num_rows.next_multiple_of(PADDING_ROWS);
        let is_tuned = num_rows > MAX_RECORDED_ROWS && padded <= MAX_PADDED_ROWS.min(self.activations.num_rows);
        if is_tuned { padded } else { num_rows }
    }

    /// Computes `hidden = embedding_scale * table[tokens]`.
    pub(super) fn embed(&mut self, rows: &StepRows<'_>) -> Result<(), DeviceError> {
        let (a, row) = (&mut self.activations, (self.config.hidden_size, self.config.embedding_scale));
        self.kernels.norm.embed(&self.weights.embedding, &rows.token_ids, &mut a.hidden, rows.num_rows, row)
    }

    /// Computes `hidden[i] = kept[rows[i]]`, with nothing left to add.
    pub(super) fn resume(&mut self, device: &Device, kept: &CudaSlice<f32>, rows: &CudaView<'_, u32>) -> Result<(), DeviceError> {
        let (a, width) = (&mut self.activations, self.config.hidden_size);
        device.stream().memset_zeros(&mut a.delta.slice_mut(..rows.len() * width))?;
        self.kernels.norm.gather_sum(kept, None, rows, &mut a.hidden, width)
    }

    /// Computes all of one layer. Its last output stays in `delta` for the next norm.
    pub(super) fn layer(
        &mut self,
        i: usize,
        rows: &StepRows<'_>,
        pool: &mut Pool,
        followers: Option<&mut Followers<'_>>,
        lse: bool,
    ) -> Result<(), DeviceError> {
        self.project(i, rows.num_rows)?;
        self.rotate_and_scatter(i, rows, pool, followers)?;
        self.attend(i, rows, pool, lse)?;
        self.feed_forward(i, rows.num_rows)
    }

    /// Computes `hidden += delta`, `qkv = Wqkv norm(hidden)`.
    pub(super) fn project(&mut self, i: usize, num_rows: usize) -> Result<(), DeviceError> {
        let product_rows = self.product_rows(num_rows);
        let (config, layer, a) = (&self.config, &self.weights.layers[i], &mut self.activations);
        let delta = (i > 0).then_some(&a.delta);
        let norm = &self.kernels.norm;
        norm.add_rms_norm(&mut a.hidden, delta, &layer.attention_norm, config.rms_norm_eps, &mut a.normed, num_rows)?;
        self.matmul.run(&a.normed, product_rows, &layer.qkv, (config.qkv_width(), config.hidden_size), &mut a.qkv)
    }

    /// Applies bias, norms of heads and rotation, writes K and V to the pool, and updates the moved tokens that follow.
    fn rotate_and_scatter(
        &mut self,
        i: usize,
        rows: &StepRows<'_>,
        pool: &mut Pool,
        followers: Option<&mut Followers<'_>>,
    ) -> Result<(), DeviceError> {
        let (a, kernels) = (&mut self.activations, &self.kernels);
        let (weights, rope) = (qkv_weights(&self.config, &self.weights, i), rope_of(&self.config, &self.ropes, i));
        let Some(followers) = followers else {
            let scatter = Scatter { pool, layer: i, slots: rows.slots.slice(..), differences: None };
            return kernels.qkv.rotate_and_scatter(&mut a.qkv, rows.num_rows, &rows.positions, &weights, rope, scatter, false);
        };
        let differences = Differences { rows: followers.rows.slice(..), out: followers.differences };
        let scatter = Scatter { pool, layer: i, slots: rows.slots.slice(..), differences: Some(differences) };
        kernels.qkv.rotate_and_scatter(&mut a.qkv, rows.num_rows, &rows.positions, &weights, rope, scatter, false)?;
        kernels.drift.follow(pool, i, rope, &followers.targets, followers.differences)
    }

    /// Applies bias, norms of heads and rotation in place; writes nothing to the pool.
    pub(super) fn rotate(&mut self, i: usize, rows: &StepRows<'_>) -> Result<(), DeviceError> {
        let (weights, rope) = (qkv_weights(&self.config, &self.weights, i), rope_of(&self.config, &self.ropes, i));
        self.kernels.qkv.rotate(&mut self.activations.qkv, rows.num_rows, &rows.positions, &weights, rope)
    }

    /// Writes K and V of rotated rows to the pool.
    pub(super) fn scatter(&mut self, i: usize, rows: &StepRows<'_>, pool: &mut Pool) -> Result<(), DeviceError> {
        let scatter = Scatter { pool, layer: i, slots: rows.slots.slice(..), differences: None };
        self.kernels.qkv.scatter(
            &self.activations.qkv,
            rows.num_rows,
            &rows.positions,
            rope_of(&self.config, &self.ropes, i),
            scatter,
        )
    }

    /// Computes `attended = attention(qkv)`, `delta = Wo attended`, normed if the model norms it.
    pub(super) fn attend(&mut self, i: usize, rows: &StepRows<'_>, pool: &Pool, lse: bool) -> Result<(), DeviceError> {
        self.attention(i, rows, pool, lse)?;
        let product_rows = self.product_rows(rows.num_rows);
        let (config, a) = (&self.config, &mut self.activations);
        let width = config.num_heads * config.head_dim;
        let shape = (config.hidden_size, width);
        let layer = &self.weights.layers[i];
        self.matmul.run(&a.attended, product_rows, &layer.output, shape, &mut a.delta)?;
        match &layer.post_norms {
            Some((weight, _)) => self.kernels.norm.rms_norm_in_place(&mut a.delta, weight, config.rms_norm_eps, rows.num_rows),
            None => Ok(()),
        }
    }

    /// Computes `attended = attention(qkv)`; with `lse`, every row is in a tile and its log-sum-exp is stored.
    pub(super) fn attention(&mut self, i: usize, rows: &StepRows<'_>, pool: &Pool, lse: bool) -> Result<(), DeviceError> {
        let a = &mut self.activations;
        let paged = paged_queries(&self.config, i, &a.qkv, rows, pool);
        if rows.num_tiles > 0 {
            let lse = lse.then_some(&mut a.lse);
            self.kernels.prefill.run(&paged, rows, &mut a.attended, lse)?;
        }
        if rows.num_single > 0 {
            let list = PartList { parts: rows.parts.slice(..), num_parts: rows.parts.len(), num_rows: rows.num_single };
            self.kernels.decode.run(&paged, &list, &mut self.partials, &mut a.attended)?;
        }
        Ok(())
    }

    /// Computes only the log-sum-exp of [`Self::attention`]. Every row is in a tile.
    pub(super) fn log_sums(&mut self, i: usize, rows: &StepRows<'_>, pool: &Pool) -> Result<(), DeviceError> {
        let a = &mut self.activations;
        let paged = paged_queries(&self.config, i, &a.qkv, rows, pool);
        self.kernels.prefill.log_sums(&paged, rows, &mut a.attended, &mut a.lse)
    }

    /// Computes the last layer, in which only `wanted` rows are computed past attention: `tiles` hold those of them that are not single.
    pub(super) fn last_layer(
        &mut self,
        i: usize,
        rows: &StepRows<'_>,
        wanted: &CudaView<'_, u32>,
        pool: &mut Pool,
        followers: Option<&mut Followers<'_>>,
    ) -> Result<(), DeviceError> {
        self.project(i, rows.num_rows)?;
        self.rotate_and_scatter(i, rows, pool, followers)?;
        if wanted.is_empty() {
            return Ok(());
        }
        self.attend(i, rows, pool, false)?;
        let (config, layer, a) = (&self.config, &self.weights.layers[i], &mut self.activations);
        let norm = &self.kernels.norm;
        norm.gather_sum(&a.hidden, Some(&a.delta), wanted, &mut a.packed, config.hidden_size)?;
        let (weight, epsilon) = (&layer.feed_forward_norm, config.rms_norm_eps);
        norm.add_rms_norm(&mut a.packed, None, weight, epsilon, &mut a.normed, wanted.len())?;
        self.multiply_feed_forward(i, wanted.len())
    }

    /// Computes `hidden += delta`, `delta = Wdown (activation(Wgate norm(hidden)) * Wup norm(hidden))`, normed if the model norms it.
    pub(super) fn feed_forward(&mut self, i: usize, num_rows: usize) -> Result<(), DeviceError> {
        let (config, layer, a) = (&self.config, &self.weights.layers[i], &mut self.activations);
        let norm = &self.kernels.norm;
        norm.add_rms_norm(&mut a.hidden, Some(&a.delta), &layer.feed_forward_norm, config.rms_norm_eps, &mut a.normed, num_rows)?;
        self.multiply_feed_forward(i, num_rows)
    }

    /// Computes `delta = Wdown (activation(Wgate normed) * Wup normed)`, normed if the model norms it.
    fn multiply_feed_forward(&mut self, i: usize, num_rows: usize) -> Result<(), DeviceError> {
        let product_rows = self.product_rows(num_rows);
        let (config, layer, a) = (&self.config, &self.weights.layers[i], &mut self.activations);
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        self.matmul.run(&a.normed, product_rows, &layer.gate_up, (2 * wide, hidden), &mut a.gate_up)?;
        self.kernels.gated.run(&a.gate_up, &mut a.activated, num_rows, wide)?;
        self.matmul.run(&a.activated, product_rows, &layer.down, (hidden, wide), &mut a.delta)?;
        match &layer.post_norms {
            Some((_, weight)) => self.kernels.norm.rms_norm_in_place(&mut a.delta, weight, config.rms_norm_eps, num_rows),
            None => Ok(()),
        }
    }

    /// Computes logits of rows of the last step into the first rows of `logits`; `is_packed` if its last layer was [`Self::last_layer`].
    pub(super) fn head(&mut self, rows: &CudaView<'_, u32>, is_packed: bool) -> Result<(), DeviceError> {
        let (config, a, num_rows) = (&self.config, &mut self.activations, rows.len());
        let norm = &self.kernels.norm;
        let weight = &self.weights.output_norm;
        let hidden = if is_packed { &mut a.packed } else { &mut a.hidden };
        norm.rms_norm_of_rows(hidden, Some(&a.delta), weight, config.rms_norm_eps, rows, &mut a.normed, num_rows)?;
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        self.matmul.run(&a.normed, num_rows, head, (config.vocab_size, config.hidden_size), &mut a.logits)
    }

    /// Computes rotated keys and values of layer 0 of some tokens, `[rows, K then V]`, into `qkv`.
    pub(super) fn layer0_kv(&mut self, rows: &StepRows<'_>) -> Result<(), DeviceError> {
        self.embed(rows)?;
        let (config, layer, a) = (&self.config, &self.weights.layers[0], &mut self.activations);
        let norm = &self.kernels.norm;
        norm.add_rms_norm(&mut a.hidden, None, &layer.attention_norm, config.rms_norm_eps, &mut a.normed, rows.num_rows)?;
        let (first, end) = (config.num_heads * config.head_dim, config.qkv_width());
        let kv = layer.qkv.slice(first * config.hidden_size..end * config.hidden_size);
        self.matmul.run(&a.normed, rows.num_rows, &kv, (end - first, config.hidden_size), &mut a.qkv)?;
        let weights = QkvWeights {
            bias: layer.qkv_bias.as_ref().map(|bias| bias.slice(first..end)),
            ..qkv_weights(config, &self.weights, 0)
        };
        let rope = rope_of(config, &self.ropes, 0);
        self.kernels.kv.rotate(&mut a.qkv, rows.num_rows, &rows.positions, &weights, rope)
    }
}

/// Returns the rotation of layer `i`.
fn rope_of<'a>(config: &ModelSpec, ropes: &'a [RopeTable], i: usize) -> &'a RopeTable {
    &ropes[config.layers[i].rope]
}

fn qkv_weights<'a>(config: &ModelSpec, weights: &'a Weights, i: usize) -> QkvWeights<'a> {
    let layer = &weights.layers[i];
    QkvWeights {
        bias: layer.qkv_bias.as_ref().map(|bias| bias.slice(..)),
        norms: layer.qk_norm.as_ref().map(|(q, k)| (q.slice(..), k.slice(..))),
        epsilon: config.rms_norm_eps,
    }
}
