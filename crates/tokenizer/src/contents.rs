//! Where the contents of messages are in the prompt that a chat template made of them.

use std::ops::Range;

/// The place of a message's text, or of a piece of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    /// Index of the message.
    pub(crate) message: usize,
    /// Bytes of the prompt.
    pub(crate) bytes: Range<usize>,
}
