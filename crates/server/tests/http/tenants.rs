//! Access control, and isolation of tenants.

use serde_json::{Value, json};
use server::{Access, ApiKey, ScopeSecret, Tenants};

use crate::world::{Answer, CHAT, COMPLETIONS, KEY_A, KEY_B, KEY_OPS, Options, World, completion, document};

#[track_caller]
fn check_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{error}");
    assert!(error["message"].is_string() && error["type"].is_string() && error["param"].is_null(), "{error}");
}

#[tokio::test]
async fn every_path_but_health_and_metrics_needs_a_key() {
    let world = World::with_tenants();
    let document = world.send_as(KEY_A, "GET", "/openapi.json", &Value::Null).await.ok();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let answer = world.send(&method.to_uppercase(), &path.replace(['{', '}'], ""), "").await;
            let is_open = path.starts_with("/health") || path == "/metrics";
            assert_eq!(operation["security"] == json!([]), is_open, "{path} is documented as it is");
            match is_open {
                true => assert_eq!(answer.status, 200, "{path}"),
                false if path.starts_with("/v1/messages") => {
                    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["type"]), (401, &json!("authentication_error")));
                }
                false => check_refused(&answer, 401, "invalid_api_key"),
            }
        }
    }
    check_refused(&world.get("/nowhere").await, 401, "invalid_api_key");
}

#[tokio::test]
async fn a_key_that_is_not_known_is_refused_and_never_shown() {
    let world = World::with_tenants();
    let answer = world.send_as("sk-not-known", "POST", COMPLETIONS, &completion("x", json!({}))).await;
    check_refused(&answer, 401, "invalid_api_key");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    world.send_as(KEY_A, "POST", COMPLETIONS, &completion("x", json!({}))).await.ok();
    let metrics = world.get("/metrics").await.text;
    assert!(!metrics.contains("sk-not-known") && !answer.text.contains("sk-not-known"));
    assert!(metrics.contains("kvshare_refused_keys_total{model_name=\"owner/echo\",engine=\"0\",reason=\"unknown_key\"} 1"));
}

#[tokio::test]
async fn only_an_administrator_administers() {
    let world = World::with_tenants();
    for (method, path) in [
        ("GET", "/admin/donors"),
        ("DELETE", "/admin/donors/0"),
        ("DELETE", "/admin/tenants/a/cache"),
        ("DELETE", "/admin/sessions/s/cache?tenant=a"),
        ("GET", "/admin/corpora"),
        ("POST", "/admin/corpora"),
        ("DELETE", "/admin/corpora/manuals"),
    ] {
        check_refused(&world.send_as(KEY_A, method, path, &Value::Null).await, 403, "insufficient_permissions");
        let allowed = world.send_as(KEY_OPS, method, path, &Value::Null).await;
        assert_ne!(allowed.status, 403, "{path}");
    }
}

/// Returns the tokens that `second` reuses, as a prefix and as spans, from KV of `first`. Both ask about the same document.
async fn reused(first: &str, second: &str) -> (u64, u64) {
    let world = World::with_tenants();
    let question = |text: &str| format!("{text}:\n\n{}", document());
    world.usage_as(first, &question("the first question"), json!({})).await;
    let sharing = |usage: Value, field: &str| usage["kv_sharing"][field].as_u64().unwrap();
    let span = json!({"kv_sharing": {"mode": "span", "store": false}});
    let same = world.usage_as(second, &question("the first question"), json!({"kv_sharing": {"store": false}})).await;
    let other = world.usage_as(second, &question("another one, longer"), span).await;
    (sharing(same, "prefix_tokens"), sharing(other, "span_tokens"))
}

#[tokio::test]
async fn a_tenant_reuses_its_own_and_nobody_elses() {
    let (prefix, span) = reused(KEY_A, KEY_A).await;
    assert!(prefix >= 192 && span > 0, "{prefix} {span}");
    assert_eq!(reused(KEY_A, KEY_B).await, (0, 0));
    assert_eq!(reused(KEY_A, KEY_OPS).await, (0, 0));
    assert_eq!(reused(KEY_OPS, KEY_A).await, (0, 0));
}

/// Runs an answer over spans, appends its text to its prompt, and checks what the next turn of `key` reuses of both.
#[tokio::test]
async fn the_next_turn_takes_over_approximate_kv_in_its_own_tenant_alone() {
    let span = json!({"kv_sharing": {"mode": "span", "session": "s"}, "max_tokens": 8});
    let first = format!("another one, longer:\n\n{}", document());
    let answered = async || {
        let world = World::with_tenants();
        world.usage_as(KEY_A, &format!("the first question:\n\n{}", document()), json!({})).await;
        let answer = world.send_as(KEY_A, "POST", COMPLETIONS, &completion(first.clone(), span.clone())).await.ok();
        assert!(answer["usage"]["kv_sharing"]["span_tokens"].as_u64() > Some(0), "{answer}");
        (world, format!("{first}{}, and then?", answer["choices"][0]["text"].as_str().unwrap()))
    };
    let continued = async |world: &World, key: &str, text: &str, fields: &Value| {
        let told = world.send_as(key, "POST", "/v1/kv/explain", &completion(text.to_owned(), fields.clone())).await.ok();
        let usage = world.usage_as(key, text, fields.clone()).await["kv_sharing"].clone();
        assert_eq!(told["continued_tokens"], usage["continued_tokens"], "{told} {usage}");
        usage["continued_tokens"].as_u64().unwrap()
    };
    let (world, next) = answered().await;
    assert_eq!(continued(&world, KEY_B, &next, &span).await, 0);
    assert_eq!(continued(&world, KEY_A, &next, &json!({"kv_sharing": {"mode": "prefix", "store": false}})).await, 0);
    assert_eq!(continued(&world, KEY_A, &first, &json!({"kv_sharing": {"mode": "span", "store": false}})).await, 0);
    assert!(continued(&world, KEY_A, &next, &span).await > 150);
    for path in ["/admin/tenants/a/cache", "/admin/sessions/s/cache?tenant=a"] {
        let (world, next) = answered().await;
        world.send_as(KEY_OPS, "DELETE", path, &Value::Null).await.ok();
        assert_eq!(continued(&world, KEY_A, &next, &span).await, 0, "{path}");
    }
}

