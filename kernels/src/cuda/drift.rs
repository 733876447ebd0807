//! Updates keys and values of some slots by weighted sums of the changes of others.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, PushKernelArg};

use super::device::{Device, DeviceError, launch};
use super::paged::check_head_dim;
use super::pool::Pool;
use super::rope::RopeTable;

/// Targets of a tile, as in `drift.cu`.
const TARGETS: usize = 8;
/// Elements per thread, as in `drift.cu`.
const NUMBERS: usize = 8;
/// Threads per block. Chosen: a tile of Qwen2.5-7B is one thread block.
const THREADS: usize = 128;

/// Up to eight targets of one piece: first target, number of targets, first sample, number of samples, first weight.
pub type DriftTile = [u32; 5];

/// Returns tiles of pieces `(targets, samples)`, whose targets, samples and weights are each concatenated.
///
/// # Panics
/// If there are 2^32 weights.
pub fn drift_tiles(pieces: impl IntoIterator<Item = (usize, usize)>) -> Vec<DriftTile> {
    let (mut tiles, mut first_target, mut first_sample, mut first_weight) = (Vec::new(), 0, 0, 0);
    for (num_targets, num_samples) in pieces {
        for t in (0..num_targets).step_by(TARGETS) {
            let (target, weight) = (first_target + t, first_weight + t * num_samples);
            let tile = [target, TARGETS.min(num_targets - t), first_sample, num_samples, weight];
            tiles.push(tile.map(|x| u32::try_from(x).expect("less than 2^32 weights")));
        }
        first_target += num_targets;
        first_sample += num_samples;
        first_weight += num_targets * num_samples;
    }
    tiles
}

/// Targets of all pieces of a step, concatenated.
pub struct DriftTargets<'a> {
    /// Tiles from [`drift_tiles`].
    pub tiles: CudaView<'a, DriftTile>,
    /// Position of each target.
    pub positions: CudaView<'a, u32>,
    /// Slot of each target, none of them a sample's.
    pub slots: CudaView<'a, u32>,
    /// `[targets, samples]` of each piece.
    pub weights: CudaView<'a, f32>,
}

/// Device version of [`crate::cpu::KvLayer::follow_drift`] for many pieces at once.
pub struct Drift {
    device: Arc<Device>,
    function: CudaFunction,
    head_dim: usize,
}

impl Drift {
    /// Loads the function for heads of `head_dim` elements: 64, 128 or 256.
    ///
    /// # Errors
    /// If the device cannot run it.
    pub fn new(device: &Arc<Device>, head_dim: usize) -> Result<Self, DeviceError> {
        check_head_dim(head_dim);
        let function = device.function("drift", &format!("follow_{head_dim}"), 0)?;
        Ok(Self { device: Arc::clone(device), function, head_dim })
    }

