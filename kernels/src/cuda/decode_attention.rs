//! Attention of one query token per sequence: a decode step.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, PushKernelArg};
use half::bf16;

use super::decode_parts::DecodePart;
use super::device::{Device, DeviceError, launch};
use super::paged::{PagedQueries, check_head_dim};
use super::splits::Partials;

/// `WARPS` of `decode_attention.cu`.
const THREADS: usize = 128;

/// Device version of [`crate::cpu::attention()`] for rows that each have their own sequence, with heads of one size.
pub struct DecodeAttention {
    device: Arc<Device>,
    /// Functions by the heads that a thread block computes together: 8, and 16 where heads are small.
    functions: Vec<CudaFunction>,
    head_dim: usize,
}

/// Parts of one launch, made by [`super::decode_parts()`].
pub struct PartList<'a> {
    /// Parts on the device.
    pub parts: CudaView<'a, DecodePart>,
    /// Number of parts.
    pub num_parts: usize,
    /// Number of rows of the batch.
    pub num_rows: usize,
}

impl DecodeAttention {
    /// Loads the functions for heads of `head_dim` elements: 64, 128 or 256.
    ///
    /// # Errors
    /// If the device cannot run them.
    pub fn new(device: &Arc<Device>, head_dim: usize) -> Result<Self, DeviceError> {
        check_head_dim(head_dim);
        let heads: &[usize] = if head_dim > 128 { &[8] } else { &[8, 16] };
        let name = |heads: &usize| format!("decode_{head_dim}_{heads}");
        let function = |heads| device.function("decode_attention", &name(heads), shared_bytes(head_dim));
        let functions = heads.iter().map(function).collect::<Result<_, _>>()?;
        Ok(Self { device: Arc::clone(device), functions, head_dim })
    }

    /// Computes `out[row] = softmax(scale * q Kᵀ) V` over the positions up to `positions[row]` of the sequence of table `row`, or the last
    /// of these within the window.
    ///
    /// `out` is `[rows][num_heads * head_dim]`; a row at [`super::NO_SEQUENCE`] becomes zero and reads nothing. The launch depends on the
    /// length of the list alone, so that a graph captured once works for every list that is padded to it with [`DecodePart::NONE`].
    ///
    /// # Errors
    /// If the launch fails.
    pub fn run(
        &self,
        paged: &PagedQueries<'_>,
        list: &PartList<'_>,
        partials: &mut Partials,
        out: &mut CudaSlice<bf16>,
    ) -> Result<(), DeviceError> {
        paged.check(list.num_rows);
        assert!(list.num_parts > 0 && list.num_parts <= list.parts.len(), "parts lie in their buffer");
        assert!(list.num_rows * paged.max_blocks <= paged.block_tables.len(), "each row has a table");
        assert!(list.num_rows * paged.num_heads * paged.head_dim <= out.len(), "rows lie in the output");
        partials.check(list.num_parts * paged.num_heads, paged.head_dim);
        let group = paged.group();
        assert_eq!(paged.head_dim, self.head_dim, "heads have the size that the functions are compiled for");
        let function = if group <= 8 { 0 } else { self.functions.len() - 1 };
        let heads = 8 * (function + 1);
        let sizes = paged.sizes();
        let mut call = self.device.stream().launch_builder(&self.functions[function]);
        call.arg(paged.queries)
            .arg(&paged.positions)
            .arg(&list.parts)
            .arg(&paged.block_tables)
            .arg(&paged.keys)
            .arg(&paged.values);
        call.arg(&sizes).arg(out).arg(&mut partials.sums).arg(&mut partials.stats).arg(&mut partials.arrived);
        let grid = (list.num_parts, paged.num_kv_heads * group.div_ceil(heads), 1);
        // SAFETY: layer, rows, tables, parts and outputs lie in their buffers, as asserted; that parts name rows below `num_rows` and
        // tables cover positions with blocks of the pool is the caller's promise, kept where lists and tables are made.
        unsafe { call.launch(launch(grid, THREADS, shared_bytes(self.head_dim))) }?;
        Ok(())
    }
}

