//! Attention for arbitrary query positions, on tensor cores of any GPU from sm_80 on.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};
use super::paged::{PagedQueries, check_head_dim};
use super::splits::{Combine, Partials, TileSlots};
use super::tiles::Tile;

/// Query rows (token times head of its group) of a tile: 16 per warp.
const TILE_ROWS: usize = 64;
/// `WARPS` of `attention.cu`.
const THREADS: usize = 128;

/// Device version of [`crate::cpu::attention()`] for heads of one size.
pub struct Attention {
    device: Arc<Device>,
    function: CudaFunction,
    combine: Combine,
    head_dim: usize,
}

/// Tiles of one launch, made by [`super::tiles()`] with [`Attention::tile_tokens`].
pub struct TileList<'a> {
    /// Tiles on the device.
    pub tiles: CudaView<'a, Tile>,
    /// Number of tiles.
    pub num_tiles: usize,
    /// Number of rows of the batch: tiles lie in `0..num_rows`.
    pub num_rows: usize,
}

impl TileList<'_> {
    /// Asserts that tiles and rows lie in their buffers.
    pub(super) fn check(&self, paged: &PagedQueries<'_>, out: Option<&CudaSlice<bf16>>, lse: Option<&CudaSlice<f32>>) {
        paged.check(self.num_rows);
        assert!(self.num_tiles > 0 && self.num_tiles <= self.tiles.len(), "tiles lie in their buffer");
        let width = paged.num_heads * paged.head_dim;
        assert!(out.is_none_or(|out| self.num_rows * width <= out.len()), "rows lie in the output");
        assert!(lse.is_none_or(|lse| self.num_rows * paged.num_heads <= lse.len()), "rows lie in the output");
    }
}

/// Target of a launch: rows, or partial results to be combined.
enum Output<'a> {
    Rows(&'a mut CudaSlice<bf16>, Option<&'a mut CudaSlice<f32>>),
    Parts(&'a mut Partials),
}

impl Attention {
    /// Loads the functions for heads of `head_dim` elements: 64, 128 or 256.
    ///
    /// # Errors
    /// If the device cannot run them.
    pub fn new(device: &Arc<Device>, head_dim: usize) -> Result<Self, DeviceError> {
        check_head_dim(head_dim);
        Ok(Self {
            device: Arc::clone(device),
            function: device.function("attention", &format!("attention_{head_dim}"), shared_bytes(head_dim))?,
            combine: Combine::new(device, head_dim)?,
            head_dim,
        })
    }

    /// Returns the tokens of a tile when `group` query heads share a key head.
    ///
    /// # Panics
    /// If a token alone has more rows than a tile.
    #[must_use]
    pub fn tile_tokens(group: usize) -> usize {
        assert!((1..=TILE_ROWS).contains(&group), "a group of up to {TILE_ROWS} heads");
        TILE_ROWS / group
    }

    /// Computes `out[row] = softmax(scale * q Kᵀ) V` for the rows of all tiles; rows at position `j` or later see key `j`, as far as it is
    /// within their window.
    ///
    /// `out` is `[rows][num_heads * head_dim]`, `lse` (natural logarithm of the sum of exponentials) `[rows][num_heads]`; rows outside the
    /// tiles are not changed. Slots of a block beyond the last position of a tile are not read.
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
        self.launch(paged, list, 1, Output::Rows(out, lse))
    }

    /// Runs as [`Self::run`], with the keys of each tile divided into `num_splits` parts: for few tiles over many keys.
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
        self.launch(paged, list, num_splits, Output::Parts(partials))?;
        let tiles = TileSlots { tiles: list.tiles.slice(..), tile_tokens };
        self.combine.run(partials, (slots, num_splits), Some(&tiles), paged.num_heads, out, lse)
    }

    fn launch(
        &self,
        paged: &PagedQueries<'_>,
        list: &TileList<'_>,
        num_splits: usize,
        output: Output<'_>,
    ) -> Result<(), DeviceError> {
        assert_eq!(paged.head_dim, self.head_dim, "heads have the size that the functions are compiled for");
        let (sizes, none) = (paged.sizes(), 0u64);
        let mut call = self.device.stream().launch_builder(&self.function);
        call.arg(paged.queries).arg(&paged.positions).arg(&list.tiles).arg(&paged.block_tables);
        call.arg(&paged.keys).arg(&paged.values).arg(&sizes);
        match output {
            Output::Rows(out, Some(lse)) => call.arg(out).arg(lse).arg(&none).arg(&none),
            Output::Rows(out, None) => call.arg(out).arg(&none).arg(&none).arg(&none),
            Output::Parts(partials) => call.arg(&none).arg(&none).arg(&mut partials.sums).arg(&mut partials.stats),
        };
        let grid = (list.num_tiles, paged.num_kv_heads, num_splits);
        // SAFETY: layer, rows and outputs lie in their buffers, as asserted; that tiles name rows below `num_rows` and tables whose
        // blocks lie in the pool is the caller's promise, kept where tables are made.
        unsafe { call.launch(launch(grid, THREADS, shared_bytes(paged.head_dim))) }?;
        Ok(())
    }
}

