//! Tokens that behave like a trace's: equal blocks have equal tokens, and different blocks differ from their first token on.

use std::sync::Arc;

use tokens::{RequestId, TokenId};

use crate::{BLOCK_TOKENS, TraceRequest};

/// Bit set in generated tokens only, so that no answer looks like a prompt.
const GENERATED: u32 = 1 << 31;

/// Makes the prompt of `request`, with its last block padded.
///
/// The pool holds whole blocks only, while a trace names a partial last block like any other. So the block is padded: the padding takes
/// room in the pool, but costs nothing to compute (see [`crate::SimExecutor`]).
pub(crate) fn padded_prompt(request: &TraceRequest) -> Arc<[TokenId]> {
    request.blocks.iter().flat_map(|&block| block_tokens(block)).collect()
}

/// Returns the tokens of the block called `name`; the first is the name, so two blocks never share even one leading token.
fn block_tokens(name: u32) -> impl Iterator<Item = TokenId> {
    let rest = (1..BLOCK_TOKENS).map(move |i| TokenId(scramble(u64::from(name) << 32 | u64::from(i)) & !GENERATED));
    std::iter::once(TokenId(name & !GENERATED)).chain(rest)
}

/// Returns the token generated for `request` at `position`.
pub(crate) fn generated_token(request: RequestId, position: u32) -> TokenId {
    TokenId(scramble(request.0 << 32 | u64::from(position)) | GENERATED)
}

/// Multiplies and folds: neighbours look unrelated, which is all that these tokens need.
fn scramble(x: u64) -> u32 {
    let x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::trace;

    fn prompt(blocks: &[u32]) -> Vec<TokenId> {
        padded_prompt(&trace(&[(0, blocks, 1)]).requests[0]).to_vec()
    }

    #[test]
    fn equal_names_give_equal_tokens_and_others_differ_at_once() {
        let size = BLOCK_TOKENS as usize;
        let (a, b) = (prompt(&[1, 2, 3]), prompt(&[1, 4, 3]));
        assert_eq!(a.len(), 3 * size);
        assert_eq!(a[..size], b[..size]);
        assert_ne!(a[size], b[size]);
        assert_eq!(a[2 * size..], b[2 * size..]);
    }

    #[test]
    fn no_generated_token_is_a_prompt_token() {
        assert!(prompt(&[7]).iter().all(|token| token.0 < GENERATED));
        assert!((0..600).all(|position| generated_token(RequestId(3), position).0 >= GENERATED));
    }
}
