//! Half-open ranges of positions in one sequence.

use std::fmt;

/// Positions `start..end` of one sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TokenRange {
    /// First position.
    pub start: u32,
    /// One past the last position.
    pub end: u32,
}

impl TokenRange {
    /// Creates `start..end`; empty if `end <= start`.
    #[must_use]
    pub const fn new(start: u32, end: u32) -> Self {
        Self { start, end }
    }

    /// Returns the length.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// True if it holds no position.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// True if it holds `pos`.
    #[must_use]
    pub const fn contains(self, pos: u32) -> bool {
        self.start <= pos && pos < self.end
    }

    /// Returns the positions both hold.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// Returns the positions, ascending.
    pub fn positions(self) -> std::ops::Range<u32> {
        self.start..self.end.max(self.start)
    }

    /// Converts to indices into a slice.
    #[must_use]
    pub fn as_usize(self) -> std::ops::Range<usize> {
        self.start as usize..self.end.max(self.start) as usize
    }
}

impl fmt::Debug for TokenRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Returns the parts of `within` that no range of `holes` covers. `holes` must be sorted by start; they may touch or overlap.
#[must_use]
pub fn complement(within: TokenRange, holes: &[TokenRange]) -> Vec<TokenRange> {
    let mut rest = Vec::new();
    let mut at = within.start;
    for hole in holes {
        let hole = hole.intersect(within);
        if hole.is_empty() {
            continue;
        }
        if at < hole.start {
            rest.push(TokenRange::new(at, hole.start));
        }
        at = at.max(hole.end);
    }
    if at < within.end {
        rest.push(TokenRange::new(at, within.end));
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(within: (u32, u32), holes: &[(u32, u32)], expected: &[(u32, u32)]) {
        let range = |&(start, end): &(u32, u32)| TokenRange::new(start, end);
        let holes: Vec<_> = holes.iter().map(range).collect();
        let expected: Vec<_> = expected.iter().map(range).collect();
        assert_eq!(complement(range(&within), &holes), expected);
    }

    #[test]
    fn complement_of_nothing_is_everything() {
        check((2, 9), &[], &[(2, 9)]);
    }

    #[test]
    fn complement_skips_touching_and_overlapping_holes() {
        check((0, 20), &[(0, 3), (5, 8), (7, 10), (10, 12)], &[(3, 5), (12, 20)]);
    }

    #[test]
    fn holes_outside_do_not_count() {
        check((5, 10), &[(0, 5), (9, 30)], &[(5, 9)]);
    }
}
