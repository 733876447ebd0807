//! Plans the tokens to copy and those to recompute.
//!
//! Tokens of an equal run that are recomputed although a donor has them:
//! - its *head*, the first tokens of the run. Their KV depends most on the left context, which differs. The head belongs to the run, not to
//!   the copied piece: where the prefix hit, a template token or another span cuts a run, both sides of the cut had the same left context
//!   in the donor as in the target, so no new head is needed there. A run whose whole past is equal has no head: nothing left of it
//!   differs. A run that begins at the start of its donor but not of the target is covered too: the donor's first tokens, which drew
//!   attention as a sequence start does, are its head.
//! - rows of a table with another header, or none, in the donor, or after a change of the text before them: a cell attends to the name of
//!   its column, which may be anywhere to its left.
//! - tokens of the chat template: cheap, highly attended, and a summary of their left context.
//! - text after an edit in its own segment (defined in `edits.rs`), to the end of the sentence.
//! - the *tail* of the prompt: the last token has to be computed to get logits, and those before it are the question's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use tokens::{DonorId, TokenRange, complement};

use crate::cover::{Candidate, Choice, Rows, choose_matches, thin_out};
use crate::edits::EditedRuns;
use crate::{
    DonorPrompts, EditPolicy, MatchClass, PlanTarget, PromptView, RejectReason, ReusePlan, ReuseSpan, SpanConfig, SpanMatch,
    Steps,
};

/// Least number of equal tokens directly to the left for [`MatchClass::SameLeftContext`]. Chosen.
const LEFT_CONTEXT_TOKENS: u32 = 256;

/// Most leading tokens of all donors that may be held while spans are copied, whatever their yield. Chosen: finding and holding the blocks
/// of a quarter of a million tokens takes a millisecond or two.
const MAX_HELD_TOKENS: u64 = 1 << 18;
/// Tokens held for each token copied, in a donor that pays off even beyond that. Chosen: computing a token takes longer than holding some
/// blocks.
const MAX_HELD_PER_GIVEN: u64 = 64;

/// Plans the spans to copy into `target`.
///
/// `matches` may overlap each other and come in any order; matches of donors unknown to `donors` are left out.
/// Maximises the tokens copied, then prefers few and long spans, then few donors, then donors by
/// [`preferences`](DonorPrompts::preferences), then young donors.
#[must_use]
pub fn plan_reuse(target: &PlanTarget<'_>, matches: &[SpanMatch], donors: &impl DonorPrompts, config: &SpanConfig) -> ReusePlan {
    plan_counted(target, matches, donors, config).0
}

/// Plans like [`plan_reuse`] and counts the work. It is linear in the tokens of the target if each of them is in few `matches`, as those of
/// a search are.
#[must_use]
pub fn plan_counted(
    target: &PlanTarget<'_>,
    matches: &[SpanMatch],
    donors: &impl DonorPrompts,
    config: &SpanConfig,
) -> (ReusePlan, Steps) {
    let known: Vec<_> = matches.iter().filter(|found| donors.prompt_of(found.donor).is_some()).copied().collect();
    let edited = EditedRuns::of(target.prompt, &known, |donor| donors.prompt_of(donor));
    let gap = TokenRange::new(target.from, target.prompt.num_tokens());
    let mut steps = Steps { cells: matches.len() as u64, ..Steps::default() };
    let to_candidates = |mut matches: Vec<SpanMatch>, steps: &mut Steps| {
        // Chained runs of a search may be shorter than a span.
        matches.retain(|found| found.num_tokens >= config.min_piece_tokens);
        let matches = thin_out(matches, steps);
        let preferences = donors.preferences(target, &matches, steps);
        matches.into_iter().zip(preferences).map(|(found, preference)| Candidate { found, preference }).collect()
    };
    let found = match config.edits {
        EditPolicy::Reuse => Found { matches: known, other_rows: Vec::new() },
        _ => under_equal_headers(target.prompt, &known, &edited, donors),
    };
    let plan = plan_around_edits(gap, &found, &edited, target.template, config, to_candidates, &mut steps);
    (plan, steps)
}

/// Matches that a plan may choose from.
struct Found {
    matches: Vec<SpanMatch>,
    /// Target positions of equal rows of tables under other headers.
    other_rows: Vec<TokenRange>,
}

