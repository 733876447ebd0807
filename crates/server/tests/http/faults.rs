//! What happens when the engine fails.

use axum::body::to_bytes;
use serde_json::json;

use crate::world::{COMPLETIONS, Fault, World, completion, events_of};

/// Fails the engine while an answer is streamed; `message` is what the one who can end the process is told.
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
