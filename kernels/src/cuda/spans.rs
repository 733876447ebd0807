//! Moves, copies and zeroing of tokens and blocks in all layers of the pool.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, PushKernelArg};

use super::device::{Device, DeviceError, launch};
use super::paged::check_head_dim;
use super::pool::Pool;
use super::rope::interleaved;
use crate::cpu::RopeLayout;

/// Threads per block. Chosen: a thread block moves a whole block of a head of 128 elements.
const THREADS: usize = 256;

/// Tokens of moved spans.
pub struct MovedTokens<'a> {
    /// Source slot of each token.
    pub src_slots: CudaView<'a, u32>,
    /// Destination slot of each token. No slot is both a source and a destination.
    pub dst_slots: CudaView<'a, u32>,
    /// Index of the rotation of each token.
    pub spans: CudaView<'a, u32>,
    /// `[rotations of the model][spans][head_dim / 2]` of [`super::RopeTable::rotation`].
    pub rotations: CudaView<'a, [f32; 2]>,
    /// Number of spans.
    pub num_spans: usize,
}

/// Device version of [`crate::cpu::KvLayer`]'s `move_span`, `copy_block` and `zero_block` for many tokens and all layers at once.
pub struct Spans {
    device: Arc<Device>,
    move_tokens: CudaFunction,
    copy_blocks: CudaFunction,
    zero_blocks: CudaFunction,
    head_dim: usize,
    /// Index of each layer's rotation.
    ropes: CudaSlice<u32>,
    num_ropes: usize,
}

impl Spans {
    /// Loads the functions for heads of `head_dim` elements: 64, 128 or 256. `ropes` has the index of each layer's rotation.
    ///
    /// # Errors
    /// If the device cannot run them.
    pub fn new(device: &Arc<Device>, head_dim: usize, ropes: &[u32]) -> Result<Self, DeviceError> {
        check_head_dim(head_dim);
        let function = |name: &str| device.function("spans", name, 0);
        Ok(Self {
            device: Arc::clone(device),
            move_tokens: function(&format!("move_{head_dim}"))?,
            copy_blocks: function("copy_blocks")?,
            zero_blocks: function("zero_blocks")?,
            head_dim,
            ropes: device.upload(ropes)?,
            num_ropes: ropes.iter().max().map_or(0, |last| *last as usize + 1),
        })
    }

    /// Copies keys and values of tokens, with keys rotated from their old positions to their new ones. Without a rotation, bits are
    /// unchanged.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If lengths do not fit, or the pool has another head_dim.
    pub fn move_tokens(&self, pool: &mut Pool, tokens: &MovedTokens<'_>, layout: RopeLayout) -> Result<(), DeviceError> {
        let (shape, num_tokens) = (pool.shape(), tokens.src_slots.len());
        assert!(tokens.dst_slots.len() == num_tokens && tokens.spans.len() == num_tokens, "one of each for each token");
        assert_eq!(tokens.rotations.len(), self.num_ropes * tokens.num_spans * self.head_dim / 2, "every span has all rotations");
        assert!(shape.head_dim == self.head_dim && shape.num_layers == self.ropes.len(), "the pool has such heads and layers");
        if num_tokens == 0 {
            return Ok(());
        }
        let tokens_a_block = THREADS / (self.head_dim / 16);
        let [num_blocks, num_spans, num_tokens] = [shape.num_blocks, tokens.num_spans, num_tokens].map(|x| x as i32);
        let interleaved = interleaved(layout);
        let grid = (tokens.src_slots.len().div_ceil(tokens_a_block), shape.num_kv_heads, shape.num_layers);
        let (keys, values) = (pool.keys(), pool.values());
        let mut call = self.device.stream().launch_builder(&self.move_tokens);
        call.arg(&keys).arg(&values).arg(&num_blocks);
        call.arg(&tokens.src_slots).arg(&tokens.dst_slots).arg(&tokens.spans).arg(&tokens.rotations);
        call.arg(&self.ropes).arg(&num_spans).arg(&num_tokens).arg(&interleaved);
        // SAFETY: one entry of each list for each token, as asserted. Slots within the pool, none a source and a destination, and spans
        // within the rotations are the caller's promise.
        unsafe { call.launch(launch(grid, THREADS, 0)) }?;
        Ok(())
    }

    /// Copies leading slots of blocks in some layers. An entry of `copies` is source, destination, and number of slots.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the pool has another head_dim, or fewer layers.
    pub fn copy_blocks(&self, pool: &mut Pool, layers: Range<usize>, copies: &CudaView<'_, [u32; 3]>) -> Result<(), DeviceError> {
        self.each_block(&self.copy_blocks, pool, layers, copies)
    }

    /// Fills blocks with zeros.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the pool has another head_dim.
    pub fn zero_blocks(&self, pool: &mut Pool, blocks: &CudaView<'_, u32>) -> Result<(), DeviceError> {
        let layers = 0..pool.shape().num_layers;
        self.each_block(&self.zero_blocks, pool, layers, blocks)
    }

