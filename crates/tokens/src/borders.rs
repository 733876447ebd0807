//! Beginnings of the pieces of a prompt.

use crate::TokenRange;

/// Positions at which pieces of a prompt begin, of two sizes, and its tables. Each list ascends; the beginning of the prompt is no border.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Borders {
    /// Pieces that do not depend on what stands before them: a message, a document, a paragraph.
    pub segments: Vec<u32>,
    /// Sentences and lines of them. None are known if it is empty.
    pub sentences: Vec<u32>,
    /// Disjoint.
    pub tables: Vec<TableRows>,
}

/// Rows of a table, which mean what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableRows {
    /// Tokens of all rows below the header.
    pub range: TokenRange,
    /// Equal for equal headers.
    pub header: u64,
}

impl From<Vec<u32>> for Borders {
    /// Segments of whose sentences and tables nothing is known.
    fn from(segments: Vec<u32>) -> Self {
        Self { segments, ..Self::default() }
    }
}
