//! Prompts as this crate sees them: ids, and the starts of independent pieces.

use tokens::{TokenId, TokenRange};

use crate::Segments;

/// A prompt, target or donor.
#[derive(Clone, Copy, Debug)]
pub struct PromptView<'a> {
    /// Tokens of the prompt.
    pub tokens: &'a [TokenId],
    /// Segments of the prompt.
    pub segments: &'a Segments,
}

impl PromptView<'_> {
    /// Returns the number of tokens.
    pub(crate) fn num_tokens(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Returns the sentence that holds `pos`.
    pub(crate) fn sentence_at(&self, pos: u32) -> TokenRange {
        self.segments.sentence_at(pos, self.num_tokens())
    }

    /// Returns the first segment that begins at `pos` or later.
    pub(crate) fn first_segment_from(&self, pos: u32) -> Option<TokenRange> {
        self.segments.first_from(pos, self.num_tokens())
    }

    /// Returns the segment that holds `pos`.
    pub(crate) fn segment_at(&self, pos: u32) -> TokenRange {
        self.segments.segment_at(pos, self.num_tokens())
    }
}

/// A prompt to be filled.
#[derive(Clone, Copy, Debug)]
pub struct PlanTarget<'a> {
    /// The whole prompt.
    pub prompt: PromptView<'a>,
    /// End of its prefix hit: positions left of it are in the pool already.
    pub from: u32,
    /// Positions that are computed in any case. Sorted, disjoint.
    pub template: &'a [TokenRange],
}