    /// Adds to each target the sum of `weight * difference` over the samples of its piece, to its key as before rotation.
    ///
    /// `differences` has a row for each sample, in the layout of [`super::Differences`].
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If lengths do not fit, or the pool has other heads or no such layer.
    pub fn follow(
        &self,
        pool: &mut Pool,
        layer: usize,
        rope: &RopeTable,
        targets: &DriftTargets<'_>,
        differences: &CudaSlice<f32>,
    ) -> Result<(), DeviceError> {
        let shape = pool.shape();
        assert!(layer < shape.num_layers && shape.head_dim == self.head_dim, "the pool has the layer and such heads");
        assert_eq!(targets.positions.len(), targets.slots.len(), "a position and a slot for each target");
        if targets.tiles.is_empty() {
            return Ok(());
        }
        let [layer, num_blocks, kv_heads] = [layer, shape.num_blocks, shape.num_kv_heads].map(|x| x as i32);
        let (cos_sin, interleaved) = rope.parts(shape.head_dim);
        let num_groups = (2 * shape.width() / NUMBERS).div_ceil(THREADS);
        let (keys, values) = (pool.keys(), pool.values());
        let mut call = self.device.stream().launch_builder(&self.function);
        call.arg(&keys).arg(&values).arg(&layer).arg(&num_blocks).arg(&kv_heads).arg(cos_sin).arg(&interleaved);
        call.arg(&targets.tiles).arg(&targets.positions).arg(&targets.slots).arg(&targets.weights).arg(differences);
        // SAFETY: that tiles refer to existing targets, samples and weights, and to slots of the pool, is the caller's promise.
        unsafe { call.launch(launch((targets.tiles.len(), num_groups, 1), THREADS, 0)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{self, DriftSample, RopeLayout, Threads, testing::noise};
    use crate::cuda::PoolShape;
    use crate::cuda::testing::{TwinPools, device};

    const NUM_POSITIONS: usize = 3000;

    /// Checks pieces `(targets, samples)`, most of whose weights are 0.
    #[track_caller]
    fn check(num_kv_heads: usize, head_dim: usize, layout: RopeLayout, pieces: &[(usize, usize)]) {
        let (device, threads) = (device(), Threads::new(1).unwrap());
        let shape = PoolShape { num_layers: 2, num_blocks: 10, num_kv_heads, head_dim };
        let mut pools = TwinPools::new(&device, shape);
        let inv_freq: Vec<f64> = (0..head_dim / 2).map(|i| 1000f64.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let cpu_rope = cpu::RopeTable::new(layout, inv_freq.clone(), NUM_POSITIONS);
        let rope = RopeTable::new(&device, layout, inv_freq, NUM_POSITIONS).unwrap();
        let layer = &mut pools.layers[1];
        let mut places =
            (0..shape.num_slots() as u32).map(|i| (i * 577 % NUM_POSITIONS as u32, i * 7 % shape.num_slots() as u32));
        let (mut targets, mut weights, mut differences) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &(num_targets, num_samples)) in pieces.iter().enumerate() {
            let fresh = noise(2 * num_samples * shape.width(), 10 + i as u32);
            let rows: Vec<_> = fresh.chunks(2 * shape.width()).map(|row| row.split_at(shape.width())).collect();
            let sample = |(&(k, v), (position, slot))| DriftSample { position, slot, k, v };
            let samples: Vec<DriftSample<'_>> = rows.iter().zip(places.by_ref()).map(sample).collect();
            let of_piece: Vec<(u32, u32)> = places.by_ref().take(num_targets).collect();
            let noise = noise(num_targets * num_samples, 50 + i as u32);
            let of_pairs: Vec<f32> = noise.into_iter().map(|x| if x < 0.3 { 0.0 } else { x }).collect();
            differences.extend(layer.differences(&threads, &cpu_rope, &samples));
            layer.follow_drift(&threads, &cpu_rope, &samples, &of_piece, &of_pairs);
            targets.extend(of_piece);
            weights.extend(of_pairs);
        }
        let (positions, slots): (Vec<u32>, Vec<u32>) = targets.into_iter().unzip();
        let tiles = device.upload(&drift_tiles(pieces.iter().copied())).unwrap();
        let (positions, slots) = (device.upload(&positions).unwrap(), device.upload(&slots).unwrap());
        let (weights, differences) = (device.upload(&weights).unwrap(), device.upload(&differences).unwrap());
        let targets = DriftTargets {
            tiles: tiles.as_view(),
            positions: positions.as_view(),
            slots: slots.as_view(),
            weights: weights.as_view(),
        };
        Drift::new(&device, head_dim).unwrap().follow(&mut pools.pool, 1, &rope, &targets, &differences).unwrap();
        pools.assert_close(&device, 3e-3);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_targets_follow_as_on_the_cpu() {
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            check(4, 128, layout, &[(1, 1)]);
            check(4, 128, layout, &[(5, 3), (71, 33), (1, 65), (8, 32)]);
            check(3, 64, layout, &[(2, 2), (61, 40), (4, 1)]);
        }
        check(9, 64, RopeLayout::Half, &[(7, 31)]);
    }

    #[test]
    fn tiles_cover_each_target_once_and_stay_in_their_piece() {
        let tiles = drift_tiles([(9, 3), (8, 2), (1, 7)]);
        assert_eq!(tiles, [[0, 8, 0, 3, 0], [8, 1, 0, 3, 24], [9, 8, 3, 2, 27], [17, 1, 5, 7, 43]]);
    }
}
