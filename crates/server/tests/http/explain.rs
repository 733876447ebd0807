//! Predicted reuse without computation.

use serde_json::{Value, json};
use server::{Access, ScopeSecret};
use tokens::SharingMode;

use crate::world::{COMPLETIONS, KEY_A, KEY_B, Options, World, chat, completion, document, tenants};

const EXPLAIN: &str = "/v1/kv/explain";

async fn explain(world: &World, key: &str, request: &Value) -> Value {
    world.send_as(key, "POST", EXPLAIN, request).await.ok()
}

/// Creates a server where `a` has asked about the document.
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
    // The document starts at 27 here and at 17 there.
    assert_eq!(planned["target_pos"].as_u64().unwrap() - planned["donor_pos"].as_u64().unwrap(), 27 - 17);
    assert_eq!(told["segments"], json!([27, 229]));
    assert!(told["reason"].is_null() && !told["matches"].as_array().unwrap().is_empty(), "{told}");
    let usage = world.send_as(KEY_A, "POST", COMPLETIONS, &another(span)).await.ok()["usage"].clone();
    for field in ["mode", "prefix_tokens", "span_tokens", "recomputed_tokens", "donors", "class", "reason"] {
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
    assert_eq!((&told["spans"], &told["matches"], &told["reason"]), (&json!([]), &json!([]), &json!("no_donor")));
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
    assert_eq!((&told["spans"], &told["reason"]), (&json!([]), &json!("edited")), "{told}");
    assert!(!told["edited"].as_array().unwrap().is_empty() && !told["matches"].as_array().unwrap().is_empty(), "{told}");
}

#[tokio::test]
async fn segments_are_where_the_text_or_the_request_says() {
    let world = asked().await;
    let segments = |told: Value| told["segments"].clone();
    let text = chat("one\n\ntwo\n# three", json!({}));
    // After `[user]`, the blank line, and the second line break.
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

/// Requests an explanation, then an answer that stores nothing; returns both reports.
async fn told_and_used(world: &World, request: &Value) -> (Value, Value) {
    let told = explain(world, KEY_A, request).await;
    let usage = world.send_as(KEY_A, "POST", COMPLETIONS, request).await.ok()["usage"].clone();
    world.wait_until_free().await;
    assert_eq!(told["prompt_tokens"], usage["prompt_tokens"]);
    (told, usage["kv_sharing"].clone())
}

/// Checks that a run reuses what was predicted, except for the tokens that a policy selects after measuring them.
#[track_caller]
fn check_told(told: &Value, used: &Value, context: &str) {
    for field in ["mode", "prefix_tokens", "donors", "class", "reason"] {
        assert_eq!(told[field], used[field], "{field}, {context}: {told} {used}");
    }
    let count = |from: &Value, field: &str| from[field].as_u64().unwrap();
    let moved = count(told, "span_tokens") - count(used, "span_tokens");
    assert!(moved <= count(told, "policy_tokens"), "{context}: {told} {used}");
    assert_eq!(moved, count(used, "recomputed_tokens") - count(told, "recomputed_tokens"), "{context}: {told} {used}");
    assert_eq!(told["reason"].is_null(), !told["spans"].as_array().unwrap().is_empty(), "{context}: {told}");
}

/// Every prompt in every mode under several policies, with the gate open and with its defaults.
#[tokio::test]
async fn what_is_told_is_what_is_then_used_in_every_mode() {
    let text = document();
    let prompts = [
        "x".to_owned(),
        "first question:\n\n".to_owned(),
        format!("first question:\n\n{text}"),
        format!("first question:\n\n{text}\n\nand more"),
        format!("another, longer question:\n\n{text}\n\nand a tail"),
        format!("another, longer question:\n\n{}", &text[..70]),
        format!("another question of its own: {text} and a tail"),
        format!("{}\n\n{}", &text[100..], &text[..100]),
        "q".repeat(300),
    ];
    let mut reasons = std::collections::BTreeSet::new();
    for gate in [engine::Gate::open(), engine::Gate::default()] {
        let mut options = Options { access: Access::new(tenants(), ScopeSecret::random()), ..Options::default() };
        options.scheduler.gate = gate;
        options.server.sharing.mode = SharingMode::Span;
        let world = World::with(options);
        // More steps than the cost model needs.
        for round in 0..10 {
            world.usage_as(KEY_A, &format!("{round} before all others"), json!({"kv_sharing": {"store": false}})).await;
        }
        world.usage_as(KEY_A, &format!("first question:\n\n{text}"), json!({})).await;
        world.wait_until_free().await;
        for prompt in &prompts {
            for mode in [None, Some("off"), Some("prefix"), Some("span"), Some("semantic"), Some("shadow")] {
                for policy in ["epic", "none", "impact@0.15+drift", "full"] {
                    let mut sharing = json!({"store": false, "policy": policy});
                    mode.iter().for_each(|mode| sharing["mode"] = json!(mode));
                    let (told, used) = told_and_used(&world, &completion(prompt.as_str(), json!({"kv_sharing": sharing}))).await;
                    assert_eq!(used["mode"], mode.unwrap_or("span"));
                    if policy != "full" {
                        check_told(&told, &used, &format!("{mode:?} {policy} {prompt}"));
                    } else if told["reason"].is_null() {
                        assert_eq!((&used["span_tokens"], &used["reason"]), (&json!(0), &json!("recomputed")), "{told} {used}");
                    }
                    reasons.insert(used["reason"].to_string());
                }
            }
        }
    }
    let expected = ["mode", "no_donor", "prompt_too_short", "shadowed", "not_worth_it", "recomputed", "prefix_covers"];
    assert!(expected.iter().all(|reason| reasons.contains(&json!(reason).to_string())), "{reasons:?}");
    assert!(reasons.contains("null"), "and some spans were reused");
}

#[tokio::test]
async fn a_prompt_that_is_scored_is_told_as_it_is_used() {
    let world = asked().await;
    let scored = json!({"echo": true, "logprobs": 1, "kv_sharing": {"mode": "span", "store": false}});
    let (told, used) = told_and_used(&world, &another(scored)).await;
    check_told(&told, &used, "scored");
    assert_eq!((&used["mode"], &used["reason"]), (&json!("off"), &json!("mode")));
}
