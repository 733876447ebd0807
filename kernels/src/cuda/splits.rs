//! Division of a row's keys among blocks of threads, where rows alone do not fill the GPU.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};
use super::paged::BLOCK;
use super::tiles::Tile;

/// Threads a block, `WARPS` of `combine_attention.cu`.
const THREADS: usize = 128;

/// Into how many parts the keys of a row are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Most parts a row has; fixed in a captured graph.
    pub count: usize,
    /// A row has only so many parts that each holds this many blocks of 32 keys, its last excepted.
    pub min_blocks: usize,
}

impl Splits {
    /// Every row whole.
    pub const NONE: Self = Self { count: 1, min_blocks: 1 };

    /// Most parts of a row, `MAX_SPLITS` of `decode_attention.cu`.
    pub const MAX: usize = 128;

    /// Parts for a decode step of `num_rows` rows of up to `max_context` positions, on `num_multiprocessors`.
    #[must_use]
    pub fn for_decode(num_rows: usize, num_kv_heads: usize, num_multiprocessors: usize, max_context: usize) -> Self {
        let (units, places) = ((num_rows * num_kv_heads).max(1), 2 * num_multiprocessors);
        let min_blocks = match places / units {
            0 | 1 => 32,
            2..=7 => 8,
            _ => 4,
        };
        Self { count: cheapest_count(units, places, max_context.div_ceil(BLOCK), min_blocks), min_blocks }
    }

    /// Parts for a launch of `num_tiles` tiles over up to `max_context` positions; one when the tiles fill the GPU.
    #[must_use]
    pub fn for_tiles(num_tiles: usize, num_kv_heads: usize, num_multiprocessors: usize, max_context: usize) -> Self {
        let (units, places) = ((num_tiles * num_kv_heads).max(1), 2 * num_multiprocessors);
        Self { count: (places / units).min(max_context.div_ceil(8 * BLOCK)).clamp(1, Self::MAX), min_blocks: 1 }
    }
}

/// Time of a block of threads before its first key and behind its last, in blocks of 32 keys. Measured by the example
/// `paged_attention_speed`.
const START_BLOCKS: usize = 2;

/// The count with the least time when `units` equal rows of `blocks` blocks are computed by `places` blocks of threads at a time.
fn cheapest_count(units: usize, places: usize, blocks: usize, min_blocks: usize) -> usize {
    let time = |count: usize| {
        let combine = if count > 1 { START_BLOCKS } else { 0 };
        (units * count).div_ceil(places) * (blocks.div_ceil(count) + START_BLOCKS) + combine
    };
    let most = blocks.div_ceil(min_blocks).clamp(1, Splits::MAX);
    let least = (1..=most).map(time).min().unwrap_or(0);
    // Fewer parts that take hardly longer save memory and empty parts of shorter rows.
    (1..=most).find(|count| time(*count) * 32 <= least * 33).unwrap_or(1)
}

/// Room for what parts of rows give before they are combined.
pub struct Partials {
    pub(super) sums: CudaSlice<f32>,
    /// Maximum and total of each part.
    pub(super) stats: CudaSlice<f32>,
    /// Parts of a row and head of keys that are done; zero between launches.
    pub(super) arrived: CudaSlice<u32>,
}

impl Partials {
    /// Room for `num_parts` rows × query heads × splits of `head_dim` numbers.
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

/// Adds up parts.
pub(super) struct Combine {
    device: Arc<Device>,
    combine_64: CudaFunction,
    combine_128: CudaFunction,
}

impl Combine {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        let function = |name| device.function("combine_attention", name, 0);
        Ok(Self { device: Arc::clone(device), combine_64: function("combine_64")?, combine_128: function("combine_128")? })
    }

    /// `slots` rows of `(num_heads, head_dim)`, each of `num_splits` parts; the caller has asserted that parts and rows fit.
    pub(super) fn run(
        &self,
        partials: &Partials,
        (slots, num_splits): (usize, usize),
        tiles: Option<&TileSlots<'_>>,
        (num_heads, head_dim): (usize, usize),
        out: &mut CudaSlice<bf16>,
        lse: Option<&mut CudaSlice<f32>>,
    ) -> Result<(), DeviceError> {
        let function = if head_dim == 64 { &self.combine_64 } else { &self.combine_128 };
        let (num_splits, none) = (num_splits as i32, 0u64);
        let tile_tokens = tiles.map_or(1, |tiles| tiles.tile_tokens as i32);
        let mut call = self.device.stream().launch_builder(function);
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

    #[track_caller]
    fn check(num_rows: usize, max_context: usize, expected: std::ops::RangeInclusive<usize>) {
        let splits = Splits::for_decode(num_rows, 4, 132, max_context);
        assert!(expected.contains(&splits.count), "{num_rows} rows of {max_context}: {splits:?}");
    }

    #[test]
    fn few_rows_are_divided_until_the_gpu_is_full() {
        check(1, 32768, 60..=66);
        check(1, 1024, 8..=8);
        check(8, 4096, 7..=8);
    }

    #[test]
    fn many_rows_stay_nearly_whole() {
        check(256, 1024, 1..=1);
        check(128, 1024, 1..=1);
        check(256, 32, 1..=1);
    }

    #[test]
    fn tiles_that_fill_the_gpu_are_not_divided() {
        assert_eq!(Splits::for_tiles(100, 4, 132, 32768).count, 1);
        assert_eq!(Splits::for_tiles(4, 4, 132, 32768).count, 16);
        assert_eq!(Splits::for_tiles(4, 4, 132, 200).count, 1);
    }
}
