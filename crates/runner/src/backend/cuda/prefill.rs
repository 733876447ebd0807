//! Attention of rows in tiles, by the kernel that is fastest on the GPU.

use std::sync::Arc;

use kernels::cuda::{Attention, AttentionHopper, CudaSlice, Device, DeviceError, PagedQueries, Partials, TileList, bf16};

use super::rows::StepRows;
use super::step::BLOCK;

/// Attention of many rows of a sequence.
pub(super) enum Prefill {
    /// H100 and its family, for models without windows; few rows are computed in parts.
    Hopper(Box<AttentionHopper>, Partials),
    /// Any GPU with bf16 tensor cores.
    Portable(Attention),
}

impl Prefill {
    /// Loads the kernel for heads of `head_dim` elements; `has_windows` if some layers attend within a window.
    pub(super) fn new(device: &Arc<Device>, head_dim: usize, has_windows: bool) -> Result<Self, DeviceError> {
        if !AttentionHopper::runs_on(device)? || !AttentionHopper::computes(head_dim) || has_windows {
            return Ok(Self::Portable(Attention::new(device, head_dim)?));
        }
        let kernel = AttentionHopper::new(device, head_dim)?;
        let partials = kernel.partials(head_dim)?;
        Ok(Self::Hopper(Box::new(kernel), partials))
    }

    /// Returns the tokens of a tile if `group` query heads share a key head.
    pub(super) fn tile_tokens(&self, group: usize) -> usize {
        match self {
            Self::Hopper(..) => AttentionHopper::tile_tokens(group),
            Self::Portable(_) => Attention::tile_tokens(group),
        }
    }

    /// Computes the `lse` of [`Self::run`]; may overwrite `out`.
    pub(super) fn log_sums(
        &mut self,
        paged: &PagedQueries<'_>,
        rows: &StepRows<'_>,
        out: &mut CudaSlice<bf16>,
        lse: &mut CudaSlice<f32>,
    ) -> Result<(), DeviceError> {
        match self {
            Self::Hopper(kernel, _) => kernel.log_sums(paged, &list_of(rows), lse),
            Self::Portable(_) => self.run(paged, rows, out, Some(lse)),
        }
    }

    /// Computes `out[row] = softmax(scale * q Kᵀ) V` for the rows of all tiles.
    pub(super) fn run(
        &mut self,
        paged: &PagedQueries<'_>,
        rows: &StepRows<'_>,
        out: &mut CudaSlice<bf16>,
        lse: Option<&mut CudaSlice<f32>>,
    ) -> Result<(), DeviceError> {
        let list = list_of(rows);
        match self {
            Self::Hopper(kernel, partials) => {
                let num_splits = kernel.num_splits(rows.num_tiles, paged.num_kv_heads, rows.max_blocks * BLOCK);
                kernel.run_split(paged, &list, (num_splits, partials), out, lse)
            }
            Self::Portable(kernel) => kernel.run(paged, &list, out, lse),
        }
    }
}

fn list_of<'a>(rows: &'a StepRows<'_>) -> TileList<'a> {
    TileList { tiles: rows.tiles.slice(..), num_tiles: rows.num_tiles, num_rows: rows.num_rows }
}
