//! The host tier, and the time to fetch blocks from it.
//!
//! A fetch pays if recomputing the block takes longer by a margin. The cost of computing is fitted to measured steps (`cost.rs`),
//! the cost of a transfer, here, to measured transfers.

use crate::Transfer;
use crate::cost::{StepCostModel, Work};

/// Settings of the host tier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostConfig {
    /// Blocks that the tier holds; 0 disables it.
    pub num_blocks: u32,
    /// Bytes of one block, all layers.
    pub block_bytes: u64,
    /// Assumed bandwidth from host to device before the first measurement, in 10^9 bytes a second. Finite and positive.
    pub bandwidth: f64,
}

/// Measured transfers from the host.
#[derive(Clone, Debug)]
pub(crate) struct HostLink {
    block_bytes: f64,
    /// Bytes moved and the time it took, newer transfers weighing more.
    bytes: f64,
    seconds: f64,
}

/// Decides between fetching and computing.
#[derive(Clone, Copy)]
pub(crate) struct FetchGate<'a> {
    pub(crate) step_costs: &'a StepCostModel,
    pub(crate) link: &'a HostLink,
}

/// Factor by which recomputing has to take longer than fetching. Chosen: fetches take room and bandwidth of other requests too.
const FETCH_MARGIN: f64 = 1.25;

/// Weight of the configured bandwidth, in bytes. Chosen: one long prompt of a small model outweighs it.
const PRIOR_BYTES: f64 = 16e6;

/// Weight of a transfer relative to the next one. Chosen: some ten are remembered, to follow a link that other processes use too.
const MEMORY: f64 = 0.9;

impl Default for HostConfig {
    /// No tier. The bandwidth is half of that of PCIe 4.0 x16; chosen low, because too low costs some time and is soon corrected.
    fn default() -> Self {
        Self { num_blocks: 0, block_bytes: 1, bandwidth: 16.0 }
    }
}

impl HostLink {
    pub(crate) fn new(config: &HostConfig) -> Self {
        let seconds = PRIOR_BYTES / (config.bandwidth * 1e9);
        Self { block_bytes: config.block_bytes as f64, bytes: PRIOR_BYTES, seconds }
    }

    /// Updates the bandwidth from a transfer. Ignores one that took no time.
    pub(crate) fn observe(&mut self, transfer: Transfer) {
        if transfer.seconds > 0.0 {
            self.bytes = MEMORY * self.bytes + transfer.bytes as f64;
            self.seconds = MEMORY * self.seconds + transfer.seconds;
        }
    }

    /// Measured bandwidth in bytes a second.
    pub(crate) fn bandwidth(&self) -> f64 {
        self.bytes / self.seconds
    }

    /// Predicted microseconds to fetch `num_blocks` blocks.
    pub(crate) fn fetch_micros(&self, num_blocks: usize) -> f64 {
        num_blocks as f64 * self.block_bytes / self.bandwidth() * 1e6
    }
}

impl FetchGate<'_> {
    /// True if fetching `num_blocks` blocks beats computing `num_tokens` tokens that end at position `end`, or if the step costs
    /// are not fitted yet.
    pub(crate) fn pays(&self, num_blocks: usize, num_tokens: u32, end: u32) -> bool {
        !self.step_costs.is_fitted() || self.saved_micros(num_blocks, num_tokens, end) > 0.0
    }

    /// Microseconds that this fetch saves, less the margin.
    pub(crate) fn saved_micros(&self, num_blocks: usize, num_tokens: u32, end: u32) -> f64 {
        let computing = self.step_costs.exact_micros(Work::of_rows(num_tokens, end));
        computing - FETCH_MARGIN * self.link.fetch_micros(num_blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Predicts microseconds for a block of 1 MB over a link of 10 GB/s, after transfers of `(MB, milliseconds)`.
    #[track_caller]
    fn check(transfers: &[(u64, f64)], expected_micros: f64) {
        let mut link = HostLink::new(&HostConfig { num_blocks: 1, block_bytes: 1_000_000, bandwidth: 10.0 });
        for &(megabytes, millis) in transfers {
            link.observe(Transfer { bytes: megabytes * 1_000_000, seconds: millis / 1e3 });
        }
        let micros = link.fetch_micros(1);
        assert!((micros / expected_micros - 1.0).abs() < 0.02, "{micros} and not {expected_micros}");
    }

    #[test]
    fn computing_has_to_take_longer_by_a_margin() {
        let link = HostLink::new(&HostConfig { num_blocks: 1, block_bytes: 1_000_000, bandwidth: 10.0 });
        let mut step_costs = StepCostModel::default();
        assert!(FetchGate { step_costs: &step_costs, link: &link }.pays(1, 1, 1), "nothing is known of steps yet");
        for rows in 0..40 {
            step_costs.observe(Work { rows, ..Work::default() }, 1e3 + 5.0 * rows as f64);
        }
        let gate = FetchGate { step_costs: &step_costs, link: &link };
        assert_eq!([20, 24, 26, 30].map(|num_tokens| gate.pays(1, num_tokens, num_tokens)), [false, false, true, true]);
        assert_eq!([48, 52].map(|num_tokens| gate.pays(2, num_tokens, num_tokens)), [false, true]);
    }

    #[test]
    fn what_was_configured_holds_until_something_was_measured() {
        check(&[], 100.0);
        check(&[(5, 0.0)], 100.0);
    }

    #[test]
    fn what_was_measured_wins() {
        check(&[(1000, 20.0); 3], 20.2);
        check(&[(100, 50.0); 60], 500.0);
    }
}
