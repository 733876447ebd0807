//! The independent pieces of a prompt: messages, documents, headings, paragraphs between blank lines.
//!
//! This crate sees ids and no text, so whoever tokenized the prompt says where pieces begin. What is not known to be independent is
//! taken as dependent: a prompt of which nothing is said is one segment.

use tokens::TokenRange;

/// Where the segments of one prompt begin.
///
/// A segment ends where the next begins, the last one with the prompt. A token whose text lies on both sides of a border belongs left.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Segments {
    /// Ascending, each once, without 0: the prompt begins a segment anyhow.
    starts: Box<[u32]>,
}

impl Segments {
    /// Segments that begin at `starts`, in any order.
    #[must_use]
    pub fn from_starts(starts: impl IntoIterator<Item = u32>) -> Self {
        let mut starts: Vec<_> = starts.into_iter().filter(|&start| start > 0).collect();
        starts.sort_unstable();
        starts.dedup();
        Self { starts: starts.into() }
    }

    /// Segments that begin where those of `self` do, and at both ends of every range of `ranges`: chat template tokens part messages.
    #[must_use]
    pub fn parted_by(&self, ranges: &[TokenRange]) -> Self {
        let ends = ranges.iter().flat_map(|range| [range.start, range.end]);
        Self::from_starts(self.starts.iter().copied().chain(ends))
    }

    /// First positions of all segments but the first, ascending.
    #[must_use]
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// The segment of a prompt of `prompt_len` tokens that holds `pos`.
    #[must_use]
    pub fn segment_at(&self, pos: u32, prompt_len: u32) -> TokenRange {
        let next = self.starts.partition_point(|&start| start <= pos);
        let start = next.checked_sub(1).map_or(0, |last| self.starts[last]);
        TokenRange::new(start, self.starts.get(next).map_or(prompt_len, |&end| end.min(prompt_len)))
    }
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
