//! Times the search and the plan for a prompt of 8,192 tokens among 10,000 donors, on one core.
//!
//! `cargo run --release -p semantic --example find_and_plan`
//!
//! Each donor is a prompt of 2,048 tokens, three documents of 512 tokens out of 4,000 and a question of its own; the target consists of
//! fifteen documents, so that nearly all of it has donors, in pieces, out of order and at other offsets. A target of new text comes last.
//!
//! "with similar" adds the work of mode semantic: the scan of an embedding of 576 dimensions for each donor, the comparison with the four
//! donors it proposes, and the ranking of all matches by their left contexts.

use std::time::{Duration, Instant};

use semantic::{
    ByLeftContext, DonorStore, EmbeddingIndexConfig, NewDonor, PlanTarget, PromptView, Segments, SpanConfig, SpanIndexConfig,
    SpanMatch, plan_reuse,
};
use tokens::{DonorId, Scope, TokenId};

const SCOPE: Scope = Scope(1);
const NUM_DONORS: u64 = 10_000;
const DONOR_TOKENS: u64 = 2048;
const NUM_DOCUMENTS: u64 = 4_000;
const DOCUMENT_TOKENS: u64 = 512;
const SEED: u64 = 1;
const REPETITIONS: usize = 200;
const NUM_DIMENSIONS: u64 = 576;
const MAX_SIMILAR: usize = 4;

/// Returns token `i` of stream `stream`, by the finaliser of SplitMix64.
fn random(stream: u64, i: u64) -> u64 {
    let x = (SEED ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(i.wrapping_mul(0xd1b5_4a32_d192_ed03));
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn text(stream: u64, num_tokens: u64) -> impl Iterator<Item = TokenId> {
    (0..num_tokens).map(move |i| TokenId((random(stream, i) % 50_000) as u32))
}

/// Returns `num_documents` documents drawn with `stream`, each after eight tokens of its own, then new tokens up to `len`.
fn prompt(stream: u64, num_documents: u64, len: u64) -> Vec<TokenId> {
    let mut prompt = Vec::new();
    for i in 0..num_documents {
        prompt.extend(text(1_000_000 + stream * 100 + i, 8));
        prompt.extend(text(random(stream, i) % NUM_DOCUMENTS, DOCUMENT_TOKENS));
    }
    let missing = len - prompt.len() as u64;
    prompt.extend(text(9_000_000 + stream, missing));
    prompt
}

fn main() {
    let config = SpanConfig::default();
    let span_config = SpanIndexConfig { max_tokens: 1 << 26, ..SpanIndexConfig::for_spans(&config) };
    let embeddings = EmbeddingIndexConfig::new(NUM_DIMENSIONS as usize);
    let mut store = DonorStore::new(span_config).with_embeddings(Some(embeddings));
    let start = Instant::now();
    for id in 0..NUM_DONORS {
        let evicted = store.insert(NewDonor::new(DonorId(id), SCOPE, prompt(10_000 + id, 3, DONOR_TOKENS)));
        assert!(evicted.is_empty(), "the example is sized to keep all donors");
        store.attach(DonorId(id), &embedding(id % 500, id));
    }
    println!("{} donors, {} tokens, built in {:.2?}", store.len(), NUM_DONORS * DONOR_TOKENS, start.elapsed());
    println!("{:<28} {:>8} {:>6} {:>8} {:>9} {:>9}", "target", "matches", "spans", "reused", "p50", "p99");
    for (name, num_documents) in [("8192 tokens, 15 documents", 15), ("8192 tokens, 7 documents", 7), ("8192 tokens, all new", 0)]
    {
        report(name, &store, false, &config, num_documents);
        report("  with similar", &store, true, &config, num_documents);
    }
}

/// Returns a vector near that of `topic`.
fn embedding(topic: u64, stream: u64) -> Vec<f32> {
    let number = |stream, i| (random(stream, i) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    (0..NUM_DIMENSIONS).map(|i| number(20_000_000 + topic, i) + 0.4 * number(30_000_000 + stream, i)).collect()
}

/// Returns the matches that spans find, and if `with_similar` those of the donors with similar embeddings.
fn find(store: &DonorStore, with_similar: bool, target: &[TokenId], embedding: &[f32]) -> Vec<SpanMatch> {
    let mut matches = store.find(SCOPE, target, 32);
    if with_similar {
        let similar = store.similar([SCOPE].into_iter(), embedding, MAX_SIMILAR);
        assert_eq!(similar.len(), MAX_SIMILAR, "every topic has donors");
        matches.extend(similar.iter().flat_map(|&donor| store.find_in(donor, target, 32)));
    }
    matches
}

fn report(name: &str, store: &DonorStore, with_similar: bool, config: &SpanConfig, num_documents: u64) {
    let mut times = Vec::new();
    let (mut num_matches, mut num_spans, mut reused) = (0, 0, 0);
    let segments = Segments::default();
    for repetition in 0..REPETITIONS {
        // Another target each time: the postings of one just searched are in the caches.
        let target = prompt(50_000 + repetition as u64, num_documents, 8192);
        let embedding = embedding(repetition as u64, 50_000 + repetition as u64);
        let start = Instant::now();
        let matches = find(store, with_similar, &target, &embedding);
        let prompt = PromptView { tokens: &target, segments: &segments };
        let target = PlanTarget { prompt, from: 32, template: &[] };
        let plan = match with_similar {
            true => plan_reuse(&target, &matches, &ByLeftContext::new(store), config),
            false => plan_reuse(&target, &matches, store, config),
        };
        times.push(start.elapsed());
        num_matches += matches.len();
        num_spans += plan.spans.len();
        reused += plan.spans.iter().map(|span| span.num_tokens as usize).sum::<usize>();
    }
    times.sort_unstable();
    let at = |percent: usize| micros(times[REPETITIONS * percent / 100]);
    let mean = |sum: usize| sum / REPETITIONS;
    println!("{name:<28} {:>8} {:>6} {:>8} {:>9} {:>9}", mean(num_matches), mean(num_spans), mean(reused), at(50), at(99));
}

fn micros(time: Duration) -> String {
    format!("{:.0} us", time.as_secs_f64() * 1e6)
}
