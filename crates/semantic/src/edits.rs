//! Finds equal tokens downstream of an edit in their own segment.
//!
//! KV after an edit holds conclusions that the donor drew from the old text. No scattered repair removes them; recomputing everything from
//! the edit on does (arXiv 2609.17983: .94-1.01 of the answer margin against at most .53). Text moved as a whole to another left context is
//! different: its conclusions come from itself. So the two cases are distinguished, for each run of equal tokens of one donor:
//!
//! A run that begins inside a segment of the target, and is not a whole segment of its donor there, is *downstream of an edit* if
//! - left of it, within 64 tokens on both sides and inside both segments, four consecutive tokens are equal again: the edit script has a
//!   small gap between two chained runs. 64, because a longer gap could hold a span of its own, and ids replaced in records are some 30
//!   tokens long. Four, because punctuation and markup repeat in threes; an equal four by chance costs some recomputation only;
//! - or both segments begin at most 16 tokens left of it: the gap lies at the segment's beginning, where nothing can be equal before it (a
//!   name that opens a paragraph, an omitted first sentence; the run may then begin with the target's segment). One token that only the
//!   donor has there is no edit: blank lines become other tokens where a passage opens its message;
//! - or it follows such a run in the same segment, in the donor's order too: it was computed under the same old text.
//!
//! The run is downstream up to the end of the target's segment. The segments after it are composition, and so is every other run that
//! begins inside a segment: text pasted after other text, the documents of a message that were reordered or partly replaced. If segments
//! are unknown, the prompt counts as one, so that an edit reaches to its end; if the donor's are unknown or lie elsewhere, only the four
//! equal tokens decide.
//!
//! [`EditPolicy`] sets how far an edited run is computed: by default to the end of the changed sentence, contiguously, because that removes
//! the conclusions from the old text. Later sentences may depend on it too; they stay, are repaired as other moved text is, and are a class
//! of their own for verification.

use std::collections::{BTreeMap, HashMap};

use tokens::{DonorId, TokenId, TokenRange};

use crate::{PromptView, SpanMatch};

/// Widest gap of an edit, in tokens of either side.
const MAX_GAP_TOKENS: usize = crate::span::MAX_GAP_TOKENS as usize;
/// Equal tokens on the far side of a gap that show that the texts correspond.
const ANCHOR_TOKENS: usize = 4;
/// Widest gap at the beginning of a segment.
const MAX_OPENING_TOKENS: u32 = 16;

/// Treatment of equal tokens downstream of an edit in their own segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum EditPolicy {
    /// Computes them contiguously to the end of the sentence or line; to the end of the segment if sentences are unknown.
    #[default]
    RecomputeSentence,
    /// Computes them contiguously to the end of the segment.
    RecomputeSegmentTail,
    /// Copies them as any others, with their stale conclusions: for measurements.
    Reuse,
}

/// First difference of one donor and the target inside a segment of the target.
#[derive(Clone, Copy, Debug)]
struct Edit {
    /// First changed position in the donor.
    donor_pos: u32,
    /// End of that segment of the donor.
    donor_end: u32,
    /// Reach of the edit in the target.
    reach: Reach,
}

/// Target positions up to which a run is downstream of an edit.
#[derive(Clone, Copy, Debug, Default)]
struct Reach {
    /// End of the changed sentence.
    sentence_end: u32,
    /// End of the segment.
    segment_end: u32,
}

/// The edits of one donor within one segment of the target.
#[derive(Debug, Default)]
struct SegmentEdits {
    donor: Option<DonorId>,
    segment_end: u32,
    /// First changed position, by the end of its segment in the donor.
    first_changed: BTreeMap<u32, u32>,
}

/// A maximal equal run before cutting: donor, its first position there, and in the target.
type RunKey = (DonorId, u32, u32);

/// End of the edited part of each run.
#[derive(Debug, Default)]
pub(crate) struct EditedRuns {
    reaches: HashMap<RunKey, Reach>,
    /// Runs of each donor that begin after a small gap, in any segment: the start in the target, ascending, and the least start in the
    /// donor of this run and those before it.
    gaps: HashMap<DonorId, Vec<(u32, u32)>>,
}

fn run_key(found: &SpanMatch) -> RunKey {
    (found.donor, found.donor_pos - found.left_context, found.run_start())
}

