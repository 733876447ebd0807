//! Locations of message contents in a rendered prompt.

use std::ops::Range;

/// Location of a message's text, or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    /// Index of the message.
    pub(crate) message: usize,
    /// Byte range in the prompt.
    pub(crate) bytes: Range<usize>,
}
