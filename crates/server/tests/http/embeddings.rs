//! Embeddings, orders and scores of texts, by an embedder that counts letters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use server::{Access, Embedding, EngineThreadConfig, ScopeSecret, TextEmbedder};

use crate::world::{Answer, KEY_A, KEY_B, MODEL, Options, World, tenants};

const EMBEDDINGS: &str = "/v1/embeddings";

/// Embedder whose tokens are the letters `a` to `d`, 2 to 5, between the special tokens 0 and 1. An embedding counts each letter.
#[derive(Default)]
struct Letters {
    is_shut: AtomicBool,
    is_broken: AtomicBool,
    num_batches: AtomicUsize,
}

impl TextEmbedder for Letters {
    fn id(&self) -> &str {
        "letters"
    }

    fn num_dimensions(&self) -> usize {
        4
    }

    fn max_tokens(&self) -> usize {
        10
    }

    fn vocab_size(&self) -> usize {
        6
    }

    fn tokenize(&self, text: &str, cut: Option<usize>) -> Result<Vec<u32>, String> {
        let letters = text.bytes().map(|byte| u32::from(byte.wrapping_sub(b'a')) + 2);
        let letters: Vec<_> = letters.take(cut.unwrap_or(usize::MAX).saturating_sub(2)).collect();
        match letters.iter().all(|letter| *letter < 6) {
            true => Ok([&[0], &letters[..], &[1]].concat()),
            false => Err("it has other letters than a to d".to_owned()),
        }
    }

    fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Embedding>, String> {
        self.num_batches.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        while self.is_shut.load(Ordering::Acquire) {
            assert!(begun.elapsed() < Duration::from_secs(10), "a test that fails must not wait for ever");
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.is_broken.load(Ordering::Relaxed) {
            return Err("a device has gone".to_owned());
        }
        let embed = |text: &&[u32]| {
            let counts = (2..6).map(|letter| text.iter().filter(|token| **token == letter).count() as f32);
            let length = counts.clone().map(|x| x * x).sum::<f32>().sqrt();
            counts.map(|x| x / length).collect()
        };
        Ok(texts.iter().map(embed).collect())
    }
}

fn world() -> (Arc<Letters>, World) {
    world_with(Options::default())
}

fn world_with(options: Options) -> (Arc<Letters>, World) {
    let letters = Arc::<Letters>::default();
    let texts: Arc<dyn TextEmbedder> = Arc::<Letters>::clone(&letters);
    (letters, World::with(Options { texts: Some(texts), ..options }))
}

fn with_tenants() -> Options {
    Options { access: Access::new(tenants(), ScopeSecret::random()), ..Options::default() }
}

/// Returns the vectors of an answer.
#[track_caller]
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    for (index, object) in data.iter().enumerate() {
        assert_eq!((&object["object"], &object["index"]), (&json!("embedding"), &json!(index)), "{object}");
    }
    data.iter().map(|object| serde_json::from_value(object["embedding"].clone()).unwrap()).collect()
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, param: Option<&str>, part: &str) {
    let error = &answer.json()["error"];
    assert_eq!((answer.status.as_u16(), error["param"].as_str()), (status, param), "{error}");
    assert!(error["message"].as_str().unwrap().contains(part), "{error}");
}

/// Returns the value of a series without labels of its own.
async fn metric(world: &World, name: &str) -> f64 {
    let text = world.get("/metrics").await.text;
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap_or_else(|| panic!("{name}: {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn texts_and_tokens_are_embedded_in_their_order() {
    let (_, world) = world();
    let answer = world.post(EMBEDDINGS, &json!({"model": "letters", "input": ["ab", "cccc"], "user": "me"})).await.ok();
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("letters")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 10, "total_tokens": 10}));
    let half = 0.5f32.sqrt();
    assert_eq!(vectors(&answer), [[half, half, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]);
    let of_tokens = world.post("/embeddings", &json!({"input": [[0, 2, 3, 1], [4]]})).await.ok();
    assert_eq!(vectors(&of_tokens), vectors(&answer));
    assert_eq!(of_tokens["usage"]["prompt_tokens"], 5);
    for input in [json!("ab"), json!([2, 3])] {
        assert_eq!(vectors(&world.post(EMBEDDINGS, &json!({"input": input})).await.ok()), vectors(&answer)[..1]);
    }
    assert_eq!(metric(&world, "kvshare_embedded_texts_total").await, 6.0);
    assert_eq!(metric(&world, "kvshare_embedded_tokens_total").await, 21.0);
    let metrics = world.get("/metrics").await.text;
    let route =
        "kvshare_http_responses_total{model_name=\"owner/echo\",engine=\"0\",route=\"/v1/embeddings\",status=\"2xx\"} 3\n";
    assert!(metrics.contains(route), "{metrics}");
}

