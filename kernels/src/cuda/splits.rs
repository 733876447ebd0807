//! Division of a row's keys among thread blocks, if the rows alone do not fill the GPU.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};
use super::paged::BLOCK;
use super::tiles::Tile;

/// Threads per block, `WARPS` of `combine_attention.cu`.
const THREADS: usize = 128;

/// Maximum number of splits of a launch over tiles. Chosen: beyond it the combination costs more than the keys.
const MAX_SPLITS: usize = 64;
/// Minimum number of blocks of 32 keys per split. Chosen.
const MIN_BLOCKS: usize = 8;

/// Returns the number of parts into which the keys of `num_tiles` tiles over up to `max_context` positions are divided; 1 when the tiles
/// fill the GPU.
#[must_use]
pub fn num_splits(num_tiles: usize, num_kv_heads: usize, num_multiprocessors: usize, max_context: usize) -> usize {
    let (units, places) = ((num_tiles * num_kv_heads).max(1), 2 * num_multiprocessors);
    (places / units).min(max_context.div_ceil(MIN_BLOCKS * BLOCK)).clamp(1, MAX_SPLITS)
}

/// Buffers for the partial results of rows before they are combined.
pub struct Partials {
    pub(super) sums: CudaSlice<f32>,
    /// Maximum and total of each part.
    pub(super) stats: CudaSlice<f32>,
    /// Number of finished parts of a row and key head; zero between launches.
    pub(super) arrived: CudaSlice<u32>,
}

impl Partials {
    /// Allocates room for `num_parts` parts of one query head each, of `head_dim` elements: rows (or [`super::DecodePart::most`]) times
    /// heads (times splits).
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn new(device: &Device, num_parts: usize, head_dim: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            sums: device.zeros(num_parts * head_dim)?,
            stats: device.zeros(2 * num_parts)?,
            arrived: device.zeros(num_parts)?,
        })
    }

    /// Asserts that so many parts fit.
    pub(super) fn check(&self, num_parts: usize, head_dim: usize) {
        assert!(num_parts * head_dim <= self.sums.len() && 2 * num_parts <= self.stats.len(), "all parts fit");
    }
}

/// Tiles that the parts belong to, if not one row each.
pub(super) struct TileSlots<'a> {
    pub(super) tiles: CudaView<'a, Tile>,
    pub(super) tile_tokens: usize,
}

/// Combines parts of heads of one size.
pub(super) struct Combine {
    device: Arc<Device>,
    function: CudaFunction,
}

impl Combine {
    pub(super) fn new(device: &Arc<Device>, head_dim: usize) -> Result<Self, DeviceError> {
        let function = device.function("combine_attention", &format!("combine_{head_dim}"), 0)?;
        Ok(Self { device: Arc::clone(device), function })
    }

    /// Combines `slots` rows of `num_heads` heads, each of `num_splits` parts; the caller has asserted that parts and rows fit.
    pub(super) fn run(
        &self,
        partials: &Partials,
        (slots, num_splits): (usize, usize),
        tiles: Option<&TileSlots<'_>>,
        num_heads: usize,
        out: &mut CudaSlice<bf16>,
        lse: Option<&mut CudaSlice<f32>>,
    ) -> Result<(), DeviceError> {
        let (num_splits, none) = (num_splits as i32, 0u64);
        let tile_tokens = tiles.map_or(1, |tiles| tiles.tile_tokens as i32);
        let mut call = self.device.stream().launch_builder(&self.function);
        call.arg(&partials.sums).arg(&partials.stats).arg(&num_splits);
        match tiles {
            Some(tiles) => call.arg(&tiles.tiles),
            None => call.arg(&none),
        };
        call.arg(&tile_tokens).arg(out);
        match lse {
            Some(lse) => call.arg(lse),
            None => call.arg(&none),
        };
        // SAFETY: parts of all slots lie in `partials` and were written or have a total of zero; rows lie in the outputs.
        unsafe { call.launch(launch((num_heads, slots, 1), THREADS, 0)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_that_fill_the_gpu_are_not_divided() {
        assert_eq!(num_splits(100, 4, 132, 32768), 1);
        assert_eq!(num_splits(4, 4, 132, 32768), 16);
        assert_eq!(num_splits(4, 4, 132, 200), 1);
    }
}
