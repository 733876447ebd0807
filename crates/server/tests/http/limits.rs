//! Oversized bodies: each kind is refused with a 4xx status and an error object, whatever the endpoint.

use std::fmt::Write;

use engine::SchedulerConfig;
use serde_json::{Value, json};
use server::ServerConfig;

use crate::world::{CHAT, COMPLETIONS, MODEL, Options, World, byte, chat, completion};

/// Maximum bytes of a body.
const LIMIT: usize = 2 << 20;

/// Returns texts of nearly two megabytes, of one kind each.
fn long_texts() -> Vec<(&'static str, String)> {
    let fill = |part: &str| part.repeat((LIMIT - 2000) / part.len());
    vec![
        ("emoji", fill("😀")),
        ("base64", fill("TG9yZW0gaXBzdW0gZG9sb3Igc2l0IGFtZXQ5")),
        ("one word", fill("a")),
        ("prose", fill("the quick brown fox jumps over the lazy dog ")),
        ("spaces", fill(" ")),
        ("combining", fill("e\u{301}")),
        ("template", fill("[user]")),
    ]
}

/// Returns a list of `num` elements, as JSON.
fn list(num: usize, element: &str) -> String {
    format!("[{}]", vec![element; num].join(","))
}

/// Returns an object of `num` fields, as JSON without its braces.
fn fields(num: usize) -> String {
    let mut text = String::new();
    for i in 0..num {
        let _infallible = write!(text, "{}\"x{i}\":0", if i == 0 { "" } else { "," });
    }
    text
}

