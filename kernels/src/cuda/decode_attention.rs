//! Attention of one query token per sequence: a decode step.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, PushKernelArg};
use half::bf16;

use super::decode_parts::DecodePart;
use super::device::{Device, DeviceError, launch};
use super::paged::PagedQueries;
use super::splits::Partials;

/// `WARPS` of `decode_attention.cu`.
const THREADS: usize = 128;
/// Rings of four warps, 24 KB each, for any head_dim.
const SHARED_BYTES: usize = 4 * 24 * 1024;

/// Device version of [`crate::cpu::attention()`] for rows that each have their own sequence.
pub struct DecodeAttention {
    device: Arc<Device>,
    /// Functions by head_dim (64, 128) and heads that a thread block computes together (8, 16).
    functions: [[CudaFunction; 2]; 2],
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

    /// Computes `out[row] = softmax(scale * q Kᵀ) V` over the positions up to `positions[row]` of the sequence of table `row`.
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
        let heads = if group <= 8 { 8 } else { 16 };
        let sizes = paged.sizes();
        let mut call = self.device.stream().launch_builder(&self.functions[usize::from(paged.head_dim == 128)][heads / 8 - 1]);
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
        unsafe { call.launch(launch(grid, THREADS, SHARED_BYTES)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{PagedWorld, device};
    use crate::cuda::{NO_SEQUENCE, decode_parts};

    /// Compares one row for each of `positions` with the CPU's; rows without a sequence follow.
    #[track_caller]
    fn check(head_dim: usize, num_heads: usize, num_kv_heads: usize, positions: &[u32]) {
        let sequences = positions.iter().map(|position| vec![*position]).collect();
        let world = PagedWorld { head_dim, num_heads, num_kv_heads, sequences };
        let device = device();
        let (attention, mut on_device) = (DecodeAttention::new(&device).unwrap(), world.upload(&device));
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
