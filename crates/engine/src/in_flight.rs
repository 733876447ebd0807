//! Blocks and spans that running sequences are about to make findable.
//!
//! Requests with a common prompt often arrive together. Without this, each of them would compute it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use tokens::{BlockHash, DonorId, RequestId};

use crate::Request;

/// Full blocks and prompts being computed, and by whom.
///
/// Of blocks, a hash alone is enough: a collision makes somebody wait for a prefill that ends, and nothing else.
pub(crate) struct InFlight {
    computing: HashMap<BlockHash, RequestId>,
    /// Prompts that will be donors, by the request's own number.
    prompts: semantic::SpanIndex,
}

impl InFlight {
    pub(crate) fn new(prompts: semantic::SpanIndexConfig) -> Self {
        Self { computing: HashMap::new(), prompts: semantic::SpanIndex::new(prompts) }
    }

    /// `request_id` will compute these; those that somebody else computes already stay theirs.
    pub(crate) fn insert(&mut self, request_id: RequestId, hashes: &[BlockHash]) {
        for &hash in hashes {
            self.computing.entry(hash).or_insert(request_id);
        }
    }

    /// `request_id` has computed these, or never will. Those that nobody computes any more are told.
    pub(crate) fn remove(&mut self, request_id: RequestId, hashes: &[BlockHash], mut on_removed: impl FnMut(BlockHash)) {
        for &hash in hashes {
            if self.computing.get(&hash) == Some(&request_id) {
                self.computing.remove(&hash);
                on_removed(hash);
            }
        }
    }

    /// The last one of `hashes`, a chain, that is being computed without a gap behind its first one.
    pub(crate) fn last_of(&self, hashes: &[BlockHash]) -> Option<BlockHash> {
        let &first = hashes.first().filter(|&&hash| self.contains(hash))?;
        let num_computing = hashes.partition_point(|&hash| self.contains(hash));
        Some(num_computing.checked_sub(1).map_or(first, |last| hashes[last]))
    }

    fn contains(&self, hash: BlockHash) -> bool {
        self.computing.contains_key(&hash)
    }

    /// This prompt will be computed exactly, so that it may give spans.
    pub(crate) fn insert_prompt(&mut self, request: &Request) {
        let evicted = self.prompts.insert(request.scope, as_donor(request.request_id), request.prompt_token_ids.clone());
        drop(evicted); // They are computed twice, and nothing else.
    }

    /// The prompt of `request_id` was computed, or never will be.
    pub(crate) fn remove_prompt(&mut self, request_id: RequestId) {
        self.prompts.remove(as_donor(request_id));
    }

    /// Whether the prompt of `request_id` is still being computed.
    pub(crate) fn contains_prompt(&self, request_id: RequestId) -> bool {
        self.prompts.tokens_of(as_donor(request_id)).is_some()
    }

    /// The request that is computing most tokens of `query`, at any offset, and how many of them.
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
