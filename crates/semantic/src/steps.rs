//! Counted work of a search and a plan.

use std::ops::AddAssign;

/// Work in machine-independent steps: bounds are stated and tested in these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Shingles looked up, once for each scope.
    pub lookups: u64,
    /// Postings examined.
    pub postings: u64,
    /// Tokens of donors compared with tokens of the target.
    pub compared_tokens: u64,
    /// Matches considered, and for each section of the target the matches that cover it.
    pub cells: u64,
    /// Tokens and matches weighed to compare left contexts.
    pub weighed: u64,
}

impl Steps {
    /// Returns the sum of all counts.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.lookups + self.postings + self.compared_tokens + self.cells + self.weighed
    }
}

impl AddAssign for Steps {
    fn add_assign(&mut self, other: Self) {
        self.lookups += other.lookups;
        self.postings += other.postings;
        self.compared_tokens += other.compared_tokens;
        self.cells += other.cells;
        self.weighed += other.weighed;
    }
}