    fn each_block<T>(
        &self,
        function: &CudaFunction,
        pool: &mut Pool,
        layers: Range<usize>,
        entries: &CudaView<'_, T>,
    ) -> Result<(), DeviceError> {
        let shape = pool.shape();
        assert_eq!(shape.head_dim, self.head_dim);
        if entries.is_empty() || layers.is_empty() {
            return Ok(());
        }
        let layer_len = shape.num_slots() * shape.width();
        let of_layers = layers.start * layer_len..layers.end * layer_len;
        let (keys, values) = (pool.keys().slice(of_layers.clone()), pool.values().slice(of_layers));
        let (num_blocks, head_dim) = (shape.num_blocks as i32, shape.head_dim as i32);
        let mut call = self.device.stream().launch_builder(function);
        call.arg(&keys).arg(&values).arg(&num_blocks).arg(&head_dim).arg(entries);
        // SAFETY: blocks within the pool, at most 32 slots of each, and no destination that is a source are the scheduler's promise; the
        // layers are all that the kernel is given.
        unsafe { call.launch(launch((entries.len(), shape.num_kv_heads, layers.len()), THREADS, 0)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{self, Isa, SpanMove};
    use crate::cuda::testing::{TwinPools, device};
    use crate::cuda::{PoolShape, RopeTable};

    /// Rotation of each layer.
    const ROPES: [u32; 3] = [1, 0, 1];

    fn shape(num_kv_heads: usize, head_dim: usize) -> PoolShape {
        PoolShape { num_layers: 3, num_blocks: 16, num_kv_heads, head_dim }
    }

    /// Source blocks, source position, destination blocks, destination position, tokens.
    type Span<'a> = (&'a [u32], usize, &'a [u32], usize, usize);

    /// Moves spans in one launch.
    #[track_caller]
    fn check_move(shape: PoolShape, layout: RopeLayout, spans: &[Span<'_>]) {
        let device = device();
        let mut pools = TwinPools::new(&device, shape);
        let half = shape.head_dim / 2;
        let inv_freq = |theta: f64| (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect::<Vec<_>>();
        let thetas = [10_000.0, 300.0];
        let cpu_ropes = thetas.map(|theta| cpu::RopeTable::new(layout, inv_freq(theta), 1));
        let ropes = thetas.map(|theta| RopeTable::new(&device, layout, inv_freq(theta), 1).unwrap());
        let (mut src_slots, mut dst_slots, mut of_span) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &(src_blocks, src_pos, dst_blocks, dst_pos, len)) in spans.iter().enumerate() {
            let span = SpanMove { src_blocks, src_pos, dst_blocks, dst_pos, len };
            for (layer, of_layer) in pools.layers.iter_mut().zip(ROPES) {
                layer.move_span(Isa::available()[0], span, &cpu_ropes[of_layer as usize]);
            }
            let slot = |blocks: &[u32], start: usize, i: usize| blocks[(start % 32 + i) / 32] * 32 + ((start + i) % 32) as u32;
            src_slots.extend((0..len).map(|i| slot(src_blocks, src_pos, i)));
            dst_slots.extend((0..len).map(|i| slot(dst_blocks, dst_pos, i)));
            of_span.extend(vec![i as u32; len]);
        }
        let of_rope = |rope: &RopeTable| -> Vec<[f32; 2]> {
            spans.iter().flat_map(|&(_, src_pos, _, dst_pos, _)| rope.rotation(dst_pos as i64 - src_pos as i64)).collect()
        };
        let rotations = device.upload(&ropes.iter().flat_map(of_rope).collect::<Vec<_>>()).unwrap();
        let [src_slots, dst_slots, of_span] = [src_slots, dst_slots, of_span].map(|list| device.upload(&list).unwrap());
        let tokens = MovedTokens {
            src_slots: src_slots.as_view(),
            dst_slots: dst_slots.as_view(),
            spans: of_span.as_view(),
            rotations: rotations.as_view(),
            num_spans: spans.len(),
        };
        Spans::new(&device, shape.head_dim, &ROPES).unwrap().move_tokens(&mut pools.pool, &tokens, layout).unwrap();
        pools.assert_close(&device, 3e-3);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_moved_keys_are_the_keys_of_the_new_position() {
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            check_move(shape(4, 128), layout, &[(&[3], 5, &[9], 1000, 1)]);
            let spans: [Span<'_>; 3] =
                [(&[5, 1, 7], 10, &[0, 6, 3], 27, 69), (&[2, 4], 4000, &[8, 9], 33, 32), (&[11], 31, &[10], 64, 1)];
            check_move(shape(4, 128), layout, &spans);
            check_move(shape(3, 64), layout, &spans);
            check_move(shape(1, 256), layout, &spans);
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_move_by_zero_changes_no_bit() {
        check_move(shape(2, 64), RopeLayout::Half, &[(&[5, 1], 37, &[0, 2], 37, 40), (&[3], 7, &[4], 9, 20)]);
        check_move(shape(4, 128), RopeLayout::Interleaved, &[(&[5, 1], 37, &[0, 2], 37, 40)]);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_copied_blocks_hold_leading_slots_and_zeroed_ones_nothing() {
        let device = device();
        for shape in [shape(4, 128), shape(3, 64), shape(1, 256)] {
            let mut pools = TwinPools::new(&device, shape);
            let (copies, zeroed) = ([[2, 4, 20], [7, 1, 32], [2, 5, 1]], [15, 3, 0]);
            for layer in &mut pools.layers {
                copies.iter().for_each(|[src, dst, len]| layer.copy_block(*src, *dst, *len as usize));
                zeroed.iter().for_each(|block| layer.zero_block(*block));
            }
            let (copies, zeroed) = (device.upload(&copies).unwrap(), device.upload(&zeroed).unwrap());
            let spans = Spans::new(&device, shape.head_dim, &ROPES).unwrap();
            // Some layers, then the rest.
            for layers in [0..0, 1..3, 0..1] {
                spans.copy_blocks(&mut pools.pool, layers, &copies.as_view()).unwrap();
            }
            spans.zero_blocks(&mut pools.pool, &zeroed.as_view()).unwrap();
            pools.assert_close(&device, 0.0);
        }
    }
}
