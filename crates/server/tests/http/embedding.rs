//! Donors found by their embeddings.
//!
//! Ten prompts contain the same document, each after its own capital letter; the index of spans holds the newest eight of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::{EmbeddingIndexConfig, Gate, SchedulerConfig};
use serde_json::{Value, json};
use server::{Access, Embedder, Embedding, ScopeSecret, Tenants};
use tokens::TokenId;

use crate::world::{COMPLETIONS, Options, World, byte, completion, document};

const NUM_LETTERS: usize = 10;

/// Embedder that counts the first capital letters in a prompt.
struct Letters {
    is_quick: bool,
    /// False to block embedding.
    is_open: AtomicBool,
}

impl Embedder for Letters {
    fn num_dimensions(&self) -> usize {
        NUM_LETTERS
    }

    fn is_quick(&self) -> bool {
        self.is_quick
    }

    fn embed(&self, tokens: &[TokenId]) -> Option<Embedding> {
        let begun = Instant::now();
        while !self.is_open.load(Ordering::Acquire) {
            assert!(begun.elapsed() < Duration::from_secs(10), "a test that fails must not wait for ever");
            std::thread::sleep(Duration::from_millis(1));
        }
        let count = |letter| tokens.iter().filter(|token| token.0 == byte(letter)).count() as f32;
        Some((b'A'..).take(NUM_LETTERS).map(count).collect())
    }
}

fn prompt(letter: u8, gap: &str) -> String {
    format!("{}{gap}\n\n{}", char::from(letter).to_string().repeat(12), document())
}

fn asking() -> Value {
    completion(format!("?{}\n\nand a tail", prompt(b'A', "x")), json!({"kv_sharing": {"mode": "semantic"}}))
}

/// Creates a server with all ten prompts computed.
async fn world(embedder: &Arc<Letters>) -> World {
    let scheduler = SchedulerConfig {
        embeddings: Some(EmbeddingIndexConfig::new(NUM_LETTERS)),
        // The executor takes no time, so nothing would be worth copying.
        gate: Gate::open(),
        ..SchedulerConfig::new(400, 1000)
    };
    let embedder: Arc<dyn Embedder> = Arc::<Letters>::clone(embedder);
    // The posted shingles depend on the scope, and so on the secret: this one leaves none of the first prompts'.
    let secret = ScopeSecret::from_bytes(&[1; 32]).unwrap();
    let access = Access::new(Tenants::open(), secret);
    let world = World::with(Options { scheduler, access, embedder: Some(embedder), ..Options::default() });
    for letter in (b'A'..).take(NUM_LETTERS) {
        world.post(COMPLETIONS, &completion(prompt(letter, &letter.to_string()), json!({}))).await.ok();
    }
    world.wait_until_free().await;
    world
}

fn letters(is_quick: bool, is_open: bool) -> Arc<Letters> {
    Arc::new(Letters { is_quick, is_open: AtomicBool::new(is_open) })
}

/// Returns the sources of the donors that would give spans now.
async fn sources(world: &World) -> Vec<String> {
    let told = world.post("/v1/kv/explain", &asking()).await.ok();
    let spans = told["spans"].as_array().unwrap();
    spans.iter().map(|span| span["source"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn check_metric(metrics: &str, source: &str, count: u32) {
    let line = format!("kvshare_donors_found_total{{model_name=\"owner/echo\",engine=\"0\",source=\"{source}\"}} {count}\n");
    assert!(metrics.contains(&line), "{line}{metrics}");
}

#[tokio::test]
async fn what_a_prompt_means_leads_to_its_donor() {
    let world = world(&letters(true, true)).await;
    assert_eq!(sources(&world).await, ["embedding"]);
    world.post(COMPLETIONS, &asking()).await.ok();
    world.wait_until_free().await;
    let metrics = world.get("/metrics").await.text;
    check_metric(&metrics, "embedding", 1);
    check_metric(&metrics, "span", 0);
}

#[tokio::test]
async fn a_slow_embedder_delays_nobody_and_is_not_in_vain() {
    let embedder = letters(false, false);
    let world = world(&embedder).await;
    world.post(COMPLETIONS, &asking()).await.ok();
    world.wait_until_free().await;
    check_metric(&world.get("/metrics").await.text, "span", 1);
    embedder.is_open.store(true, Ordering::Release);
    let found = async {
        while sources(&world).await != ["embedding"] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.expect("late embeddings are attached");
}
