//! Attention received from contiguous rows, on Hopper.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, DevicePtrMut, DeviceRepr, PushKernelArg};

use super::device::{Device, DeviceError, launch};
use super::paged::{PagedQueries, Sizes};
use super::query_rows::QueryRows;
use super::tensor_map::{TensorMap, address};

/// Keys of an item, query rows processed at a time, their buffers, threads: as in `received_hopper.cu`.
const TILE_KEYS: usize = 128;
const TILE_ROWS: usize = 160;
const STAGES: usize = 3;
const THREADS: usize = 384;
/// Minimum number of row tiles per share that pays for reading the keys. Chosen.
const SHARE_TILES: usize = 4;

/// First half of [`super::AttentionReceived::add`], with the copy engine and the warpgroup products of compute capability 9.0.
pub(super) struct ReceivedHopper {
    receive: CudaFunction,
    num_multiprocessors: usize,
}

/// As in `received_hopper.cu`.
#[repr(C)]
struct Arguments {
    positions: u64,
    table: u64,
    lse: u64,
    partial: u64,
    sizes: Sizes,
    first_row: i32,
    num_rows: i32,
    len: i32,
    num_shares: i32,
}

// SAFETY: the struct of the same name in the source.
unsafe impl DeviceRepr for Arguments {}

impl ReceivedHopper {
    pub(super) fn new(device: &Arc<Device>, head_dim: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            receive: device.function("received_hopper", &format!("receive_hopper_{head_dim}"), shared_bytes(head_dim))?,
            num_multiprocessors: device.num_multiprocessors()?,
        })
    }

    /// Writes the sums of each of several shares of the rows, which begin at row `first_row`, to `scratch`; returns the number of shares,
    /// at most `max_shares`. Lengths have been checked.
    pub(super) fn run(
        &self,
        device: &Device,
        paged: &PagedQueries<'_>,
        query_rows: &QueryRows<'_>,
        first_row: usize,
        (max_shares, scratch): (usize, &mut CudaSlice<f32>),
    ) -> Result<usize, DeviceError> {
        let (stream, tile_tokens) = (device.stream(), TILE_ROWS / paged.group());
        assert!(
            tile_tokens > 0 && first_row + query_rows.num_rows <= paged.positions.len(),
            "a token's heads fit a tile, and rows the batch"
        );
        let units = query_rows.len.div_ceil(TILE_KEYS) * paged.num_kv_heads;
        let num_tiles = query_rows.num_rows.div_ceil(tile_tokens);
        let num_shares = (2 * self.num_multiprocessors / units).min(num_tiles / SHARE_TILES).clamp(1, max_shares);
        let queries = TensorMap::of_queries(paged, paged.positions.len(), tile_tokens, stream)?;
        let keys = TensorMap::of_pool(paged, &paged.keys, stream)?;
        let arguments = Arguments {
            positions: address(&paged.positions.slice(first_row..), stream),
            table: address(&paged.block_tables.slice(query_rows.table * paged.max_blocks..), stream),
            lse: address(&query_rows.lse.slice(first_row * paged.num_heads..), stream),
            partial: scratch.device_ptr_mut(stream).0,
            sizes: paged.sizes(),
            first_row: first_row as i32,
            num_rows: query_rows.num_rows as i32,
            len: query_rows.len as i32,
            num_shares: num_shares as i32,
        };
        let grid = (units * num_shares).min(self.num_multiprocessors);
        let mut call = stream.launch_builder(&self.receive);
        call.arg(&queries).arg(&keys).arg(&arguments);
        // SAFETY: rows and sums lie in their buffers, as asserted here and by the caller, who promises that the table covers `len`
        // positions with blocks of the pool.
        unsafe { call.launch(launch((grid, 1, 1), THREADS, shared_bytes(paged.head_dim))) }?;
        Ok(num_shares)
    }
}

/// Returns the bytes of a tile of keys, the buffers of query rows, their barriers, and alignment to a multiple of 1024.
const fn shared_bytes(head_dim: usize) -> usize {
    (TILE_KEYS + STAGES * TILE_ROWS) * head_dim * size_of::<u16>() + (2 + 2 * STAGES) * size_of::<u64>() + 1024
}