/// Returns the parts of `matches` whose rows of tables have equal headers and follow no change.
fn under_equal_headers(target: PromptView<'_>, matches: &[SpanMatch], edited: &EditedRuns, donors: &impl DonorPrompts) -> Found {
    let (mut parts, mut rest) = (Vec::new(), Vec::new());
    for found in matches {
        let donor = donors.prompt_of(found.donor).expect("matches of unknown donors are left out");
        let first = parts.len();
        let is_edited = |target_pos, donor_pos| edited.follows_change(found.donor, target_pos, donor_pos);
        parts.extend(found.under_equal_headers(target, donor, is_edited));
        let kept: Vec<_> = parts[first..].iter().map(SpanMatch::target_range).collect();
        rest.extend(complement(found.target_range(), &kept));
    }
    Found { matches: parts, other_rows: rest }
}

/// Plans positions `gap`, the last of which is the last of the prompt.
fn plan_around_edits(
    gap: TokenRange,
    found: &Found,
    edited: &EditedRuns,
    template: &[TokenRange],
    config: &SpanConfig,
    to_candidates: impl FnOnce(Vec<SpanMatch>, &mut Steps) -> Vec<Candidate>,
    steps: &mut Steps,
) -> ReusePlan {
    if let Some(reason) = rejection_before_search(gap, found.matches.is_empty() && found.other_rows.is_empty(), config) {
        return ReusePlan { rejected: Some(reason), ..ReusePlan::default() };
    }
    let mut matches: Vec<_> = found.matches.iter().filter_map(|found| found.within_target(gap)).collect();
    let mut behind_edits: Vec<_> =
        found.other_rows.iter().map(|rows| rows.intersect(gap)).filter(|rows| !rows.is_empty()).collect();
    if config.edits != EditPolicy::Reuse {
        let computed_end = |found: &SpanMatch| edited.computed_end_in(found, config.edits);
        behind_edits.extend(tails(&matches, computed_end));
        let without_tail = |found: &SpanMatch| found.within_target(TokenRange::new(computed_end(found), gap.end));
        matches = matches.iter().filter_map(without_tail).collect();
    }
    let mut candidates = to_candidates(matches, steps);
    let rows = Rows::new(reusable_rows(gap, template, config), config.head_tokens, edited);
    let mut chosen = choose_matches(&candidates, &rows, config.min_piece_tokens, steps);
    if let Some(kept) = donors_to_keep(&chosen) {
        candidates.retain(|candidate| kept.contains(&candidate.found.donor));
        chosen = choose_matches(&candidates, &rows, config.min_piece_tokens, steps);
    }
    let plan = assemble(&chosen, &rows, edited, config.min_piece_tokens);
    with_edited(plan, behind_edits)
}

/// Returns the donors whose yield is worth the tokens held, if all of them together hold too many.
///
/// A donor is held from its start to its last span. If many donors have the same text, some add only a few tokens to one that is needed
/// anyhow.
fn donors_to_keep(chosen: &[Choice]) -> Option<BTreeSet<DonorId>> {
    // Tokens given and tokens held.
    let mut donors: BTreeMap<DonorId, (u64, u64)> = BTreeMap::new();
    for Choice { part, .. } in chosen {
        let (given, held) = donors.entry(part.donor).or_default();
        *given += u64::from(part.num_tokens);
        *held = u64::from(part.donor_range().end).max(*held);
    }
    let num_held: u64 = donors.values().map(|(_, held)| held).sum();
    if num_held <= MAX_HELD_TOKENS {
        return None;
    }
    let mut donors: Vec<_> = donors.into_iter().collect();
    // Donors that give most come first, then the younger ones.
    donors.sort_unstable_by_key(|&(donor, (given, _))| Reverse((given, donor)));
    let mut room = MAX_HELD_TOKENS;
    donors.retain(|&(_, (given, held))| {
        let fits = held <= room || given * MAX_HELD_PER_GIVEN >= held;
        room = room.saturating_sub(if fits { held } else { 0 });
        fits
    });
    Some(donors.into_iter().map(|(donor, _)| donor).collect())
}

