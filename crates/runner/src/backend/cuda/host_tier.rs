//! The host tier: pending block transfers to and from it, and block copies that are ordered after them.
//!
//! Layers are computed while blocks of later layers are in transfer. A copy of a block, as at the end of every prompt whose last token is
//! cached, would wait for all of its layers: while transfers are pending it is made layer by layer, as they arrive.

use engine::{BlockFetch, BlockOffload, Transfer};
use kernels::cuda::{CudaSlice, Device, DeviceError, HostPool, Pool, Spans};

/// Chosen: one to two milliseconds on a link of 48 GB/s each way.
const LONG_TRANSFER_BYTES: usize = 64 << 20;

/// Main memory for blocks, and pending copies.
pub(super) struct HostTier {
    blocks: HostPool,
    late: Vec<LateCopies>,
}

/// Copies of blocks (source, destination, number of slots) that were launched for the layers before `next_layer`.
struct LateCopies {
    copies: CudaSlice<[u32; 3]>,
    next_layer: usize,
}

impl HostTier {
    pub(super) fn new(blocks: HostPool) -> Self {
        Self { blocks, late: Vec::new() }
    }

    /// Returns true if launches are ordered after all transfers, and no late copy is pending.
    pub(super) fn is_idle(&self) -> bool {
        self.blocks.is_idle()
    }

    /// Returns true if transfers take longer than launching a step's kernels one by one, so that its first layers should not wait for all
    /// of them.
    pub(super) fn is_long(&self) -> bool {
        self.blocks.pending_bytes() > LONG_TRANSFER_BYTES
    }

    /// Starts copying blocks to the host.
    pub(super) fn offload(&mut self, spans: &Spans, pool: &mut Pool, offloads: &[BlockOffload]) -> Result<(), DeviceError> {
        let pairs: Vec<_> = offloads.iter().map(|offload| (offload.src.0, offload.dst.0)).collect();
        self.launch_before(&pairs, spans, pool)?;
        self.blocks.begin_offload(pool, &pairs)
    }

    /// Starts copying blocks from the host. Returns the timing of the previous fetch, if it has ended since it was started.
    pub(super) fn fetch(
        &mut self,
        spans: &Spans,
        pool: &mut Pool,
        fetches: &[BlockFetch],
    ) -> Result<Option<Transfer>, DeviceError> {
        let pairs: Vec<_> = fetches.iter().map(|fetch| (fetch.src.0, fetch.dst.0)).collect();
        let before = self.blocks.take_timing()?;
        self.launch_before(&pairs, spans, pool)?;
        self.blocks.begin_fetch(pool, &pairs)?;
        Ok(before.map(|(bytes, seconds)| Transfer { bytes, seconds }))
    }

    /// Defers copies of blocks until layers arrive. Transfers must be pending.
    pub(super) fn copy_later(&mut self, device: &Device, copies: &[[u32; 3]]) -> Result<(), DeviceError> {
        assert!(!self.is_idle(), "nobody waits for transfers any more");
        self.late.push(LateCopies { copies: device.upload(copies)?, next_layer: 0 });
        Ok(())
    }

    /// Orders later launches after all transfers and copies of `layer` and of those before it.
    pub(super) fn wait_for_layer(&mut self, spans: &Spans, pool: &mut Pool, layer: usize) -> Result<(), DeviceError> {
        if self.is_idle() {
            return Ok(());
        }
        let num_ready = self.blocks.wait_for_layer(pool, layer)?;
        for late in &mut self.late {
            spans.copy_blocks(pool, late.next_layer..num_ready, &late.copies.as_view())?;
            late.next_layer = num_ready;
        }
        if self.is_idle() {
            self.late.clear();
        }
        Ok(())
    }

    /// Orders later launches after those of all layers.
    pub(super) fn wait_for_all(&mut self, spans: &Spans, pool: &mut Pool) -> Result<(), DeviceError> {
        self.wait_for_layer(spans, pool, pool.shape().num_layers - 1)
    }

    /// Launches pending late copies that involve these blocks before the blocks are transferred.
    fn launch_before(&mut self, pairs: &[(u32, u32)], spans: &Spans, pool: &mut Pool) -> Result<(), DeviceError> {
        if pairs.is_empty() || self.late.is_empty() { Ok(()) } else { self.wait_for_all(spans, pool) }
    }
}
