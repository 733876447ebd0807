//! Names and owner of a donor's blocks.

use semantic::Donor;
use tokens::BlockHash;

use super::target::Target;

/// Blocks of a donor, named by their hashes. Does not hold them: the pool may evict them.
pub(super) struct DonorBlocks {
    pub(super) hashes: Box<[BlockHash]>,
    /// Scopes that its own request could read: it may have found its beginning there.
    pub(super) readable: Box<[kv::ReadableScope]>,
    pub(super) owner: kv::BlockOwner,
    /// Number of requests that copied spans of it.
    pub(super) hits: u64,
}

impl DonorBlocks {
    /// Returns the scopes that it could read, of those that `target` may read.
    pub(super) fn readable_by(&self, target: Target<'_>) -> Vec<kv::ReadableScope> {
        self.readable.iter().filter(|readable| target.scopes().any(|scope| scope == readable.scope)).cloned().collect()
    }

    /// Returns the tokens of `donor`, whose blocks these are, and their hashes for the pool, with the scopes `readable`.
    pub(super) fn hashed<'a>(&'a self, donor: &'a Donor, readable: &'a [kv::ReadableScope]) -> kv::HashedTokens<'a> {
        kv::HashedTokens { scope: donor.scope, tokens: &donor.tokens, hashes: &self.hashes, readable }
    }
}