/// Returns the target positions of `matches` up to their `computed_end`. They may overlap.
fn tails(matches: &[SpanMatch], computed_end: impl Fn(&SpanMatch) -> u32) -> Vec<TokenRange> {
    let tails = matches.iter().map(|found| TokenRange::new(found.target_pos, computed_end(found)));
    tails.filter(|tail| !tail.is_empty()).collect()
}

/// Records the parts of `tails` that no other donor serves.
fn with_edited(mut plan: ReusePlan, mut tails: Vec<TokenRange>) -> ReusePlan {
    tails.sort_unstable();
    let Some(end) = tails.iter().map(|tail| tail.end).max() else { return plan };
    let all = TokenRange::new(0, end);
    let mut served = complement(all, &tails);
    served.extend(plan.spans.iter().map(ReuseSpan::target_range));
    served.sort_unstable();
    plan.edited = complement(all, &served);
    if plan.spans.is_empty() {
        plan.rejected = Some(RejectReason::Edited);
    }
    plan
}

fn rejection_before_search(gap: TokenRange, is_unknown: bool, config: &SpanConfig) -> Option<RejectReason> {
    if gap.end < config.min_prompt_tokens {
        Some(RejectReason::PromptTooShort)
    } else if gap.len() < config.min_span_tokens {
        Some(RejectReason::PrefixCovers)
    } else if is_unknown {
        Some(RejectReason::NoDonor)
    } else {
        None
    }
}

/// Returns the positions that may be copied by their position alone, in pieces worth copying.
fn reusable_rows(gap: TokenRange, template: &[TokenRange], config: &SpanConfig) -> Vec<TokenRange> {
    let without_tail = TokenRange::new(gap.start, gap.end.saturating_sub(config.tail_tokens));
    let mut pieces = complement(without_tail, template);
    pieces.retain(|piece| piece.len() >= config.min_piece_tokens);
    pieces
}

fn assemble(chosen: &[Choice], rows: &Rows<'_>, edited: &EditedRuns, min_piece_tokens: u32) -> ReusePlan {
    let mut plan = ReusePlan::default();
    let mut runs = Vec::new();
    for Choice { whole, part } in chosen {
        let num_spans = plan.spans.len();
        for piece in rows.pieces(part).filter(|piece| piece.len() >= min_piece_tokens) {
            let piece = part.within_target(piece).expect("a piece lies inside its match");
            plan.spans.extend(reuse_spans(piece, edited.end_in(&piece)));
        }
        if plan.spans.len() > num_spans {
            runs.push(whole.target_range());
        }
    }
    if plan.spans.is_empty() {
        plan.rejected = Some(RejectReason::TooShort);
    }
    plan.recomputed_tokens = size_of_union(runs) - plan.num_reused_tokens();
    plan
}

/// Splits `piece` into one or two spans: tokens downstream of an edit, up to `edited_end`, are of another class than the rest.
fn reuse_spans(piece: SpanMatch, edited_end: u32) -> impl Iterator<Item = ReuseSpan> {
    let stale = piece.within_target(TokenRange::new(piece.target_pos, edited_end));
    let rest = piece.within_target(TokenRange::new(edited_end, piece.target_range().end));
    let stale = stale.map(|stale| ReuseSpan { class: MatchClass::DownstreamOfEdit, ..reuse_span(stale) });
    stale.into_iter().chain(rest.map(reuse_span))
}

fn size_of_union(mut ranges: Vec<TokenRange>) -> u32 {
    ranges.sort_unstable();
    let mut covered_to = 0;
    let mut size = 0;
    for range in ranges {
        size += TokenRange::new(range.start.max(covered_to), range.end).len();
        covered_to = covered_to.max(range.end);
    }
    size
}

fn reuse_span(found: SpanMatch) -> ReuseSpan {
    let SpanMatch { donor, donor_pos, target_pos, num_tokens, left_context } = found;
    let class = if found.has_same_past() {
        MatchClass::SamePast
    } else if left_context >= LEFT_CONTEXT_TOKENS {
        MatchClass::SameLeftContext
    } else {
        MatchClass::Composition
    };
    ReuseSpan { donor, donor_pos, target_pos, num_tokens, class }
}

#[cfg(test)]
mod tests {
    use tokens::TokenId;

    use super::*;
    use crate::testing::Random;
    use crate::{DonorStore, NewDonor, PromptView, Segments, SpanIndexConfig};

