//! Refusals, as OpenAI's error object.

use std::time::Duration;

use axum::body::Body;
use engine::SchedulerConfig;
use serde_json::json;
use server::{EngineThreadConfig, ServerConfig};

use crate::world::{Answer, CHAT, COMPLETIONS, Options, World, chat, completion};

#[track_caller]
fn check(answer: &Answer, status: u16, param: Option<&str>, code: Option<&str>) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text);
    let error = &answer.json()["error"];
    assert_eq!((error["param"].as_str(), error["code"].as_str()), (param, code), "{error}");
    let keys: Vec<_> = error.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    assert!(!error["message"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_json_is_a_bad_request() {
    let world = World::new();
    for body in ["", "{", "nonsense", "[]", "\"text\""] {
        check(&world.send("POST", CHAT, body).await, 400, None, None);
    }
}

#[tokio::test]
async fn a_wrong_type_is_a_bad_request_that_names_the_field() {
    let world = World::new();
    let answer = world.post(CHAT, &chat("hi", json!({"temperature": "hot"}))).await;
    check(&answer, 400, Some("temperature"), None);
    let answer = world.post(COMPLETIONS, &completion(json!({"text": "x"}), json!({}))).await;
    check(&answer, 400, Some("prompt"), None);
}

#[tokio::test]
async fn a_path_that_is_no_text_is_a_bad_request() {
    let world = World::new();
    let paths = [
        ("GET", "/v1/models/%ff"),
        ("DELETE", "/admin/donors/%ff"),
        ("DELETE", "/admin/donors/x"),
        ("DELETE", "/admin/corpora/%c0%af"),
    ];
    for (method, path) in
        paths.into_iter().chain([("DELETE", "/admin/tenants/%ff/cache"), ("DELETE", "/admin/sessions/%ff/cache")])
    {
        let answer = world.send(method, path, "").await;
        assert_eq!(answer.status, 400, "{method} {path}: {}", answer.text);
        assert!(answer.json()["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn a_query_that_makes_no_sense_is_a_bad_request() {
    let world = World::new();
    for query in ["limit=x", "limit=0", "limit=1e9", "after=-1", "x=1", "limit=1&limit=2", "limit=%ff", "limit=%zz"] {
        let answer = world.get(&format!("/admin/donors?{query}")).await;
        assert!(answer.status == 400 || answer.status == 404, "{query}: {}", answer.text);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(!RUST_WORDS.iter().any(|word| message.contains(word)), "{query}: {message}");
    }
}

#[tokio::test]
async fn an_erasure_never_takes_a_name_for_another() {
    let world = World::new();
    for query in ["session=%ff", "session=%zz", "session=a%"] {
        let answer = world.send("DELETE", &format!("/v1/kv/cache?{query}"), "").await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text);
    }
    world.send("DELETE", "/v1/kv/cache?session=a%20%C3%A9", "").await.ok();
}

/// Words of the implementation that must not occur in API messages.
const RUST_WORDS: [&str; 13] = [
    "i64",
    "u32",
    "f32",
    "usize",
    "struct",
    "enum",
    "variant",
    "sequence",
    "tuple",
    "Option",
    "deserialize",
    "Deserialize",
    "untagged",
];

#[tokio::test]
async fn a_value_of_the_wrong_kind_is_told_in_json_words_with_its_path() {
    let world = World::new();
    let cases = [
        (CHAT, json!({"n": 1.5}), "n"),
        (CHAT, json!({"n": "1"}), "n"),
        (CHAT, json!({"n": []}), "n"),
        (CHAT, json!({"max_tokens": -1.5}), "max_tokens"),
        (CHAT, json!({"temperature": {}}), "temperature"),
        (CHAT, json!({"stream": "true"}), "stream"),
        (CHAT, json!({"stream": true, "stream_options": []}), "stream_options"),
        (CHAT, json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (CHAT, json!({"stop": [1]}), "stop[0]"),
        (CHAT, json!({"stop_token_ids": ["x"]}), "stop_token_ids[0]"),
        (CHAT, json!({"stop_token_ids": [5, -1]}), "stop_token_ids[1]"),
        (CHAT, json!({"logit_bias": {"5": "x"}}), "logit_bias.5"),
        (CHAT, json!({"logit_bias": [1]}), "logit_bias"),
        (CHAT, json!({"kv_sharing": []}), "kv_sharing"),
        (CHAT, json!({"kv_sharing": ["span"]}), "kv_sharing"),
        (CHAT, json!({"kv_sharing": "span"}), "kv_sharing"),
        (CHAT, json!({"kv_sharing": {"mode": {"span": null}}}), "kv_sharing.mode"),
        (CHAT, json!({"kv_sharing": {"mode": "all"}}), "kv_sharing.mode"),
        (CHAT, json!({"kv_sharing": {"stroe": true}}), "kv_sharing.stroe"),
        (CHAT, json!({"messages": [[]]}), "messages[0]"),
        (CHAT, json!({"messages": [{"role": "user", "content": [["text", "hi"]]}]}), "messages[0].content[0]"),
        (CHAT, json!({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}), "messages[0].content[0].text"),
        (COMPLETIONS, json!({"prompt": [1, "a"]}), "prompt"),
        (COMPLETIONS, json!({"echo": 1}), "echo"),
        ("/tokenize", json!({"add_special_tokens": "yes"}), "add_special_tokens"),
        ("/detokenize", json!({"tokens": [1, 2, {}]}), "tokens[2]"),
        ("/admin/corpora", json!({"name": "x", "text": 1}), "text"),
        ("/v1/kv/explain", json!({"prompt": "x", "n": false}), "n"),
    ];
    for (path, more, param) in cases {
        let body = if path == CHAT { chat("hi", more.clone()) } else { more.clone() };
        let answer = world.post(path, &body).await;
        check(&answer, 400, Some(param), None);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(!RUST_WORDS.iter().any(|word| message.contains(word)) && message.contains(param), "{more}: {message}");
    }
    for path in [CHAT, COMPLETIONS, "/tokenize", "/detokenize", "/admin/corpora", "/v1/kv/explain"] {
        for body in ["[]", "[null,\"hi\"]", "\"hi\"", "1", "null"] {
            check(&world.send("POST", path, body).await, 400, None, None);
        }
    }
}

#[tokio::test]
async fn whole_numbers_are_integers_however_they_are_written() {
    let world = World::new();
    let fields = "\"n\":1.0,\"max_tokens\":3e0,\"top_k\":2.0,\"seed\":7.0,\"min_tokens\":0.0,\"top_logprobs\":1.0,\"logprobs\":true,\
                  \"stop_token_ids\":[5.0],\"kv_sharing\":{\"segments\":[0.0]}";
    let body = format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}],{fields}}}");
    assert_eq!(world.send("POST", CHAT, body).await.ok()["usage"]["completion_tokens"], 3);
    let answer =
        world.send("POST", COMPLETIONS, "{\"prompt\":[60.0,61.0],\"max_tokens\":2.0,\"logprobs\":1.0,\"best_of\":1.0}").await;
    assert_eq!(answer.ok()["usage"]["prompt_tokens"], 2);
    assert_eq!(world.send("POST", "/detokenize", "{\"tokens\":[60.0]}").await.status, 200);
}

#[tokio::test]
async fn a_field_that_cannot_be_honoured_is_named_and_an_unknown_one_tolerated() {
    let world = World::new();
    let answer = world.post(CHAT, &chat("hi", json!({"suffix": "x"}))).await;
    check(&answer, 400, Some("suffix"), Some("unsupported_parameter"));
    world.post(CHAT, &chat("hi", json!({"x_unknown": {"a": [1]}}))).await.ok();
}

#[tokio::test]
async fn an_overlong_prompt_is_told_both_counts() {
    let world = World::new();
    let answer = world.post(COMPLETIONS, &completion("x".repeat(990), json!({"max_tokens": 20}))).await;
    check(&answer, 400, Some("prompt"), Some("context_length_exceeded"));
    assert!(answer.text.contains("1000 tokens") && answer.text.contains("1010 tokens"), "{}", answer.text);
    let answer = world.post(CHAT, &chat(&"x".repeat(20_000), json!({}))).await;
    check(&answer, 400, Some("messages"), Some("context_length_exceeded"));
}

#[tokio::test]
async fn what_the_pool_could_never_hold_is_refused() {
    let world = World::with(Options { scheduler: SchedulerConfig::new(4, 1000), ..Options::default() });
    let request = completion("x".repeat(200), json!({"stream": true}));
    check(&world.post(COMPLETIONS, &request).await, 400, None, Some("kv_pool_exceeded"));
}

#[tokio::test]
async fn another_model_is_not_found() {
    let world = World::new();
    let answer = world.post(CHAT, &chat("hi", json!({"model": "gpt-4"}))).await;
    check(&answer, 404, Some("model"), Some("model_not_found"));
    check(&world.get("/v1/models/gpt-4").await, 404, Some("model"), Some("model_not_found"));
}

#[tokio::test]
async fn another_route_or_method_is_refused_with_an_object() {
    let world = World::new();
    check(&world.get("/nowhere").await, 404, None, Some("unknown_url"));
    let answer = world.get(CHAT).await;
    check(&answer, 405, None, Some("method_not_allowed"));
    assert_eq!(answer.headers["allow"], "POST");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let world =
        World::with(Options { server: ServerConfig { body_limit: 1000, ..ServerConfig::default() }, ..Options::default() });
    let answer = world.post(CHAT, &chat(&"x".repeat(2000), json!({}))).await;
    check(&answer, 413, None, Some("body_too_large"));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let server = ServerConfig { body_read_timeout: Duration::from_millis(20), ..ServerConfig::default() };
    let world = World::with(Options { server, ..Options::default() });
    let silence = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let answer = world.send("POST", CHAT, Body::from_stream(silence)).await;
    check(&answer, 408, None, Some("body_not_received"));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let scheduler = SchedulerConfig { max_num_seqs: 1, ..SchedulerConfig::new(64, 1000) };
    let thread = EngineThreadConfig { max_queue: 1, ..EngineThreadConfig::default() };
    let world = World::with(Options { scheduler, thread, ..Options::default() });
    world.control.slow_down(Duration::from_millis(20));
    let long = completion("x", json!({"stream": true, "max_tokens": 500}));
    let _running = world.begin(COMPLETIONS, &long).await;
    world.wait_for("running", |stats| stats.num_running == 1).await;
    let _waiting = world.begin(COMPLETIONS, &long).await;
    let answer = world.post(COMPLETIONS, &long).await;
    check(&answer, 429, None, Some("queue_full"));
    assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert!(
        world
            .get("/metrics")
            .await
            .text
            .contains("kvshare_requests_shed_total{model_name=\"owner/echo\",engine=\"0\",reason=\"queue_full\"} 1")
    );
}

#[tokio::test]
async fn more_answers_than_could_ever_wait_are_a_bad_request() {
    let thread = EngineThreadConfig { max_queue: 2, ..EngineThreadConfig::default() };
    let world = World::with(Options { thread, ..Options::default() });
    check(&world.post(COMPLETIONS, &completion("x", json!({"n": 3}))).await, 400, Some("n"), None);
}

#[tokio::test]
async fn a_draining_server_takes_nothing_new() {
    let world = World::new();
    world.engine.begin_drain();
    let answer = world.post(CHAT, &chat("hi", json!({}))).await;
    check(&answer, 503, None, Some("shutting_down"));
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(world.get("/health/ready").await.status, 503);
    assert_eq!(world.get("/health").await.status, 503);
    assert_eq!(world.get("/health/live").await.status, 200);
}
