//! Prompt of a request in the engine's form.

use tokens::{Borders, TokenId, TokenRange};

/// Prompt as the server encodes a request's messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Prompt {
    pub(crate) token_ids: Vec<TokenId>,
    /// Ranges of chat template tokens.
    pub(crate) template: Vec<TokenRange>,
    /// Starts of its segments.
    pub(crate) borders: Borders,
}

impl Prompt {
    /// Makes a prompt without template and borders.
    pub(crate) fn plain(token_ids: Vec<TokenId>) -> Self {
        Self { token_ids, ..Self::default() }
    }
}
