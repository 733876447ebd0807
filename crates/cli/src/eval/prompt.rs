//! A request's prompt as the engine takes it.

use tokens::{TokenId, TokenRange};

/// What the server would make of a request's messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Prompt {
    pub(crate) token_ids: Vec<TokenId>,
    /// Tokens of the chat template.
    pub(crate) template: Vec<TokenRange>,
    /// Where segments begin.
    pub(crate) segments: Vec<u32>,
}

impl Prompt {
    /// Without template and segments.
    pub(crate) fn plain(token_ids: Vec<TokenId>) -> Self {
        Self { token_ids, ..Self::default() }
    }
}
