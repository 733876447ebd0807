//! Deviation of some rows in the pool from fresh keys and values.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, CudaViewMut, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};
use super::pool::Pool;
use super::qkv::QkvShape;

/// Threads per block. Chosen: four rows per thread block.
const THREADS: usize = 128;

/// Rows with their rotated keys and values, as [`super::Qkv::rotate`] leaves them.
pub struct FreshRows<'a> {
    /// All rows of a step.
    pub buffer: &'a CudaSlice<bf16>,
    /// Their heads.
    pub shape: QkvShape,
    /// Rows to measure.
    pub rows: CudaView<'a, u32>,
    /// Slot of each row of the buffer. A row whose slot is [`super::NO_ROW`] gives zeros.
    pub slots: CudaView<'a, u32>,
}

/// Measures a layer of the pool.
pub struct Deviation {
    device: Arc<Device>,
    function: CudaFunction,
}

impl Deviation {
    /// Number of values per row.
    pub const WIDTH: usize = 6;

    /// Loads the function.
    ///
    /// # Errors
    /// If the device cannot run it.
    pub fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        Ok(Self { device: Arc::clone(device), function: device.function("deviation", "deviation", 0)? })
    }

    /// Computes `out[i] = [‖dK‖, ‖dV‖, Σ|dV|, ‖V‖, ‖K‖, 0]` of `fresh.rows[i]`, over all heads: d is fresh minus the pool, V and K are
    /// fresh.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If `out` is too short, or the pool has other heads or no such layer.
    pub fn measure(
        &self,
        fresh: &FreshRows<'_>,
        pool: &Pool,
        layer: usize,
        out: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), DeviceError> {
        let (shape, num_rows) = (pool.shape(), fresh.rows.len());
        assert_eq!((shape.num_kv_heads, shape.head_dim), (fresh.shape.num_kv_heads, fresh.shape.head_dim), "the same heads");
        assert!(layer < shape.num_layers && out.len() >= num_rows * Self::WIDTH, "results lie in their buffer");
        if num_rows == 0 {
            return Ok(());
        }
        let columns = [fresh.shape.width(), fresh.shape.k_column(), fresh.shape.v_column()].map(|x| x as i32);
        let sizes = [layer, shape.num_blocks, shape.num_kv_heads, shape.head_dim, num_rows].map(|x| x as i32);
        let (keys, values) = (pool.keys(), pool.values());
        let mut call = self.device.stream().launch_builder(&self.function);
        call.arg(fresh.buffer);
        columns.iter().for_each(|column| {
            call.arg(column);
        });
        call.arg(&fresh.rows).arg(&fresh.slots).arg(&keys).arg(&values);
        sizes.iter().for_each(|size| {
            call.arg(size);
        });
        call.arg(out);
        // SAFETY: results lie in `out`, as asserted; that the listed rows lie in the buffer and their slots in the pool is the caller's
        // promise.
        unsafe { call.launch(launch((num_rows.div_ceil(THREADS / 32), 1, 1), THREADS, 0)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cuda::testing::{TwinPools, assert_close, device, rounded, wide};
    use crate::cuda::{NO_ROW, PoolShape};

    fn l2(numbers: impl Iterator<Item = f32>) -> f32 {
        numbers.map(|x| x * x).sum::<f32>().sqrt()
    }

    #[track_caller]
    fn check((num_heads, num_kv_heads, head_dim): (usize, usize, usize), rows: &[u32]) {
        const NUM_ROWS: usize = 40;
        let device = device();
        let shape = QkvShape { num_heads, num_kv_heads, head_dim };
        let pools = TwinPools::new(&device, PoolShape { num_layers: 2, num_blocks: 6, num_kv_heads, head_dim });
        let buffer = rounded(noise(NUM_ROWS * shape.width(), 5));
        let slots: Vec<u32> = (0..NUM_ROWS as u32).map(|row| if row == 7 { NO_ROW } else { row * 7 % (6 * 32) }).collect();
        let fresh = wide(&buffer);
        let expected = rows.iter().flat_map(|row| {
            if *row == 7 {
                return [0.0; 6];
            }
            let width = pools.pool.shape().width();
            let (mut old_k, mut old_v) = (vec![0.0; width], vec![0.0; width]);
            pools.layers[1].read(slots[*row as usize], &mut old_k, &mut old_v);
            let fresh = &fresh[*row as usize * shape.width()..][..shape.width()];
            let (k, v) = (&fresh[shape.k_column()..shape.v_column()], &fresh[shape.v_column()..]);
            let difference = |new: &[f32], old: &[f32]| new.iter().zip(old).map(|(a, b)| a - b).collect::<Vec<f32>>();
            let (dk, dv) = (difference(k, &old_k), difference(v, &old_v));
            let l1 = dv.iter().map(|x| x.abs()).sum();
            [l2(dk.into_iter()), l2(dv.into_iter()), l1, l2(v.iter().copied()), l2(k.iter().copied()), 0.0]
        });
        let expected: Vec<f32> = expected.collect();
        let mut out = device.upload(&vec![f32::NAN; expected.len()]).unwrap();
        let (buffer, rows, slots) =
            (device.upload(&buffer).unwrap(), device.upload(rows).unwrap(), device.upload(&slots).unwrap());
        let fresh = FreshRows { buffer: &buffer, shape, rows: rows.as_view(), slots: slots.as_view() };
        Deviation::new(&device).unwrap().measure(&fresh, &pools.pool, 1, &mut out.as_view_mut()).unwrap();
        for (found, expected) in device.download(&out).unwrap().chunks(6).zip(expected.chunks(6)) {
            for i in 0..6 {
                assert_close(&found[i..=i], &expected[i..=i], 1e-5);
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_deviations_are_the_cpus() {
        check((28, 4, 128), &[0]);
        check((28, 4, 128), &[39, 2, 5, 7, 3, 20, 21]);
        check((9, 3, 64), &[1, 7, 38, 12, 13]);
        check((0, 5, 64), &[30, 31, 39]);
    }
}