/// Returns the bytes of the rings of four warps, `SHARED_BYTES` of `decode_attention.cu`.
fn shared_bytes(head_dim: usize) -> usize {
    4 * 1024 * if head_dim > 128 { 32 } else { 24 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{PagedWorld, device};
    use crate::cuda::{NO_SEQUENCE, decode_parts};

    /// Compares one row for each of `positions` with the CPU's; rows without a sequence follow.
    #[track_caller]
    fn check(head_dim: usize, num_heads: usize, num_kv_heads: usize, positions: &[u32]) {
        check_window(head_dim, (num_heads, num_kv_heads), positions, u32::MAX);
    }

    #[track_caller]
    fn check_window(head_dim: usize, (num_heads, num_kv_heads): (usize, usize), positions: &[u32], window: u32) {
        let sequences = positions.iter().map(|position| vec![*position]).collect();
        let world = PagedWorld { head_dim, num_heads, num_kv_heads, sequences, window };
        let device = device();
        let (attention, mut on_device) = (DecodeAttention::new(&device, head_dim).unwrap(), world.upload(&device));
        let (num_padding, width) = (2, num_heads * head_dim);
        on_device.pad(&device, num_padding, NO_SEQUENCE);
        let num_rows = positions.len() + num_padding;
        let (mut expected, _) = world.expected();
        expected.resize(num_rows * width, 0.0);
        let all: Vec<u32> = positions.iter().copied().chain([NO_SEQUENCE; 2]).collect();
        // From rows mostly undivided to a part for every two blocks, and parts that were made for other positions.
        let mut lists: Vec<_> = [1, 8, 132, 1000].map(|processors| decode_parts(&all, num_kv_heads, processors)).into();
        lists.push(decode_parts(&vec![2000; num_rows], num_kv_heads, 132));
        for mut list in lists {
            list.extend([DecodePart::NONE; 3]);
            let parts = device.upload(&list).unwrap();
            let list = PartList { parts: parts.as_view(), num_parts: list.len(), num_rows };
            let mut partials = Partials::new(&device, list.num_parts * num_heads, head_dim).unwrap();
            // Twice: the counters of arrived parts must be zero again.
            for case in ["first", "second"] {
                let mut out = device.upload(&vec![bf16::NAN; num_rows * width]).unwrap();
                attention.run(&on_device.paged(&world), &list, &mut partials, &mut out).unwrap();
                let (out, case) = (device.download(&out).unwrap(), format!("{} parts, {case} run", list.num_parts));
                world.assert_rows(&out, &expected, &case);
                assert!(out[positions.len() * width..].iter().all(|x| x.to_f32() == 0.0), "{case}: a row without a sequence");
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_decode_rows_are_the_cpus() {
        for (num_heads, num_kv_heads) in [(7, 1), (14, 2), (3, 3), (4, 2), (9, 3), (16, 2)] {
            check(64, num_heads, num_kv_heads, &[0, 1, 14, 15, 16, 31, 32, 33, 100, 127, 128, 500]);
            check(128, num_heads, num_kv_heads, &[0, 1, 14, 15, 16, 31, 32, 33, 100, 127, 128, 500]);
            check(256, num_heads, num_kv_heads, &[0, 1, 14, 15, 16, 31, 32, 33, 100, 127, 128, 500]);
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_decode_row_sees_its_window() {
        for window in [1, 15, 16, 17, 31, 32, 33, 100, 1000] {
            for head_dim in [64, 128, 256] {
                check_window(head_dim, (8, 2), &[0, 1, 14, 15, 16, 31, 32, 33, 100, 127, 128, 500, 5000], window);
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_decode_of_large_groups_is_the_cpus() {
        for group in [9, 16, 17, 40, 64] {
            check(64, group, 1, &[70, 300]);
            check(128, group, 1, &[70, 300]);
            check(256, group, 1, &[70, 300]);
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_long_decode_row_is_the_cpus() {
        check(128, 14, 2, &[9001, 40, 2500]);
        check(64, 14, 2, &[9001, 40, 2500]);
        check(256, 14, 2, &[9001, 40, 2500]);
    }
}
