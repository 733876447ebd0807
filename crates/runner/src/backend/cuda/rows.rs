//! Rows of a step on the device, and the moved tokens that follow them.

use std::ops::Range;

use kernels::cuda::{CudaSlice, CudaView, DecodePart, DriftTargets, PagedQueries, Pool, Tile, Upload, bf16};

use crate::ModelSpec;

/// Rows of a step on the device.
pub(super) struct StepRows<'a> {
    pub(super) num_rows: usize,
    pub(super) token_ids: CudaView<'a, u32>,
    pub(super) positions: CudaView<'a, u32>,
    pub(super) slots: CudaView<'a, u32>,
    /// `[sequences, max_blocks]`
    pub(super) tables: CudaView<'a, u32>,
    pub(super) max_blocks: usize,
    /// Number of single-row sequences, which are rows `0..num_single`.
    pub(super) num_single: usize,
    /// Parts of their keys.
    pub(super) parts: CudaView<'a, DecodePart>,
    /// Tiles of all other rows.
    pub(super) tiles: CudaView<'a, Tile>,
    pub(super) num_tiles: usize,
}

/// Moved tokens that follow the rows of a step.
pub(super) struct Followers<'a> {
    /// Row of `differences` that each row of the step fills; -1 for none.
    pub(super) rows: CudaView<'a, i32>,
    pub(super) differences: &'a mut CudaSlice<f32>,
    pub(super) targets: DriftTargets<'a>,
}

/// Ranges of the arrays of a step in the upload buffer.
#[derive(Default)]
pub(super) struct UploadedStep {
    pub(super) num_rows: usize,
    pub(super) max_blocks: usize,
    pub(super) num_single: usize,
    pub(super) ranges: [Range<usize>; 5],
    pub(super) parts: Range<usize>,
    /// Tiles of wanted rows, and the list of these rows; empty if all rows are wanted.
    pub(super) last_tiles: Range<usize>,
    pub(super) wanted: Range<usize>,
    /// Kept row of each row; empty if no row resumes from one.
    pub(super) kept: Range<usize>,
}

impl UploadedStep {
    /// Returns the same rows with tiles for the wanted ones alone.
    pub(super) fn last<'a>(&self, upload: &'a Upload) -> StepRows<'a> {
        let tiles = upload.view(self.last_tiles.clone());
        StepRows { num_tiles: tiles.len(), tiles, ..self.on(upload) }
    }

    /// Returns the rows in `upload`, to which they were uploaded.
    pub(super) fn on<'a>(&self, upload: &'a Upload) -> StepRows<'a> {
        let [token_ids, positions, slots, tables, tiles] = self.ranges.clone();
        let tiles = upload.view(tiles);
        StepRows {
            num_rows: self.num_rows,
            token_ids: upload.words(token_ids),
            positions: upload.words(positions),
            slots: upload.words(slots),
            tables: upload.words(tables),
            max_blocks: self.max_blocks,
            num_single: self.num_single,
            parts: upload.view(self.parts.clone()),
            num_tiles: tiles.len(),
            tiles,
        }
    }
}

/// Ranges of the arrays of followers in the upload buffer.
pub(super) struct UploadedFollowers {
    pub(super) ranges: [Range<usize>; 5],
}

impl UploadedFollowers {
    /// Returns the tokens in `extra`, to which they were uploaded.
    pub(super) fn on<'a>(&self, extra: &'a Upload, differences: &'a mut CudaSlice<f32>) -> Followers<'a> {
        let [rows, tiles, positions, slots, weights] = self.ranges.clone();
        Followers {
            rows: extra.view(rows),
            differences,
            targets: DriftTargets {
                tiles: extra.view(tiles),
                positions: extra.words(positions),
                slots: extra.words(slots),
                weights: extra.view(weights),
            },
        }
    }
}

/// Returns the queries of one layer, with the keys and values that they attend to.
pub(super) fn paged_queries<'a>(
    config: &ModelSpec,
    layer: usize,
    qkv: &'a CudaSlice<bf16>,
    rows: &'a StepRows<'a>,
    pool: &'a Pool,
) -> PagedQueries<'a> {
    PagedQueries {
        queries: qkv,
        row_stride: config.qkv_width(),
        positions: rows.positions.slice(..),
        num_heads: config.num_heads,
        scale: config.attention_scale,
        block_tables: rows.tables.slice(..),
        max_blocks: rows.max_blocks,
        keys: pool.keys(),
        values: pool.values(),
        layer,
        num_blocks: pool.shape().num_blocks,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        window: config.layers[layer].mask.window(),
    }
}
