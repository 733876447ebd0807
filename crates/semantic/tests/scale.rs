//! Coverage does not fall, and work does not grow, with the number of donors.

use semantic::{
    ByLeftContext, DonorStore, NewDonor, PlanTarget, PromptView, ReusePlan, Segments, SpanConfig, SpanIndexConfig, SpanQuery,
    Steps, plan_counted, plan_reuse,
};
use tokens::{DonorId, Scope, TokenId};

const SCOPE: Scope = Scope(1);

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 33) as usize % n
    }

    fn tokens(&mut self, num_tokens: usize) -> Vec<TokenId> {
        (0..num_tokens).map(|_| TokenId(self.below(50_000) as u32)).collect()
    }

    fn chunks(&mut self, num_chunks: usize) -> Vec<Vec<TokenId>> {
        (0..num_chunks)
            .map(|_| {
                let num_tokens = 70 + self.below(61);
                self.tokens(num_tokens)
            })
            .collect()
    }

    /// Returns some of `chunks`, in another order, between texts of its own.
    fn shuffled(&mut self, chunks: &[Vec<TokenId>], num_kept: usize) -> Vec<TokenId> {
        let mut order: Vec<_> = (0..chunks.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.below(i + 1));
        }
        order.truncate(num_kept);
        let mut prompt = self.tokens(24);
        prompt.extend(order.into_iter().flat_map(|i| &chunks[i]));
        prompt.extend(self.tokens(24));
        prompt
    }
}

fn store_of(donors: &[Vec<TokenId>]) -> DonorStore {
    let mut store =
        DonorStore::new(SpanIndexConfig { max_tokens: 1 << 26, ..SpanIndexConfig::for_spans(&SpanConfig::default()) });
    for (id, tokens) in (0..).zip(donors) {
        assert!(store.insert(NewDonor::new(DonorId(id), SCOPE, tokens.as_slice())).is_empty());
    }
    store
}

/// Returns the share of `target` that is copied from `donors`, the lesser of modes span and semantic.
fn coverage(donors: &[Vec<TokenId>], target: &[TokenId]) -> f64 {
    let store = store_of(donors);
    let matches = store.find(SCOPE, target, 0);
    let segments = Segments::default();
    let planned = PlanTarget { prompt: PromptView { tokens: target, segments: &segments }, from: 0, template: &[] };
    let config = SpanConfig::default();
    let plans =
        [plan_reuse(&planned, &matches, &store, &config), plan_reuse(&planned, &matches, &ByLeftContext::new(&store), &config)];
    plans.iter().map(|plan| f64::from(plan.num_reused_tokens()) / target.len() as f64).fold(1.0, f64::min)
}

#[test]
fn many_donors_of_the_same_chunks_cover_as_much_as_one() {
    for num_chunks in [60, 300] {
        let mut random = Random(1);
        let chunks = random.chunks(num_chunks);
        let donors: Vec<_> = (0..64).map(|_| random.shuffled(&chunks, num_chunks)).collect();
        let target = random.shuffled(&chunks, num_chunks);
        let of_one = coverage(&donors[..1], &target);
        assert!(of_one > 0.8, "one donor covers {of_one} of {num_chunks} chunks");
        for num_donors in [2, 4, 8, 64] {
            let of_many = coverage(&donors[..num_donors], &target);
            assert!(of_many >= 0.95 * of_one, "{num_donors} donors cover {of_many} of {num_chunks} chunks, one {of_one}");
        }
    }
}

#[test]
fn donors_that_hold_parts_cover_as_much_as_one_that_holds_all() {
    let mut random = Random(2);
    let chunks = random.chunks(300);
    let whole = random.shuffled(&chunks, 300);
    let halves: Vec<_> = (0..64).map(|_| random.shuffled(&chunks, 150)).collect();
    let target = random.shuffled(&chunks, 300);
    let of_one = coverage(&[whole], &target);
    assert!(coverage(&halves[..1], &target) < 0.6 * of_one);
    for num_donors in [8, 64] {
        let of_many = coverage(&halves[..num_donors], &target);
        assert!(of_many >= 0.95 * of_one, "{num_donors} donors of halves cover {of_many}, one of all {of_one}");
    }
}

