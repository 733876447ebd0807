//! Invariants of every plan, checked on donors and a target made of any bytes.
//!
//! For the tests of this crate and for `fuzz/`: the feature `invariants` exports it.

use tokens::{DonorId, Scope, TokenId, TokenRange};

use crate::{
    DonorPrompts, DonorStore, EditKind, EditPolicy, MatchClass, NewDonor, PlanTarget, PromptView, ReusePlan, ReuseSpan, Segments,
    SpanConfig, SpanIndexConfig, SpanMatch, align, plan_reuse,
};

const SCOPE: Scope = Scope(0);

/// Prompts made of bytes. Missing bytes count as 0.
struct World {
    config: SpanConfig,
    store: DonorStore,
    target: Text,
    template: Vec<TokenRange>,
    from: u32,
}

/// A prompt being written.
#[derive(Default)]
struct Text {
    tokens: Vec<TokenId>,
    starts: Vec<u32>,
    knows_segments: bool,
}

impl Text {
    fn segments(&self) -> Segments {
        if self.knows_segments { Segments::from_starts(self.starts.iter().copied()) } else { Segments::default() }
    }
}

/// Reads numbers from bytes.
struct Numbers<'a>(std::slice::Iter<'a, u8>);

impl Numbers<'_> {
    fn below(&mut self, n: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % n.max(1)
    }

    /// Reads a prompt of pieces: new tokens, single ones, copies of `others`, and borders of segments.
    fn text(&mut self, others: &[Text], alphabet: usize) -> Text {
        let mut text = Text { knows_segments: self.below(4) > 0, ..Text::default() };
        for _ in 0..self.below(12) {
            match self.below(4) {
                0 => text.starts.push(text.tokens.len() as u32),
                1 => {
                    let (num_tokens, seed) = (self.below(160), self.below(256));
                    text.tokens.extend((0..num_tokens).map(|i| token(seed, i, alphabet)));
                }
                2 => text.tokens.push(TokenId(self.below(alphabet) as u32)),
                _ => self.copy(others, &mut text),
            }
        }
        text
    }

    /// Appends a part of one of `others`, with its borders.
    fn copy(&mut self, others: &[Text], text: &mut Text) {
        let Some(other) = others.get(self.below(others.len())) else { return };
        let start = self.below(256) * other.tokens.len() / 256;
        let end = (start + self.below(256)).min(other.tokens.len());
        let at = text.tokens.len();
        let inside = other.starts.iter().map(|&border| border as usize).filter(|border| (start..end).contains(border));
        text.starts.extend(inside.map(|border| (at + border - start) as u32));
        text.tokens.extend_from_slice(&other.tokens[start..end]);
    }

    fn world(&mut self) -> World {
        let edits = [EditPolicy::RecomputeSegmentTail, EditPolicy::RecomputeSentence, EditPolicy::Reuse];
        let edits = edits[self.below(8).saturating_sub(5)];
        let config = SpanConfig {
            min_span_tokens: 16 + self.below(30) as u32,
            head_tokens: self.below(8) as u32,
            tail_tokens: 1 + self.below(8) as u32,
            min_prompt_tokens: self.below(64) as u32,
            min_piece_tokens: 1 + self.below(8) as u32,
            edits,
        };
        let alphabet = [2, 16, 255][self.below(3)];
        let mut texts: Vec<Text> = Vec::new();
        for _ in 0..=self.below(4) {
            let text = self.text(&texts, alphabet);
            texts.push(text);
        }
        let target = self.text(&texts, alphabet);
        let mut store = DonorStore::new(SpanIndexConfig::for_spans(&config));
        for (id, text) in (0..).zip(&texts) {
            store.insert(NewDonor { segments: text.segments(), ..NewDonor::new(DonorId(id), SCOPE, text.tokens.as_slice()) });
        }
        let template = self.template(target.tokens.len() as u32);
        let from = self.below(target.tokens.len().min(64)) as u32;
        World { config, store, target, template, from }
    }

    /// Reads some disjoint ranges of a prompt of `prompt_len` tokens.
    fn template(&mut self, prompt_len: u32) -> Vec<TokenRange> {
        let mut at = 0;
        let mut ranges = Vec::new();
        for _ in 0..self.below(4) {
            let start = at + self.below(128) as u32;
            at = start + 1 + self.below(6) as u32;
            if at <= prompt_len {
                ranges.push(TokenRange::new(start, at));
            }
        }
        ranges
    }
}

