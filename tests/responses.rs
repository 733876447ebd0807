//! `/v1/responses` of the daemon for two tenants.

use std::fs;

use serde_json::{Value, json};

use crate::daemon::{Daemon, MODEL, free_port, pull_default_model, serve};

/// Sends a request with the key of `tenant`; returns status and body.
async fn send(daemon: &Daemon, tenant: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let method = method.parse().expect("a method of HTTP");
    let request = reqwest::Client::new().request(method, format!("{}{path}", daemon.url)).bearer_auth(format!("key-of-{tenant}"));
    let request = match body {
        Some(body) => request.json(body),
        None => request,
    };
    let answer = request.send().await.expect("the daemon answers");
    (answer.status().as_u16(), answer.json().await.expect("every answer is JSON"))
}

async fn respond(daemon: &Daemon, tenant: &str, input: &str, previous: Option<&Value>) -> (u16, Value) {
    let body = json!({
        "model": MODEL, "input": input, "previous_response_id": previous, "temperature": 0, "max_output_tokens": 12,
    });
    send(daemon, tenant, "POST", "/v1/responses", Some(&body)).await
}

#[tokio::test]
async fn tenants_keep_their_responses_apart_and_each_continues_its_own() {
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let keys = folder.path().join("keys.toml");
    let key = |tenant: &str| format!("[[key]]\ntenant = \"{tenant}\"\nenv = \"KEY_{tenant}\"\n");
    fs::write(&keys, key("a") + &key("b")).unwrap();
    pull_default_model();
    let mut command = serve(port);
    command.args(["--max-responses", "4", "--api-keys"]).arg(&keys).envs([("KEY_a", "key-of-a"), ("KEY_b", "key-of-b")]);
    let mut daemon = Daemon::spawn(&mut command, port);
    daemon.wait_until_ready().await;

    let (status, first) = respond(&daemon, "a", "What is the capital of France?", None).await;
    assert_eq!(status, 200, "{first}");
    let text = first["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("Paris"), "{first}");
    let (status, second) = respond(&daemon, "a", "And of Italy?", Some(&first["id"])).await;
    assert_eq!(status, 200, "{second}");
    let (prompt, cached) = (&second["usage"]["input_tokens"], &second["usage"]["input_tokens_details"]["cached_tokens"]);
    assert!(cached.as_u64() > Some(0) && cached.as_u64() < prompt.as_u64(), "the first turn is a prefix of the second: {second}");

    let path = format!("/v1/responses/{}", first["id"].as_str().unwrap());
    assert_eq!(send(&daemon, "a", "GET", &path, None).await, (200, first.clone()));
    for method in ["GET", "DELETE"] {
        assert_eq!(send(&daemon, "b", method, &path, None).await.0, 404);
    }
    let (status, answer) = respond(&daemon, "b", "And of Italy?", Some(&first["id"])).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("previous_response_id")));

    // Of four places, a flood of one tenant leaves the other its two.
    for _ in 0..4 {
        assert_eq!(respond(&daemon, "b", "Hello!", None).await.0, 200);
    }
    assert_eq!(send(&daemon, "a", "GET", &path, None).await.0, 200);
    assert_eq!(send(&daemon, "b", "DELETE", "/v1/kv/cache", None).await.0, 200);
    assert_eq!(send(&daemon, "a", "GET", &path, None).await.0, 200);
    assert_eq!(send(&daemon, "a", "DELETE", "/v1/kv/cache", None).await.0, 200);
    assert_eq!(send(&daemon, "a", "GET", &path, None).await.0, 404);
}