#[tokio::test]
async fn base64_and_dimensions_are_of_the_same_vector() {
    let (_, world) = world();
    let whole = vectors(&world.post(EMBEDDINGS, &json!({"input": "aabcd"})).await.ok());
    let answer = world.post(EMBEDDINGS, &json!({"input": "aabcd", "encoding_format": "base64"})).await.ok();
    let bytes = base64::prelude::BASE64_STANDARD.decode(answer["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let numbers: Vec<_> = bytes.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    assert_eq!(numbers, whole[0]);
    let two = vectors(&world.post(EMBEDDINGS, &json!({"input": "aabcd", "dimensions": 2})).await.ok());
    let length = (whole[0][0].powi(2) + whole[0][1].powi(2)).sqrt();
    assert!((two[0][0] - whole[0][0] / length).abs() < 1e-6 && two[0].len() == 2, "{two:?}");
}

#[tokio::test]
async fn inputs_that_cannot_be_embedded_are_refused_by_their_place() {
    let (letters, world) = world();
    let cases = [
        (json!({"input": ["a", "b", "c", "abcdabcda"]}), "input[3]", "has 11 tokens, at most 10 are embedded"),
        (json!({"input": "abcdabcda"}), "input", "`truncate_prompt_tokens`"),
        (json!({"input": ["a", "z"]}), "input[1]", "other letters"),
        (json!({"input": [[2], [6]]}), "input[1]", "token id 6"),
        (json!({"input": ["a", ""]}), "input[1]", "must not be empty"),
        (json!({"input": ["a", 3]}), "input", "a list of token ids"),
        (json!({"input": vec!["a"; 2049]}), "input", "at most 2048"),
        (json!({"input": "a", "dimensions": 5}), "dimensions", "between 1 and 4"),
        (json!({"input": "a", "encoding_format": "int8"}), "encoding_format", "int8"),
        (json!({"input": "a", "normalize": false}), "normalize", "not supported"),
        (json!({}), "input", "provide an input"),
    ];
    for (body, param, part) in cases {
        check_error(&world.post(EMBEDDINGS, &body).await, 400, Some(param), part);
    }
    check_error(&world.post(EMBEDDINGS, &json!({"input": "a", "model": MODEL})).await, 404, Some("model"), "`letters` does");
    assert_eq!(letters.num_batches.load(Ordering::Relaxed), 0);
    world.post(EMBEDDINGS, &json!({"input": "abcdabcda", "truncate_prompt_tokens": -1})).await.ok();
}

#[tokio::test]
async fn documents_come_in_the_order_of_their_relevance() {
    let (_, world) = world();
    let mut body = json!({"query": "ab", "documents": ["cd", {"text": "ab"}, "abc", "cc"]});
    for path in ["/v1/rerank", "/rerank", "/v2/rerank"] {
        let answer = world.post(path, &body).await.ok();
        let results = answer["results"].as_array().unwrap();
        let order: Vec<_> = results.iter().map(|result| result["index"].as_u64().unwrap()).collect();
        assert_eq!(order, [1, 2, 0, 3], "{answer}");
        let score = |at: usize| results[at]["relevance_score"].as_f64().unwrap();
        assert!((score(0) - 1.0).abs() < 1e-6 && (score(1) - (2.0f64 / 3.0).sqrt()).abs() < 1e-6 && score(3) == 0.0, "{answer}");
        assert!(results[0].get("document").is_none());
        assert_eq!(answer["usage"]["total_tokens"], 21);
        assert!(answer["id"].as_str().unwrap().starts_with("rerank-"));
    }
    body["top_n"] = json!(2);
    body["return_documents"] = json!(true);
    let answer = world.post("/v1/rerank", &body).await.ok();
    let documents: Vec<_> = answer["results"].as_array().unwrap().iter().map(|result| &result["document"]).collect();
    assert_eq!(documents, [&json!({"text": "ab"}), &json!({"text": "abc"})]);
    let refused = world.post("/v1/rerank", &json!({"query": "a", "documents": ["a", {"title": "b"}]})).await;
    check_error(&refused, 400, Some("documents[1]"), "");
    let long = json!({"query": "a", "documents": ["a", "abcdabcda"]});
    check_error(&world.post("/v1/rerank", &long).await, 400, Some("documents[1]"), "at most 10");
}

#[tokio::test]
async fn texts_are_scored_in_pairs() {
    let (_, world) = world();
    let scores = async |path: &str, body: Value| {
        let answer = world.post(path, &body).await.ok();
        assert!(answer["id"].as_str().unwrap().starts_with("score-") && answer["created"].is_u64(), "{answer}");
        let data = answer["data"].as_array().unwrap().clone();
        data.iter().map(|object| (object["score"].as_f64().unwrap() * 1e3).round()).collect::<Vec<_>>()
    };
    assert_eq!(scores("/v1/score", json!({"text_1": "a", "text_2": ["a", "ab", "c"]})).await, [1000.0, 707.0, 0.0]);
    assert_eq!(scores("/score", json!({"text_1": ["a", "b"], "text_2": ["b", "b"]})).await, [0.0, 1000.0]);
    assert_eq!(scores("/score", json!({"queries": "a", "documents": "a"})).await, [1000.0]);
}

#[tokio::test]
async fn without_an_embedder_the_flag_is_named() {
    let world = World::new();
    let bodies = [
        (EMBEDDINGS, json!({"input": "a"})),
        ("/v1/rerank", json!({"query": "a", "documents": ["a"]})),
        ("/v1/score", json!({"text_1": "a", "text_2": "b"})),
    ];
    for (path, body) in bodies {
        let answer = world.post(path, &body).await;
        check_error(&answer, 404, None, "`--embedding-model PATH`");
        assert_eq!(answer.json()["error"]["code"], "no_embedding_model");
    }
}

#[tokio::test]
async fn the_embedder_is_one_of_the_models() {
    let (_, world) = world();
    let list = world.get("/v1/models").await.ok();
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(names, [MODEL, "alias", "letters"]);
    let card = world.get("/v1/models/letters").await.ok();
    assert_eq!((&card["root"], &card["max_model_len"]), (&json!("letters"), &json!(10)));
}

#[tokio::test]
async fn a_tenant_with_a_full_queue_delays_no_other() {
    let thread = EngineThreadConfig { max_queue: 2, ..EngineThreadConfig::default() };
    let (letters, world) = world_with(Options { thread, ..with_tenants() });
    let body = json!({"input": "ab"});
    check_error(&world.post(EMBEDDINGS, &body).await, 401, None, "API key");
    letters.is_shut.store(true, Ordering::Release);
    let many = json!({"input": vec!["ab"; 2048]});
    let of_a = async { world.send_as(KEY_A, "POST", EMBEDDINGS, &body).await };
    let after = async |num_batches: usize, key: &str, body: &Value| {
        while letters.num_batches.load(Ordering::Relaxed) < num_batches {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.send_as(key, "POST", EMBEDDINGS, body).await
    };
    let full = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let refused = after(1, KEY_A, &body).await;
        check_error(&refused, 429, None, "the queue is full");
        assert_eq!(refused.json()["error"]["code"], "queue_full");
        letters.is_shut.store(false, Ordering::Release);
    };
    let (first, many_of_a, of_b, ()) = tokio::join!(of_a, after(1, KEY_A, &many), after(1, KEY_B, &body), full);
    for (answer, num) in [(first, 1), (many_of_a, 2048), (of_b, 1)] {
        assert_eq!(vectors(&answer.ok()).len(), num);
    }
    assert_eq!(world.send_as(KEY_B, "POST", EMBEDDINGS, &body).await.status, 200);
}

#[tokio::test]
async fn a_text_that_waits_too_long_is_given_up() {
    let queue_timeout = Some(Duration::from_millis(10));
    let thread = EngineThreadConfig { queue_timeout, ..EngineThreadConfig::default() };
    let (letters, world) = world_with(Options { thread, ..Options::default() });
    letters.is_shut.store(true, Ordering::Release);
    let body = json!({"input": "ab"});
    let late = async {
        while letters.num_batches.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let answer = world.post(EMBEDDINGS, &body).await;
        check_error(&answer, 503, None, "waited too long");
        letters.is_shut.store(false, Ordering::Release);
    };
    let (begun, ()) = tokio::join!(world.post(EMBEDDINGS, &body), late);
    begun.ok();
}

#[tokio::test]
async fn a_server_that_ends_finishes_texts_and_takes_no_more() {
    let (letters, world) = world();
    letters.is_shut.store(true, Ordering::Release);
    let body = json!({"input": "ab"});
    let ending = async {
        while letters.num_batches.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(world.engine.num_in_flight(), 1);
        world.engine.begin_drain();
        check_error(&world.post(EMBEDDINGS, &body).await, 503, None, "shutting down");
        letters.is_shut.store(false, Ordering::Release);
        world.engine.wait_idle().await;
    };
    let (answer, ()) = tokio::join!(world.post(EMBEDDINGS, &body), ending);
    answer.ok();
}

#[tokio::test]
async fn a_cut_or_a_fault_is_told() {
    let (letters, world) = world();
    let body = json!({"input": "ab"});
    letters.is_broken.store(true, Ordering::Relaxed);
    check_error(&world.post(EMBEDDINGS, &body).await, 500, None, "internal error");
    letters.is_shut.store(true, Ordering::Release);
    let cut = async {
        while letters.num_batches.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.engine.begin_drain();
        world.engine.stop();
    };
    let (answer, ()) = tokio::join!(world.post(EMBEDDINGS, &body), cut);
    check_error(&answer, 503, None, "shut down before");
    letters.is_shut.store(false, Ordering::Release);
}
