//! What would be reused, told without computing anything.

use serde_json::{Value, json};

use crate::world::{COMPLETIONS, KEY_A, KEY_B, World, chat, completion, document};

const EXPLAIN: &str = "/v1/kv/explain";

async fn explain(world: &World, key: &str, request: &Value) -> Value {
    world.send_as(key, "POST", EXPLAIN, request).await.ok()
}

/// A server where `a` has asked about the document.
async fn asked() -> World {
    let world = World::with_tenants();
    world.usage_as(KEY_A, &format!("first question:\n\n{}", document()), json!({})).await;
    world.wait_until_free().await;
    world
}

fn another(more: Value) -> Value {
    completion(format!("another, longer question:\n\n{}\n\nand a tail", document()), more)
}

#[tokio::test]
async fn spans_are_told_as_they_are_then_used() {
    let world = asked().await;
    let span = json!({"kv_sharing": {"mode": "span", "policy": "epic"}});
    let told = explain(&world, KEY_A, &another(span.clone())).await;
    assert_eq!((&told["object"], &told["mode"], &told["policy"]), (&json!("kv.explanation"), &json!("span"), &json!("epic")));
    let [planned] = &told["spans"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!(planned["class"], "composition");
    // The document stands at 27 here and at 17 there.
    assert_eq!(planned["target_pos"].as_u64().unwrap() - planned["donor_pos"].as_u64().unwrap(), 27 - 17);
    assert_eq!(told["segments"], json!([27, 229]));
    assert!(told["rejected"].is_null() && !told["matches"].as_array().unwrap().is_empty(), "{told}");
    let usage = world.send_as(KEY_A, "POST", COMPLETIONS, &another(span)).await.ok()["usage"].clone();
    for field in ["prefix_tokens", "span_tokens", "recomputed_tokens"] {
        assert_eq!(told[field], usage["kv_sharing"][field], "{field}");
    }
    assert_eq!(told["prompt_tokens"], usage["prompt_tokens"]);
    let sum: u64 = ["prefix_tokens", "span_tokens", "computed_tokens"].iter().map(|field| told[field].as_u64().unwrap()).sum();
    assert_eq!(told["prompt_tokens"], sum);
}

#[tokio::test]
async fn explaining_runs_and_changes_nothing() {
    let world = asked().await;
    let request = another(json!({"kv_sharing": {"mode": "span"}}));
    let (seeds, first) = (world.control.seeds(), explain(&world, KEY_A, &request).await);
    assert_eq!(explain(&world, KEY_A, &request).await, first);
    assert_eq!(world.control.seeds(), seeds, "nothing was executed");
    let donors = world.send_as(crate::world::KEY_OPS, "GET", "/admin/donors", &Value::Null).await.ok();
    assert_eq!(donors["data"][0]["hits"], 0);
    let metrics = world.get("/metrics").await.text;
    assert!(metrics.contains("kvshare_explanations_total{model_name=\"owner/echo\",engine=\"0\",reuse=\"span\"} 2"));
}

#[tokio::test]
async fn another_tenants_donors_are_not_told() {
    let world = asked().await;
    let told = explain(&world, KEY_B, &another(json!({"kv_sharing": {"mode": "span"}}))).await;
    assert_eq!((&told["spans"], &told["matches"], &told["rejected"]), (&json!([]), &json!([]), &json!("no_donor")));
    assert_eq!(told["prefix_tokens"], 0);
}

#[tokio::test]
async fn a_change_inside_a_segment_is_told_and_not_reused() {
    let world = World::with_tenants();
    world.usage_as(KEY_A, &format!("first question: {}", document()), json!({})).await;
    world.wait_until_free().await;
    let changed =
        completion(format!("another, longer question: {} and a tail", document()), json!({"kv_sharing": {"mode": "span"}}));
    let told = explain(&world, KEY_A, &changed).await;
    assert_eq!((&told["spans"], &told["rejected"]), (&json!([]), &json!("edited")), "{told}");
    assert!(!told["edited"].as_array().unwrap().is_empty() && !told["matches"].as_array().unwrap().is_empty(), "{told}");
}

#[tokio::test]
async fn segments_are_where_the_text_or_the_request_says() {
    let world = asked().await;
    let segments = |told: Value| told["segments"].clone();
    let text = chat("one\n\ntwo\n# three", json!({}));
    // Behind `[user]`, the blank line, and the second line break.
    assert_eq!(segments(explain(&world, KEY_A, &text).await), json!([6, 11, 15]));
    let named = chat("one--two", json!({"cache_segments": [0, "--"]}));
    assert_eq!(segments(explain(&world, KEY_A, &named).await), json!([6, 11]));
    let none = chat("one\n\ntwo", json!({"kv_sharing": {"segments": []}}));
    assert_eq!(segments(explain(&world, KEY_A, &none).await), json!([]));
}

#[tokio::test]
async fn what_cannot_be_explained_is_refused() {
    let world = asked().await;
    for (request, param) in [
        (completion(json!(["a", "b"]), json!({})), "prompt"),
        (completion("a", json!({"kv_sharing": {"policy": "best"}})), "kv_sharing.policy"),
        (json!({"messages": []}), "messages"),
        (json!({}), "prompt"),
    ] {
        let answer = world.send_as(KEY_A, "POST", EXPLAIN, &request).await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"]["param"].as_str()), (400, Some(param)), "{}", answer.text);
    }
}