/// Returns token `i` of a piece of text, one for each seed: two bytes yield many tokens.
fn token(seed: usize, i: usize, alphabet: usize) -> TokenId {
    let x = ((seed << 16 | i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    TokenId(((x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as u32 % alphabet as u32)
}

/// Plans for donors and a target read from `bytes`, checks the invariants, and returns the number of spans.
///
/// # Panics
/// If an invariant does not hold.
#[must_use]
pub fn check_plan(bytes: &[u8]) -> usize {
    let world = Numbers(bytes.iter()).world();
    let segments = world.target.segments();
    let prompt = PromptView { tokens: &world.target.tokens, segments: &segments };
    let target = PlanTarget { prompt, from: world.from, template: &world.template };
    let matches = world.store.find(SCOPE, prompt.tokens, world.from);
    let plan = plan_reuse(&target, &matches, &world.store, &world.config);

    check_shape(&plan, &target, &world.config);
    for span in &plan.spans {
        check_span(span, &target, &world);
    }
    if world.config.edits != EditPolicy::Reuse {
        check_edits(&plan, &matches, &target, &world.store);
    }
    let reversed: Vec<_> = matches.iter().rev().copied().collect();
    assert_eq!(plan_reuse(&target, &reversed, &world.store, &world.config), plan, "the order of matches is of no account");
    if let Some(donor) = world.store.get(DonorId(0)) {
        check_script(prompt.tokens, &donor.tokens);
    }
    plan.spans.len()
}

/// Checks that spans, mandatory rows and edited positions lie in allowed places.
fn check_shape(plan: &ReusePlan, target: &PlanTarget<'_>, config: &SpanConfig) {
    let prompt_len = target.prompt.num_tokens();
    assert_eq!(plan.spans.is_empty(), plan.rejected.is_some());
    assert_eq!(plan.class().is_none(), plan.spans.is_empty());
    let mut at = target.from;
    for range in plan.spans.iter().map(ReuseSpan::target_range) {
        assert!(at <= range.start && range.start < range.end, "spans are sorted, disjoint and not empty");
        assert!(range.end + config.tail_tokens <= prompt_len, "the tail is computed");
        assert!(target.template.iter().all(|hole| hole.intersect(range).is_empty()), "template tokens are computed");
        at = range.end;
    }
    assert!(plan.num_reused_tokens() + plan.recomputed_tokens <= prompt_len - target.from);
    let mandatory: u32 = plan.mandatory_rows(target.from, prompt_len).iter().map(|range| range.len()).sum();
    assert_eq!(mandatory + plan.num_reused_tokens(), prompt_len - target.from, "every row is copied or computed");
    assert!(plan.edited.windows(2).all(|pair| pair[0].end < pair[1].start));
    let is_served = |tail: &TokenRange| plan.spans.iter().any(|span| !span.target_range().intersect(*tail).is_empty());
    assert!(!plan.edited.iter().any(is_served), "what was refused is not copied");
}

/// Checks that the tokens of a span are equal, and that the promise of its class holds.
fn check_span(span: &ReuseSpan, target: &PlanTarget<'_>, world: &World) {
    let donor = &world.store.get(span.donor).expect("the store has its donors").tokens;
    let (left, rest) = donor.split_at(span.donor_pos as usize);
    let (target_left, target_rest) = target.prompt.tokens.split_at(span.target_pos as usize);
    let num_tokens = span.num_tokens as usize;
    assert_eq!(rest[..num_tokens], target_rest[..num_tokens], "ids are equal");
    let num_equal = left.iter().rev().zip(target_left.iter().rev()).take_while(|(a, b)| a == b).count();
    let has_same_past = num_equal == left.len() && num_equal == target_left.len();
    // A short run has a short head.
    let head = (world.config.head_tokens as usize).min((num_equal + num_tokens) / 4);
    assert!(has_same_past || num_equal >= head, "the head of a run is computed");
    assert_eq!(span.class == MatchClass::SamePast, has_same_past);
    match world.config.edits {
        // No sentences are known here.
        EditPolicy::RecomputeSegmentTail | EditPolicy::RecomputeSentence => {
            assert!(span.num_tokens >= world.config.min_piece_tokens);
            assert!(span.class != MatchClass::DownstreamOfEdit);
        }
        EditPolicy::Reuse => {}
    }
}

/// Checks that no copied token follows an edit in its segment, by the literal definition in `edits.rs`.
fn check_edits(plan: &ReusePlan, matches: &[SpanMatch], target: &PlanTarget<'_>, donors: &DonorStore) {
    for span in &plan.spans {
        let runs = matches.iter().filter(|found| {
            let is_same_diagonal = i64::from(found.donor_pos) - i64::from(found.target_pos)
                == i64::from(span.donor_pos) - i64::from(span.target_pos);
            found.donor == span.donor && is_same_diagonal && found.target_range().contains(span.target_pos)
        });
        for run in runs {
            let edited = matches.iter().filter(|earlier| earlier.donor == run.donor && is_edited(earlier, target, donors));
            for earlier in edited.filter(|earlier| follows(run, earlier, target, donors)) {
                let lost = target.prompt.segment_at(earlier.run_start());
                assert!(lost.intersect(span.target_range()).is_empty(), "{span:?} stands behind an edit left of {earlier:?}");
            }
        }
    }
}

fn donor_start(found: &SpanMatch) -> u32 {
    found.donor_pos - found.left_context
}

/// Returns true if `run` is `earlier` or follows it in the segments of both prompts.
fn follows(run: &SpanMatch, earlier: &SpanMatch, target: &PlanTarget<'_>, donors: &DonorStore) -> bool {
    let donor = donors.prompt_of(run.donor).expect("the store has its donors");
    let in_target = target.prompt.segment_at(earlier.run_start());
    let in_donor = donor.segment_at(donor_start(earlier));
    let starts_later = run.run_start() >= earlier.run_start() && donor_start(run) >= donor_start(earlier);
    let is_itself = run.run_start() == earlier.run_start() && donor_start(run) == donor_start(earlier);
    is_itself
        || (starts_later && in_target.contains(run.run_start()) && in_donor.contains(donor_start(run)) && !run.has_same_past())
}

fn is_edited(run: &SpanMatch, target: &PlanTarget<'_>, donors: &DonorStore) -> bool {
    let donor = donors.prompt_of(run.donor).expect("the store has its donors");
    let (in_donor, in_target) = (donor.segment_at(donor_start(run)), target.prompt.segment_at(run.run_start()));
    let donor_lead = &donor.tokens[in_donor.start as usize..donor_start(run) as usize];
    let target_lead = &target.prompt.tokens[in_target.start as usize..run.run_start() as usize];
    let is_border = donor_lead.len() == 1 && target_lead.is_empty();
    let is_opening = !donor_lead.is_empty() && donor_lead.len() <= 16 && target_lead.len() <= 16 && !is_border;
    let is_anchored = (0..=64).any(|target_gap| {
        let anchor = target_lead[..target_lead.len().saturating_sub(target_gap)].last_chunk::<4>();
        anchor.is_some_and(|anchor| {
            (0..=64).any(|donor_gap| donor_lead[..donor_lead.len().saturating_sub(donor_gap)].ends_with(anchor))
        })
    });
    !run.has_same_past() && (is_opening || is_anchored)
}

/// Checks that the script covers both prompts, and that kept tokens are equal.
fn check_script(target: &[TokenId], donor: &[TokenId]) {
    let (mut target_end, mut donor_end) = (0, 0);
    for op in align(target, donor).ops() {
        assert_eq!(op.target.start, target_end);
        target_end = op.target.end;
        if op.kind != EditKind::Move {
            assert_eq!(op.donor.start, donor_end);
            donor_end = op.donor.end;
        }
        if matches!(op.kind, EditKind::Keep | EditKind::Move) {
            assert_eq!(target[op.target.as_usize()], donor[op.donor.as_usize()], "tokens that differ are not kept");
        }
    }
    assert_eq!((target_end as usize, donor_end as usize), (target.len(), donor.len()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn every_plan_of_random_bytes_keeps_the_invariants() {
        let mut random = Random(1);
        let mut num_spans = 0;
        for _ in 0..4000 {
            let bytes: Vec<_> = (0..random.below(400)).map(|_| random.below(256) as u8).collect();
            num_spans += check_plan(&bytes);
        }
        assert!(num_spans > 1000, "{num_spans} spans are too few to mean much");
    }
}