/// Returns `text` with one token in every `every` changed.
fn edited(random: &mut Random, text: &[TokenId], every: usize) -> Vec<TokenId> {
    let mut text = text.to_vec();
    for _ in 0..text.len() / every {
        let at = random.below(text.len());
        text[at] = TokenId(50_000 + random.below(50_000) as u32);
    }
    text
}

/// Returns the share of `target` that is copied from `donors`, all in segments of 200 tokens.
fn segmented_coverage(donors: &[Vec<TokenId>], target: &[TokenId]) -> f64 {
    let segments = |tokens: &[TokenId]| Segments::from_starts((0..tokens.len() as u32).step_by(200));
    let mut store = DonorStore::new(SpanIndexConfig::for_spans(&SpanConfig::default()));
    for (id, tokens) in (0..).zip(donors) {
        store.insert(NewDonor { segments: segments(tokens), ..NewDonor::new(DonorId(id), SCOPE, tokens.as_slice()) });
    }
    let matches = store.find(SCOPE, target, 0);
    let segments = segments(target);
    let planned = PlanTarget { prompt: PromptView { tokens: target, segments: &segments }, from: 0, template: &[] };
    f64::from(plan_reuse(&planned, &matches, &store, &SpanConfig::default()).num_reused_tokens()) / target.len() as f64
}

#[test]
fn nearly_equal_donors_do_not_hide_the_one_that_fits() {
    for seed in 0..8 {
        let mut random = Random(30 + seed);
        let text = random.tokens(6000);
        let target = edited(&mut random, &text, 2000);
        // The matching one is the oldest; all others were changed in most of their segments.
        let mut donors = vec![text.clone()];
        donors.extend((1..64).map(|_| edited(&mut random, &text, 300)));
        let of_one = segmented_coverage(&donors[..1], &target);
        let of_many = segmented_coverage(&donors, &target);
        assert!(of_many >= 0.95 * of_one, "64 donors cover {of_many}, the one that fits {of_one}");
    }
}

#[test]
fn a_header_that_everybody_has_hides_nothing() {
    let mut random = Random(4);
    let header = random.tokens(1000);
    let bodies: Vec<_> = (0..200).map(|_| random.tokens(300)).collect();
    let donors: Vec<_> = bodies.iter().map(|body| [header.clone(), body.clone()].concat()).collect();
    // The new text between header and body is longer than that of an edit.
    let target = [random.tokens(30), header, random.tokens(90), bodies[0].clone(), bodies[7].clone(), random.tokens(30)].concat();
    let covered = coverage(&donors, &target) * target.len() as f64;
    assert!(covered >= 1000.0 + 2.0 * 300.0 - 3.0 * 16.0 - 2.0, "{covered} tokens are covered");
}

#[test]
fn a_chunk_that_a_prompt_repeats_is_found_each_time() {
    let mut random = Random(5);
    let chunk = random.tokens(120);
    // The new text between two of them is longer than that of an edit.
    let repeated = |random: &mut Random| (0..50).flat_map(|_| [random.tokens(90), chunk.clone()].concat()).collect::<Vec<_>>();
    let once = [random.tokens(100), chunk.clone(), random.tokens(100)].concat();
    let mut donors = vec![once];
    donors.extend((0..16).map(|_| repeated(&mut random)));
    let mut target = repeated(&mut random);
    target.extend(random.tokens(30));
    for num_donors in [1, 2, 17] {
        let covered = coverage(&donors[..num_donors], &target) * target.len() as f64;
        assert!(covered >= 50.0 * (120.0 - 16.0), "{covered} tokens are covered by {num_donors} donors");
    }
}

