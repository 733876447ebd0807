//! Result of the planner: tokens to copy, or the reason why there are none.

use tokens::{DonorId, TokenRange, complement};

use crate::Estimate;
use crate::span::is_near;

/// A piece of fewer tokens is short, unless its neighbours are the same as in its donor: most of it lies near a border. Chosen: entries of
/// a FAQ and schemas of tools are short, passages are not.
const SHORT_PIECE_TOKENS: u32 = 96;

/// Tokens to copy for one prompt. Everything else right of the prefix hit is computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReusePlan {
    /// Spans by ascending `target_pos`, disjoint, right of the prefix hit.
    pub spans: Vec<ReuseSpan>,
    /// Tokens of the chosen runs that are recomputed on purpose.
    pub recomputed_tokens: u32,
    /// Positions after an edit in the same segment that no other donor serves. Sorted, disjoint; none under [`crate::EditPolicy::Reuse`].
    pub edited: Vec<TokenRange>,
    /// Predicted cost, once computed; see [`crate::Gate`].
    pub estimate: Option<Estimate>,
    /// Reason why `spans` is empty; `None` if and only if it is not.
    pub rejected: Option<RejectReason>,
}

/// Tokens whose KV is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReuseSpan {
    /// Donor of the KV.
    pub donor: DonorId,
    /// First position in the donor.
    pub donor_pos: u32,
    /// First position in the target.
    pub target_pos: u32,
    /// Number of tokens.
    pub num_tokens: u32,
    /// Class of the equality of the left contexts of donor and target.
    pub class: MatchClass,
}

impl ReuseSpan {
    /// True if `next` follows it in the donor nearly as it does in the target.
    fn stands_beside(&self, next: &Self) -> bool {
        self.donor == next.donor
            && is_near(self.target_pos + self.num_tokens, next.target_pos)
            && is_near(self.donor_pos + self.num_tokens, next.donor_pos)
    }

    /// Positions in the target.
    #[must_use]
    pub fn target_range(&self) -> TokenRange {
        TokenRange::new(self.target_pos, self.target_pos + self.num_tokens)
    }
}

/// Extent to which the left context of a span is equal in donor and target. Best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MatchClass {
    /// All of it, at the same positions: the copy is exact.
    SamePast,
    /// At least the last 256 tokens.
    SameLeftContext,
    /// Less: text put after other text.
    Composition,
    /// Text left of it in its own segment was changed, so that its KV may hold stale conclusions.
    DownstreamOfEdit,
}

impl MatchClass {
    /// All classes, best first.
    pub const ALL: [MatchClass; 4] = [Self::SamePast, Self::SameLeftContext, Self::Composition, Self::DownstreamOfEdit];

    /// Returns its name in answers and as a metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SamePast => "same_past",
            Self::SameLeftContext => "same_left_context",
            Self::Composition => "composition",
            Self::DownstreamOfEdit => "downstream_of_edit",
        }
    }
}

/// Reason why nothing is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RejectReason {
    /// The prompt is shorter than `min_prompt_tokens`.
    PromptTooShort,
    /// The prefix hit leaves fewer than `min_span_tokens` to fill.
    PrefixCovers,
    /// No earlier prompt shares a span.
    NoDonor,
    /// The shared text is shorter than `min_span_tokens`, or has to be recomputed anyway.
    TooShort,
    /// All of the shared text follows edits in the same segments.
    Edited,
    /// Copying would not save enough time.
    NotWorthIt,
}

impl RejectReason {
    /// All reasons.
    pub const ALL: [RejectReason; 6] =
        [Self::PromptTooShort, Self::PrefixCovers, Self::NoDonor, Self::TooShort, Self::Edited, Self::NotWorthIt];

    /// Returns its name as a metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::PromptTooShort => "prompt_too_short",
            Self::PrefixCovers => "prefix_covers",
            Self::NoDonor => "no_donor",
            Self::TooShort => "too_short",
            Self::Edited => "edited",
            Self::NotWorthIt => "not_worth_it",
        }
    }
}

impl ReusePlan {
    /// Returns the least exact class among its spans; `None` if it has none.
    #[must_use]
    pub fn class(&self) -> Option<MatchClass> {
        self.spans.iter().map(|span| span.class).max()
    }

    /// Returns the number of copied tokens.
    #[must_use]
    pub fn num_reused_tokens(&self) -> u32 {
        self.spans.iter().map(|span| span.num_tokens).sum()
    }

    /// Returns the number of tokens copied in short pieces.
    #[must_use]
    pub fn num_short_tokens(&self) -> u32 {
        let pieces = self.spans.chunk_by(ReuseSpan::stands_beside);
        let tokens = pieces.map(|piece| piece.iter().map(|span| span.num_tokens).sum::<u32>());
        tokens.filter(|&num_tokens| num_tokens < SHORT_PIECE_TOKENS).sum()
    }

    /// Returns the positions of a prompt of `prompt_len` tokens with a prefix hit up to `from` that are computed before any deviation is
    /// measured. Sorted, disjoint.
    #[must_use]
    pub fn mandatory_rows(&self, from: u32, prompt_len: u32) -> Vec<TokenRange> {
        let copied: Vec<_> = self.spans.iter().map(ReuseSpan::target_range).collect();
        complement(TokenRange::new(from, prompt_len), &copied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Repair;

    #[test]
    fn pieces_that_stand_apart_are_short_and_links_of_a_chain_are_not() {
        let plan = |spans: &[(u32, u32, u32)]| {
            let span = |&(donor_pos, target_pos, num_tokens)| ReuseSpan {
                donor: DonorId(1),
                donor_pos,
                target_pos,
                num_tokens,
                class: MatchClass::Composition,
            };
            ReusePlan { spans: spans.iter().map(span).collect(), ..ReusePlan::default() }
        };
        assert_eq!(plan(&[(0, 100, 60), (300, 170, 40), (200, 220, 95)]).num_short_tokens(), 195);
        assert_eq!(plan(&[(0, 100, 60), (70, 170, 40), (200, 300, 96)]).num_short_tokens(), 0);
        let short = Repair { policy: crate::RepairPolicy::Impact, ratio: 0.15, ..Repair::structural() };
        let ratio = |spans| short.for_plan(&plan(spans), 1_000).ratio;
        assert!((ratio(&[(0, 100, 80)]) - 0.17).abs() < 1e-6 && (ratio(&[(0, 100, 200)]) - 0.15).abs() < 1e-6);
        let of_long = |prompt_len| short.for_plan(&plan(&[(0, 100, 200)]), prompt_len).ratio * prompt_len as f32;
        assert!(
            (of_long(2048) - 307.2).abs() < 0.1 && (of_long(8192) - 399.4).abs() < 0.1,
            "{} {}",
            of_long(2048),
            of_long(8192)
        );
        let mut edited = plan(&[(0, 100, 200)]);
        let bound = |plan: &ReusePlan| Repair { max_deviation: 0.5, ..short }.for_plan(plan, 1_000).max_deviation;
        assert_eq!(bound(&edited), 0.5);
        edited.spans[0].class = MatchClass::DownstreamOfEdit;
        assert_eq!(bound(&edited), 0.0, "how little deviates says nothing there");
    }
}
