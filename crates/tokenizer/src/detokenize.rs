//! Incremental detokenization.

use std::sync::Arc;

use tokens::TokenId;

use crate::Tokenizer;

/// Decodes a sequence one token at a time.
///
/// The concatenated pieces equal the result of [`Tokenizer::decode`] for the whole sequence. A piece never ends inside a character: bytes
/// of an incomplete character wait for the next token. Each byte is examined a bounded number of times.
#[derive(Clone)]
pub struct DetokenizeStream {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// True if a leading space is an artifact of encoding and is dropped.
    strips_space: bool,
    /// Bytes of an incomplete character: at most three between two calls.
    pending: Vec<u8>,
}

impl DetokenizeStream {
    /// Creates a stream for a text from its start. `skip_special` omits special tokens.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let strips_space = tokenizer.strips_leading_space();
        Self { tokenizer, skip_special, strips_space, pending: Vec::new() }
    }

    /// Creates a stream for the continuation of a prompt: a leading space belongs to the text.
    #[must_use]
    pub fn after_prompt(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { strips_space: false, ..Self::new(tokenizer, skip_special) }
    }

    /// Sets the handling of special tokens from now on: omitted if true.
    #[must_use]
    pub fn skipping_special(self, skip_special: bool) -> Self {
        Self { skip_special, ..self }
    }

    /// Returns the number of characters that `id` would complete before its own first byte: 1 if it breaks off an incomplete character,
    /// else 0.
    #[must_use]
    pub fn chars_broken_by(&self, id: TokenId) -> u32 {
        let is_skipped = self.skip_special && self.tokenizer.is_special(id);
        match self.tokenizer.token_bytes(id).first() {
            Some(&byte) if !is_skipped && !self.pending.is_empty() => {
                let joined = [&self.pending[..], &[byte]].concat();
                u32::from(std::str::from_utf8(&joined).is_err() && !may_continue(&joined))
            }
            _ => 0,
        }
    }

    /// Adds `id` and returns the text that it completes; empty while a character is incomplete.
    #[must_use]
    pub fn push(&mut self, id: TokenId) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let mut bytes = self.tokenizer.token_bytes(id);
        if self.strips_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strips_space = false;
        }
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }

    /// Returns the remaining text: U+FFFD if the last character never became complete.
    #[must_use]
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    /// Takes all text that later bytes cannot change.
    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut num_taken = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            num_taken += chunk.valid().len();
            let is_unfinished = num_taken + chunk.invalid().len() == self.pending.len() && may_continue(chunk.invalid());
            if chunk.invalid().is_empty() || is_unfinished {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            num_taken += chunk.invalid().len();
        }
        self.pending.drain(..num_taken);
        text
    }
}

/// True if `bytes`, which are not UTF-8, are the start of a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GgufVocabulary;

    /// SentencePiece: ids 0..=255 are the bytes, then "▁hi", "▁", "<s>" (control), "é".
    fn tokenizer() -> Arc<Tokenizer> {
        let mut tokens: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        tokens.extend(["▁hi", "▁", "<s>", "é"].map(str::to_owned));
        let mut token_types = vec![6; 256];
        token_types.extend([1, 1, 3, 1]);
        let scores = Some(vec![0.0; tokens.len()]);
        let vocabulary = GgufVocabulary { model: "llama".into(), tokens, token_types, scores, ..GgufVocabulary::default() };
        Arc::new(Tokenizer::from_gguf(vocabulary).unwrap())
    }

    /// Compares with `expected`, which has a piece for each token and one for the end.
    #[track_caller]
    fn check(ids: &[u32], expected: &[&str]) {
        let tokenizer = tokenizer();
        let ids: Vec<_> = ids.iter().copied().map(TokenId).collect();
        let mut stream = DetokenizeStream::new(Arc::clone(&tokenizer), true);
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
        pieces.push(stream.finish());
        assert_eq!(pieces, expected);
        assert_eq!(pieces.concat(), tokenizer.decode(&ids, true));
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        check(&[0xf0, 0x9f, 0x98, 0x80, 259], &["", "", "", "😀", "é", ""]);
    }

    #[test]
    fn a_broken_character_is_replaced_as_soon_as_it_is_known() {
        check(&[0xf0, 0x9f, 259, 0xff, 0x80], &["", "", "\u{fffd}é", "\u{fffd}", "\u{fffd}", ""]);
    }

    #[test]
    fn an_unfinished_character_is_replaced_at_the_end() {
        check(&[0xe2, 0x82], &["", "", "\u{fffd}"]);
    }

    #[test]
    fn one_space_at_the_start_is_dropped() {
        check(&[258, 256, 256], &["", "hi", " hi", ""]);
        check(&[257, 256], &["", " hi", ""]);
    }

    #[test]
    fn after_a_prompt_the_space_stays() {
        let mut stream = DetokenizeStream::after_prompt(tokenizer(), true);
        assert_eq!(stream.push(TokenId(256)), " hi");
    }

    #[test]
    fn special_tokens_are_shown_when_asked_for() {
        let mut stream = DetokenizeStream::new(tokenizer(), false);
        assert_eq!([258, 256].map(|id| stream.push(TokenId(id))), ["<s>", " hi"]);
    }

    #[test]
    fn a_token_that_breaks_a_character_begins_after_its_replacement() {
        let mut stream = DetokenizeStream::new(tokenizer(), true);
        let mut broken = Vec::new();
        for id in [0xf0, 0x9f, 259, 0xe2, 0x82, 0xac, 0xc3, 258, 0xa9, 0xc3, 0x41].map(TokenId) {
            broken.push(stream.chars_broken_by(id));
            let _ = stream.push(id);
        }
        assert_eq!(broken, [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1], "a skipped token breaks nothing");
    }

    #[test]
    fn random_bytes_stream_as_they_decode() {
        let tokenizer = tokenizer();
        let interesting =
            [0x41, 0x80, 0xbf, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xed, 0xa0, 0xf0, 0x9f, 0x98, 0xf4, 0xff, 256, 257, 258, 259];
        let mut state = 7u64;
        for _ in 0..5000 {
            let ids: Vec<_> = (0..12)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    TokenId(interesting[(state >> 33) as usize % interesting.len()])
                })
                .collect();
            let mut stream = DetokenizeStream::new(Arc::clone(&tokenizer), true);
            let streamed: String = ids.iter().map(|&id| stream.push(id)).collect::<String>() + &stream.finish();
            assert_eq!(streamed, tokenizer.decode(&ids, true), "{ids:?}");
        }
    }
}