#[test]
fn holders_that_have_lost_their_kv_do_not_hide_one_that_has_not() {
    let mut random = Random(6);
    let chunks = random.chunks(60);
    let donors: Vec<_> = (0..600).map(|_| random.shuffled(&chunks, 60)).collect();
    let target = random.shuffled(&chunks, 60);
    let of_one = coverage(&donors[..1], &target);
    let mut store = store_of(&donors);
    let sketch = store.sketch(&target, &Segments::default());
    let query = SpanQuery { scopes: &[SCOPE], tokens: &target, sketch: &sketch, from: 0 };
    // All donors but the oldest have a few blocks left.
    let usable = |donor: DonorId| if donor.0 == 0 { u32::MAX } else { 32 * (donor.0 % 3) as u32 };
    for attempt in 0.. {
        let found = store.search(&query, usable);
        let segments = Segments::default();
        let planned = PlanTarget { prompt: PromptView { tokens: &target, segments: &segments }, from: 0, template: &[] };
        let plan = plan_reuse(&planned, &found.matches, &store, &SpanConfig::default());
        let is_copied = |span: &semantic::ReuseSpan| span.donor_pos + span.num_tokens <= usable(span.donor);
        assert!(plan.spans.iter().all(is_copied), "only what is left is copied");
        if f64::from(plan.num_reused_tokens()) >= 0.95 * of_one * target.len() as f64 {
            break;
        }
        assert!(attempt < 3, "what was found to be lost is not posted any more, so that older holders are found");
        found.unusable.iter().for_each(|&donor| store.shorten(donor, usable(donor)));
    }
    assert_eq!(store.len(), 600);
    assert!(store.restore(DonorId(599)) && !store.restore(DonorId(599)) && !store.restore(DonorId(0)));
    let found = store.search(&query, |_| u32::MAX);
    assert!(found.matches.iter().any(|found| found.donor == DonorId(599) && found.donor_pos > 300));
}

/// Returns plans and steps of search and plan in modes span and semantic.
fn steps(store: &DonorStore, target: &[TokenId]) -> [(ReusePlan, Steps); 2] {
    let sketch = store.sketch(target, &Segments::default());
    let found = store.search(&SpanQuery { scopes: &[SCOPE], tokens: target, sketch: &sketch, from: 0 }, |_| u32::MAX);
    let segments = Segments::default();
    let planned = PlanTarget { prompt: PromptView { tokens: target, segments: &segments }, from: 0, template: &[] };
    let config = SpanConfig::default();
    let plans = [
        plan_counted(&planned, &found.matches, store, &config),
        plan_counted(&planned, &found.matches, &ByLeftContext::new(store), &config),
    ];
    plans.map(|(plan, mut steps)| {
        steps += found.steps;
        (plan, steps)
    })
}

/// Returns the steps for each token of a target that shares all its text with `num_donors` donors.
fn steps_per_token(num_chunks: usize, num_donors: usize) -> [f64; 2] {
    let mut random = Random(7);
    let chunks = random.chunks(num_chunks);
    let donors: Vec<_> = (0..num_donors).map(|_| random.shuffled(&chunks, num_chunks)).collect();
    let target = random.shuffled(&chunks, num_chunks);
    steps(&store_of(&donors), &target).map(|(_, steps)| steps.total() as f64 / target.len() as f64)
}

#[test]
fn the_work_of_a_plan_is_linear_in_the_prompt_whatever_the_number_of_donors() {
    let [few, _] = steps_per_token(60, 8);
    for (num_chunks, num_donors) in [(60, 1), (60, 64), (60, 500), (300, 8), (300, 64), (1200, 64)] {
        let [span, semantic] = steps_per_token(num_chunks, num_donors);
        assert!(span <= 1.5 * few, "{span} steps a token for {num_donors} donors of {num_chunks} chunks, {few} for eight");
        assert!(semantic <= 2.0 * span, "{semantic} steps a token in mode semantic, {span} in span");
    }
}

#[test]
fn text_that_repeats_itself_takes_a_bounded_number_of_steps_a_token() {
    let mut random = Random(8);
    let pattern = random.tokens(70);
    for period in [1, 3, 70] {
        let text: Vec<_> = pattern[..period].iter().copied().cycle().take(6000).collect();
        let donors: Vec<_> = (0..64).map(|i| [random.tokens(i + 1), text[..3000 + 40 * i].to_vec()].concat()).collect();
        for (plan, steps) in steps(&store_of(&donors), &text) {
            assert!(plan.num_reused_tokens() > 5900, "{} tokens are copied at period {period}", plan.num_reused_tokens());
            assert!(steps.total() <= 100 * text.len() as u64, "{steps:?} at period {period}");
        }
    }
}