    const HEAD: u32 = 16;
    const TAIL: u32 = 16;

    fn config() -> SpanConfig {
        SpanConfig { head_tokens: HEAD, ..SpanConfig::default() }
    }

    fn span(donor: u64, donor_pos: u32, target_pos: u32, num_tokens: u32) -> SpanMatch {
        SpanMatch { donor: DonorId(donor), donor_pos, target_pos, num_tokens, left_context: 0 }
    }

    /// Plans a prompt without edits.
    fn plan_unedited(prompt_len: u32, from: u32, matches: &[SpanMatch], template: &[TokenRange]) -> ReusePlan {
        let gap = TokenRange::new(from, prompt_len);
        let config = config();
        let to_candidates = |mut matches: Vec<SpanMatch>, steps: &mut Steps| {
            matches.retain(|found| found.num_tokens >= config.min_piece_tokens);
            thin_out(matches, steps).into_iter().map(|found| Candidate { found, preference: 0.0 }).collect()
        };
        let found = Found { matches: matches.to_vec(), other_rows: Vec::new() };
        plan_around_edits(gap, &found, &EditedRuns::default(), template, &config, to_candidates, &mut Steps::default())
    }

    /// Plans a prompt of 1000 tokens. Spans print as `donor@donor_pos -> start..end`.
    #[track_caller]
    fn check(from: u32, matches: &[SpanMatch], template: &[(u32, u32)], expected: &str) -> ReusePlan {
        let template: Vec<_> = template.iter().map(|&(start, end)| TokenRange::new(start, end)).collect();
        let plan = plan_unedited(1000, from, matches, &template);
        let print = |span: &ReuseSpan| format!("{}@{} -> {:?}", span.donor, span.donor_pos, span.target_range());
        let spans: Vec<_> = plan.spans.iter().map(print).collect();
        assert_eq!(spans.join(", "), expected);
        plan
    }

    #[track_caller]
    fn check_rejected(prompt_len: u32, from: u32, matches: &[SpanMatch], expected: RejectReason) {
        let plan = plan_unedited(prompt_len, from, matches, &[]);
        assert_eq!(plan, ReusePlan { rejected: Some(expected), ..ReusePlan::default() });
    }

    #[test]
    fn the_head_of_a_span_is_recomputed() {
        let plan = check(0, &[span(1, 0, 300, 200)], &[], "d1@16 -> 316..500");
        assert_eq!((plan.recomputed_tokens, plan.rejected), (16, None));
    }

    #[test]
    fn the_tail_of_the_prompt_is_recomputed() {
        let plan = check(0, &[span(1, 0, 800, 200)], &[], "d1@16 -> 816..984");
        assert_eq!(plan.recomputed_tokens, 16 + TAIL);
    }

    #[test]
    fn a_run_with_the_same_past_has_no_head() {
        let plan = check(96, &[SpanMatch { left_context: 96, ..span(1, 96, 96, 200) }], &[], "d1@96 -> 96..296");
        assert_eq!(plan.spans[0].class, MatchClass::SamePast);
    }

    #[test]
    fn a_run_cut_by_the_prefix_hit_needs_only_what_is_left_of_its_head() {
        check(96, &[SpanMatch { left_context: 6, ..span(1, 206, 96, 200) }], &[], "d1@216 -> 106..296");
        check(96, &[SpanMatch { left_context: 60, ..span(1, 260, 96, 200) }], &[], "d1@260 -> 96..296");
    }

    #[test]
    fn a_span_in_place_behind_a_changed_past_is_not_exact() {
        let plan = check(96, &[span(1, 96, 96, 200)], &[], "d1@112 -> 112..296");
        assert_eq!(plan.spans[0].class, MatchClass::Composition);
    }

    #[test]
    fn template_tokens_are_recomputed_and_need_no_new_head() {
        let plan =
            check(0, &[span(1, 0, 100, 300)], &[(90, 120), (200, 205), (400, 410)], "d1@20 -> 120..200, d1@105 -> 205..400");
        assert_eq!(plan.recomputed_tokens, 25);
    }

