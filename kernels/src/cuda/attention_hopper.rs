//! Prefill attention on Hopper, for arbitrary query positions.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, PushKernelArg};
use half::bf16;

use super::attention::TileList;
use super::device::{Device, DeviceError, launch};
use super::paged::{PagedQueries, Sizes};
use super::splits::{Combine, Partials, TileSlots};
use super::tensor_map::{TensorMap, address};

/// Query rows (token times head of its group) of a tile, keys processed at once, buffers for keys and values, threads: as in
/// `attention_hopper.cu`.
const TILE_ROWS: usize = 128;
const TILE_KEYS: usize = 160;
const STAGES: usize = 2;
const THREADS: usize = 384;
/// Maximum number of heads of a group: a tile has at least two tokens.
const MAX_GROUP: usize = 64;

/// Version of [`super::Attention`] with the copy engine and the warpgroup products of compute capability 9.0.
pub struct AttentionHopper {
    device: Arc<Device>,
    num_multiprocessors: usize,
    attention: CudaFunction,
    log_sums: CudaFunction,
    combine: Combine,
    head_dim: usize,
}

impl AttentionHopper {
    /// Loads the functions for heads of `head_dim` elements.
    ///
    /// # Errors
    /// If the device cannot run them.
    ///
    /// # Panics
    /// If [`Self::runs_on`] returns false for the device, or [`Self::computes`] for the heads.
    pub fn new(device: &Arc<Device>, head_dim: usize) -> Result<Self, DeviceError> {
        assert!(Self::runs_on(device)?, "only compute capability 9.0 has these instructions");
        assert!(Self::computes(head_dim), "kernels are compiled for heads of 64 and 128 elements");
        let function = |name| device.function("attention_hopper", &format!("{name}_{head_dim}"), shared_bytes(head_dim));
        Ok(Self {
            device: Arc::clone(device),
            num_multiprocessors: device.num_multiprocessors()?,
            attention: function("attention_hopper")?,
            log_sums: function("log_sums_hopper")?,
            combine: Combine::new(device, head_dim)?,
            head_dim,
        })
    }

    /// Returns true if the device has the instructions: later GPUs do not.
    ///
    /// # Errors
    /// If the device fails.
    pub fn runs_on(device: &Device) -> Result<bool, DeviceError> {
        Ok(device.capability()? == 90)
    }

    /// Returns true if the kernels are compiled for heads of `head_dim` elements.
    #[must_use]
    pub fn computes(head_dim: usize) -> bool {
        matches!(head_dim, 64 | 128)
    }

    /// Returns the tokens of a tile when `group` query heads share a key head.
    ///
    /// # Panics
    /// If there are more than 64.
    #[must_use]
    pub fn tile_tokens(group: usize) -> usize {
        assert!((1..=MAX_GROUP).contains(&group), "a group of up to {MAX_GROUP} heads");
        TILE_ROWS / group
    }

    /// Returns the number of parts into which to divide the keys of `num_tiles` tiles over up to `max_context` positions, so that a launch
    /// fills the GPU.
    #[must_use]
    pub fn num_splits(&self, num_tiles: usize, num_kv_heads: usize, max_context: usize) -> usize {
        num_splits(self.num_multiprocessors, num_tiles * num_kv_heads, max_context)
    }

    /// Allocates room for the parts of any launch divided into [`Self::num_splits`].
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn partials(&self, head_dim: usize) -> Result<Partials, DeviceError> {
        Partials::new(&self.device, self.num_multiprocessors * TILE_ROWS, head_dim)
    }

