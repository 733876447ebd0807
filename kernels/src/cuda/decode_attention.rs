//! Attention of one query token a sequence: a decode step.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};
use super::paged::PagedQueries;
use super::splits::{Partials, Splits};

/// `WARPS` of `decode_attention.cu`.
const THREADS: usize = 128;
/// Rings of four warps, 24 KB each, whatever the head.
const SHARED_BYTES: usize = 4 * 24 * 1024;

/// [`crate::cpu::attention()`] for rows that each have a sequence of their own.
pub struct DecodeAttention {
    device: Arc<Device>,
    /// By head dimension (64, 128) and heads a block of threads computes together (8, 16).
    functions: [[CudaFunction; 2]; 2],
}

impl DecodeAttention {
    /// Position of a row without a sequence, as rows beyond the batch in a captured graph.
    pub const NO_SEQUENCE: u32 = u32::MAX;

    /// Loads the functions.
    ///
    /// # Errors
    /// If the device cannot run them.
    pub fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        let function = |name| device.function("decode_attention", name, SHARED_BYTES);
        Ok(Self {
            device: Arc::clone(device),
            functions: [
                [function("decode_64_8")?, function("decode_64_16")?],
                [function("decode_128_8")?, function("decode_128_16")?],
            ],
        })
    }

    /// `out[row] = softmax(scale * q Kᵀ) V` over the positions up to `positions[row]` of the sequence of table `row`.
    ///
    /// `out` is `[rows][num_heads * head_dim]`; a row at [`Self::NO_SEQUENCE`] becomes zero and reads nothing. Launches nothing that
    /// depends on what the device's memory holds, so that it can be captured in a graph. `partials` has room for
    /// `num_rows * num_heads * splits.count` parts, unless there is one split.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn run(
        &self,
        paged: &PagedQueries<'_>,
        num_rows: usize,
        splits: Splits,
        partials: &mut Partials,
        out: &mut CudaSlice<bf16>,
    ) -> Result<(), DeviceError> {
        paged.check(num_rows);
        assert!(num_rows > 0 && num_rows * paged.max_blocks <= paged.block_tables.len(), "each row has a table");
        assert!(num_rows * paged.num_heads * paged.head_dim <= out.len(), "rows lie in the output");
        assert!((1..=Splits::MAX).contains(&splits.count) && splits.min_blocks > 0, "each row has a part");
        let group = paged.group();
        let heads = if group <= 8 { 8 } else { 16 };
        let (sizes, min_blocks, none) = (paged.sizes(), splits.min_blocks as i32, 0u64);
        let mut call = self.device.stream().launch_builder(&self.functions[usize::from(paged.head_dim == 128)][heads / 8 - 1]);
        call.arg(paged.queries).arg(&paged.positions).arg(&paged.block_tables).arg(paged.keys).arg(paged.values);
        call.arg(&sizes).arg(&min_blocks);
        if splits.count == 1 {
            call.arg(out).arg(&none).arg(&none).arg(&none);
        } else {
            partials.check(num_rows * paged.num_heads * splits.count, paged.head_dim);
            call.arg(out).arg(&mut partials.sums).arg(&mut partials.stats).arg(&mut partials.arrived);
        }
        let grid = (splits.count, paged.num_kv_heads * group.div_ceil(heads), num_rows);
        // SAFETY: layer, rows, tables and outputs lie in their buffers, as asserted; that tables cover their positions with blocks of
        // the pool is the caller's promise, kept where tables are made.
        unsafe { call.launch(launch(grid, THREADS, SHARED_BYTES)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{PagedWorld, device};

    /// Compares one row for each of `positions` with the CPU's; rows without a sequence follow.
    #[track_caller]
    fn check(head_dim: usize, num_heads: usize, num_kv_heads: usize, positions: &[u32]) {
        let sequences = positions.iter().map(|position| vec![*position]).collect();
        let world = PagedWorld { head_dim, num_heads, num_kv_heads, sequences };
        let device = device();
        let (attention, mut on_device) = (DecodeAttention::new(&device).unwrap(), world.upload(&device));
        let (num_padding, width) = (2, num_heads * head_dim);
        on_device.pad(&device, num_padding, DecodeAttention::NO_SEQUENCE);
        let num_rows = positions.len() + num_padding;
        let (mut expected, _) = world.expected();
        expected.resize(num_rows * width, 0.0);
        for (count, min_blocks) in [(1, 1), (2, 1), (5, 1), (16, 3), (70, 1)] {
            let mut partials = Partials::new(&device, num_rows * num_heads * count, head_dim).unwrap();
            let mut out = device.upload(&vec![bf16::NAN; num_rows * width]).unwrap();
            let splits = Splits { count, min_blocks };
            attention.run(&on_device.paged(&world), num_rows, splits, &mut partials, &mut out).unwrap();
            let out = device.download(&out).unwrap();
            world.assert_rows(&out, &expected, &format!("{splits:?}"));
            assert!(out[positions.len() * width..].iter().all(|x| x.to_f32() == 0.0), "{splits:?}: a row without a sequence");
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_decode_rows_are_the_cpus() {
        for (num_heads, num_kv_heads) in [(7, 1), (14, 2), (3, 3), (4, 2), (9, 3), (16, 2)] {
            check(64, num_heads, num_kv_heads, &[0, 1, 14, 15, 16, 31, 32, 33, 100, 127, 128, 500]);
            check(128, num_heads, num_kv_heads, &[0, 1, 14, 15, 16, 31, 32, 33, 100, 127, 128, 500]);
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_decode_of_large_groups_is_the_cpus() {
        for group in [9, 16, 17, 40, 64] {
            check(64, group, 1, &[70, 300]);
            check(128, group, 1, &[70, 300]);
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_long_decode_row_is_the_cpus() {
        check(128, 14, 2, &[9001, 40, 2500]);
        check(64, 14, 2, &[9001, 40, 2500]);
    }
}
