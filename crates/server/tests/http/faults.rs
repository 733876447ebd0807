//! Failures of the engine.

use axum::body::to_bytes;
use serde_json::json;

use crate::world::{COMPLETIONS, Fault, POISON, World, byte, completion, events_of};

/// Fails the engine during a streamed answer; `message` is reported to the owner of the process.
async fn check(fault: Fault, message: &str) {
    let world = World::new();
    world.control.slow_down(std::time::Duration::from_millis(2));
    let body = world.begin(COMPLETIONS, &completion("x", json!({"stream": true, "max_tokens": 900}))).await;
    world.wait_for("running", |stats| stats.num_running == 1).await;
    world.control.fail(fault);
    let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
    let events = events_of(&text);
    assert_eq!(events.last().unwrap()["error"]["type"], "server_error", "{text}");
    assert!(!text.contains("[DONE]"));
    assert_eq!(world.get("/health/live").await.status, 503);
    assert_eq!(world.get("/health").await.status, 503);
    let refused = world.post(COMPLETIONS, &completion("x", json!({}))).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (500, &json!("internal_error")));
    let metrics = world.get("/metrics").await.text;
    assert!(metrics.contains("finished_reason=\"error\"} 1"), "{metrics}");
    assert_eq!(world.fatal.await.unwrap(), message);
}

#[tokio::test]
async fn a_fault_of_the_device_is_fatal() {
    check(Fault::Error, "the engine stopped: executing the model: the device has gone").await;
}

#[tokio::test]
async fn a_panic_is_fatal() {
    check(Fault::Panic, "the engine thread panicked: a defect").await;
}

#[tokio::test]
async fn a_request_whose_logits_are_no_numbers_fails_alone() {
    let world = World::new();
    world.control.slow_down(std::time::Duration::from_millis(2));
    let other = world.begin(COMPLETIONS, &completion("x", json!({"stream": true, "max_tokens": 100}))).await;
    let poisoned = |more| completion(json!([byte(b'a'), POISON, byte(b'b')]), more);
    let answer = world.post(COMPLETIONS, &poisoned(json!({}))).await;
    let error = &answer.json()["error"];
    assert_eq!((answer.status.as_u16(), &error["type"], &error["code"]), (500, &json!("server_error"), &json!("faulty_logits")));
    let events = world.post(COMPLETIONS, &poisoned(json!({"stream": true}))).await.events();
    assert_eq!(events.last().unwrap()["error"]["code"], "faulty_logits", "{events:?}");
    let text = String::from_utf8(to_bytes(other, usize::MAX).await.unwrap().to_vec()).unwrap();
    assert_eq!(events_of(&text).last(), Some(&json!("[DONE]")));
    assert_eq!(world.get("/health").await.status, 200);
    let metrics = world.get("/metrics").await.text;
    assert!(metrics.contains("vllm:corrupted_requests_total{model_name=\"owner/echo\",engine=\"0\"} 2"), "{metrics}");
}

#[tokio::test]
async fn a_constrained_answer_that_cannot_go_on_blames_its_constraint() {
    let world = World::new();
    let request = completion(json!([byte(b'a'), POISON, byte(b'b')]), json!({"guided_regex": "[a-z]{3}"}));
    let answer = world.post(COMPLETIONS, &request).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (400, &json!("costly_grammar")), "{}", answer.text);
}
