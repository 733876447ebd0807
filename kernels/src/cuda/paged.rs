//! Inputs of attention kernels: query rows of a batch, block tables, and one layer of the KV pool.

use cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use half::bf16;

/// Positions per block of the pool; `BLOCK` of `common.cuh`.
pub(super) const BLOCK: usize = 32;

/// Query rows, and the keys and values they may attend to.
pub struct PagedQueries<'a> {
    /// Rows of `row_stride` elements, each beginning with `num_heads * head_dim` of rotated queries.
    pub queries: &'a CudaSlice<bf16>,
    /// Elements from one row to the next; a multiple of 8.
    pub row_stride: usize,
    /// Position of each row.
    pub positions: CudaView<'a, u32>,
    /// Number of query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Factor of the scores, positive; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// `[tables][max_blocks]`: block of positions `32 i ..`.
    pub block_tables: CudaView<'a, u32>,
    /// Number of blocks a table has room for.
    pub max_blocks: usize,
    /// Rotated keys of the pool, `[num_layers][num_blocks][num_kv_heads][32][head_dim]`.
    pub keys: CudaView<'a, bf16>,
    /// Values of the pool, in the same layout.
    pub values: CudaView<'a, bf16>,
    /// Layer of the pool.
    pub layer: usize,
    /// Number of blocks of a layer.
    pub num_blocks: usize,
    /// Number of key and value heads.
    pub num_kv_heads: usize,
    /// Elements per head: 64, 128 or 256.
    pub head_dim: usize,
    /// Number of last positions that a row attends to, its own among them; at least 1, `u32::MAX` for all.
    pub window: u32,
}

/// Panics if no kernel of attention is compiled for heads of `head_dim` elements.
pub(super) fn check_head_dim(head_dim: usize) {
    assert!(matches!(head_dim, 64 | 128 | 256), "kernels are compiled for heads of 64, 128 and 256 elements");
}

/// Sizes passed to kernels with the buffers, `Sizes` of `paged.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    q_stride: i32,
    max_blocks: i32,
    layer: i32,
    num_blocks: i32,
    num_heads: i32,
    num_kv_heads: i32,
    window: i32,
    scale: f32,
}

// SAFETY: eight fields of four bytes in C's order, no padding.
unsafe impl DeviceRepr for Sizes {}

impl PagedQueries<'_> {
    /// Returns the number of query heads that share a key head.
    ///
    /// # Panics
    /// If the heads do not divide evenly.
    #[must_use]
    pub fn group(&self) -> usize {
        let group = self.num_heads / self.num_kv_heads;
        assert!(group > 0 && group * self.num_kv_heads == self.num_heads, "query heads share key heads evenly");
        group
    }

    /// True if rows attend to all positions up to their own.
    pub(super) fn is_causal(&self) -> bool {
        self.window == u32::MAX
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            q_stride: self.row_stride as i32,
            max_blocks: self.max_blocks as i32,
            layer: self.layer as i32,
            num_blocks: self.num_blocks as i32,
            num_heads: self.num_heads as i32,
            num_kv_heads: self.num_kv_heads as i32,
            window: i32::try_from(self.window).unwrap_or(i32::MAX),
            scale: self.scale,
        }
    }

    /// Asserts that the layer lies in the pool, and `num_rows` rows in the batch.
    pub(super) fn check(&self, num_rows: usize) {
        assert!(self.group() <= 64, "a group of up to 64 heads");
        check_head_dim(self.head_dim);
        assert!(self.window > 0, "a row attends to itself");
        let pool = (self.layer + 1) * self.num_blocks * self.num_kv_heads * BLOCK * self.head_dim;
        assert!(pool <= self.keys.len() && pool <= self.values.len(), "the layer lies in the pool");
        assert!(
            self.row_stride >= self.num_heads * self.head_dim && self.row_stride.is_multiple_of(8),
            "rows hold their queries"
        );
        assert!(num_rows * self.row_stride <= self.queries.len() && num_rows <= self.positions.len(), "rows lie in the batch");
        assert!(self.scale > 0.0 && self.scale.is_finite(), "a larger product is a larger weight");
    }
}