    /// Computes `out[row] = softmax(scale * q Kᵀ) V` for the rows of all tiles; rows at position `j` or later see key `j`.
    ///
    /// `out` is `[rows][num_heads * head_dim]`, `lse` (natural logarithm of the sum of exponentials) `[rows][num_heads]`; rows outside the
    /// tiles are not changed. The content of slots beyond the last position of a tile does not matter. The bits of a row do not depend on
    /// the rows beside it.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn run(
        &self,
        paged: &PagedQueries<'_>,
        list: &TileList<'_>,
        out: &mut CudaSlice<bf16>,
        lse: Option<&mut CudaSlice<f32>>,
    ) -> Result<(), DeviceError> {
        list.check(paged, Some(out), lse.as_deref());
        let stream = self.device.stream();
        let written = Written { out: pointer(out, stream), lse: lse.map_or(0, |lse| pointer(lse, stream)), ..Written::default() };
        self.launch(&self.attention, paged, list, 1, written)
    }

    /// Computes the `lse` of [`Self::run`] alone, for which values are not read.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn log_sums(&self, paged: &PagedQueries<'_>, list: &TileList<'_>, lse: &mut CudaSlice<f32>) -> Result<(), DeviceError> {
        list.check(paged, None, Some(lse));
        let written = Written { lse: pointer(lse, self.device.stream()), ..Written::default() };
        self.launch(&self.log_sums, paged, list, 1, written)
    }

    /// Runs as [`Self::run`], with the keys of each tile divided into `num_splits` parts: for few tiles over many keys. `partials` has room
    /// for tiles × tokens of a tile × query heads × splits.
    ///
    /// # Errors
    /// If a launch fails.
    pub fn run_split(
        &self,
        paged: &PagedQueries<'_>,
        list: &TileList<'_>,
        (num_splits, partials): (usize, &mut Partials),
        out: &mut CudaSlice<bf16>,
        lse: Option<&mut CudaSlice<f32>>,
    ) -> Result<(), DeviceError> {
        if num_splits == 1 {
            return self.run(paged, list, out, lse);
        }
        list.check(paged, Some(out), lse.as_deref());
        let tile_tokens = Self::tile_tokens(paged.group());
        let slots = list.num_tiles * tile_tokens;
        partials.check(slots * paged.num_heads * num_splits, paged.head_dim);
        let stream = self.device.stream();
        let (partial_sums, partial_stats) = (pointer(&mut partials.sums, stream), pointer(&mut partials.stats, stream));
        let written = Written { partial_sums, partial_stats, ..Written::default() };
        self.launch(&self.attention, paged, list, num_splits, written)?;
        let tiles = TileSlots { tiles: list.tiles.slice(..), tile_tokens };
        self.combine.run(partials, (slots, num_splits), Some(&tiles), paged.num_heads, out, lse)
    }

    fn launch(
        &self,
        function: &CudaFunction,
        paged: &PagedQueries<'_>,
        list: &TileList<'_>,
        num_splits: usize,
        written: Written,
    ) -> Result<(), DeviceError> {
        assert!(paged.head_dim == self.head_dim && paged.is_causal(), "heads as compiled for, no window");
        let stream = self.device.stream();
        let queries = TensorMap::of_queries(paged, list.num_rows, Self::tile_tokens(paged.group()), stream)?;
        let (keys, values) = (TensorMap::of_pool(paged, &paged.keys, stream)?, TensorMap::of_pool(paged, &paged.values, stream)?);
        let arguments = Arguments {
            positions: address(&paged.positions, stream),
            tiles: address(&list.tiles, stream),
            block_tables: address(&paged.block_tables, stream),
            written,
            sizes: paged.sizes(),
            num_tiles: list.num_tiles as i32,
            num_splits: num_splits as i32,
        };
        let num_items = list.num_tiles * paged.num_kv_heads * num_splits;
        let grid = (num_items.min(self.num_multiprocessors), 1, 1);
        let mut call = stream.launch_builder(function);
        call.arg(&queries).arg(&keys).arg(&values).arg(&arguments);
        // SAFETY: layer, rows and outputs lie in their buffers, as asserted; that tiles name rows below `num_rows` and tables whose
        // blocks lie in the pool is the caller's promise, kept where tables are made.
        unsafe { call.launch(launch(grid, THREADS, shared_bytes(paged.head_dim))) }?;
        Ok(())
    }
}

/// Maximum number of splits of a tile. Measured with 16 rows at 32k: more are slower to combine than they save.
const MAX_SPLITS: usize = 32;
/// Minimum number of key tiles per split. Measured with 16 rows at 8k.
const MIN_KEY_TILES: usize = 2;

/// Returns the number of splits. Only launches that leave multiprocessors idle are divided: measured, the combination costs more than an
/// uneven last round.
fn num_splits(num_multiprocessors: usize, num_items: usize, max_context: usize) -> usize {
    let most = max_context.div_ceil(MIN_KEY_TILES * TILE_KEYS).clamp(1, MAX_SPLITS);
    (num_multiprocessors / num_items.max(1)).clamp(1, most)
}

/// As in `attention_hopper.cu`.
#[repr(C)]
struct Arguments {
    positions: u64,
    tiles: u64,
    block_tables: u64,
    written: Written,
    sizes: Sizes,
    num_tiles: i32,
    num_splits: i32,
}

/// Addresses that a launch writes to; 0 if there is nothing to write.
#[derive(Default)]
#[repr(C)]
struct Written {
    out: u64,
    lse: u64,
    partial_sums: u64,
    partial_stats: u64,
}

// SAFETY: the struct of the same name in the source.
unsafe impl DeviceRepr for Arguments {}

fn pointer<T>(slice: &mut CudaSlice<T>, stream: &Arc<CudaStream>) -> u64 {
    slice.device_ptr_mut(stream).0
}