impl EditedRuns {
    /// Examines the beginnings of all runs of `matches`. Skips runs whose donor `prompt_of` does not know.
    pub(crate) fn of<'a>(
        target: PromptView<'_>,
        matches: &[SpanMatch],
        prompt_of: impl Fn(DonorId) -> Option<PromptView<'a>>,
    ) -> Self {
        let mut runs: Vec<_> = matches.iter().filter(|found| !found.has_same_past()).map(run_key).collect();
        runs.sort_unstable_by_key(|&(donor, donor_start, target_start)| (donor, target_start, donor_start));
        runs.dedup();
        let (mut reaches, mut gaps) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        let mut edits = SegmentEdits::default();
        let mut prompt = None;
        for run in runs {
            if edits.donor != Some(run.0) {
                prompt = prompt_of(run.0);
                edits = SegmentEdits { donor: Some(run.0), ..SegmentEdits::default() };
            }
            let (donor, donor_start, target_start) = run;
            let follows_gap = |view: PromptView<'_>| {
                gap(&view.tokens[..donor_start as usize], &target.tokens[..target_start as usize]).is_some()
            };
            if prompt.is_some_and(follows_gap) {
                let gaps = gaps.entry(donor).or_default();
                let least = gaps.last().map_or(donor_start, |&(_, least)| donor_start.min(least));
                gaps.push((target_start, least));
            }
            if let Some(reach) = prompt.and_then(|donor| edits.reach_of(target, donor, run)) {
                reaches.insert(run, reach);
            }
        }
        Self { reaches, gaps }
    }

    /// True if there is a change of at most 64 tokens anywhere left of both positions, in the target and in `donor`: a header governs its
    /// rows from any distance.
    pub(crate) fn follows_change(&self, donor: DonorId, target_pos: u32, donor_pos: u32) -> bool {
        let gaps = self.gaps.get(&donor).map_or(&[][..], Vec::as_slice);
        let num_before = gaps.partition_point(|&(target_start, _)| target_start <= target_pos);
        num_before > 0 && gaps[num_before - 1].1 <= donor_pos
    }

    /// True if the run of `found` begins downstream of an edit in its own segment.
    pub(crate) fn follows_edit(&self, found: &SpanMatch) -> bool {
        self.reaches.contains_key(&run_key(found))
    }

    /// Returns the target position up to which tokens of `found` are downstream of an edit; its own start if none is.
    pub(crate) fn end_in(&self, found: &SpanMatch) -> u32 {
        self.end_of(found, |reach| reach.segment_end)
    }

    /// Returns the target position up to which `policy` computes tokens of `found`; its own start if none is.
    pub(crate) fn computed_end_in(&self, found: &SpanMatch, policy: EditPolicy) -> u32 {
        match policy {
            EditPolicy::RecomputeSentence => self.end_of(found, |reach| reach.sentence_end),
            EditPolicy::RecomputeSegmentTail => self.end_in(found),
            EditPolicy::Reuse => found.target_pos,
        }
    }

    fn end_of(&self, found: &SpanMatch, end: impl Fn(&Reach) -> u32) -> u32 {
        let range = found.target_range();
        self.reaches.get(&run_key(found)).map_or(range.start, |reach| end(reach).clamp(range.start, range.end))
    }
}

impl SegmentEdits {
    /// Returns the reach of an edit into `run`: of an earlier one, or of one directly left of it. Runs must come by ascending target
    /// position.
    fn reach_of(&mut self, target: PromptView<'_>, donor: PromptView<'_>, run: RunKey) -> Option<Reach> {
        let (_, _, target_start) = run;
        if target_start >= self.segment_end {
            self.first_changed.clear();
        }
        let behind = self.behind_earlier(target, donor, run);
        if behind.is_some_and(|reach| reach.sentence_end == reach.segment_end) {
            return behind;
        }
        let Some(edit) = edit_before(target, donor, run) else { return behind };
        let first = self.first_changed.entry(edit.donor_end).or_insert(edit.donor_pos);
        *first = edit.donor_pos.min(*first);
        self.segment_end = edit.reach.segment_end;
        Some(edit.reach)
    }

    /// Returns the reach of an edit further left in the segments of `run`, if there is one.
    fn behind_earlier(
        &self,
        target: PromptView<'_>,
        donor: PromptView<'_>,
        (_, donor_start, target_start): RunKey,
    ) -> Option<Reach> {
        if self.first_changed.is_empty() {
            return None;
        }
        let first = *self.first_changed.get(&donor.segment_at(donor_start).end)?;
        let sentence_end = if target.segments.knows_sentences() { target_start } else { self.segment_end };
        (first <= donor_start).then_some(Reach { sentence_end, segment_end: self.segment_end })
    }
}

