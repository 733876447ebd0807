//! Anthropic's Messages: answers, streams, counts and errors in its shapes.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use server::ServerConfig;

use crate::world::{Answer, CHAT, COMPLETIONS, Fault, KEY_A, MODEL, Options, POISON, World, chat, completion, document};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// Builds a messages request of one user message with more fields.
fn message(content: impl Into<Value>, more: Value) -> Value {
    let mut request = json!({"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": content.into()}]});
    let Value::Object(more) = more else { panic!("fields in an object") };
    request.as_object_mut().unwrap().extend(more);
    request
}

/// Returns the names of the events of a stream, each with its data, which must say the same name.
fn named_events(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let blocks = answer.text.split("\n\n").filter(|block| !block.is_empty());
    let event = |block: &str| {
        let line = |prefix: &str| block.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
        let name = line("event: ").unwrap_or_else(|| panic!("an event without a name: {block}"));
        let data: Value = serde_json::from_str(&line("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], json!(name));
        (name, data)
    };
    blocks.map(event).collect()
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, kind: &str, part: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    let error = answer.json();
    assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)), "{error}");
    assert_eq!(error.as_object().unwrap().keys().collect::<Vec<_>>(), ["type", "error", "request_id"]);
    assert_eq!(error["request_id"], answer.headers["request-id"].to_str().unwrap());
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains(part), "{message}");
}

#[tokio::test]
async fn a_message_has_the_text_of_the_chat() {
    let world = World::new();
    let text = world.post(CHAT, &chat("hello", json!({}))).await.ok()["choices"][0]["message"]["content"].clone();
    let answer = world.post(MESSAGES, &message("hello", json!({"kv_sharing": {"mode": "off"}}))).await;
    let found = answer.ok();
    assert!(found["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(answer.headers["request-id"], answer.headers["x-request-id"]);
    let fields = ["type", "role", "model", "stop_reason", "stop_sequence"].map(|name| found[name].clone());
    assert_eq!(fields, [json!("message"), json!("assistant"), json!(MODEL), json!("max_tokens"), Value::Null]);
    assert_eq!(found["content"], json!([{"type": "text", "text": text}]));
    let usage = &found["usage"];
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&json!("[user]hello[assistant]".len()), &json!(8)));
    assert_eq!((&usage["cache_read_input_tokens"], &usage["cache_creation_input_tokens"]), (&json!(0), &json!(0)));
    assert_eq!(usage["kv_sharing"]["mode"], "off");
}

#[tokio::test]
async fn system_blocks_and_a_begun_answer_make_the_prompt() {
    let world = World::new();
    // The answer repeats the prompt.
    let check = async |request: Value, prompt: &str| {
        let mut request = request;
        request["max_tokens"] = json!(prompt.len());
        let answer = world.post(MESSAGES, &request).await.ok();
        assert_eq!(answer["content"], json!([{"type": "text", "text": prompt}]));
    };
    let text = |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
    let blocks = message(json!([text("a"), text("b")]), json!({"system": [text("be "), text("brief")]}));
    check(blocks, "[system]be brief[user]ab[assistant]").await;
    check(message("ab", json!({"system": "be brief"})), "[system]be brief[user]ab[assistant]").await;
    let begun = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Well, "}]});
    check(message("", begun), "[user]a[assistant]Well, ").await;
}

#[tokio::test]
async fn a_cached_prefix_is_no_input() {
    let world = World::new();
    let request = message(document(), json!({}));
    let first = world.post(MESSAGES, &request).await.ok()["usage"].clone();
    let second = world.post(MESSAGES, &request).await.ok()["usage"].clone();
    let count = |usage: &Value, name: &str| usage[name].as_u64().unwrap();
    let cached = count(&second, "cache_read_input_tokens");
    assert!(cached >= 192, "{second}");
    assert_eq!(count(&first, "input_tokens"), count(&second, "input_tokens") + cached);
    assert_eq!(count(&second["kv_sharing"], "prefix_tokens"), cached);
    let salted = world.post(MESSAGES, &message(document(), json!({"cache_salt": "other"}))).await.ok();
    assert_eq!(salted["usage"]["cache_read_input_tokens"], 0);
}

