//! The hash chain that names full blocks of tokens.
//!
//! A block's hash covers its scope, all blocks before it and its own tokens, so equal hashes mean equal causal past.
//! 64 bits are enough because every hit is confirmed by comparing tokens: a collision costs a miss, never a wrong answer.

use crate::{BlockSize, CacheSalt, TokenId};

/// Name of a full block together with its whole left context and its scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(pub u64);

/// Hashes of the blocks that `tokens` fill completely, first to last. A trailing partial block has none.
#[must_use]
pub fn hash_full_blocks(salt: CacheSalt, tokens: &[TokenId], block_size: BlockSize) -> Vec<BlockHash> {
    let mut parent = None;
    tokens
        .chunks_exact(block_size.as_usize())
        .map(|block| {
            let hash = hash_next_block(salt, parent, block);
            parent = Some(hash);
            hash
        })
        .collect()
}

/// Hash of one full block that follows `parent`, or that starts a sequence.
#[must_use]
pub fn hash_next_block(salt: CacheSalt, parent: Option<BlockHash>, block: &[TokenId]) -> BlockHash {
    let start = parent.map_or(mix(salt.0 ^ SEED), |parent| parent.0);
    BlockHash(block.iter().fold(start, |state, token| mix(state ^ u64::from(token.0))))
}

/// Any odd-looking constant: it keeps the hash of an empty scope from being zero.
const SEED: u64 = 0x6b76_7368_6172_6521;

/// Finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", fig. 19).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(salt: u64, ids: &[u32]) -> Vec<BlockHash> {
        let tokens: Vec<_> = ids.iter().copied().map(TokenId).collect();
        hash_full_blocks(CacheSalt(salt), &tokens, BlockSize::new(2).unwrap())
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
        let all = hashes(5, &[1, 2, 3, 4]);
        assert_eq!(hash_next_block(CacheSalt(5), Some(all[0]), &[TokenId(3), TokenId(4)]), all[1]);
    }
}
