//! Measures the coverage of a prompt, and time and steps of search and plan, for a growing number of donors.
//!
//! `cargo run --release -p semantic --example donors_at_scale`; the last table is in `benches/scale/donors.md`.

use std::time::{Duration, Instant};

use semantic::{
    ByLeftContext, DonorStore, NewDonor, PlanTarget, PromptView, ReusePlan, Segments, SpanConfig, SpanIndexConfig, SpanQuery,
    Steps, plan_counted,
};
use tokens::{DonorId, Scope, TokenId};

const SCOPE: Scope = Scope(1);
const REPETITIONS: usize = 15;
const DONORS: [usize; 5] = [1, 2, 4, 8, 64];

/// Rule that selects one of several donors of the same text.
#[derive(Clone, Copy)]
enum Mode {
    /// The youngest donor.
    Span,
    /// The donor with the most similar left context.
    Semantic,
}

/// `SplitMix64`: the same texts on every machine.
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

    /// Returns `chunks` in another order, between texts of its own.
    fn shuffled(&mut self, chunks: &[Vec<TokenId>]) -> Vec<TokenId> {
        let mut order: Vec<_> = (0..chunks.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.below(i + 1));
        }
        let mut prompt = self.tokens(24);
        prompt.extend(order.into_iter().flat_map(|i| &chunks[i]));
        prompt.extend(self.tokens(24));
        prompt
    }
}

fn main() {
    println!("| chunks | donors | tokens | coverage | span, ms | semantic, ms | span, steps a token | semantic, steps a token |");
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|");
    for num_chunks in [60, 300, 1300] {
        for num_donors in DONORS {
            report(num_chunks, num_donors);
        }
    }
}

fn report(num_chunks: usize, num_donors: usize) {
    let mut random = Random(1);
    let chunks: Vec<_> = (0..num_chunks)
        .map(|_| {
            let num_tokens = 70 + random.below(61);
            random.tokens(num_tokens)
        })
        .collect();
    let mut store =
        DonorStore::new(SpanIndexConfig { max_tokens: 1 << 26, ..SpanIndexConfig::for_spans(&SpanConfig::default()) });
    for id in 0..num_donors as u64 {
        let evicted = store.insert(NewDonor::new(DonorId(id), SCOPE, random.shuffled(&chunks)));
        assert!(evicted.is_empty(), "the example is sized to keep all donors");
    }
    let target = random.shuffled(&chunks);
    let (plan, span_time, span_steps) = timed(&store, &target, Mode::Span);
    let (_, semantic_time, semantic_steps) = timed(&store, &target, Mode::Semantic);
    let num_tokens = target.len();
    let coverage = 100.0 * plan.spans.iter().map(|span| span.num_tokens as usize).sum::<usize>() as f64 / num_tokens as f64;
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let per_token = |steps: Steps| steps.total() as f64 / num_tokens as f64;
    println!(
        "| {num_chunks} | {num_donors} | {num_tokens} | {coverage:.0} % | {:.2} | {:.2} | {:.1} | {:.1} |",
        millis(span_time),
        millis(semantic_time),
        per_token(span_steps),
        per_token(semantic_steps)
    );
}

/// Returns the plan for `target`, the median time of search and plan, and their steps.
fn timed(store: &DonorStore, target: &[TokenId], mode: Mode) -> (ReusePlan, Duration, Steps) {
    let mut times = Vec::new();
    let mut last = (ReusePlan::default(), Steps::default());
    for _ in 0..REPETITIONS {
        let start = Instant::now();
        last = plan(store, target, mode);
        times.push(start.elapsed());
    }
    times.sort_unstable();
    (last.0, times[REPETITIONS / 2], last.1)
}

fn plan(store: &DonorStore, target: &[TokenId], mode: Mode) -> (ReusePlan, Steps) {
    let (segments, config) = (Segments::default(), SpanConfig::default());
    let sketch = store.sketch(target, &Segments::default());
    let found = store.search(&SpanQuery { scopes: &[SCOPE], tokens: target, sketch: &sketch, from: 0 }, |_| u32::MAX);
    let planned = PlanTarget { prompt: PromptView { tokens: target, segments: &segments }, from: 0, template: &[] };
    let (plan, mut steps) = match mode {
        Mode::Span => plan_counted(&planned, &found.matches, store, &config),
        Mode::Semantic => plan_counted(&planned, &found.matches, &ByLeftContext::new(store), &config),
    };
    steps += found.steps;
    (plan, steps)
}
