//! The fast path of byte-level BPE: pre-tokenize, look each piece up, and merge only pieces not seen before.
//!
//! Text repeats its words, so nearly every piece takes one hash lookup. Merging stays with the `tokenizers` crate, which sees each
//! distinct piece once.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{PoisonError, RwLock};

use tokenizers::{Model, ModelWrapper};
use tokens::TokenId;

use crate::TokenizerError;
use crate::pre_tokenizer::{PreTokenizerKind, Splitter};

/// Pre-tokenizer with a cache of the tokens of each piece.
pub(crate) struct ByteLevelEncoder {
    splitter: Splitter,
    /// Tokens by piece. The lock guards a pure cache: a poisoned one still holds only correct entries.
    cache: RwLock<HashMap<Box<str>, Box<[TokenId]>, ahash::RandomState>>,
    symbols: [char; 256],
}

/// Maximum number of cached pieces; beyond it the cache is cleared. Chosen.
const MAX_CACHED_PIECES: usize = 65_536;
/// Maximum bytes of a piece: merging takes a hundred bytes of memory for each byte of it. Chosen: no word of any language is as long.
const MAX_PIECE_BYTES: usize = 256 << 10;
/// Maximum bytes of a cached piece: longer ones are rare and not worth keeping.
const MAX_CACHED_PIECE_BYTES: usize = 64;

impl ByteLevelEncoder {
    /// Creates an encoder with an empty cache.
    pub(crate) fn new(kind: PreTokenizerKind) -> Self {
        Self { splitter: Splitter::new(kind), cache: RwLock::default(), symbols: byte_symbols() }
    }

    /// Calls `visit` with each piece of `text`, its first byte and its tokens, until it breaks.
    pub(crate) fn encode(
        &self,
        model: &ModelWrapper,
        text: &str,
        mut visit: impl FnMut(usize, &[TokenId]) -> ControlFlow<()>,
    ) -> Result<(), TokenizerError> {
        let mut start = 0;
        while start < text.len() {
            start = match self.visit_cached(text, start, &mut visit) {
                ControlFlow::Continue(start) => start,
                ControlFlow::Break(()) => return Ok(()),
            };
            if start < text.len() {
                let end = self.splitter.piece_end(text, start);
                if visit(start, &self.merge(model, &text[start..end])?).is_break() {
                    return Ok(());
                }
                start = end;
            }
        }
        Ok(())
    }

    /// Visits pieces under one read lock until one is not cached; returns the start of that piece.
    fn visit_cached(
        &self,
        text: &str,
        mut start: usize,
        visit: &mut impl FnMut(usize, &[TokenId]) -> ControlFlow<()>,
    ) -> ControlFlow<(), usize> {
        let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
        while start < text.len() {
            let end = self.splitter.piece_end(text, start);
            let Some(ids) = cache.get(&text[start..end]) else { break };
            visit(start, ids)?;
            start = end;
        }
        ControlFlow::Continue(start)
    }

    /// Merges a piece that is not cached.
    fn merge(&self, model: &ModelWrapper, piece: &str) -> Result<Box<[TokenId]>, TokenizerError> {
        if piece.len() > MAX_PIECE_BYTES {
            return Err(TokenizerError::RunTooLong { num_bytes: piece.len(), max_bytes: MAX_PIECE_BYTES });
        }
        let symbols: String = piece.bytes().map(|byte| self.symbols[usize::from(byte)]).collect();
        let merged = model.tokenize(&symbols).map_err(TokenizerError::library)?;
        let ids: Box<[TokenId]> = merged.into_iter().map(|token| TokenId(token.id)).collect();
        if piece.len() <= MAX_CACHED_PIECE_BYTES {
            let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
            if cache.len() >= MAX_CACHED_PIECES {
                cache.clear();
            }
            cache.insert(piece.into(), ids.clone());
        }
        Ok(ids)
    }
}

/// Returns the printable character of each byte in a byte-level vocabulary (Radford et al. 2019, `bytes_to_unicode`): printable Latin-1
/// maps to itself, the others follow from U+0100 in order.
pub(crate) fn byte_symbols() -> [char; 256] {
    let mut next_free = 0x100u32;
    std::array::from_fn(|byte| {
        let itself = byte as u8 as char;
        if matches!(itself, '!'..='~' | '¡'..='¬' | '®'..='ÿ') {
            return itself;
        }
        let symbol = char::from_u32(next_free).expect("68 characters from U+0100 on are all assigned");
        next_free += 1;
        symbol
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(byte: u8, expected: char) {
        assert_eq!(byte_symbols()[usize::from(byte)], expected);
    }

    #[test]
    fn bytes_have_the_published_symbols() {
        check(b' ', 'Ġ');
        check(b'\n', 'Ċ');
        check(b'a', 'a');
        check(0xad, 'Ń');
        check(0xff, 'ÿ');
    }
}
