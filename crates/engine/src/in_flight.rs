//! Blocks and prompts that running sequences are computing and that later requests can reuse.
//!
//! Requests with a common prompt often arrive together. Without this index, each of them would compute it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use tokens::{BlockHash, DonorId, RequestId};

use crate::Request;

/// Full blocks and prompts being computed, with the request that computes each.
///
/// A hash alone identifies a block: a collision only makes a request wait for a prefill that ends.
pub(crate) struct InFlight {
    computing: HashMap<BlockHash, RequestId>,
    /// Prompts that will become donors, keyed by request ID.
    prompts: semantic::SpanIndex,
}

impl InFlight {
    pub(crate) fn new(prompts: semantic::SpanIndexConfig) -> Self {
        Self { computing: HashMap::new(), prompts: semantic::SpanIndex::new(prompts) }
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
        let evicted = self.prompts.insert(request.scope, as_donor(request.request_id), request.prompt_token_ids.clone());
        drop(evicted); // Requests that share an evicted prompt compute it twice; nothing else happens.
    }

    /// Removes the prompt of `request_id`, computed or cancelled.
    pub(crate) fn remove_prompt(&mut self, request_id: RequestId) {
        self.prompts.remove(as_donor(request_id));
    }

    /// True if the prompt of `request_id` is still being computed.
    pub(crate) fn contains_prompt(&self, request_id: RequestId) -> bool {
        self.prompts.tokens_of(as_donor(request_id)).is_some()
    }

    /// Finds the request that is computing most tokens of `query`, at any offset, and the number of these tokens.
    pub(crate) fn find_spans(&self, query: &semantic::SpanQuery<'_>) -> Option<(RequestId, u32)> {
        let mut found: BTreeMap<DonorId, u32> = BTreeMap::new();
        for span in self.prompts.search(query, |_| u32::MAX).matches {
            *found.entry(span.donor).or_default() += span.num_tokens;
        }
        let most = found.into_iter().max_by_key(|&(donor, num_tokens)| (num_tokens, Reverse(donor)))?;
        Some((RequestId(most.0.0), most.1.min(query.tokens.len() as u32 - query.from)))
    }

    /// True if no prompt is being computed that could give spans.
    pub(crate) fn has_no_prompt(&self) -> bool {
        self.prompts.is_empty()
    }
}

fn as_donor(request_id: RequestId) -> DonorId {
    DonorId(request_id.0)
}
