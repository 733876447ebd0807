//! Inspection and erasure of stored KV.

use serde_json::{Value, json};

use crate::world::{Answer, KEY_A, KEY_B, KEY_OPS, World, document};

async fn delete(world: &World, key: &str, path: &str) -> Answer {
    world.send_as(key, "DELETE", path, &Value::Null).await
}

async fn list(world: &World, query: &str) -> Value {
    world.send_as(KEY_OPS, "GET", &format!("/admin/donors{query}"), &Value::Null).await.ok()
}

/// Asks a question about the document with `key` in `session`.
async fn leave(world: &World, key: &str, question: &str, session: &str) {
    let prompt = format!("{question}: {}", document());
    world.usage_as(key, &prompt, json!({"kv_sharing": {"session": session}})).await;
    world.wait_until_free().await;
}

/// Returns the tokens of that prompt that are still cached.
async fn found(world: &World, key: &str, question: &str) -> u64 {
    let prompt = format!("{question}: {}", document());
    let usage = world.usage_as(key, &prompt, json!({"kv_sharing": {"store": false}})).await;
    usage["kv_sharing"]["prefix_tokens"].as_u64().unwrap()
}

/// Creates a server where tenants `a` and `b` have each asked `1` in session `s` and `2` in session `t`.
async fn world() -> World {
    let world = World::with_tenants();
    for key in [KEY_A, KEY_B] {
        leave(&world, key, "1", "s").await;
        leave(&world, key, "2", "t").await;
    }
    world
}

/// Checks which of `a`'s `1` and `2` and of `b`'s are still cached after `path` was deleted with `key`.
async fn check(key: &str, path: &str, expected: [bool; 4]) {
    let world = world().await;
    let erased = delete(&world, key, path).await.ok();
    let num_gone = expected.iter().filter(|&&is_left| !is_left).count();
    assert_eq!(erased["donors"], num_gone, "{path}");
    assert_eq!(erased["blocks"].as_u64() > Some(0), num_gone > 0, "{path}: {erased}");
    let mut left = Vec::new();
    for (key, question) in [(KEY_A, "1"), (KEY_A, "2"), (KEY_B, "1"), (KEY_B, "2")] {
        left.push(found(&world, key, question).await > 0);
    }
    assert_eq!(left, expected, "{path}");
}

#[tokio::test]
async fn a_tenants_cache_is_erased_and_no_others() {
    check(KEY_OPS, "/admin/tenants/a/cache", [false, false, true, true]).await;
    check(KEY_A, "/v1/kv/cache", [false, false, true, true]).await;
    check(KEY_OPS, "/v1/kv/cache", [true; 4]).await;
}

#[tokio::test]
async fn a_sessions_cache_is_erased_and_no_others() {
    check(KEY_OPS, "/admin/sessions/s/cache?tenant=b", [true, true, false, true]).await;
    check(KEY_B, "/v1/kv/cache?session=t", [true, true, true, false]).await;
    check(KEY_B, "/v1/kv/cache?session=unknown", [true; 4]).await;
}

#[tokio::test]
async fn donors_are_listed_by_pages_and_by_tenant() {
    let world = world().await;
    let all = list(&world, "").await;
    let tenants: Vec<_> = all["data"].as_array().unwrap().iter().map(|donor| donor["tenant"].as_str().unwrap()).collect();
    assert_eq!((tenants, &all["has_more"]), (vec!["a", "a", "b", "b"], &json!(false)));
    let first = &all["data"][0];
    assert_eq!((&first["object"], &first["tokens"], &first["hits"]), (&json!("kv.donor"), &json!(192), &json!(0)));
    assert_eq!(first["resident_tokens"], first["tokens"]);
    assert!(first["age_seconds"].as_f64() >= first["idle_seconds"].as_f64(), "{first}");

    let page = list(&world, "?limit=3").await;
    assert_eq!((page["data"].as_array().unwrap().len(), &page["has_more"]), (3, &json!(true)));
    let rest = list(&world, &format!("?limit=3&after={}", page["data"][2]["id"])).await;
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&all["data"][3]["id"], &json!(false)));

    let of_b = list(&world, "?tenant=b&limit=1").await;
    assert_eq!((&of_b["data"][0]["id"], &of_b["has_more"]), (&all["data"][2]["id"], &json!(true)));
    assert_eq!(list(&world, "?tenant=ops").await["data"], json!([]));
}

