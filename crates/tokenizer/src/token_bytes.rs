//! Bytes of each token: decoding is concatenation.

use std::collections::HashMap;

use tokens::TokenId;

use crate::byte_level::byte_symbols;

/// Encoding of bytes in the text of a vocabulary entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Each character represents one byte.
    ByteLevel,
    /// `▁` represents a space, `<0x0A>` a byte, and all other text itself.
    SentencePiece,
}

/// Bytes of all tokens in one buffer; `ends[id]` is the end of token `id`.
pub(crate) struct TokenBytes {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl TokenBytes {
    /// Builds the buffer from the bytes of each token, ordered by id.
    pub(crate) fn new(tokens: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for token in tokens {
            bytes.extend(token);
            ends.push(u32::try_from(bytes.len()).expect("a vocabulary has less than 4 GiB of text"));
        }
        Self { bytes, ends }
    }

    /// Returns the bytes of `id`; none for an id without a token.
    pub(crate) fn get(&self, id: TokenId) -> &[u8] {
        let index = id.0 as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }

    /// Returns the number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// Converter of vocabulary entries into bytes.
pub(crate) struct Speller {
    spelling: Spelling,
    bytes_by_symbol: HashMap<char, u8>,
}

impl Speller {
    pub(crate) fn new(spelling: Spelling) -> Self {
        let bytes_by_symbol = (0..=u8::MAX).zip(byte_symbols()).map(|(byte, symbol)| (symbol, byte)).collect();
        Self { spelling, bytes_by_symbol }
    }

    /// Returns the bytes that the ordinary entry `text` represents.
    pub(crate) fn bytes(&self, text: &str) -> Vec<u8> {
        match self.spelling {
            // An entry with a character that represents no byte is taken literally, as in the reference decoder.
            Spelling::ByteLevel => {
                let bytes: Option<Vec<u8>> = text.chars().map(|symbol| self.bytes_by_symbol.get(&symbol).copied()).collect();
                bytes.unwrap_or_else(|| text.as_bytes().to_vec())
            }
            Spelling::SentencePiece => match byte_of_fallback(text) {
                Some(byte) => vec![byte],
                None => text.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// Returns the byte that `<0x0A>` represents.
fn byte_of_fallback(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spelling: Spelling, text: &str, expected: &[u8]) {
        assert_eq!(Speller::new(spelling).bytes(text), expected);
    }

    #[test]
    fn byte_level_symbols_are_bytes() {
        check(Spelling::ByteLevel, "Ġhi", b" hi");
        check(Spelling::ByteLevel, "Ã", &[0xc3]);
        check(Spelling::ByteLevel, "<｜User｜>", "<｜User｜>".as_bytes());
    }

    #[test]
    fn sentencepiece_marks_spaces_and_bytes() {
        check(Spelling::SentencePiece, "▁hi", b" hi");
        check(Spelling::SentencePiece, "<0xE2>", &[0xe2]);
        check(Spelling::SentencePiece, "<0xE>", b"<0xE>");
    }

    #[test]
    fn an_id_without_a_token_has_no_bytes() {
        let table = TokenBytes::new([b"a".to_vec(), b"bc".to_vec()]);
        assert_eq!([table.get(TokenId(0)), table.get(TokenId(1)), table.get(TokenId(2))], [&b"a"[..], b"bc", b""]);
    }
}