/// Returns bodies for every endpoint with too many parts of some kind.
fn wide_bodies() -> Vec<(&'static str, String)> {
    let message = r#"{"role":"user","content":"hi"}"#;
    let messages = format!("\"messages\":[{message}]");
    vec![
        ("unknown fields", format!("{{{messages},\"prompt\":\"hi\",\"text\":\"hi\",{}}}", fields(100_000))),
        ("fields of a message", format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"hi\",{}}}]}}", fields(100_000))),
        ("messages", format!("{{\"messages\":{}}}", list(60_000, message))),
        (
            "content parts",
            format!("{{\"messages\":[{{\"role\":\"user\",\"content\":{}}}]}}", list(60_000, r#"{"type":"text","text":"x"}"#)),
        ),
        ("stop strings", format!("{{{messages},\"prompt\":\"hi\",\"text\":1,\"stop\":{}}}", list(100_000, "\"x\""))),
        ("logit_bias", format!("{{{messages},\"prompt\":\"hi\",\"text\":1,\"logit_bias\":{{{}}}}}", fields(100_000))),
        ("tools", format!("{{{messages},\"prompt\":\"hi\",\"text\":1,\"tools\":{}}}", list(100_000, "{}"))),
        ("prompts", format!("{{\"prompt\":{},\"tokens\":[{}]}}", list(100_000, "[5]"), "[5],".repeat(100_000) + "[5]")),
        ("texts", format!("{{\"prompt\":{}}}", list(100_000, "\"x\""))),
        ("token ids", format!("{{\"prompt\":{0},\"tokens\":{0}}}", list(400_000, "5"))),
        ("nesting", format!("{{{messages},\"prompt\":\"hi\",\"text\":1,\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000))),
        ("nested objects", format!("{{{messages},\"prompt\":1,\"x\":{}{}}}", "{\"a\":".repeat(100_000), "}".repeat(100_000))),
    ]
}

/// Checks that the answer is a short refusal.
#[track_caller]
fn check_refused(what: &str, path: &str, answer: &crate::world::Answer) {
    assert!(
        answer.status.is_client_error(),
        "{what} to {path}: {} {}",
        answer.status,
        &answer.text[..answer.text.len().min(300)]
    );
    assert!(answer.json()["error"]["message"].is_string());
    assert!(answer.text.len() < 1000, "{what} to {path}: an error of {} bytes", answer.text.len());
}

#[tokio::test]
async fn texts_that_cannot_fit_are_refused_by_every_endpoint() {
    let world = World::new();
    for (what, text) in long_texts() {
        let bodies = [
            (CHAT, chat(&text, json!({}))),
            (COMPLETIONS, completion(text.as_str(), json!({}))),
            (COMPLETIONS, completion(json!(["x", text]), json!({}))),
            ("/v1/kv/explain", completion(text.as_str(), json!({}))),
            ("/v1/kv/explain", chat(&text, json!({}))),
            ("/admin/corpora", json!({"name": "x", "text": text})),
            ("/tokenize", json!({"prompt": text})),
            ("/tokenize", json!({"messages": [{"role": "user", "content": text}]})),
        ];
        for (path, body) in bodies {
            let answer = world.post(path, &body).await;
            check_refused(what, path, &answer);
            if path != "/tokenize" {
                assert_eq!(answer.json()["error"]["code"], "context_length_exceeded", "{what} to {path}");
            }
        }
    }
}

#[tokio::test]
async fn bodies_with_too_much_of_anything_are_refused_by_every_endpoint() {
    let world = World::new();
    for (what, body) in wide_bodies() {
        assert!(body.len() < LIMIT, "{what} has {} bytes", body.len());
        for path in [CHAT, COMPLETIONS, "/v1/kv/explain", "/admin/corpora", "/tokenize", "/detokenize"] {
            check_refused(what, path, &world.send("POST", path, body.clone()).await);
        }
    }
}

#[tokio::test]
async fn what_is_within_the_limits_is_served() {
    let world = World::with(Options { scheduler: SchedulerConfig::new(64, 2000), ..Options::default() });
    let messages: Vec<Value> = (0..100).map(|_| json!({"role": "user", "content": "x"})).collect();
    world.post(CHAT, &json!({"model": MODEL, "messages": messages, "max_tokens": 1})).await.ok();
    let unknown: serde_json::Map<_, _> = (0..500).map(|i| (format!("x{i}"), json!({"a": [i]}))).collect();
    world.post(CHAT, &chat("hi", Value::Object(unknown))).await.ok();
    let biases: serde_json::Map<_, _> = (0..250).map(|i| (i.to_string(), json!(-1.5))).collect();
    world.post(CHAT, &chat("hi", json!({"logit_bias": biases}))).await.ok();
    let ids = vec![byte(b'x'); 1900];
    world.post(COMPLETIONS, &completion(json!(ids), json!({}))).await.ok();
    let text = world.post("/detokenize", &json!({"tokens": vec![byte(b'y'); 100_000]})).await.ok();
    assert_eq!(text["prompt"].as_str().map(str::len), Some(100_000));
    assert_eq!(world.post("/tokenize", &json!({"prompt": "z".repeat(100_000)})).await.ok()["count"], 100_000);
}

#[tokio::test]
async fn a_chunked_body_is_read_up_to_the_limit() {
    let server = ServerConfig { body_limit: 100_000, ..ServerConfig::default() };
    let world = World::with(Options { server, ..Options::default() });
    let chunks = |num: usize| {
        let parts = (0..num).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1000]));
        axum::body::Body::from_stream(futures::stream::iter(parts.collect::<Vec<_>>()))
    };
    assert_eq!(world.send("POST", CHAT, chunks(99)).await.status, 400);
    let answer = world.send("POST", CHAT, chunks(101)).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (413, &json!("body_too_large")));
}

#[tokio::test]
async fn bodies_that_do_not_come_hold_up_no_others() {
    let world = std::sync::Arc::new(World::new());
    let stalled: Vec<_> = (0..20)
        .map(|_| {
            let world = std::sync::Arc::clone(&world);
            let parts = futures::stream::iter([Ok::<_, std::io::Error>(vec![b' '; 20_000])]);
            let never = futures::StreamExt::chain(parts, futures::stream::pending());
            tokio::spawn(async move { world.send("POST", CHAT, axum::body::Body::from_stream(never)).await.status })
        })
        .collect();
    tokio::task::yield_now().await;
    // Small ones need none of that memory, and a large one takes that of the slowest.
    world.post(CHAT, &chat("hi", json!({}))).await.ok();
    let large = world.post(CHAT, &chat(&"x".repeat(100_000), json!({}))).await;
    assert_eq!(large.json()["error"]["code"], "context_length_exceeded");
    assert!(stalled.iter().any(|task| task.is_finished()), "no slow body gave way");
    stalled.iter().for_each(tokio::task::JoinHandle::abort);
}
