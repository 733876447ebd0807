//! Attention that each position of a sequence receives from some of its rows.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, PushKernelArg};

use super::attention_hopper::AttentionHopper;
use super::device::{Device, DeviceError, launch};
use super::paged::{PagedQueries, check_head_dim};
use super::query_rows::QueryRows;
use super::received_hopper::ReceivedHopper;

/// `WARPS` of `received.cu`.
const THREADS: usize = 128;
/// Keys of a thread block.
const TILE_KEYS: usize = 128;
/// Query rows (row times head of its group) processed at a time, `TILE_ROWS` of `received.cu`.
const TILE_ROWS: usize = 64;
/// Maximum number of shares of the rows. Chosen: with 16, a short sequence still fills the GPU, and sums stay small beside the keys.
const MAX_SHARES: usize = 16;
/// Minimum number of row tiles per share that pays for reading the keys into registers. Chosen.
const SHARE_TILES: usize = 8;

/// Device version of [`crate::cpu::add_attention_received`].
pub struct AttentionReceived {
    device: Arc<Device>,
    receive: CudaFunction,
    add_partials: CudaFunction,
    /// Hopper version, if the GPU has its instructions; without windows.
    hopper: Option<ReceivedHopper>,
    head_dim: usize,
    num_multiprocessors: usize,
}

impl AttentionReceived {
    /// Loads the functions for heads of `head_dim` elements: 64, 128 or 256.
    ///
    /// # Errors
    /// If the device cannot run them.
    pub fn new(device: &Arc<Device>, head_dim: usize) -> Result<Self, DeviceError> {
        check_head_dim(head_dim);
        let has_hopper = AttentionHopper::runs_on(device)? && AttentionHopper::computes(head_dim);
        Ok(Self {
            device: Arc::clone(device),
            receive: device.function("received", &format!("receive_{head_dim}"), shared_bytes(head_dim))?,
            add_partials: device.function("received", "add_partials", 0)?,
            hopper: if has_hopper { Some(ReceivedHopper::new(device, head_dim)?) } else { None },
            head_dim,
            num_multiprocessors: device.num_multiprocessors()?,
        })
    }

    /// Returns the elements of scratch for sequences of up to `len` positions.
    #[must_use]
    pub fn scratch_len(num_kv_heads: usize, len: usize) -> usize {
        MAX_SHARES * num_kv_heads * len
    }