#[tokio::test]
async fn the_stop_sequence_that_matched_is_named() {
    let world = World::new();
    let more = json!({"max_tokens": 60, "stop_sequences": ["never", "assist", "zz"]});
    let whole = world.post(MESSAGES, &message("hi", more.clone())).await.ok();
    assert_eq!(whole["content"][0]["text"], "[user]hi[");
    assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!("stop_sequence"), &json!("assist")));
    let mut streamed = message("hi", more);
    streamed["stream"] = json!(true);
    let events = named_events(&world.post(MESSAGES, &streamed).await);
    let (_, ending) = &events[events.len() - 2];
    assert_eq!(ending["delta"], json!({"stop_reason": "stop_sequence", "stop_sequence": "assist"}));
}

#[tokio::test]
async fn a_stream_has_its_events_in_order() {
    let world = World::new();
    world.post(MESSAGES, &message(document(), json!({}))).await.ok();
    let answer = world.post(MESSAGES, &message(document(), json!({"stream": true, "max_tokens": 3}))).await;
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let events = named_events(&answer);
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names, expected);
    let start = &events[0].1["message"];
    assert!(start["id"].as_str().unwrap().starts_with("msg_"), "{start}");
    assert!(start["usage"]["cache_read_input_tokens"].as_u64() >= Some(192), "{start}");
    let text: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(text, "[us");
    let ending = &events[7].1;
    assert_eq!(ending["delta"], json!({"stop_reason": "max_tokens", "stop_sequence": null}));
    assert_eq!(ending["usage"]["output_tokens"], 3);
    assert_eq!(ending["usage"]["input_tokens"], start["usage"]["input_tokens"]);
}

