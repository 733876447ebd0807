//! Streamed answers, and readers that disconnect or lag.

use std::time::Duration;

use axum::body::to_bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use server::{EngineThreadConfig, ServerConfig};

use crate::world::{CHAT, COMPLETIONS, Options, World, chat, completion, events_of};

/// Returns the texts of the chunks of answer `index`, in order.
fn texts(events: &[Value], index: u64) -> Vec<&str> {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().into_iter().flatten());
    choices
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| choice["text"].as_str().or(choice["delta"]["content"].as_str()))
        .collect()
}

#[tokio::test]
async fn a_streamed_chat_has_its_events_in_order() {
    let world = World::new();
    let request = json!({"stream": true, "max_tokens": 3, "stream_options": {"include_usage": true}});
    let events = world.post(CHAT, &chat("hi", request)).await.events();
    let choices: Vec<_> = events[..events.len() - 1].iter().map(|event| event["choices"].clone()).collect();
    let choice = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
    assert_eq!(
        choices,
        [
            choice(json!({"role": "assistant", "content": ""}), json!(null)),
            choice(json!({"content": "["}), json!(null)),
            choice(json!({"content": "u"}), json!(null)),
            choice(json!({"content": "s"}), json!(null)),
            choice(json!({}), json!("length")),
            json!([]),
        ]
    );
    assert_eq!(events[6], "[DONE]");
    let usage = &events[5]["usage"];
    assert_eq!((&usage["completion_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]), (&json!(3), &json!(0)));
    assert!(events[..5].iter().all(|event| event.get("usage") == Some(&Value::Null)), "null where there is none yet");
    assert!(events[..6].iter().all(|event| event["id"] == events[0]["id"] && event["created"] == events[0]["created"]));
    assert!(events[..6].iter().all(|event| event["object"] == "chat.completion.chunk"));
}

#[tokio::test]
async fn a_stream_tells_the_usage_so_far_where_that_is_asked_for() {
    let world = World::new();
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let request = json!({"stream": true, "max_tokens": 3, "n": 2, "stream_options": options});
    for events in [
        world.post(CHAT, &chat("hi", request.clone())).await.events(),
        world.post(COMPLETIONS, &completion("hi", request)).await.events(),
    ] {
        let counts: Vec<_> = events.iter().filter_map(|event| event["usage"]["completion_tokens"].as_u64()).collect();
        assert!(counts.is_sorted() && counts.last() == Some(&6) && counts.first() < Some(&2) && counts.len() >= 7, "{counts:?}");
    }
    let alone = json!({"stream": true, "stream_options": {"continuous_usage_stats": true}});
    let events = world.post(CHAT, &chat("hi", alone)).await.events();
    assert!(events.iter().all(|event| event.get("usage").is_none()), "it means nothing alone");
}

#[tokio::test]
async fn without_being_asked_no_usage_is_streamed() {
    let world = World::new();
    let events = world.post(CHAT, &chat("hi", json!({"stream": true}))).await.events();
    assert!(events.iter().all(|event| event.get("usage").is_none() && event["choices"] != json!([])));
}

#[tokio::test]
async fn a_streamed_answer_is_the_whole_answer() {
    let world = World::new();
    let prompt = "some text, ümläute, 汉字 and 😀, then END and more";
    let request = json!({"max_tokens": 200, "stop": "END", "echo": true});
    let whole = world.post(COMPLETIONS, &completion(prompt, request.clone())).await.ok();
    let mut streamed = completion(prompt, request);
    streamed["stream"] = json!(true);
    let events = world.post(COMPLETIONS, &streamed).await.events();
    assert_eq!(texts(&events, 0).concat(), whole["choices"][0]["text"].as_str().unwrap());
}

#[tokio::test]
async fn a_character_over_several_tokens_is_streamed_in_one_piece() {
    let world = World::new();
    let events = world.post(COMPLETIONS, &completion("é😀!", json!({"stream": true, "max_tokens": 7}))).await.events();
    assert_eq!(texts(&events, 0), ["é", "😀", "!", ""]);
}

#[tokio::test]
async fn a_stop_string_is_never_streamed_not_even_its_start() {
    let world = World::new();
    let request = completion("abENcdENDef", json!({"stream": true, "stop": "END", "max_tokens": 50}));
    let events = world.post(COMPLETIONS, &request).await.events();
    assert_eq!(texts(&events, 0), ["a", "b", "ENc", "d", ""]);
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "stop");
    world.wait_until_free().await;
}

#[tokio::test]
async fn several_answers_are_merged_by_index() {
    let world = World::new();
    let events = world.post(CHAT, &chat("hi", json!({"stream": true, "n": 3, "max_tokens": 20}))).await.events();
    for index in 0..3 {
        assert_eq!(texts(&events, index).concat(), "[user]hi[assistant][");
        let of_index = |event: &&Value| event["choices"][0]["index"] == index;
        let mine: Vec<_> = events.iter().filter(of_index).collect();
        assert_eq!(mine.iter().filter(|event| event["choices"][0]["delta"].get("role").is_some()).count(), 1);
        let reasons: Vec<_> = mine.iter().filter(|event| !event["choices"][0]["finish_reason"].is_null()).collect();
        assert_eq!(reasons.len(), 1);
        assert_eq!(mine.last(), reasons.last().copied());
    }
    assert_eq!(events.iter().filter(|event| **event == json!("[DONE]")).count(), 1);
    assert_eq!(events.last(), Some(&json!("[DONE]")));
}

#[tokio::test]
async fn scores_are_streamed_with_their_text() {
    let world = World::new();
    let request = completion("é!", json!({"stream": true, "logprobs": 0, "max_tokens": 3}));
    let events = world.post(COMPLETIONS, &request).await.events();
    let scored: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array()).collect();
    assert_eq!(json!(scored), json!([[0, 0], [1]]));
}

#[tokio::test]
async fn a_silent_stream_is_kept_open_by_comments() {
    let server = ServerConfig { keep_alive: Duration::from_millis(10), ..ServerConfig::default() };
    let world = World::with(Options { server, ..Options::default() });
    world.control.slow_down(Duration::from_millis(100));
    let answer = world.post(COMPLETIONS, &completion("x", json!({"stream": true, "max_tokens": 1}))).await;
    assert!(answer.text.starts_with(":\n\n"), "{}", answer.text);
    assert_eq!(answer.events().len(), 3);
}

#[tokio::test]
async fn a_reader_that_leaves_frees_its_blocks() {
    let world = World::new();
    world.control.slow_down(Duration::from_millis(5));
    let request = completion("x", json!({"stream": true, "n": 2, "max_tokens": 900}));
    let mut body = world.begin(COMPLETIONS, &request).await.into_data_stream();
    body.next().await.unwrap().unwrap();
    world.wait_for("running", |stats| stats.blocks.active > 0).await;
    drop(body);
    world.wait_until_free().await;
    assert_eq!(world.engine.num_in_flight(), 0);
    let metrics = world.get("/metrics").await.text;
    assert!(
        metrics.contains("vllm:request_success_total{model_name=\"owner/echo\",engine=\"0\",finished_reason=\"abort\"} 2"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_caller_that_leaves_before_its_whole_answer_frees_its_blocks() {
    let world = World::new();
    world.control.slow_down(Duration::from_millis(5));
    let call = completion("x", json!({"max_tokens": 900}));
    let result = tokio::time::timeout(Duration::from_millis(50), world.post(COMPLETIONS, &call)).await;
    assert!(result.is_err());
    world.wait_until_free().await;
}

#[tokio::test]
async fn a_request_that_waits_can_be_taken_back() {
    let world = World::with(Options {
        scheduler: engine::SchedulerConfig { max_num_seqs: 1, ..engine::SchedulerConfig::new(64, 1000) },
        thread: EngineThreadConfig { max_queue: 1, ..EngineThreadConfig::default() },
        ..Options::default()
    });
    world.control.slow_down(Duration::from_millis(5));
    let long = completion("x", json!({"stream": true, "max_tokens": 900}));
    let running = world.begin(COMPLETIONS, &long).await;
    world.wait_for("running", |stats| stats.num_running == 1).await;
    let waiting = world.begin(COMPLETIONS, &long).await;
    world.wait_for("waiting", |stats| stats.num_waiting == 1).await;
    drop(waiting);
    world.wait_for("taken back", |stats| stats.num_waiting == 0).await;
    // Its place in the queue is free again.
    drop(world.begin(COMPLETIONS, &long).await);
    drop(running);
    world.wait_until_free().await;
}

#[tokio::test]
async fn a_reader_that_lags_is_cut_and_stops_nobody() {
    let thread = EngineThreadConfig { stream_buffer: 4, ..EngineThreadConfig::default() };
    let world = World::with(Options { thread, ..Options::default() });
    let request = completion("x".repeat(64), json!({"stream": true, "max_tokens": 900}));
    let lagging = world.begin(COMPLETIONS, &request).await;
    world
        .wait_for("admitted and taken back", |stats| {
            stats.num_running == 0 && stats.blocks.active == 0 && stats.blocks.cached > 0
        })
        .await;
    let text = String::from_utf8(to_bytes(lagging, usize::MAX).await.unwrap().to_vec()).unwrap();
    let events = events_of(&text);
    assert_eq!(events.last().unwrap()["error"]["code"], "slow_reader");
    assert!(events.len() <= 5 && !text.contains("[DONE]"), "{text}");
    // Long steps, so that a reader delayed by a busy machine keeps up.
    world.control.slow_down(Duration::from_millis(30));
    world.post(COMPLETIONS, &completion("x", json!({"max_tokens": 8}))).await.ok();
}