    #[test]
    fn pieces_that_are_too_small_are_recomputed() {
        check(0, &[span(1, 0, 100, 300)], &[(200, 205), (220, 225)], "d1@16 -> 116..200, d1@125 -> 225..400");
        check(0, &[span(1, 0, 100, 300)], &[(200, 205), (221, 225)], "d1@16 -> 116..200, d1@105 -> 205..221, d1@125 -> 225..400");
    }

    #[test]
    fn donor_order_may_differ_from_target_order() {
        check(0, &[span(1, 500, 100, 200), span(1, 0, 400, 200)], &[], "d1@516 -> 116..300, d1@16 -> 416..600");
    }

    #[test]
    fn overlaps_are_cut_so_that_most_is_copied() {
        check(0, &[span(1, 0, 100, 200), span(2, 0, 250, 300)], &[], "d1@16 -> 116..300, d2@50 -> 300..550");
        let three = [span(1, 0, 100, 200), span(2, 0, 250, 300), span(3, 0, 90, 170)];
        check(0, &three, &[], "d3@16 -> 106..260, d2@16 -> 266..550");
    }

    #[test]
    fn one_long_span_is_preferred_to_two_halves() {
        check(0, &[span(1, 0, 100, 400), span(2, 0, 100, 200), span(2, 900, 300, 200)], &[], "d1@16 -> 116..500");
    }

    #[test]
    fn one_donor_is_preferred_to_two() {
        let matches = [span(1, 0, 100, 100), span(1, 300, 300, 100), span(2, 0, 100, 100), span(3, 0, 300, 100)];
        check(0, &matches, &[], "d1@16 -> 116..200, d1@316 -> 316..400");
    }

    #[test]
    fn of_equal_donors_the_youngest_is_taken() {
        check(0, &[span(1, 0, 100, 100), span(3, 0, 100, 100), span(2, 0, 100, 100)], &[], "d3@16 -> 116..200");
    }

    #[test]
    fn a_span_within_the_prefix_hit_is_left_out() {
        check(300, &[span(1, 50, 100, 150), span(1, 450, 500, 100)], &[], "d1@466 -> 516..600");
    }

    #[test]
    fn a_long_equal_left_context_is_told_from_composition() {
        let plan = check(0, &[span(1, 7, 100, 500)], &[(355, 360)], "d1@23 -> 116..355, d1@267 -> 360..600");
        let classes: Vec<_> = plan.spans.iter().map(|span| span.class).collect();
        assert_eq!(classes, [MatchClass::Composition, MatchClass::SameLeftContext]);
    }

    #[test]
    fn a_rejection_has_its_reason() {
        check_rejected(127, 0, &[span(1, 0, 20, 100)], RejectReason::PromptTooShort);
        check_rejected(1000, 950, &[span(1, 0, 20, 100)], RejectReason::PrefixCovers);
        check_rejected(1000, 0, &[], RejectReason::NoDonor);
        check_rejected(1000, 0, &[span(1, 0, 20, 15)], RejectReason::TooShort);
        check_rejected(1000, 60, &[span(1, 0, 20, 55)], RejectReason::TooShort);
    }

    #[test]
    fn donors_that_give_little_for_what_has_to_be_held_are_left_out() {
        // A long donor gives most, another one as long gives a few tokens more in one place.
        let far = 200_000;
        let matches = [span(1, far, 100, 500), span(2, far, 600, 110), span(3, 0, 800, 100)];
        check(0, &matches, &[], "d1@200016 -> 116..600, d3@16 -> 816..900");
        let matches = [span(1, far, 100, 500), span(2, 6000, 600, 110), span(3, 0, 800, 100)];
        check(0, &matches, &[], "d1@200016 -> 116..600, d2@6016 -> 616..710, d3@16 -> 816..900");
    }

