//! Sharing options of a request and their effects.

use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{COMPLETIONS, Options, World, completion, document};

/// Returns the usage of a request with these fields, after another one about the same document.
async fn usage_after(fields: Value) -> Value {
    let world = World::new();
    world.post(COMPLETIONS, &completion(format!("first question:\n\n{}", document()), json!({}))).await.ok();
    let request = completion(format!("another, longer question:\n\n{}\n\nand a tail", document()), fields);
    world.post(COMPLETIONS, &request).await.ok()["usage"]["kv_sharing"].clone()
}

#[track_caller]
fn check(usage: &Value, mode: &str, reuses: bool) {
    assert_eq!((&usage["mode"], usage["span_tokens"].as_u64() > Some(0)), (&json!(mode), reuses), "{usage}");
    assert_eq!((usage["class"].is_null(), usage["deviation"].is_null()), (!reuses, !reuses), "{usage}");
}

#[tokio::test]
async fn each_mode_reuses_what_it_says() {
    check(&usage_after(json!({"kv_sharing": {"mode": "off"}})).await, "off", false);
    check(&usage_after(json!({"kv_sharing": {"mode": "prefix"}})).await, "prefix", false);
    check(&usage_after(json!({"kv_sharing": {"mode": "span"}})).await, "span", true);
    check(&usage_after(json!({"kv_sharing": {"mode": "semantic"}})).await, "semantic", true);
    check(&usage_after(json!({"kv_sharing": {"mode": "shadow"}})).await, "shadow", false);
}

#[tokio::test]
async fn exactness_is_kept_where_it_was_asked_for() {
    let span = |more: Value| {
        let mut sharing = json!({"mode": "span"});
        sharing.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        sharing
    };
    check(&usage_after(json!({"seed": 1, "kv_sharing": span(json!({"strict": true}))})).await, "prefix", false);
    check(&usage_after(json!({"seed": 1, "kv_sharing": span(json!({}))})).await, "span", true);
    check(&usage_after(json!({"kv_sharing": span(json!({"max_deviation": 0}))})).await, "prefix", false);
    check(&usage_after(json!({"echo": true, "logprobs": 1, "kv_sharing": span(json!({}))})).await, "off", false);
}

#[tokio::test]
async fn policies_are_taken_by_name() {
    for policy in ["none", "full", "cacheblend", "dhd@0.3", "impact@0.15"] {
        let usage = usage_after(json!({"kv_sharing": {"mode": "span", "policy": policy, "max_deviation": "fast"}})).await;
        assert_eq!(usage["mode"], "span", "{policy}");
    }
    let spends = |usage: &Value| usage["recomputed_tokens"].as_u64().unwrap();
    let (none, some) = (
        usage_after(json!({"kv_sharing": {"mode": "span", "policy": "none"}})).await,
        usage_after(json!({"kv_sharing": {"mode": "span", "policy": "random@0.3"}})).await,
    );
    assert!(spends(&some) > spends(&none), "{some} {none}");
}

#[tokio::test]
async fn a_bad_wish_is_refused_by_name() {
    let world = World::new();
    for (fields, param) in [
        (json!({"kv_sharing": {"mode": "everything"}}), "kv_sharing.mode"),
        (json!({"kv_sharing": {"policy": "best"}}), "kv_sharing.policy"),
        (json!({"kv_sharing": {"policy": "dhd@2"}}), "kv_sharing.policy"),
        (json!({"kv_sharing": {"max_deviation": "loose"}}), "kv_sharing.max_deviation"),
        (json!({"kv_sharing": {"max_deviation": -1}}), "kv_sharing.max_deviation"),
        (json!({"kv_sharing": {"segments": [0]}}), "kv_sharing.segments"),
        (json!({"kv_sharing": {"segments": [1.5]}}), "kv_sharing.segments[0]"),
        (json!({"kv_sharing": {"sesion": "s"}}), "kv_sharing.sesion"),
        (json!({"cache_segments": [""]}), "cache_segments"),
    ] {
        let answer = world.post(COMPLETIONS, &completion("x", fields)).await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"]["param"].as_str()), (400, Some(param)), "{}", answer.text);
    }
}

#[tokio::test]
async fn a_history_that_is_to_be_forgotten_is_computed_exactly() {
    check(&usage_after(json!({"kv_sharing": {"mode": "span", "edit": "tidy"}})).await, "span", true);
    check(&usage_after(json!({"kv_sharing": {"mode": "span", "edit": "forget"}})).await, "prefix", false);
}

#[tokio::test]
async fn blanks_are_written_one_way_if_that_is_asked_for() {
    let world = World::new();
    let ask = async |prompt: &str, normalize: bool| {
        let answer = world.post(COMPLETIONS, &completion(prompt, json!({"kv_sharing": {"normalize": normalize}}))).await;
        (answer.json()["usage"]["prompt_tokens"].as_u64().unwrap(), answer.json()["usage"]["kv_sharing"]["normalized"].clone())
    };
    let (wide, narrow) = ("Some words. \r\nAnd.  More", "Some words.\nAnd. More");
    assert_eq!(ask(wide, true).await, (ask(narrow, false).await.0, json!(true)));
    assert_eq!(ask(narrow, true).await.1, json!(false), "nothing had to be changed");
    assert!(ask(wide, false).await.0 > ask(narrow, true).await.0);
}

#[tokio::test]
async fn auto_reuses_what_has_proven_itself_and_tells_what_is_known() {
    let verification = engine::VerificationConfig { share: 0.01, idle: Duration::ZERO, ..engine::VerificationConfig::default() };
    let scheduler =
        engine::SchedulerConfig { verification, gate: engine::Gate::open(), ..engine::SchedulerConfig::new(8192, 2000) };
    let world = World::with(Options { scheduler, ..Options::default() });
    let document: String = (0..60).map(|i| format!("Sentence number {i} of it. ")).collect();
    let ask = async |i: u32| {
        let prompt = format!("Another beginning, the {i}. one, that no other prompt has.\n\n{document}");
        let body = completion(prompt, json!({"kv_sharing": {"mode": "auto"}, "max_tokens": 4, "temperature": 0}));
        world.post(COMPLETIONS, &body).await.json()["usage"]["kv_sharing"].clone()
    };
    let classes = async || world.get("/v1/kv/classes").await.json();
    assert_eq!(ask(0).await["reason"], "no_donor");
    assert_eq!(ask(1).await["reason"], "unproven");
    assert_eq!(classes().await["data"][0]["state"], "shadow");
    let mut usage = Value::Null;
    for i in 2..200 {
        usage = ask(i).await;
        // Some time without a request.
        tokio::time::sleep(Duration::from_millis(10)).await;
        if usage["span_tokens"].as_u64() > Some(0) {
            break;
        }
    }
    assert_eq!((usage["mode"].as_str(), usage["reason"].is_null()), (Some("auto"), true), "{usage}");
    let classes = classes().await["data"].as_array().unwrap().clone();
    let class = classes.iter().find(|class| class["state"] == "open").expect("the class of the last one is open");
    assert_eq!(
        (&class["object"], &class["format"], &class["proof_kl"]),
        (&json!("kv.class"), &json!("prompt,in_order"), &json!(1.0))
    );
    let metrics = world.get("/metrics").await.text;
    let open = metrics.lines().find(|line| line.starts_with("kvshare_traffic_classes{") && line.contains("state=\"open\""));
    assert!(open.is_some_and(|line| line.ends_with(" 1")), "{open:?}");
}