/// Returns the edit directly left of `run`, if there is one.
fn edit_before(target: PromptView<'_>, donor: PromptView<'_>, run: RunKey) -> Option<Edit> {
    let (_, donor_start, target_start) = run;
    let target_segment = target.segment_at(target_start);
    let donor_segment = donor.segment_at(donor_start);
    if donor_start == donor_segment.start {
        return None;
    }
    let target_lead = TokenRange::new(target_segment.start, target_start);
    let donor_lead = TokenRange::new(donor_segment.start, donor_start);
    let is_anchored = || gap(&donor.tokens[donor_lead.as_usize()], &target.tokens[target_lead.as_usize()]);
    let donor_gap = is_anchored().or_else(|| {
        let is_border = target_lead.is_empty() && donor_lead.len() == 1;
        let is_opening = target_lead.len().max(donor_lead.len()) <= MAX_OPENING_TOKENS && !is_border;
        is_opening.then_some(donor_lead.len())
    })?;
    let sentence = target.sentence_at(target_start);
    // A run that begins a sentence follows the changed one, if the target has that.
    let follows = target.segments.knows_sentences() && sentence.start == target_start && !target_lead.is_empty();
    let sentence_end = if follows { target_start } else { sentence.end };
    let reach = Reach { sentence_end, segment_end: target_segment.end };
    Some(Edit { donor_pos: donor_start - donor_gap, donor_end: donor_segment.end, reach })
}

/// Returns the number of donor tokens between the end of `donor_lead` and the nearest anchor that both leads contain, nearest in the target
/// first, then in the donor. `None` if no anchor lies within [`MAX_GAP_TOKENS`] of the end of both leads.
fn gap(donor_lead: &[TokenId], target_lead: &[TokenId]) -> Option<u32> {
    let (donor, target) = (Anchors::left_of(donor_lead), Anchors::left_of(target_lead));
    // Most leads have no anchor in common. A bit set with false positives detects that quickly.
    let mut seen = [0u64; SEEN_WORDS];
    donor.hashes().iter().for_each(|hash| seen[(hash >> 27) as usize] |= 1 << (hash >> 21 & 63));
    let may_be_seen = |hash: u32| seen[(hash >> 27) as usize] >> (hash >> 21 & 63) & 1 == 1;
    let candidates = target.hashes().iter().enumerate().filter(|&(_, &hash)| may_be_seen(hash));
    candidates.map(|(gap, &hash)| (target.anchor(gap), hash)).find_map(|(wanted, hash)| {
        let equal = donor.hashes().iter().enumerate().filter(|&(_, &other)| other == hash);
        equal.map(|(gap, _)| gap).find(|&gap| donor.anchor(gap) == wanted).map(|gap| gap as u32)
    })
}

/// Number of words of a bit set that the upper bits of an anchor's hash index: 32 bits for each anchor of a lead.
const SEEN_WORDS: usize = 32;
/// Maximum number of anchors of a lead: one for each gap from 0 to [`MAX_GAP_TOKENS`].
const MAX_ANCHORS: usize = MAX_GAP_TOKENS + 1;

/// Anchors near the end of a lead: [`ANCHOR_TOKENS`] consecutive tokens each. The index of an anchor is its gap: the number of tokens between
/// it and the end of the lead.
struct Anchors<'a> {
    lead: &'a [TokenId],
    hashes: [u32; MAX_ANCHORS],
    num_anchors: usize,
}

impl<'a> Anchors<'a> {
    fn left_of(lead: &'a [TokenId]) -> Self {
        let lead = &lead[lead.len().saturating_sub(MAX_GAP_TOKENS + ANCHOR_TOKENS)..];
        let mut hashes = [0; MAX_ANCHORS];
        let anchors = lead.array_windows().rev();
        hashes.iter_mut().zip(anchors).for_each(|(hash, anchor)| *hash = hash_of(anchor));
        Self { lead, hashes, num_anchors: lead.len().saturating_sub(ANCHOR_TOKENS - 1) }
    }

    /// Returns the hashes by ascending gap.
    fn hashes(&self) -> &[u32] {
        &self.hashes[..self.num_anchors]
    }

