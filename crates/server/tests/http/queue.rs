//! Tenants share the queue, and no request waits in it longer than allowed.

use std::time::Duration;

use engine::SchedulerConfig;
use serde_json::json;
use server::{Access, EngineThreadConfig, ScopeSecret};

use crate::world::{COMPLETIONS, KEY_A, KEY_B, KEY_OPS, Options, World, completion, tenants};

/// Creates a server with two seats and slow steps.
fn busy(thread: EngineThreadConfig) -> World {
    let scheduler = SchedulerConfig { max_num_seqs: 2, ..SchedulerConfig::new(400, 1000) };
    let access = Access::new(tenants(), ScopeSecret::random());
    let world = World::with(Options { scheduler, thread, access, ..Options::default() });
    world.control.slow_down(Duration::from_millis(2));
    world
}

fn thread(max_queue: usize, queue_timeout: Option<Duration>) -> EngineThreadConfig {
    EngineThreadConfig { max_queue, queue_timeout, ..EngineThreadConfig::default() }
}

#[tokio::test]
async fn a_tenant_with_nothing_waiting_gets_a_place_and_a_seat_though_another_fills_the_queue() {
    let world = busy(thread(4, None));
    let long = completion("x", json!({"stream": true, "max_tokens": 900}));
    let mut streams = Vec::new();
    for num_before in 0..6 {
        streams.push(world.begin_as(KEY_A, COMPLETIONS, &long).await);
        world.wait_for("taken in", |stats| stats.num_running + stats.num_waiting == num_before + 1).await;
    }
    for _ in 0..8 {
        let refused = world.send_as(KEY_A, "POST", COMPLETIONS, &long).await;
        assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (429, &json!("queue_full")));
        world.send_as(KEY_B, "POST", COMPLETIONS, &completion("short", json!({}))).await.ok();
        world.send_as(KEY_OPS, "POST", COMPLETIONS, &completion("short", json!({"n": 3}))).await.ok();
    }
    assert!(world.engine.stats().preemptions > 0);
    drop(streams);
    world.wait_until_free().await;
}

#[tokio::test]
async fn who_waits_too_long_is_told_when_to_come_back() {
    let world = busy(thread(8, Some(Duration::from_millis(60))));
    let long = completion("x", json!({"stream": true, "max_tokens": 900}));
    let mut running = Vec::new();
    for num_before in 0..2 {
        running.push(world.begin_as(KEY_A, COMPLETIONS, &long).await);
        world.wait_for("running", |stats| stats.num_running == num_before + 1).await;
    }
    for request in [completion("x", json!({})), long, completion("x", json!({"stream": true, "n": 2}))] {
        let refused = world.send_as(KEY_A, "POST", COMPLETIONS, &request).await;
        assert_eq!(refused.status, 503, "{}", refused.text);
        let error = &refused.json()["error"];
        assert_eq!((&error["code"], &error["type"]), (&json!("queue_timeout"), &json!("service_unavailable_error")));
        assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    }
    world.wait_for("taken back", |stats| stats.num_waiting == 0 && stats.num_running == 2).await;
    let metrics = world.get("/metrics").await.text;
    assert!(metrics.contains("reason=\"queue_timeout\"} 4"), "{metrics}");
    // Running requests are not subject to the timeout.
    drop(running);
    world.wait_until_free().await;
}

#[tokio::test]
async fn who_is_begun_in_time_is_answered_however_long_its_steps_take() {
    let world = busy(thread(8, Some(Duration::from_millis(100))));
    world.control.slow_down(Duration::from_millis(250));
    world.send_as(KEY_A, "POST", COMPLETIONS, &completion("x", json!({"max_tokens": 2}))).await.ok();
    let streamed = completion("x", json!({"max_tokens": 2, "stream": true}));
    assert!(world.send_as(KEY_A, "POST", COMPLETIONS, &streamed).await.text.ends_with("data: [DONE]\n\n"));
    let metrics = world.get("/metrics").await.text;
    assert!(metrics.contains("reason=\"queue_timeout\"} 0"), "{metrics}");
}

#[tokio::test]
async fn a_question_is_answered_beside_streams_that_go_on() {
    let world = busy(thread(8, None));
    let long = completion("x", json!({"stream": true, "max_tokens": 900}));
    let running = world.begin_as(KEY_A, COMPLETIONS, &long).await;
    world.wait_for("running", |stats| stats.num_running == 1).await;
    let question = completion("x".repeat(300), json!({}));
    let ask = |key| world.send_as(key, "POST", "/v1/kv/explain", &question);
    let answers = futures::future::join_all([KEY_A, KEY_A, KEY_B, KEY_A, KEY_OPS].map(ask)).await;
    answers.iter().for_each(|answer| drop(answer.ok()));
    assert_eq!(world.engine.stats().num_running, 1);
    drop(running);
    world.wait_until_free().await;
}
