//! A lower bound on the number of tokens of a text, computed from its bytes alone.
//!
//! Each token covers no more bytes than the longest token made of the same byte classes, so a text that cannot fit a model is refused in
//! one pass over its bytes, before it is tokenized. The longest token of most vocabularies is a run of spaces; emoji or letters have much
//! shorter ones, hence the classes.

/// Minimum bytes of a window. Chosen: long relative to a token, short relative to the stretches of one language.
const MIN_WINDOW: usize = 4096;

/// Length of the longest token for each set of byte classes.
pub(crate) struct TokenLengths {
    /// Bytes of the longest token that has no byte of another class, by set of classes with one bit each. 0 if there is none.
    longest: [u32; 256],
}

/// Returns the class of a byte as one bit.
const fn class_of(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' => 1,
        b'A'..=b'Z' => 2,
        b'0'..=b'9' => 4,
        b' ' => 8,
        // Other white space and punctuation.
        0..=0x7f => 16,
        // Continuation bytes.
        0x80..=0xbf => 32,
        // Lead bytes of two- or three-byte characters, and of four-byte ones such as emoji.
        0xc0..=0xef => 64,
        0xf0..=0xff => 128,
    }
}

fn classes_of(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |classes, &byte| classes | class_of(byte))
}

impl TokenLengths {
    /// Builds the table from the bytes of all tokens.
    pub(crate) fn new<'a>(tokens: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut longest = [0; 256];
        for token in tokens {
            let known: &mut u32 = &mut longest[usize::from(classes_of(token))];
            *known = (*known).max(u32::try_from(token.len()).unwrap_or(u32::MAX));
        }
        // Each set inherits from the sets with one class less.
        for classes in 0..longest.len() {
            let without_one = (0..8).filter(|bit| classes & (1 << bit) != 0).map(|bit| longest[classes & !(1 << bit)]);
            longest[classes] = without_one.max().unwrap_or(0).max(longest[classes]);
        }
        Self { longest }
    }

    /// Returns a lower bound on the number of tokens in any tokenization of `text`.
    ///
    /// At most two tokens cross the ends of a window, each with at least one byte outside. The others lie inside, so they consist of its
    /// classes.
    pub(crate) fn min_tokens(&self, text: &[u8]) -> usize {
        let longest_of_all = self.longest[255] as usize;
        let at_ends = 2 * longest_of_all.saturating_sub(1);
        let inside = |window: &[u8]| match self.longest[usize::from(classes_of(window))] as usize {
            0 => 0,
            longest => window.len().saturating_sub(at_ends).div_ceil(longest),
        };
        text.chunks(MIN_WINDOW.max(8 * longest_of_all)).map(inside).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_goes_by_the_classes_of_the_text() {
        let tokens: [&[u8]; 5] = [b"a", b"ab", b"        ", b"x y", &[0xf0, 0x9f]];
        let lengths = TokenLengths::new(tokens);
        let len = 4 * MIN_WINDOW;
        // Four windows, each without the bytes that two tokens of eight bytes can cover across its ends.
        let expected = |longest| 4 * (MIN_WINDOW - 2 * 7usize).div_ceil(longest);
        assert_eq!(lengths.min_tokens("a".repeat(len).as_bytes()), expected(2));
        assert_eq!(lengths.min_tokens(" ".repeat(len).as_bytes()), expected(8));
        assert_eq!(lengths.min_tokens("🦀".repeat(len / 4).as_bytes()), expected(2));
        assert_eq!(lengths.min_tokens("a ".repeat(len / 2).as_bytes()), expected(8));
        assert_eq!(lengths.min_tokens(b"short"), 0);
        assert_eq!(lengths.min_tokens(b""), 0);
    }
}
