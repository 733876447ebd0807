//! Selects the blocks that are worth offloading to the host tier and fetching from it.

use kv::Place;

use super::Scheduler;
use super::admission::prefix_end;
use crate::host::FetchGate;

impl Scheduler {
    /// Updates the minimum depth from which evicted blocks go to the host tier.
    pub(super) fn update_min_offload_depth(&mut self) {
        if self.config.host.num_blocks == 0 {
            return;
        }
        let block_size = self.config.block_size.get();
        let pays = |depth: u32| self.fetch_gate().pays(1, block_size, (depth + 1) * block_size);
        let (mut low, mut high) = (0, self.config.max_model_len.div_ceil(block_size));
        // Deeper blocks take longer to compute, so after one that pays all do.
        while low < high {
            let middle = low.midpoint(high);
            if pays(middle) { high = middle } else { low = middle + 1 }
        }
        self.pool.set_min_host_depth(low);
    }

    pub(super) fn fetch_gate(&self) -> FetchGate<'_> {
        FetchGate { step_costs: &self.step_costs, link: &self.host_link }
    }

    /// Trims `prefix` to what is worth fetching: the leading blocks that save most, and a part of one more if its copy pays.
    pub(super) fn drop_unworthy(&self, prefix: &mut kv::PrefixMatch) {
        if self.step_costs.is_fitted() && prefix.blocks.iter().any(|place| place.is_host()) {
            prefix.truncate(self.num_worthy(&prefix.blocks), self.config.block_size);
        }
        if let Some(kv::PartialMatch { block: Place::Host(_), num_tokens }) = prefix.partial
            && !self.fetch_gate().pays(1, num_tokens as u32, prefix_end(prefix))
        {
            prefix.partial = None;
        }
    }

    /// Returns the number of leading `blocks` that together save most, compared with computing them.
    fn num_worthy(&self, blocks: &[Place]) -> usize {
        let block_size = self.config.block_size.get();
        let mut saved = 0.0;
        let (mut most_saved, mut num_worthy) = (0.0, 0);
        for (place, num_blocks) in blocks.iter().zip(1..) {
            saved += self.fetch_gate().saved_micros(place.is_host().into(), block_size, num_blocks * block_size);
            if saved >= most_saved {
                (most_saved, num_worthy) = (saved, num_blocks as usize);
            }
        }
        num_worthy
    }
}
