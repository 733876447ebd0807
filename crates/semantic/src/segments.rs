//! The independent pieces of a prompt: messages, documents, headings, paragraphs between blank lines.
//!
//! This crate sees ids and no text, so the tokenizing caller supplies the starts of pieces. Pieces not known to be independent count as
//! dependent: a prompt without information is one segment.

use std::sync::Arc;

use tokens::{Borders, TableRows, TokenRange};

/// Starts of the segments of one prompt.
///
/// A segment ends where the next begins, the last one with the prompt. A token whose text spans a border belongs to the left segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Segments {
    /// Segment starts, ascending, each once, without 0: the prompt begins a segment anyhow.
    starts: Arc<[u32]>,
    /// Starts of sentences and segments, likewise; empty if sentences are unknown.
    sentences: Arc<[u32]>,
    /// Tables, ascending, disjoint.
    tables: Arc<[TableRows]>,
}

impl From<&Borders> for Segments {
    fn from(borders: &Borders) -> Self {
        let segments = Self::from_starts(borders.segments.iter().copied());
        segments.with_sentences(borders.sentences.iter().copied()).with_tables(&borders.tables)
    }
}

impl Segments {
    /// Creates segments that begin at `starts`, in any order.
    #[must_use]
    pub fn from_starts(starts: impl IntoIterator<Item = u32>) -> Self {
        Self { starts: sorted(starts), ..Self::default() }
    }

    /// Adds sentences that begin at `starts`, in any order, and at the starts of segments.
    #[must_use]
    pub fn with_sentences(self, starts: impl IntoIterator<Item = u32>) -> Self {
        let mut starts = starts.into_iter().peekable();
        if starts.peek().is_none() {
            return self;
        }
        Self { sentences: sorted(starts.chain(self.starts.iter().copied())), ..self }
    }

    /// Adds `tables`, which must be disjoint.
    #[must_use]
    pub fn with_tables(self, tables: &[TableRows]) -> Self {
        let mut tables = tables.to_vec();
        tables.sort_unstable_by_key(|table| table.range);
        Self { tables: tables.into(), ..self }
    }

    /// Adds segment starts at both ends of every range of `ranges`: chat template tokens separate messages.
    #[must_use]
    pub fn parted_by(&self, ranges: &[TokenRange]) -> Self {
        let ends = ranges.iter().flat_map(|range| [range.start, range.end]);
        let parted = Self::from_starts(self.starts.iter().copied().chain(ends));
        Self { tables: Arc::clone(&self.tables), ..parted.with_sentences(self.sentences.iter().copied()) }
    }

    /// Returns the first positions of all segments but the first, ascending.
    #[must_use]
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Returns all segments of a prompt of `prompt_len` tokens, ascending.
    pub(crate) fn whole(&self, prompt_len: u32) -> impl Iterator<Item = TokenRange> + '_ {
        let starts = std::iter::once(0).chain(self.starts.iter().copied()).filter(move |&start| start < prompt_len);
        starts.map(move |start| self.segment_at(start, prompt_len))
    }

    /// Returns the first segment of a prompt of `prompt_len` tokens that begins at `pos` or later.
    pub(crate) fn first_from(&self, pos: u32, prompt_len: u32) -> Option<TokenRange> {
        let start = if pos == 0 { Some(&0) } else { self.starts.get(self.starts.partition_point(|&start| start < pos)) };
        start.filter(|&&start| start < prompt_len).map(|&start| self.segment_at(start, prompt_len))
    }

    /// Returns the segment of a prompt of `prompt_len` tokens that holds `pos`.
    #[must_use]
    pub fn segment_at(&self, pos: u32, prompt_len: u32) -> TokenRange {
        piece_at(&self.starts, pos, prompt_len)
    }

    /// Returns the header of the row that holds `pos`, `None` outside of tables, and the next position at which it may change.
    pub(crate) fn header_at(&self, pos: u32) -> (Option<u64>, u32) {
        match self.tables.get(self.tables.partition_point(|table| table.range.end <= pos)) {
            Some(table) if table.range.start <= pos => (Some(table.header), table.range.end),
            Some(table) => (None, table.range.start),
            None => (None, u32::MAX),
        }
    }

    /// True if sentences are known; otherwise each segment counts as one.
    pub(crate) fn knows_sentences(&self) -> bool {
        !self.sentences.is_empty()
    }

    /// Returns the sentence that holds `pos`; the segment if sentences are unknown.
    pub(crate) fn sentence_at(&self, pos: u32, prompt_len: u32) -> TokenRange {
        piece_at(if self.knows_sentences() { &self.sentences } else { &self.starts }, pos, prompt_len)
    }
}

fn sorted(starts: impl IntoIterator<Item = u32>) -> Arc<[u32]> {
    let mut starts: Vec<_> = starts.into_iter().filter(|&start| start > 0).collect();
    starts.sort_unstable();
    starts.dedup();
    starts.into()
}

/// Returns the piece of a prompt of `prompt_len` tokens that holds `pos`, where pieces begin at `starts`.
fn piece_at(starts: &[u32], pos: u32, prompt_len: u32) -> TokenRange {
    let next = starts.partition_point(|&start| start <= pos);
    let start = next.checked_sub(1).map_or(0, |last| starts[last]);
    TokenRange::new(start, starts.get(next).map_or(prompt_len, |&end| end.min(prompt_len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(starts: &[u32], pos: u32, expected: (u32, u32)) {
        let segments = Segments::from_starts(starts.iter().copied());
        assert_eq!(segments.segment_at(pos, 100), TokenRange::new(expected.0, expected.1));
    }

    #[test]
    fn a_prompt_of_which_nothing_is_said_is_one_segment() {
        check(&[], 0, (0, 100));
        check(&[0, 100, 400], 99, (0, 100));
    }

    #[test]
    fn a_segment_holds_its_first_token_and_not_the_next_ones() {
        check(&[40, 10, 40], 9, (0, 10));
        check(&[40, 10, 40], 10, (10, 40));
        check(&[40, 10, 40], 39, (10, 40));
        check(&[40, 10, 40], 40, (40, 100));
    }

    #[test]
    fn template_tokens_part_segments() {
        let template = [TokenRange::new(0, 4), TokenRange::new(20, 25)];
        assert_eq!(Segments::from_starts([10, 25]).parted_by(&template).starts(), [4, 10, 20, 25]);
    }
}
