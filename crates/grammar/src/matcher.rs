//! State of one answer in its grammar.

use llguidance::Matcher as Parser;
use tokens::TokenId;

use crate::TokenMask;

/// A failure of the parser: a token that may not follow, or a mask that costs more than the limits of its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MatcherError(String);

/// Position of an answer in its grammar.
pub struct Matcher {
    parser: Parser,
}

impl Matcher {
    pub(crate) fn new(parser: Parser) -> Self {
        Self { parser }
    }

    /// Computes the tokens that may follow; only those that end the answer if it is complete.
    ///
    /// # Errors
    /// If that takes more work than the limits allow.
    pub fn mask(&mut self) -> Result<TokenMask, MatcherError> {
        let mask = self.parser.compute_mask_or_eos().map_err(|error| MatcherError(error.to_string()))?;
        Ok(TokenMask::new(mask.as_slice().to_vec()))
    }

    /// Goes on by a token.
    ///
    /// # Errors
    /// If it may not follow.
    pub fn accept(&mut self, token: TokenId) -> Result<(), MatcherError> {
        self.parser.consume_token(token.0).map_err(|error| MatcherError(error.to_string()))
    }

    /// Takes the last token back.
    ///
    /// # Errors
    /// If there is none.
    pub fn retract(&mut self) -> Result<(), MatcherError> {
        self.parser.rollback(1).map_err(|error| MatcherError(error.to_string()))
    }

    /// True if nothing but the end may follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.parser.is_stopped()
    }
}
