//! Borders of the segments, sentences and tables of a prompt.

use crate::TokenRange;

/// Starts of a prompt's segments and sentences, and its tables. Each list ascends; the start of the prompt is no border.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Borders {
    /// Starts of segments, which do not depend on preceding text: a message, a document, a paragraph.
    pub segments: Vec<u32>,
    /// Starts of their sentences and lines. None are known if it is empty.
    pub sentences: Vec<u32>,
    /// Disjoint tables.
    pub tables: Vec<TableRows>,
}

/// Rows of a table, whose meaning depends on its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableRows {
    /// Tokens of all rows below the header.
    pub range: TokenRange,
    /// Hash of the header: equal for equal headers.
    pub header: u64,
}

impl From<Vec<u32>> for Borders {
    /// Makes segments without known sentences and tables.
    fn from(segments: Vec<u32>) -> Self {
        Self { segments, ..Self::default() }
    }
}
