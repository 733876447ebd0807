//! Blocks and prompts that running sequences are computing and that later requests can reuse.
//!
//! Requests with a common prompt often arrive together. Without this index, each of them would compute it.

mod prompts;

use std::collections::HashMap;

use tokens::{BlockHash, RequestId};

use self::prompts::PromptsInFlight;
use crate::Request;

/// Full blocks and prompts being computed, with the request that computes each.
///
/// A hash alone identifies a block: a collision only makes a request wait for a prefill that ends.
pub(crate) struct InFlight {
    computing: HashMap<BlockHash, RequestId>,
    prompts: PromptsInFlight,
}

impl InFlight {
    pub(crate) fn new(prompts: semantic::SpanIndexConfig) -> Self {
        Self { computing: HashMap::new(), prompts: PromptsInFlight::new(prompts) }
    }

    /// Registers `hashes` as being computed by `request_id`. Blocks that another request already computes stay with that request.
    pub(crate) fn insert(&mut self, request_id: RequestId, hashes: &[BlockHash]) {
        for &hash in hashes {
            self.computing.entry(hash).or_insert(request_id);
        }
    }

    /// Removes the blocks of `request_id`, computed or cancelled. Calls `on_removed` for each block that was registered to it.
    pub(crate) fn remove(&mut self, request_id: RequestId, hashes: &[BlockHash], mut on_removed: impl FnMut(BlockHash)) {
        for &hash in hashes {
            if self.computing.get(&hash) == Some(&request_id) {
                self.computing.remove(&hash);
                on_removed(hash);
            }
        }
    }

    /// Returns the last of `hashes`, a chain, up to which all blocks are being computed without a gap from the first.
    pub(crate) fn last_of(&self, hashes: &[BlockHash]) -> Option<BlockHash> {
        let &first = hashes.first().filter(|&&hash| self.contains(hash))?;
        let num_computing = hashes.partition_point(|&hash| self.contains(hash));
        Some(num_computing.checked_sub(1).map_or(first, |last| hashes[last]))
    }

    fn contains(&self, hash: BlockHash) -> bool {
        self.computing.contains_key(&hash)
    }

    /// Registers the prompt of `request`, which is computed exactly and may give spans.
    pub(crate) fn insert_prompt(&mut self, request: &Request) {
        self.prompts.insert(request);
    }

    /// Removes the prompt of `request_id`, computed or cancelled.
    pub(crate) fn remove_prompt(&mut self, request_id: RequestId) {
        self.prompts.remove(request_id);
    }

    /// True if the prompt of `request_id` is still being computed.
    pub(crate) fn contains_prompt(&self, request_id: RequestId) -> bool {
        self.prompts.contains(request_id)
    }

    /// Finds the request that is computing most tokens of `query`, at any offset, and the number of these tokens.
    pub(crate) fn find_spans(&self, query: &semantic::SpanQuery<'_>) -> Option<(RequestId, u32)> {
        self.prompts.find_spans(query)
    }

    /// True if no prompt is being computed that could give spans.
    pub(crate) fn has_no_prompt(&self) -> bool {
        self.prompts.is_empty()
    }
}
