//! An equal run of tokens in a donor and a target.

use tokens::{DonorId, TokenRange};

use crate::PromptView;

/// Largest gap in tokens between two runs of one edited text. Chosen: a longer gap could hold a span of its own, and ids replaced in
/// records are some 30 tokens long.
pub(crate) const MAX_GAP_TOKENS: u32 = 64;

/// True if a run that begins at `start` follows one that ends at `end` with at most such a gap.
pub(crate) fn is_near(end: u32, start: u32) -> bool {
    start.checked_sub(end).is_some_and(|gap| gap <= MAX_GAP_TOKENS)
}

/// Tokens `donor_pos..` of a donor that equal tokens `target_pos..` of a target, id by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanMatch {
    /// Donor of the tokens.
    pub donor: DonorId,
    /// First position in the donor.
    pub donor_pos: u32,
    /// First position in the target.
    pub target_pos: u32,
    /// Number of tokens.
    pub num_tokens: u32,
    /// Number of equal tokens directly left of them that a cut excluded from this match.
    ///
    /// The donor's KV was computed under these, so a cut moves no token nearer to a change of context.
    pub left_context: u32,
}

impl SpanMatch {
    /// Returns the positions in the target.
    #[must_use]
    pub fn target_range(&self) -> TokenRange {
        TokenRange::new(self.target_pos, self.target_pos + self.num_tokens)
    }

    /// Returns the positions in the donor.
    #[must_use]
    pub fn donor_range(&self) -> TokenRange {
        TokenRange::new(self.donor_pos, self.donor_pos + self.num_tokens)
    }

    /// Returns the part at target positions `range`; `None` if that is empty.
    #[must_use]
    pub fn within_target(&self, range: TokenRange) -> Option<Self> {
        let rest = self.target_range().intersect(range);
        let skipped = rest.start - self.target_pos;
        (!rest.is_empty()).then(|| Self {
            donor_pos: self.donor_pos + skipped,
            target_pos: rest.start,
            num_tokens: rest.len(),
            left_context: self.left_context + skipped,
            ..*self
        })
    }

    /// Returns the part at donor positions `range`, for example those with resident blocks; `None` if that is empty.
    #[must_use]
    pub fn within_donor(&self, range: TokenRange) -> Option<Self> {
        let rest = self.donor_range().intersect(range);
        if rest.is_empty() {
            return None;
        }
        let start = self.target_pos + (rest.start - self.donor_pos);
        self.within_target(TokenRange::new(start, start + rest.len()))
    }

    /// True if everything left of it is equal too, at the same positions: the donor's KV is what the target would compute.
    #[must_use]
    pub fn has_same_past(&self) -> bool {
        self.donor_pos == self.target_pos && self.left_context == self.target_pos
    }

    /// True if it holds a whole segment of at least `min_tokens` tokens with the same borders in the target and in the donor.
    pub(crate) fn holds_segment(&self, target: PromptView<'_>, donor: PromptView<'_>, min_tokens: u32) -> bool {
        let range = self.target_range();
        let in_target =
            std::iter::successors(target.first_segment_from(range.start), |segment| target.first_segment_from(segment.end));
        let mut held = in_target.take_while(|segment| segment.end <= range.end);
        held.any(|segment| {
            let at = self.donor_pos + (segment.start - range.start);
            let in_donor = donor.segment_at(at);
            segment.len() >= min_tokens && in_donor.start == at && in_donor.len() == segment.len()
        })
    }

