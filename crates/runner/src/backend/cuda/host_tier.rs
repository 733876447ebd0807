//! The host tier: blocks on their way to it and from it, and copies of blocks that stand behind them.
//!
//! Layers are computed while blocks of those behind them are on their way. A copy of a block, as at the end of every prompt that is known
//! to its last token, would wait for all of its layers: beside transfers it is made layer by layer, as they arrive.

use engine::{BlockFetch, BlockOffload, Transfer};
use kernels::cuda::{CudaSlice, Device, DeviceError, HostPool, Pool, Spans};

/// Chosen: one to two milliseconds on a link of 48 GB/s each way.
const LONG_TRANSFER_BYTES: usize = 64 << 20;

/// Main memory for blocks, and what is pending.
pub(super) struct HostTier {
    blocks: HostPool,
    late: Vec<LateCopies>,
}

/// Copies of blocks, each its source, its destination and how many slots, that were launched in the layers before `next_layer`.
struct LateCopies {
    copies: CudaSlice<[u32; 3]>,
    next_layer: usize,
}

impl HostTier {
    pub(super) fn new(blocks: HostPool) -> Self {
        Self { blocks, late: Vec::new() }
    }

    /// Whether launches are behind all transfers, and no copy is left to be launched behind them.
    pub(super) fn is_idle(&self) -> bool {
        self.blocks.is_idle()
    }

    /// Whether transfers take longer than it takes to launch a step's kernels one by one, so that its first layers had better not wait for
    /// all of them.
    pub(super) fn is_long(&self) -> bool {
        self.blocks.pending_bytes() > LONG_TRANSFER_BYTES
    }

    /// Begins to copy blocks to the host.
    pub(super) fn offload(&mut self, spans: &Spans, pool: &mut Pool, offloads: &[BlockOffload]) -> Result<(), DeviceError> {
        let pairs: Vec<_> = offloads.iter().map(|offload| (offload.src.0, offload.dst.0)).collect();
        self.launch_before(&pairs, spans, pool)?;
        self.blocks.begin_offload(pool, &pairs)
    }

    /// Begins to copy blocks from the host. Returns what the fetch before took, if it has ended since it was asked for.
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

    /// Leaves copies of blocks to those who wait for layers. Transfers are pending.
    pub(super) fn copy_later(&mut self, device: &Device, copies: &[[u32; 3]]) -> Result<(), DeviceError> {
        assert!(!self.is_idle(), "nobody waits for transfers any more");
        self.late.push(LateCopies { copies: device.upload(copies)?, next_layer: 0 });
        Ok(())
    }

    /// What is launched from now on finds `layer` and those before it as all that was begun leaves them.
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

    /// The same for all layers.
    pub(super) fn wait_for_all(&mut self, spans: &Spans, pool: &mut Pool) -> Result<(), DeviceError> {
        self.wait_for_layer(spans, pool, pool.shape().num_layers - 1)
    }

    /// Before blocks begin to move, copies are launched that still stand behind others.
    fn launch_before(&mut self, pairs: &[(u32, u32)], spans: &Spans, pool: &mut Pool) -> Result<(), DeviceError> {
        if pairs.is_empty() || self.late.is_empty() { Ok(()) } else { self.wait_for_all(spans, pool) }
    }
}