#[tokio::test]
async fn a_quota_is_a_bound_of_one_request() {
    let key = |quota| ApiKey { sha256: ApiKey::digest(KEY_A), tenant: "a".into(), is_admin: false, quota, public: vec![] };
    let world_with = |quota| {
        let tenants = Tenants::try_new(vec![key(quota)]).unwrap();
        let mut options = Options::default();
        options.scheduler.quotas = tenants.quota_blocks(options.scheduler.num_blocks);
        World::with(Options { access: Access::new(tenants, ScopeSecret::random()), ..options })
    };
    let request = completion("x".repeat(300), json!({}));
    world_with(None).send_as(KEY_A, "POST", COMPLETIONS, &request).await.ok();
    let answer = world_with(Some(0.1)).send_as(KEY_A, "POST", COMPLETIONS, &request).await;
    check_refused(&answer, 400, "kv_pool_exceeded");
    assert!(answer.text.contains("quota is 6"), "{}", answer.text);
}

/// A quota of 6 of 64 blocks, 192 tokens, with a model length of 1,000.
#[tokio::test]
async fn a_length_that_nobody_asked_for_ends_with_the_quota() {
    let key = ApiKey { sha256: ApiKey::digest(KEY_A), tenant: "a".into(), is_admin: false, quota: Some(0.1), public: vec![] };
    let tenants = Tenants::try_new(vec![key]).unwrap();
    let mut options = Options::default();
    options.scheduler.quotas = tenants.quota_blocks(options.scheduler.num_blocks);
    let world = World::with(Options { access: Access::new(tenants, ScopeSecret::random()), ..options });
    let chat = |text: &str, more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": text}]});
        more.as_object().unwrap().iter().for_each(|(field, value)| body[field] = value.clone());
        body
    };
    let answer = world.send_as(KEY_A, "POST", CHAT, &chat("hi", json!({}))).await.ok();
    assert_eq!((&answer["usage"]["total_tokens"], &answer["choices"][0]["finish_reason"]), (&json!(193), &json!("length")));
    let told = world.send_as(KEY_A, "POST", "/v1/kv/explain", &chat("hi", json!({}))).await;
    assert_eq!(told.status, 200, "{}", told.text);
    let answer = world.send_as(KEY_A, "POST", CHAT, &chat("hi", json!({"max_tokens": 300}))).await;
    check_refused(&answer, 400, "kv_pool_exceeded");
    let answer = world.send_as(KEY_A, "POST", CHAT, &chat(&"x".repeat(250), json!({}))).await;
    check_refused(&answer, 400, "kv_pool_exceeded");
}

#[tokio::test]
async fn a_public_corpus_is_reused_by_those_who_may_read_it() {
    let world = World::with_tenants();
    let text = document();
    let corpus = world.send_as(KEY_OPS, "POST", "/admin/corpora", &json!({"name": "manuals", "text": text})).await.ok();
    assert_eq!(corpus, json!({"name": "manuals", "object": "kv.corpus", "texts": 1, "tokens": 200}));
    let behind = format!("{text} and a question");
    let elsewhere = format!("a question about this:\n\n{text}\n\nand more");
    let span = json!({"kv_sharing": {"mode": "span", "store": false}});
    let prefix_only = json!({"kv_sharing": {"store": false}});
    for (key, may_read) in [(KEY_A, true), (KEY_B, false)] {
        let prefix = world.usage_as(key, &behind, prefix_only.clone()).await["kv_sharing"]["prefix_tokens"].as_u64().unwrap();
        let spans = world.usage_as(key, &elsewhere, span.clone()).await["kv_sharing"]["span_tokens"].as_u64().unwrap();
        assert_eq!((prefix >= 192, spans > 0), (may_read, may_read), "{prefix} {spans}");
    }
    let list = world.send_as(KEY_OPS, "GET", "/admin/corpora", &Value::Null).await.ok();
    assert_eq!(list["data"], json!([corpus]));
    let erased = world.send_as(KEY_OPS, "DELETE", "/admin/corpora/manuals", &Value::Null).await.ok();
    assert_eq!((&erased["donors"], erased["blocks"].as_u64() >= Some(6)), (&json!(1), true), "{erased}");
    assert_eq!(world.usage_as(KEY_A, &behind, prefix_only).await["kv_sharing"]["prefix_tokens"], 0);
}

#[tokio::test]
async fn private_text_in_front_keeps_a_public_one_private() {
    let world = World::with_tenants();
    let text = document();
    let corpus = json!({"name": "manuals", "text": "a short public text, not the document"});
    world.send_as(KEY_OPS, "POST", "/admin/corpora", &corpus).await.ok();
    world.usage_as(KEY_B, &format!("a private question of b:\n\n{text}"), json!({})).await;
    let span = json!({"kv_sharing": {"mode": "span"}});
    let usage = world.usage_as(KEY_A, &format!("what a asks:\n\n{text}"), span).await;
    assert_eq!(usage["kv_sharing"]["span_tokens"], 0, "{usage}");
}