    /// Computes `received[p] += Σ over rows and heads of exp(scale * q k_p - lse[row, head])` for positions `p < len` that a row sees.
    ///
    /// `scratch` has room for [`Self::scratch_len`] elements. The sums are always added in the same order.
    ///
    /// # Errors
    /// If a launch fails.
    pub fn add(
        &self,
        paged: &PagedQueries<'_>,
        query_rows: QueryRows<'_>,
        scratch: &mut CudaSlice<f32>,
        received: &mut CudaSlice<f32>,
    ) -> Result<(), DeviceError> {
        paged.check(0);
        assert_eq!(paged.head_dim, self.head_dim, "heads have the size that the functions are compiled for");
        assert!(
            query_rows.num_rows > 0 && query_rows.num_rows <= query_rows.rows.len() && query_rows.len > 0,
            "rows lie in their list"
        );
        assert!((query_rows.table + 1) * paged.max_blocks <= paged.block_tables.len(), "the sequence has a table");
        assert!(Self::scratch_len(paged.num_kv_heads, query_rows.len) <= scratch.len(), "every share has sums");
        assert!(query_rows.len <= received.len(), "every position has a sum");
        let shares = match (&self.hopper, query_rows.run) {
            (Some(hopper), Some(first_row)) if paged.is_causal() => {
                hopper.run(&self.device, paged, &query_rows, first_row, (MAX_SHARES, scratch))?
            }
            _ => self.receive(paged, &query_rows, scratch)?,
        };
        let (len, num_partials) = (query_rows.len as i32, (shares * paged.num_kv_heads) as i32);
        let mut call = self.device.stream().launch_builder(&self.add_partials);
        call.arg(&*scratch).arg(&num_partials).arg(received).arg(&len);
        // SAFETY: both buffers hold every position, as asserted.
        unsafe { call.launch(launch((query_rows.len.div_ceil(THREADS), 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// Writes the sums of each of several shares of the rows; returns the number of shares.
    fn receive(
        &self,
        paged: &PagedQueries<'_>,
        query_rows: &QueryRows<'_>,
        scratch: &mut CudaSlice<f32>,
    ) -> Result<usize, DeviceError> {
        let (stream, sizes) = (self.device.stream(), paged.sizes());
        let units = query_rows.len.div_ceil(TILE_KEYS) * paged.num_kv_heads;
        let num_tiles = (query_rows.num_rows * paged.group()).div_ceil(TILE_ROWS);
        let shares = (8 * self.num_multiprocessors / units).min(num_tiles / SHARE_TILES).clamp(1, MAX_SHARES);
        let (num_rows, len) = (query_rows.num_rows as i32, query_rows.len as i32);
        let table = paged.block_tables.slice(query_rows.table * paged.max_blocks..);
        let mut call = stream.launch_builder(&self.receive);
        call.arg(paged.queries).arg(query_rows.rows).arg(&num_rows).arg(&paged.positions).arg(query_rows.lse);
        call.arg(&table).arg(&paged.keys).arg(&sizes).arg(scratch).arg(&len);
        let grid = (query_rows.len.div_ceil(TILE_KEYS), paged.num_kv_heads, shares);
        // SAFETY: the layer lies in the pool, sums in their buffers, as asserted; that the list contains rows of the batch and the table
        // covers them with blocks of the pool is the caller's promise.
        unsafe { call.launch(launch(grid, THREADS, shared_bytes(paged.head_dim))) }?;
        Ok(shares)
    }
}

/// Returns the bytes of two stages of query rows.
fn shared_bytes(head_dim: usize) -> usize {
    2 * TILE_ROWS * head_dim * size_of::<u16>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{PagedWorld, assert_close, device};

    /// Compares the attention given by every third row of the second sequence, and by all its rows, with the CPU's.
    #[track_caller]
    fn check(head_dim: usize, num_heads: usize, num_kv_heads: usize, positions: &[u32]) {
        let third: Vec<usize> = (0..positions.len()).step_by(if positions.len() > 3 { 3 } else { 1 }).collect();
        let all: Vec<usize> = (0..positions.len()).collect();
        for window in [u32::MAX, 1, 33, 200] {
            let world = |positions: &[u32]| {
                let sequences = vec![vec![0, 40], positions.to_vec()];
                PagedWorld { head_dim, num_heads, num_kv_heads, sequences, window }
            };
            check_rows(&world(positions), &third, None);
            check_rows(&world(positions), &all, Some(2));
            check_rows(&world(positions), &all[positions.len() / 2..], Some(2 + positions.len() / 2));
        }
    }

    #[track_caller]
    fn check_rows(world: &PagedWorld, chosen: &[usize], run: Option<usize>) {
        let (device, lse) = (device(), world.expected().1);
        let (num_kv_heads, positions) = (world.num_kv_heads, &world.sequences[1]);
        let received = AttentionReceived::new(&device, world.head_dim).unwrap();
        let (on_device, lse) = (world.upload(&device), device.upload(&lse).unwrap());
        let len = positions[*chosen.last().unwrap()] as usize + 1;
        let rows: Vec<u32> = chosen.iter().map(|i| *i as u32 + 2).collect();
        let rows = device.upload(&rows).unwrap();
        let query_rows = QueryRows { rows: &rows.as_view(), run, num_rows: chosen.len(), lse: &lse, table: 1, len };
        let mut scratch = device.upload(&vec![f32::NAN; AttentionReceived::scratch_len(num_kv_heads, len)]).unwrap();
        let mut sums = device.upload(&vec![1f32; len + 5]).unwrap();
        received.add(&on_device.paged(world), query_rows, &mut scratch, &mut sums).unwrap();
        let sums = device.download(&sums).unwrap();
        let expected = world.received(1, chosen, len);
        let less_one: Vec<f32> = sums[..len].iter().map(|sum| sum - 1.0).collect();
        assert_close(&less_one, &expected, 2e-3);
        assert_eq!(sums[len..], [1.0; 5]);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_attention_received_is_the_cpus() {
        for (num_heads, num_kv_heads) in [(14, 2), (2, 2), (4, 2), (9, 3), (40, 1)] {
            check(64, num_heads, num_kv_heads, &(0..130).collect::<Vec<_>>());
            check(128, num_heads, num_kv_heads, &(100..777).collect::<Vec<_>>());
            check(128, num_heads, num_kv_heads, &[0, 5, 31, 32, 33, 63, 64, 90, 200, 201, 319, 700]);
            check(256, num_heads, num_kv_heads, &[0, 5, 31, 32, 33, 63, 64, 90, 200, 201, 319, 700]);
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_one_row_gives_once_per_head() {
        check(128, 28, 4, &[70]);
        check(64, 2, 2, &[0]);
    }
}