/// Returns the keys that a tile processes at once, `TILE_KEYS` of `attention.cu`.
fn tile_keys(head_dim: usize) -> usize {
    if head_dim > 128 { 32 } else { 64 }
}

/// Returns the bytes of two stages of keys and values.
fn shared_bytes(head_dim: usize) -> usize {
    2 * 2 * tile_keys(head_dim) * head_dim * size_of::<bf16>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{PagedWorld, device};
    use crate::cuda::tiles;

    /// Compares rows and their lse with the CPU's, unsplit and in parts.
    #[track_caller]
    fn check(world: &PagedWorld) {
        let device = device();
        let (attention, on_device) = (Attention::new(&device, world.head_dim).unwrap(), world.upload(&device));
        let group = world.num_heads / world.num_kv_heads;
        let list = tiles(&world.sequence_rows(), Attention::tile_tokens(group));
        let on_device_list = device.upload(&list).unwrap();
        let list = TileList { tiles: on_device_list.as_view(), num_tiles: list.len(), num_rows: world.num_rows() };
        let (expected, expected_lse) = world.expected();
        for num_splits in [1, 3, 8] {
            let parts = list.num_tiles * Attention::tile_tokens(group) * world.num_heads * num_splits;
            let mut partials = Partials::new(&device, parts, world.head_dim).unwrap();
            let mut out = device.upload(&vec![bf16::NAN; expected.len()]).unwrap();
            let mut lse = device.upload(&vec![f32::NAN; expected_lse.len()]).unwrap();
            let splits = (num_splits, &mut partials);
            attention.run_split(&on_device.paged(world), &list, splits, &mut out, Some(&mut lse)).unwrap();
            world.assert_rows(&device.download(&out).unwrap(), &expected, &format!("{num_splits} splits"));
            world.assert_lse(&device.download(&lse).unwrap(), &expected_lse, &format!("{num_splits} splits"));
            let mut again = device.upload(&vec![bf16::NAN; expected.len()]).unwrap();
            attention.run_split(&on_device.paged(world), &list, (num_splits, &mut partials), &mut again, None).unwrap();
            let bits = |out: &CudaSlice<bf16>| device.download(out).unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&out) == bits(&again), "the same bits every time");
        }
    }

    fn world(head_dim: usize, num_heads: usize, num_kv_heads: usize, sequences: &[&[u32]]) -> PagedWorld {
        let sequences = sequences.iter().map(|rows| rows.to_vec()).collect();
        PagedWorld { head_dim, num_heads, num_kv_heads, sequences, window: u32::MAX }
    }

    fn whole(len: u32) -> Vec<u32> {
        (0..len).collect()
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_whole_prompt_is_the_cpus() {
        for len in [1, 31, 64, 100, 257] {
            check(&world(128, 7, 1, &[&whole(len)]));
            check(&world(64, 9, 3, &[&whole(len)]));
            check(&world(256, 4, 1, &[&whole(len)]));
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_window_hides_what_lies_left_of_it() {
        let rows = [0, 5, 31, 32, 33, 63, 64, 90, 200, 201, 319];
        for window in [1, 31, 32, 33, 64, 100] {
            for head_dim in [64, 128, 256] {
                check(&PagedWorld { window, ..world(head_dim, 8, 2, &[&whole(257)]) });
                let chunk: Vec<u32> = (100..180).collect();
                check(&PagedWorld { window, ..world(head_dim, 8, 2, &[&rows, &[250], &chunk]) });
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_scattered_rows_see_their_past_only() {
        let rows = [0, 5, 31, 32, 33, 63, 64, 90, 200, 201, 319];
        for (num_heads, num_kv_heads) in [(14, 2), (2, 2), (4, 2), (3, 1), (64, 1), (20, 1)] {
            check(&world(64, num_heads, num_kv_heads, &[&rows]));
            check(&world(128, num_heads, num_kv_heads, &[&rows]));
            check(&world(256, num_heads, num_kv_heads, &[&rows]));
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_sequences_of_one_launch_are_apart() {
        check(&world(128, 28, 4, &[&whole(70), &[250], &[3, 4, 130], &whole(1), &(100..180).collect::<Vec<_>>()]));
    }
}
