//! A request's prompt as the engine takes it.

use tokens::{Borders, TokenId, TokenRange};

/// What the server would make of a request's messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Prompt {
    pub(crate) token_ids: Vec<TokenId>,
    /// Tokens of the chat template.
    pub(crate) template: Vec<TokenRange>,
    /// Beginnings of its pieces.
    pub(crate) borders: Borders,
}

impl Prompt {
    /// Without template and borders.
    pub(crate) fn plain(token_ids: Vec<TokenId>) -> Self {
        Self { token_ids, ..Self::default() }
    }
}
