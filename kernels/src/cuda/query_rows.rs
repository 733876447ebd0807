//! Rows of a sequence that attend.

use cudarc::driver::{CudaSlice, CudaView};

/// Rows of one sequence whose weights are summed.
#[derive(Clone, Copy)]
pub struct QueryRows<'a> {
    /// Rows of the batch, by position.
    pub rows: &'a CudaView<'a, u32>,
    /// First of them, if they are contiguous: that is faster on some GPUs.
    pub run: Option<usize>,
    /// Number of rows.
    pub num_rows: usize,
    /// `[rows of the batch][num_heads]`, as computed by attention.
    pub lse: &'a CudaSlice<f32>,
    /// The sequence's row of the block tables.
    pub table: usize,
    /// Position of the last row plus one.
    pub len: usize,
}