    fn anchor(&self, gap: usize) -> &'a [TokenId; ANCHOR_TOKENS] {
        self.lead[..self.lead.len() - gap].last_chunk().expect("an anchor fits left of the gap")
    }
}

/// Hashes an anchor. Multiplies each token by its own factor, so that the multiplications are independent of each other.
fn hash_of([a, b, c, d]: &[TokenId; ANCHOR_TOKENS]) -> u32 {
    let sum = a.0.wrapping_mul(0x9e37_79b1)
        ^ b.0.wrapping_mul(0x85eb_ca77)
        ^ c.0.wrapping_mul(0xc2b2_ae3d)
        ^ d.0.wrapping_mul(0x27d4_eb2f);
    (sum ^ (sum >> 15)).wrapping_mul(0x2c1b_3c6d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Segments;

    /// Parses words as tokens, `|` beginning a segment, `.` ending a sentence, `*n` for n words found nowhere else in it (equal in
    /// both texts if the letter before the star is).
    fn prompt(text: &str) -> (Vec<TokenId>, Segments) {
        let (mut tokens, mut starts, mut sentences) = (Vec::new(), Vec::new(), Vec::new());
        for word in text.split_whitespace() {
            let (letter, num) = word.split_once('*').unwrap_or((word, "1"));
            match letter {
                "|" => starts.push(tokens.len() as u32),
                "." => sentences.push(tokens.len() as u32),
                _ => tokens.extend((0..num.parse().unwrap()).map(|i| TokenId(letter.as_bytes()[0] as u32 * 10_000 + i))),
            }
        }
        (tokens, Segments::from_starts(starts).with_sentences(sentences))
    }

    /// Checks the runs of at least 64 equal tokens in `target`, each as `start..end`, with `!end` if it is edited up to there.
    #[track_caller]
    fn check(donor: &str, target: &str, expected: &str) {
        check_policy(EditPolicy::RecomputeSegmentTail, donor, target, expected);
    }

    /// Checks the same for the tokens that `policy` computes.
    #[track_caller]
    fn check_policy(policy: EditPolicy, donor: &str, target: &str, expected: &str) {
        let ((donor, donor_segments), (target, segments)) = (prompt(donor), prompt(target));
        let mut store = crate::DonorStore::new(crate::SpanIndexConfig::default());
        store.insert(crate::NewDonor::new(DonorId(0), tokens::Scope(0), donor.as_slice()));
        let matches = store.find(tokens::Scope(0), &target, 0);
        let donor = PromptView { tokens: &donor, segments: &donor_segments };
        let edited = EditedRuns::of(PromptView { tokens: &target, segments: &segments }, &matches, |_| Some(donor));
        let print = |found: &SpanMatch| match edited.computed_end_in(found, policy) {
            end if end == found.target_pos => format!("{:?}", found.target_range()),
            end => format!("{:?}!{end}", found.target_range()),
        };
        assert_eq!(matches.iter().map(print).collect::<Vec<_>>().join(", "), expected);
    }

    #[test]
    fn behind_a_substitution_the_segment_is_lost_and_the_next_one_is_not() {
        check("a*100 x*30 b*100 | c*100", "a*100 y*28 b*100 | c*100", "0..100, 128..328!228");
    }

    #[test]
    fn behind_an_insertion_or_a_deletion_too() {
        check("a*100 b*100", "a*100 y*3 b*100", "0..100, 103..203!203");
        check("a*100 x*64 b*100", "a*100 b*100", "0..100, 100..200!200");
    }

    #[test]
    fn an_edit_is_seen_where_its_segment_moved() {
        check("a*20 x b*100 | c*100", "| c*100 | a*20 y b*100", "0..100, 121..221!221");
    }

    #[test]
    fn a_short_equal_beginning_is_no_span_but_shows_the_edit() {
        check("t*5 x*30 b*100", "z*100 | t*5 y*30 b*100", "135..235!235");
    }

    #[test]
    fn a_changed_opening_is_an_edit() {
        check("| n b*100", "c*300 | m b*100", "301..401!401");
        check("c*9 | n*16 b*100", "d*9 | b*100", "9..109!109");
    }

    #[test]
    fn another_blank_line_token_before_a_segment_is_no_edit() {
        check("c*9 | n b*100", "d*9 m | b*100", "10..110");
    }

    #[test]
    fn a_whole_segment_elsewhere_is_composition() {
        check("q*40 | a*100 | b*100", "p*20 | b*100 | r*30 | a*100", "20..120, 150..250");
        check("q*40 | a*100", "p*5 a*100", "5..105");
    }

    #[test]
    fn passages_in_another_order_inside_one_segment_are_composition() {
        check("a*100 b*100 c*100", "c*100 a*100 b*100", "0..100, 100..300");
        check("h*20 a*100 b*100 c*100", "g*20 b*100 a*100 c*100", "20..120, 120..220, 220..320");
    }

    #[test]
    fn a_passage_replaced_by_another_is_composition() {
        check("a*100 x*90 b*100", "a*100 y*80 b*100", "0..100, 180..280");
    }

    #[test]
    fn another_question_in_front_of_a_document_is_composition() {
        check("s*10 x*40 | d*300", "s*10 y*30 | d*300", "40..340");
    }

    #[test]
    fn what_follows_an_edited_run_is_edited_too_however_far() {
        check("a*100 x b*100 v*90 c*100", "a*100 y b*100 w*90 c*100", "0..100, 101..201!201, 291..391!391");
    }

    #[test]
    fn what_stood_left_of_the_edit_in_the_donor_is_not_stale() {
        check("c*100 v*90 a*100 x b*100", "a*100 y b*100 c*100", "0..100, 101..201!201, 201..301");
    }

    #[test]
    fn a_prompt_without_known_segments_is_lost_to_its_end() {
        check("a*100 x b*100 c*100", "a*100 y b*100 c*100", "0..100, 101..301!301");
    }

    #[test]
    fn after_a_change_its_sentence_is_computed_and_the_next_ones_are_not() {
        let sentence = |donor, target, expected| check_policy(EditPolicy::RecomputeSentence, donor, target, expected);
        sentence("a*100 . x b*40 . c*80 | d*100", "a*100 . y b*40 . c*80 | d*100", "0..100, 101..321!141");
        sentence("a*100 . x . b*100 . c*80", "a*100 . y . b*100 . c*80", "0..100, 101..281");
        sentence("a*100 x b*100 c*80", "a*100 y b*100 c*80", "0..100, 101..281!281");
        check_policy(EditPolicy::Reuse, "a*100 . x b*40 . c*80", "a*100 . y b*40 . c*80", "0..100, 101..221");
    }

    #[test]
    fn each_change_costs_its_own_sentence() {
        let (donor, target) = ("a*90 . x b*80 . v c*80 . d*70", "a*90 . y b*80 . w c*80 . d*70");
        check_policy(EditPolicy::RecomputeSentence, donor, target, "0..90, 91..171!171, 172..322!252");
        check(donor, target, "0..90, 91..171!171, 172..322!322");
    }

    /// Checks for each of `positions`, in the target and in the donor, if it follows a change.
    #[track_caller]
    fn check_follows(donor: &str, target: &str, positions: &[(u32, u32)], expected: &[bool]) {
        let ((donor, donor_segments), (target, segments)) = (prompt(donor), prompt(target));
        let mut store = crate::DonorStore::new(crate::SpanIndexConfig::default());
        store.insert(crate::NewDonor::new(DonorId(0), tokens::Scope(0), donor.as_slice()));
        let matches = store.find(tokens::Scope(0), &target, 0);
        let donor = PromptView { tokens: &donor, segments: &donor_segments };
        let edited = EditedRuns::of(PromptView { tokens: &target, segments: &segments }, &matches, |_| Some(donor));
        let found: Vec<_> = positions.iter().map(|&(target, donor)| edited.follows_change(DonorId(0), target, donor)).collect();
        assert_eq!(found, expected);
    }

    /// A header in another message or paragraph governs rows far below it; a text in another place does not.
    #[test]
    fn a_change_is_followed_by_all_that_stands_right_of_it_in_both() {
        let (donor, target) = ("a*90 x*9 | b*80 | c*90", "a*90 y*9 | b*80 | c*90");
        check_follows(donor, target, &[(50, 50), (99, 99), (200, 200)], &[false, true, true]);
        check_follows("c*90 | a*90 x b*80", "a*90 y b*80 | c*90", &[(100, 190), (180, 10)], &[true, false]);
        check_follows("c*90 | b*80", "b*80 | c*90", &[(10, 100), (100, 10)], &[false, false]);
    }
}