#[tokio::test]
async fn an_erased_donor_gives_nothing() {
    let world = world().await;
    let donor = list(&world, "").await["data"][0]["id"].clone();
    delete(&world, KEY_OPS, &format!("/admin/donors/{donor}")).await.ok();
    assert_eq!((found(&world, KEY_A, "1").await, found(&world, KEY_A, "2").await > 0), (0, true));
    assert_eq!(delete(&world, KEY_OPS, &format!("/admin/donors/{donor}")).await.status, 404);
    let metrics = world.get("/metrics").await.text;
    for series in [
        "kvshare_erasures_total{model_name=\"owner/echo\",engine=\"0\",kind=\"donor\"} 2",
        "kvshare_erased_donors_total{model_name=\"owner/echo\",engine=\"0\"} 1",
    ] {
        assert!(metrics.contains(series), "{series}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let world = World::with_tenants();
    for (method, path, body, status, param) in [
        ("GET", "/admin/donors?limit=0", Value::Null, 400, Some("limit")),
        ("GET", "/admin/donors?limit=x", Value::Null, 400, Some("limit")),
        ("GET", "/admin/donors?colour=red", Value::Null, 400, None),
        ("GET", "/admin/donors?tenant=nobody", Value::Null, 404, None),
        ("DELETE", "/admin/donors/seven", Value::Null, 400, Some("id")),
        ("DELETE", "/admin/tenants/nobody/cache", Value::Null, 404, None),
        ("DELETE", "/admin/sessions/s/cache", Value::Null, 400, Some("tenant")),
        ("DELETE", "/admin/corpora/none", Value::Null, 404, None),
        ("DELETE", "/v1/kv/cache?session=", Value::Null, 400, Some("session")),
        ("POST", "/admin/corpora", json!({"text": "x"}), 400, Some("name")),
        ("POST", "/admin/corpora", json!({"name": "a b", "text": "x"}), 400, Some("name")),
        ("POST", "/admin/corpora", json!({"name": "c"}), 400, Some("text")),
        ("POST", "/admin/corpora", json!({"name": "c", "text": ""}), 400, Some("prompt")),
        ("POST", "/admin/corpora", json!({"name": "c", "text": "x".repeat(1000)}), 400, Some("prompt")),
        ("POST", "/admin/corpora", json!({"name": "c", "texts": []}), 400, Some("texts")),
    ] {
        let answer = world.send_as(KEY_OPS, method, path, &body).await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"]["param"].as_str()), (status, param), "{path} {}", answer.text);
    }
}

#[tokio::test]
async fn without_keys_everybody_is_the_administrator_of_one_tenant() {
    let world = World::new();
    world
        .post(crate::world::COMPLETIONS, &crate::world::completion(document(), json!({"kv_sharing": {"session": "s"}})))
        .await
        .ok();
    world.wait_until_free().await;
    assert_eq!(world.get("/admin/donors").await.ok()["data"][0]["tenant"], "default");
    assert_eq!(world.send("DELETE", "/admin/sessions/s/cache", "").await.ok()["donors"], 1);
    world.post("/admin/corpora", &json!({"name": "any", "text": document()})).await.ok();
    assert_eq!(world.get("/admin/donors").await.ok()["data"][0]["tenant"], Value::Null);
    let usage = world.post(crate::world::COMPLETIONS, &crate::world::completion(document(), json!({}))).await.ok();
    assert!(usage["usage"]["kv_sharing"]["prefix_tokens"].as_u64() > Some(0), "{usage}");
}
