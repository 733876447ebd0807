//! Prompts that need donors.

use semantic::{RepairPolicy, Segments, Sketch};
use tokens::{Borders, DonorId, Scope, TokenId, TokenRange};

/// Prompt to fill.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) scope: Scope,
    /// Further scopes it may read.
    pub(crate) readable: &'a [Scope],
    pub(crate) tokens: &'a [TokenId],
    /// Its shingles, if sampled before.
    pub(crate) sketch: Option<&'a Sketch>,
    pub(crate) template: &'a [TokenRange],
    /// Starts of its pieces.
    pub(crate) borders: &'a Borders,
    /// End of its prefix hit.
    pub(crate) from: u32,
    pub(crate) policy: RepairPolicy,
    /// True if donors of the same text are ranked by their left contexts.
    pub(crate) ranks_donors: bool,
    /// Donors to search besides those that the span index finds; see [`DonorRegistry::similar`](super::DonorRegistry::similar).
    pub(crate) similar: &'a [DonorId],
}

impl Target<'_> {
    pub(super) fn scopes(&self) -> impl Iterator<Item = Scope> + '_ {
        scopes(self.scope, self.readable)
    }
}

/// Returns the scopes of eligible donors: its own scope first, then the others that it may read.
pub(crate) fn scopes(own: Scope, readable: &[Scope]) -> impl Iterator<Item = Scope> + '_ {
    let others = readable.iter().copied().filter(move |&scope| scope != own);
    std::iter::once(own).chain(others)
}

/// Returns segments that begin at `starts`, and messages, which the tokens of the chat template part.
pub(crate) fn segments_of(borders: &Borders, template: &[TokenRange]) -> Segments {
    Segments::from(borders).parted_by(template)
}