/// Returns the bytes of a tile of queries, the buffers of keys and values, their barriers, and alignment to a multiple of 1024.
const fn shared_bytes(head_dim: usize) -> usize {
    (TILE_ROWS + 2 * STAGES * TILE_KEYS) * head_dim * size_of::<bf16>() + (2 + 4 * STAGES) * size_of::<u64>() + 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{PagedWorld, device};
    use crate::cuda::tiles;

    /// Compares rows and their lse with the CPU's, unsplit and in parts.
    #[track_caller]
    fn check(head_dim: usize, (num_heads, num_kv_heads): (usize, usize), sequences: &[Vec<u32>]) {
        let world = PagedWorld { head_dim, num_heads, num_kv_heads, sequences: sequences.to_vec(), window: u32::MAX };
        let device = device();
        let (attention, on_device) = (AttentionHopper::new(&device, head_dim).unwrap(), world.upload(&device));
        let tile_tokens = AttentionHopper::tile_tokens(num_heads / num_kv_heads);
        let list = tiles(&world.sequence_rows(), tile_tokens);
        let on_device_list = device.upload(&list).unwrap();
        let list = TileList { tiles: on_device_list.as_view(), num_tiles: list.len(), num_rows: world.num_rows() };
        let (expected, expected_lse) = world.expected();
        for num_splits in [1, 3, 8] {
            let case = format!("{num_heads}/{num_kv_heads} heads of {head_dim}, {num_splits} splits");
            let parts = list.num_tiles * tile_tokens * num_heads * num_splits;
            let mut partials = Partials::new(&device, parts, head_dim).unwrap();
            let mut run = |lse: Option<&mut CudaSlice<f32>>| {
                let mut out = device.upload(&vec![bf16::NAN; expected.len()]).unwrap();
                attention.run_split(&on_device.paged(&world), &list, (num_splits, &mut partials), &mut out, lse).unwrap();
                device.download(&out).unwrap()
            };
            let mut lse = device.upload(&vec![f32::NAN; expected_lse.len()]).unwrap();
            let out = run(Some(&mut lse));
            world.assert_rows(&out, &expected, &case);
            world.assert_lse(&device.download(&lse).unwrap(), &expected_lse, &case);
            let mut alone = device.upload(&vec![f32::NAN; expected_lse.len()]).unwrap();
            attention.log_sums(&on_device.paged(&world), &list, &mut alone).unwrap();
            world.assert_lse(&device.download(&alone).unwrap(), &expected_lse, &case);
            let bits = |out: &[bf16]| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&out) == bits(&run(None)), "{case}: the same bits every time");
        }
    }

    fn whole(len: u32) -> Vec<u32> {
        (0..len).collect()
    }

    #[test]
    fn only_what_leaves_multiprocessors_idle_is_divided() {
        assert_eq!(num_splits(132, 4, 32768), 32);
        assert_eq!(num_splits(132, 4, 8192), 26);
        assert_eq!(num_splits(132, 4, 100), 1);
        assert_eq!(num_splits(132, 60, 8192), 2);
        assert_eq!(num_splits(132, 184, 8192), 1);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_a_whole_prompt_is_the_cpus() {
        for len in [1, 31, 100, 160, 257] {
            check(128, (7, 1), &[whole(len)]);
            check(64, (9, 3), &[whole(len)]);
        }
        check(128, (28, 4), &[whole(1000)]);
        check(64, (14, 2), &[whole(1000)]);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_a_chunk_goes_on_at_an_offset() {
        check(128, (14, 2), &[(333..600).collect()]);
        check(64, (6, 2), &[(127..260).collect()]);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_scattered_rows_see_their_past_only() {
        let rows = vec![0, 5, 31, 32, 33, 63, 64, 90, 159, 160, 200, 201, 319, 700];
        for heads in [(14, 2), (2, 2), (4, 2), (3, 1), (64, 1), (20, 1)] {
            check(64, heads, std::slice::from_ref(&rows));
            check(128, heads, std::slice::from_ref(&rows));
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_sequences_of_one_launch_are_apart() {
        let sequences = [whole(130), vec![700], (64..90).collect(), vec![3, 128, 129, 500], whole(1)];
        check(128, (28, 4), &sequences);
        check(64, (4, 4), &sequences);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_more_items_than_multiprocessors() {
        let sequences: Vec<Vec<u32>> = (0..60).map(|i| (i..2 * i + 1).collect()).collect();
        check(128, (12, 6), &sequences);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_hopper_bits_of_a_row_do_not_depend_on_the_rows_beside_it() {
        let device = device();
        let attention = AttentionHopper::new(&device, 128).unwrap();
        let sequences = vec![(100..500).collect()];
        let world = PagedWorld { head_dim: 128, num_heads: 14, num_kv_heads: 2, sequences, window: u32::MAX };
        let on_device = world.upload(&device);
        let width = world.num_heads * world.head_dim;
        let mut rows = Vec::new();
        // Whole tiles, and tiles of one token each.
        for tile_tokens in [AttentionHopper::tile_tokens(7), 1] {
            let list = device.upload(&tiles(&world.sequence_rows(), tile_tokens)).unwrap();
            let list = TileList { tiles: list.as_view(), num_tiles: list.len(), num_rows: world.num_rows() };
            let mut out = device.upload(&vec![bf16::NAN; world.num_rows() * width]).unwrap();
            attention.run(&on_device.paged(&world), &list, &mut out, None).unwrap();
            rows.push(device.download(&out).unwrap());
        }
        assert!(rows[0] == rows[1] && rows[0].iter().all(|x| x.is_finite()), "batch variant");
    }
}
