//! Times the search for similar prompts among 10,000 donors and more, on one core.
//!
//! `cargo run --release -p semantic --example nearest_donors`
//!
//! One vector per donor, with the dimensions of small sentence embedders and small language models. Each query is timed five times and its
//! median counts: the measurement is the work of the slowest queries, not other load of the machine. Nothing of an index of this size stays
//! in a core's own caches between runs.

use std::time::Instant;

use semantic::{DonorStore, EmbeddingIndexConfig, NewDonor, SpanIndexConfig};
use tokens::{DonorId, Scope, TokenId};

const SCOPE: Scope = Scope(1);
const NUM_TOPICS: u64 = 500;
const REPETITIONS: u64 = 1_000;
const SEED: u64 = 1;

/// Returns number `i` of stream `stream`, in -1..1 (finaliser of SplitMix64).
fn random(stream: u64, i: u64) -> f32 {
    let x = (SEED ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(i.wrapping_mul(0xd1b5_4a32_d192_ed03));
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Returns a vector near that of a topic.
fn vector(stream: u64, num_dimensions: usize) -> Vec<f32> {
    let topic = 1_000_000 + stream % NUM_TOPICS;
    (0..num_dimensions as u64).map(|i| random(topic, i) + 0.4 * random(stream, i)).collect()
}

/// Returns the shortest prompt that is kept, other than those of all other donors. Nothing looks at it.
fn prompt(id: u64) -> Vec<TokenId> {
    (0..64).map(|i| TokenId((id * 64 + i) as u32)).collect()
}

fn main() {
    println!("{NUM_TOPICS} topics, seed {SEED}, {REPETITIONS} repetitions");
    let sizes = [10_000, 50_000, 200_000].into_iter().flat_map(|num_donors| [384, 576, 896].map(|n| (num_donors, n)));
    for (num_donors, num_dimensions) in sizes {
        let embeddings = EmbeddingIndexConfig { max_vectors: num_donors as usize, ..EmbeddingIndexConfig::new(num_dimensions) };
        let spans = SpanIndexConfig { max_donors: num_donors as usize, ..SpanIndexConfig::default() };
        let mut store = DonorStore::new(spans).with_embeddings(Some(embeddings));
        for id in 0..num_donors {
            let evicted = store.insert(NewDonor::new(DonorId(id), SCOPE, prompt(id)));
            assert!(evicted.is_empty(), "the example is sized to keep all donors");
            store.attach(DonorId(id), &vector(id, num_dimensions));
        }
        let mut times = Vec::new();
        let mut num_proposals = 0;
        for repetition in 0..REPETITIONS {
            let embedding = vector(5_000_000 + repetition, num_dimensions);
            let mut tries = [(); 5].map(|()| {
                let start = Instant::now();
                num_proposals += store.similar([SCOPE].into_iter(), &embedding, 8).len();
                start.elapsed()
            });
            tries.sort();
            times.push(tries[2]);
        }
        times.sort();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let proposals = num_proposals as f64 / 5.0 / REPETITIONS as f64;
        println!(
            "{num_donors} donors, {num_dimensions} dimensions: p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms, {proposals:.1} proposals",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}
