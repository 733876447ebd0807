//! Metrics of the host tier of the KV pool and of transfers to and from it.

use metrics::{Counter, Gauge};

use super::registrar::Registrar;

/// Series of the host tier; without one they stay 0.
pub(super) struct HostMetrics {
    block_bytes: u64,
    /// Used and free blocks.
    blocks: [Gauge; 2],
    bandwidth: Gauge,
    /// Blocks and bytes transferred to the host, and back.
    transfers: [(Counter, Counter); 2],
}

impl HostMetrics {
    pub(super) fn new(registrar: &Registrar, block_bytes: u64) -> Self {
        let state = |state| registrar.gauge("kvshare_host_kv_blocks", "Blocks of the host tier by state.", &[("state", state)]);
        let transfer = |direction| {
            let counter = |name, help| registrar.counter(name, help, &[("direction", direction)]);
            let blocks =
                counter("kvshare_host_kv_transfers_total", "Blocks that went to the host tier (offload) and came back (fetch).");
            let bytes = counter("kvshare_host_kv_transfer_bytes_total", "Bytes of those blocks.");
            (blocks, bytes)
        };
        Self {
            block_bytes,
            blocks: ["used", "free"].map(state),
            bandwidth: registrar.gauge(
                "kvshare_host_kv_bandwidth_bytes_per_second",
                "Bandwidth of fetches as measured lately, or as configured before that.",
                &[],
            ),
            transfers: ["offload", "fetch"].map(transfer),
        }
    }

    pub(super) fn observe(&self, stats: &engine::EngineStats) {
        let engine::HostStats { used, total, offloads, fetches } = stats.host;
        for (gauge, count) in self.blocks.iter().zip([used, total - used]) {
            gauge.set(count as f64);
        }
        for ((blocks, bytes), count) in self.transfers.iter().zip([offloads, fetches]) {
            blocks.absolute(count);
            bytes.absolute(count * self.block_bytes);
        }
        self.bandwidth.set(stats.host_bandwidth);
    }
}