#[tokio::test]
async fn a_stream_that_waits_sends_pings() {
    let keep_alive = std::time::Duration::from_millis(20);
    let server = ServerConfig { keep_alive, ..ServerConfig::default() };
    let world = World::with(Options { server, ..Options::default() });
    world.control.slow_down(std::time::Duration::from_millis(150));
    let events = named_events(&world.post(MESSAGES, &message("hi", json!({"stream": true, "max_tokens": 1}))).await);
    assert_eq!(events[0].1, json!({"type": "ping"}), "{events:?}");
    assert!(events.iter().any(|(name, _)| name == "message_stop"));
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_its_error() {
    let world = World::new();
    world.control.fail(Fault::Error);
    let answer = world.post(MESSAGES, &message("hi", json!({"stream": true}))).await;
    let (name, data) = named_events(&answer).pop().unwrap();
    assert_eq!((name.as_str(), &data["error"]["type"]), ("error", &json!("api_error")));
    assert_eq!(data["request_id"], answer.headers["request-id"].to_str().unwrap());
}

#[tokio::test]
async fn tokens_are_counted_as_a_message_reads_them() {
    let world = World::new();
    let more = json!({"system": "be brief", "kv_sharing": {"normalize": true}});
    let request = message("some   words  ", more);
    let used = world.post(MESSAGES, &request).await.ok()["usage"]["input_tokens"].clone();
    let mut counted = request;
    counted.as_object_mut().unwrap().remove("max_tokens");
    assert_eq!(world.post(COUNT, &counted).await.ok(), json!({"input_tokens": used}));
    check_error(&world.post(COUNT, &json!({"model": MODEL})).await, 400, "invalid_request_error", "messages");
}

#[tokio::test]
async fn every_error_has_anthropics_shape() {
    let world = World::new();
    let bad = "invalid_request_error";
    let image = json!([{"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}]);
    let stops: Vec<_> = (0..17).map(|i| i.to_string()).collect();
    let search = json!({"type": "web_search_20250305", "name": "web_search"});
    for (request, status, kind, part) in [
        (message("hi", json!({"max_tokens": null})), 400, bad, "`max_tokens`"),
        (message("hi", json!({"max_tokens": 0})), 400, bad, "at least 1"),
        (message("hi", json!({"max_tokens": "many"})), 400, bad, "an integer"),
        (message("hi", json!({"temperature": 1.5})), 400, bad, "`temperature`"),
        (message("hi", json!({"stop_sequences": stops})), 400, bad, "`stop_sequences`"),
        (message(image, json!({})), 400, bad, "`image`"),
        (message(json!([{"type": "document"}]), json!({})), 400, bad, "`document`"),
        (message("hi", json!({"messages": [{"role": "robot", "content": "hi"}]})), 400, bad, "messages[0].role"),
        (message(7, json!({})), 400, bad, "messages[0].content"),
        (message("x".repeat(2000), json!({})), 400, bad, "maximum context length"),
        (message("hi", json!({"model": "nobody"})), 404, "not_found_error", "nobody"),
        (message("hi", json!({"tools": [search]})), 400, bad, "tools[0].type"),
    ] {
        check_error(&world.post(MESSAGES, &request).await, status, kind, part);
    }
    check_error(&world.send("POST", MESSAGES, "{\"model\": ").await, 400, bad, "parse");
    check_error(&world.send("GET", MESSAGES, "").await, 405, bad, "GET");
    check_error(&world.send("POST", "/v1/messages/batches", "{}").await, 404, "not_found_error", "batches");
    let text = Request::builder().method("POST").uri(MESSAGES).header("content-type", "text/plain").body(Body::from("hi"));
    check_error(&world.answer_to(text.unwrap()).await, 415, bad, "text/plain");
    let chat = world.send("POST", CHAT, "{\"model\": ").await;
    assert_eq!(chat.json()["error"]["type"], bad, "other endpoints keep their shape");
    assert!(chat.json()["type"].is_null() && !chat.headers.contains_key("request-id"));
}

#[tokio::test]
async fn overload_and_faults_have_their_types() {
    let server = ServerConfig { body_limit: 100, ..ServerConfig::default() };
    let small = World::with(Options { server, ..Options::default() });
    check_error(&small.post(MESSAGES, &message("x".repeat(200), json!({}))).await, 413, "request_too_large", "100");
    let world = World::new();
    let poisoned = world.post(COMPLETIONS, &completion(json!([POISON]), json!({}))).await;
    assert_eq!(poisoned.json()["error"]["type"], "server_error");
    world.engine.begin_drain();
    let answer = world.post(MESSAGES, &message("hi", json!({}))).await;
    check_error(&answer, 503, "overloaded_error", "shutting down");
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_key_is_taken_from_either_header_on_all_routes() {
    let world = World::with_tenants();
    let send = async |path: &str, body: &Value, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method("POST").uri(path).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        world.answer_to(request.body(Body::from(body.to_string())).unwrap()).await
    };
    let bearer = format!("Bearer {KEY_A}");
    let (own, open) = (message("hi", json!({})), chat("hi", json!({})));
    for headers in [
        &[("x-api-key", KEY_A), ("anthropic-version", "2023-06-01")][..],
        &[("authorization", bearer.as_str())],
        &[("authorization", bearer.as_str()), ("x-api-key", "another")],
        &[("authorization", "Basic eDp5"), ("x-api-key", KEY_A)],
    ] {
        send(MESSAGES, &own, headers).await.ok();
        send(CHAT, &open, headers).await.ok();
    }
    check_error(&send(MESSAGES, &own, &[]).await, 401, "authentication_error", "x-api-key");
    check_error(&send(MESSAGES, &own, &[("x-api-key", "another")]).await, 401, "authentication_error", "Incorrect");
    let chat = send(CHAT, &open, &[("x-api-key", "another")]).await;
    assert_eq!((chat.status.as_u16(), &chat.json()["error"]["code"]), (401, &json!("invalid_api_key")));
}