    /// Returns its parts, ascending and disjoint, that are outside of tables in both, or in rows with equal headers that follow no change
    /// by `is_edited` of a position in the target and in the donor.
    pub(crate) fn under_equal_headers(
        &self,
        target: PromptView<'_>,
        donor: PromptView<'_>,
        is_edited: impl Fn(u32, u32) -> bool,
    ) -> Vec<Self> {
        if self.has_same_past() {
            return vec![*self];
        }
        let mut parts = Vec::new();
        let TokenRange { start, end } = self.target_range();
        let (mut from, mut pos) = (start, start);
        while pos < end {
            let (header, until) = target.segments.header_at(pos);
            let donor_pos = self.donor_pos + (pos - start);
            let (donor_header, donor_until) = donor.segments.header_at(donor_pos);
            let next = until.min(pos.saturating_add(donor_until - donor_pos)).min(end);
            if header != donor_header || header.is_some() && is_edited(pos, donor_pos) {
                parts.extend(self.within_target(TokenRange::new(from, pos)));
                from = next;
            }
            pos = next;
        }
        parts.extend(self.within_target(TokenRange::new(from, end)));
        parts
    }

    /// Returns the target position at which the equal run begins before cutting.
    pub(crate) fn run_start(&self) -> u32 {
        self.target_pos - self.left_context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: SpanMatch = SpanMatch { donor: DonorId(1), donor_pos: 100, target_pos: 20, num_tokens: 50, left_context: 3 };

    fn part(donor_pos: u32, target_pos: u32, num_tokens: u32, left_context: u32) -> Option<SpanMatch> {
        Some(SpanMatch { donor: DonorId(1), donor_pos, target_pos, num_tokens, left_context })
    }

    #[test]
    fn a_cut_keeps_the_offset_and_remembers_the_context() {
        assert_eq!(SPAN.within_target(TokenRange::new(30, 40)), part(110, 30, 10, 13));
        assert_eq!(SPAN.within_donor(TokenRange::new(96, 128)), part(100, 20, 28, 3));
        assert_eq!(SPAN.within_donor(TokenRange::new(128, 160)), part(128, 48, 22, 31));
    }

    #[test]
    fn a_cut_beside_the_span_leaves_nothing() {
        assert_eq!(SPAN.within_target(TokenRange::new(70, 90)), None);
        assert_eq!(SPAN.within_target(TokenRange::new(0, 20)), None);
        assert_eq!(SPAN.within_donor(TokenRange::new(0, 100)), None);
        assert_eq!(SPAN.within_donor(TokenRange::new(150, 160)), None);
    }

    /// Checks the positions copied of a match of 300 tokens at 100 in the target and 0 in the donor, whose tables have `rows` under headers
    /// each.
    #[track_caller]
    fn check_tables(donor: &[(u32, u32, u64)], target: &[(u32, u32, u64)], expected: &str) {
        let segments = |rows: &[(u32, u32, u64)]| {
            let tables =
                rows.iter().map(|&(start, end, header)| tokens::TableRows { range: TokenRange::new(start, end), header });
            crate::Segments::default().with_tables(&tables.collect::<Vec<_>>())
        };
        let (donor, target) = (segments(donor), segments(target));
        let found = SpanMatch { donor: DonorId(1), donor_pos: 0, target_pos: 100, num_tokens: 300, left_context: 0 };
        let view = |segments| PromptView { tokens: &[], segments };
        let parts = found.under_equal_headers(view(&target), view(&donor), |_, _| false);
        let print = |part: &SpanMatch| format!("{:?}", part.target_range());
        assert_eq!(parts.iter().map(print).collect::<Vec<_>>().join(", "), expected);
    }

    #[test]
    fn rows_under_an_equal_header_are_one_text_with_what_is_around_them() {
        check_tables(&[], &[], "100..400");
        check_tables(&[(50, 150, 7)], &[(150, 250, 7)], "100..400");
    }

    #[test]
    fn rows_under_another_header_are_another_text() {
        check_tables(&[(50, 150, 7)], &[(150, 250, 8)], "100..150, 250..400");
        check_tables(&[(50, 150, 7)], &[], "100..150, 250..400");
        check_tables(&[], &[(0, 250, 8)], "250..400");
        check_tables(&[(0, 150, 7)], &[(0, 200, 7), (200, 900, 8)], "100..200");
    }
}
