//! Attention of rows in tiles, by the kernel that is best on the chip.

use std::sync::Arc;

use kernels::cuda::{Attention, AttentionHopper, CudaSlice, Device, DeviceError, PagedQueries, PrefillAttention, TileList, bf16};

use super::decoder::StepRows;

/// Compute capability of Hopper, whose kernel uses instructions no other chip has.
const HOPPER: u32 = 90;

/// Attention of many rows of a sequence.
pub(super) enum Prefill {
    /// On an H100 or its kin.
    Hopper(AttentionHopper),
    /// On any chip with tensor cores for bf16.
    Portable(Attention),
}

impl Prefill {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        Ok(match device.capability()? {
            HOPPER => Self::Hopper(AttentionHopper::new(device)?),
            _ => Self::Portable(Attention::new(device)?),
        })
    }

    /// Tokens of a tile where `group` query heads share a key head.
    pub(super) fn tile_tokens(&self, group: usize) -> usize {
        match self {
            Self::Hopper(_) => AttentionHopper::tile_tokens(group),
            Self::Portable(_) => Attention::tile_tokens(group),
        }
    }

    /// `out[row] = softmax(scale * q Kᵀ) V` for the rows of all tiles.
    pub(super) fn run(
        &self,
        paged: &PagedQueries<'_>,
        rows: &StepRows<'_>,
        out: &mut CudaSlice<bf16>,
        lse: Option<&mut CudaSlice<f32>>,
    ) -> Result<(), DeviceError> {
        match self {
            Self::Hopper(kernel) => kernel.attend(&hopper(paged, rows), out, lse),
            Self::Portable(kernel) => {
                let list = TileList { tiles: rows.tiles.slice(..), num_tiles: rows.num_tiles, num_rows: rows.num_rows };
                kernel.run(paged, &list, out, lse)
            }
        }
    }
}

fn hopper<'a>(paged: &PagedQueries<'a>, rows: &StepRows<'a>) -> PrefillAttention<'a> {
    PrefillAttention {
        q: paged.queries,
        q_stride: paged.row_stride,
        positions: paged.positions.slice(..),
        tiles: rows.tiles.slice(..),
        num_tiles: rows.num_tiles,
        block_tables: paged.block_tables.slice(..),
        max_blocks: paged.max_blocks,
        keys: paged.keys,
        values: paged.values,
        layer: paged.layer,
        num_blocks: paged.num_blocks,
        num_heads: paged.num_heads,
        num_kv_heads: paged.num_kv_heads,
        head_dim: paged.head_dim,
        scale: paged.scale,
    }
}