    #[test]
    fn labels_are_distinct() {
        let labels: std::collections::BTreeSet<_> = RejectReason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), RejectReason::ALL.len());
        let labels: std::collections::BTreeSet<_> = MatchClass::ALL.iter().map(|class| class.label()).collect();
        assert_eq!(labels.len(), MatchClass::ALL.len());
    }

    /// Plans a target that is donor 1, 300 tokens in three segments, with token 120 changed and `tail` after it. Donor 2 is the
    /// third segment, if `with_other`.
    #[track_caller]
    fn check_edit(edits: EditPolicy, with_other: bool, expected: &str) -> ReusePlan {
        let config = SpanConfig { edits, ..config() };
        let donor: Vec<_> = (0..400).map(TokenId).collect();
        let mut target = donor.clone();
        target[120] = TokenId(999);
        target.extend((500..520).map(TokenId));
        let segments = Segments::from_starts([100, 250]);
        let mut store = DonorStore::new(SpanIndexConfig::for_spans(&config));
        let scope = tokens::Scope(0);
        store.insert(NewDonor { segments: segments.clone(), ..NewDonor::new(DonorId(1), scope, donor.as_slice()) });
        if with_other {
            store.insert(NewDonor::new(DonorId(2), scope, &target[60..240]));
        }
        let prompt = PromptView { tokens: &target, segments: &segments };
        let matches = store.find(scope, &target, 0);
        let plan = plan_reuse(&PlanTarget { prompt, from: 0, template: &[] }, &matches, &store, &config);
        let print = |span: &ReuseSpan| format!("{} {:?} {}", span.donor, span.target_range(), span.class.label());
        assert_eq!(plan.spans.iter().map(print).collect::<Vec<_>>().join(", "), expected);
        plan
    }

    #[test]
    fn the_tail_of_an_edited_segment_is_recomputed() {
        let expected = "d1 0..120 same_past, d1 250..400 composition";
        let plan = check_edit(EditPolicy::RecomputeSegmentTail, false, expected);
        assert_eq!(plan.edited, [TokenRange::new(121, 250)]);
    }

    #[test]
    fn a_donor_without_the_edit_serves_the_tail() {
        let expected = "d1 0..120 same_past, d2 120..240 composition, d1 250..400 composition";
        let plan = check_edit(EditPolicy::RecomputeSegmentTail, true, expected);
        assert_eq!(plan.edited, [TokenRange::new(240, 250)]);
    }

    #[test]
    fn reuse_after_an_edit_has_a_longer_head_and_its_class() {
        let expected = "d1 0..120 same_past, d1 153..250 downstream_of_edit, d1 250..400 composition";
        let plan = check_edit(EditPolicy::Reuse, false, expected);
        assert_eq!((plan.edited.len(), plan.class()), (0, Some(MatchClass::DownstreamOfEdit)));
    }

    #[test]
    fn a_prompt_that_is_edited_throughout_is_rejected() {
        let donor: Vec<_> = (0..400).map(TokenId).collect();
        let mut target = donor.clone();
        target[10] = TokenId(999);
        let mut store = DonorStore::new(SpanIndexConfig::default());
        store.insert(NewDonor::new(DonorId(1), tokens::Scope(0), donor));
        let matches = store.find(tokens::Scope(0), &target, 0);
        let prompt = PromptView { tokens: &target, segments: &Segments::default() };
        let plan = plan_reuse(&PlanTarget { prompt, from: 0, template: &[] }, &matches, &store, &config());
        assert_eq!((plan.rejected, plan.edited), (Some(RejectReason::Edited), vec![TokenRange::new(11, 400)]));
    }

    /// Donors that are kept, each preferred by its own value.
    struct Liked(DonorStore);

    impl DonorPrompts for Liked {
        fn prompt_of(&self, donor: DonorId) -> Option<PromptView<'_>> {
            self.0.prompt_of(donor)
        }

        fn preferences(&self, _target: &PlanTarget<'_>, matches: &[SpanMatch], _steps: &mut Steps) -> Vec<f32> {
            matches.iter().map(|found| if found.donor == DonorId(2) { 0.9 } else { 0.1 }).collect()
        }
    }

    #[test]
    fn of_equal_spans_the_preferred_one_is_taken() {
        let text = Random(3).tokens(200, 50_000);
        let mut donors = Liked(DonorStore::new(SpanIndexConfig::default()));
        for id in 1..4 {
            donors.0.insert(NewDonor::new(DonorId(id), tokens::Scope(0), text.as_slice()));
        }
        let target = [vec![TokenId(7)], text].concat();
        let matches = donors.0.find(tokens::Scope(0), &target, 0);
        let prompt = PromptView { tokens: &target, segments: &Segments::default() };
        let plan = plan_reuse(&PlanTarget { prompt, from: 0, template: &[] }, &matches, &donors, &config());
        assert_eq!(plan.spans.iter().map(|span| span.donor.0).collect::<Vec<_>>(), [2]);
    }

    /// A target made of pieces of donors and noise, found in the store, planned with random template ranges.
    struct World {
        store: DonorStore,
        target: Vec<TokenId>,
        template: Vec<TokenRange>,
        from: u32,
        matches: Vec<SpanMatch>,
    }

    fn world(seed: u64) -> World {
        let mut random = Random(seed);
        let alphabet = [3, 50_000][random.below(2)];
        let mut store = DonorStore::new(SpanIndexConfig::default());
        let scope = tokens::Scope(0);
        let mut donors: Vec<Vec<_>> = vec![random.tokens(400, alphabet)];
        for _ in 0..4 {
            let copied = random.below(300);
            donors.push([random.tokens(40, alphabet), donors[0][copied..].to_vec(), random.tokens(150, alphabet)].concat());
        }
        for (id, tokens) in donors.iter().enumerate() {
            store.insert(NewDonor::new(DonorId(id as u64), scope, tokens.as_slice()));
        }
        let mut target = Vec::new();
        let mut template = Vec::new();
        for _ in 0..random.below(7) {
            let donor = &donors[random.below(donors.len())];
            let start = random.below(donor.len());
            let end = (start + random.below(300)).min(donor.len());
            target.extend_from_slice(&donor[start..end]);
            let hole = target.len() as u32;
            target.extend(random.tokens(5, alphabet));
            template.push(TokenRange::new(hole.saturating_sub(random.below(4) as u32), hole + 3));
        }
        target.extend(random.tokens(20, alphabet));
        let from = random.below(target.len() / 2) as u32;
        let matches = store.find(scope, &target, from);
        World { store, target, template, from, matches }
    }

    #[test]
    fn every_plan_keeps_the_rules() {
        let config = config();
        let mut num_spans = 0;
        for seed in 0..400 {
            let World { store, target, mut template, from, matches } = world(seed);
            template.dedup_by(|later, earlier| later.start < earlier.end);
            let prompt_len = target.len() as u32;
            let segments = Segments::default().parted_by(&template);
            let prompt = PromptView { tokens: &target, segments: &segments };
            let plan = plan_reuse(&PlanTarget { prompt, from, template: &template }, &matches, &store, &config);
            assert_eq!(plan.spans.is_empty(), plan.rejected.is_some());
            let mut free_from = from;
            for span in &plan.spans {
                let range = span.target_range();
                assert!(range.start >= free_from && range.end <= prompt_len - config.tail_tokens, "seed {seed}");
                assert!(range.len() >= config.min_piece_tokens);
                free_from = range.end;
                assert!(template.iter().all(|hole| hole.intersect(range).is_empty()));
                let donor = &store.get(span.donor).unwrap().tokens;
                let donor_range = span.donor_pos as usize..(span.donor_pos + span.num_tokens) as usize;
                assert_eq!(donor[donor_range], target[range.as_usize()]);
                check_left_context(span, donor, &target);
                num_spans += 1;
            }
            assert!(plan.num_reused_tokens() + plan.recomputed_tokens <= prompt_len - from);
        }
        assert!(num_spans > 400, "{num_spans} spans are too few to mean much");
    }

    /// Checks that a head of equal tokens precedes a reused token, or that its whole past is equal.
    fn check_left_context(span: &ReuseSpan, donor: &[TokenId], target: &[TokenId]) {
        let (donor, target) = (&donor[..span.donor_pos as usize], &target[..span.target_pos as usize]);
        let equal = donor.iter().rev().zip(target.iter().rev()).take_while(|(a, b)| a == b).count();
        let head = ((equal + span.num_tokens as usize) / 4).min(HEAD as usize);
        assert!(equal >= head || (equal == donor.len() && equal == target.len()));
    }

    #[test]
    fn a_repetitive_prompt_is_planned_too() {
        let matches: Vec<_> = (0..1000).map(|i| span(i % 3, i as u32, 20 + i as u32 % 700, 200)).collect();
        let plan = plan_unedited(1000, 0, &matches, &[]);
        let reused: u32 = plan.spans.iter().map(|span| span.num_tokens).sum();
        assert!(reused > 600, "{reused}");
    }
}
