//! Blocks that running sequences are about to make findable.
//!
//! Requests with a common prompt often arrive together. Without this, each of them would compute it.

use std::collections::HashMap;

use tokens::{BlockHash, RequestId};

/// Full blocks being computed, and by whom.
///
/// A hash alone is enough: a collision makes somebody wait for a prefill that ends, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    computing: HashMap<BlockHash, RequestId>,
}

impl InFlight {
    /// `request_id` will compute these; those that somebody else computes already stay theirs.
    pub(crate) fn insert(&mut self, request_id: RequestId, hashes: &[BlockHash]) {
        for &hash in hashes {
            self.computing.entry(hash).or_insert(request_id);
        }
    }

    /// `request_id` has computed these, or never will.
    pub(crate) fn remove(&mut self, request_id: RequestId, hashes: &[BlockHash]) {
        for hash in hashes {
            if self.computing.get(hash) == Some(&request_id) {
                self.computing.remove(hash);
            }
        }
    }

    pub(crate) fn contains(&self, hash: BlockHash) -> bool {
        self.computing.contains_key(&hash)
    }
}
