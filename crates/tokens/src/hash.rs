//! Hash chain that names full blocks of tokens.
//!
//! A block's hash covers its scope, all blocks before it and its own tokens, so equal hashes mean equal causal past.
//! 64 bits are enough because every hit is confirmed by comparing tokens: a collision costs a miss, never a wrong answer.

use crate::splitmix::{splitmix64, unsplitmix64};
use crate::{BlockSize, Scope, TokenId};

/// Name of a full block together with its whole left context and its scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(pub u64);

/// Chain of a sequence's full blocks without a scope: tokens are hashed once for lookups in any number of scopes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ContentHashes(Box<[u64]>);

impl ContentHashes {
    /// Hashes the blocks that `tokens` fill completely, first to last. A trailing partial block has none.
    #[must_use]
    pub fn of(tokens: &[TokenId], block_size: BlockSize) -> Self {
        let chain = tokens.chunks_exact(block_size.as_usize()).scan(SEED, |state, block| {
            *state = chain_block(*state, block);
            Some(*state)
        });
        Self(chain.collect())
    }

    /// Returns the names of the blocks in `scope`, one mixing step each.
    #[must_use]
    pub fn in_scope(&self, scope: Scope) -> Vec<BlockHash> {
        let key = scope_key(scope);
        self.0.iter().map(|content| BlockHash(splitmix64(content ^ key))).collect()
    }
}

/// Hashes the blocks that `tokens` fill completely, first to last. A trailing partial block has none.
#[must_use]
pub fn hash_full_blocks(scope: Scope, tokens: &[TokenId], block_size: BlockSize) -> Vec<BlockHash> {
    ContentHashes::of(tokens, block_size).in_scope(scope)
}

/// Hashes one full block that follows `parent`, or that starts a sequence.
#[must_use]
pub fn hash_next_block(scope: Scope, parent: Option<BlockHash>, block: &[TokenId]) -> BlockHash {
    let key = scope_key(scope);
    let start = parent.map_or(SEED, |parent| unsplitmix64(parent.0) ^ key);
    BlockHash(splitmix64(chain_block(start, block) ^ key))
}

/// Hashes the content of a block after content `state`. Two tokens at a time: each step waits for the one before.
fn chain_block(state: u64, block: &[TokenId]) -> u64 {
    let (pairs, rest) = block.as_chunks::<2>();
    let state = pairs.iter().fold(state, |state, [a, b]| splitmix64(state ^ (u64::from(a.0) | u64::from(b.0) << 32)));
    rest.iter().fold(state, |state, token| splitmix64(state ^ u64::from(token.0)))
}

fn scope_key(scope: Scope) -> u64 {
    splitmix64(scope.0 ^ SCOPE_SEED)
}

/// Any odd-looking constant: keeps the hash of an empty scope from being zero.
const SEED: u64 = 0x6b76_7368_6172_6521;

/// Seed of scopes, in another domain than first blocks: otherwise a scope and a block of the same number could be exchanged unnoticed.
const SCOPE_SEED: u64 = 0x7363_6f70_655f_6b65;

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(scope: u64, ids: &[u32]) -> Vec<BlockHash> {
        let tokens: Vec<_> = ids.iter().copied().map(TokenId).collect();
        hash_full_blocks(Scope(scope), &tokens, BlockSize::new(2).unwrap())
    }

    #[test]
    fn a_partial_block_has_no_hash() {
        assert_eq!(hashes(0, &[1, 2, 3]).len(), 1);
    }

    #[test]
    fn equal_tokens_behind_another_past_hash_differently() {
        let (a, b) = (hashes(0, &[1, 2, 7, 8]), hashes(0, &[1, 3, 7, 8]));
        assert_ne!(a[1], b[1]);
    }

    #[test]
    fn equal_tokens_in_another_scope_hash_differently() {
        assert_ne!(hashes(1, &[1, 2]), hashes(2, &[1, 2]));
    }

    #[test]
    fn a_chain_is_extended_block_by_block() {
        for scope in [0, 5, u64::MAX] {
            let all = hashes(scope, &[1, 2, 3, 4, 5, 6]);
            assert_eq!(hash_next_block(Scope(scope), None, &[TokenId(1), TokenId(2)]), all[0]);
            assert_eq!(hash_next_block(Scope(scope), Some(all[0]), &[TokenId(3), TokenId(4)]), all[1]);
            assert_eq!(hash_next_block(Scope(scope), Some(all[1]), &[TokenId(5), TokenId(6)]), all[2]);
        }
    }

    #[test]
    fn a_scope_and_a_block_of_the_same_numbers_do_not_change_places() {
        let mut all: Vec<_> = (0..20).flat_map(|scope| (0..20).map(move |token| hashes(scope, &[token, 0])[0])).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 400);
    }

    #[test]
    fn the_order_of_tokens_in_a_block_counts() {
        assert_ne!(hashes(0, &[1, 2]), hashes(0, &[2, 1]));
    }
}
