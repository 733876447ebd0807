//! Set of tokens that may follow.

use tokens::TokenId;

/// Tokens that may follow, one bit each: bit `token % 32` of word `token / 32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    pub(crate) fn new(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// Allows nothing.
    #[must_use]
    pub fn none() -> Self {
        Self { words: Vec::new() }
    }

    /// Allows the tokens for which `is_allowed` is true, of `vocab_size`.
    #[must_use]
    pub fn of(vocab_size: usize, is_allowed: impl Fn(TokenId) -> bool) -> Self {
        let mut words = vec![0; vocab_size.div_ceil(32)];
        (0..vocab_size as u32)
            .filter(|&token| is_allowed(TokenId(token)))
            .for_each(|token| words[token as usize / 32] |= 1 << (token % 32));
        Self { words }
    }

    /// True if `token` may follow. Tokens beyond the mask may not.
    #[must_use]
    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token.0 as usize / 32).is_some_and(|word| word >> (token.0 % 32) & 1 == 1)
    }

    /// Forbids `tokens`, unless none would be left.
    pub fn forbid_unless_last(&mut self, tokens: &[TokenId]) {
        let mut words = self.words.clone();
        for token in tokens {
            if let Some(word) = words.get_mut(token.0 as usize / 32) {
                *word &= !(1 << (token.0 % 32));
            }
        }
        if words.iter().any(|word| *word != 0) {
            self.words = words;
        }
    }

    /// Returns the words of the mask.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_allows_what_it_was_made_of_and_nothing_beyond() {
        let is_allowed = |token: TokenId| matches!(token.0, 0 | 31 | 32 | 69);
        let mask = TokenMask::of(70, is_allowed);
        for token in (0..200).map(TokenId) {
            assert_eq!(mask.allows(token), is_allowed(token), "{token:?}");
        }
    }

    #[test]
    fn the_last_tokens_are_never_forbidden() {
        let mut mask = TokenMask::of(40, |token| token.0 >= 38);
        mask.forbid_unless_last(&[TokenId(39), TokenId(1000)]);
        assert_eq!(mask, TokenMask::of(40, |token| token.0 == 38));
        mask.forbid_unless_last(&[TokenId(38)]);
        assert_eq!(mask, TokenMask::of(40, |token| token.0 == 38));
    }
}
