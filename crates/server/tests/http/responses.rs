//! `/v1/responses`: whole and streamed, stored by tenant, continued, listed and erased.

use std::time::Duration;

use axum::body::to_bytes;
use serde_json::{Value, json};
use server::{Access, ScopeSecret, ServerConfig};

use crate::world::{Answer, Fault, KEY_A, KEY_B, KEY_OPS, MODEL, Options, World, tenants};

const RESPONSES: &str = "/v1/responses";

/// Makes a request whose answer, the beginning of its prompt, ends before the first `]`.
fn request(input: impl Into<Value>, more: &Value) -> Value {
    let mut request = json!({"model": MODEL, "input": input.into(), "stop": "]"});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

async fn create(world: &World, key: &str, request: &Value) -> Answer {
    world.send_as(key, "POST", RESPONSES, request).await
}

fn path_of(response: &Value) -> String {
    format!("{RESPONSES}/{}", response["id"].as_str().unwrap())
}

fn text_of(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}"))
}

#[track_caller]
fn check_refused(answer: &Answer, status: u16, param: Option<&str>) {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert_eq!(answer.json()["error"]["param"], json!(param), "{}", answer.text);
}

/// Returns `response` without what differs between two runs.
fn comparable(mut response: Value) -> Value {
    for field in ["id", "created_at", "completed_at", "usage"] {
        response[field] = Value::Null;
    }
    for item in response["output"].as_array_mut().unwrap() {
        item["id"] = Value::Null;
    }
    response
}

#[tokio::test]
async fn a_response_has_all_that_clients_expect() {
    let world = World::new();
    let answer = world.post(RESPONSES, &request("hi", &json!({"metadata": {"a": "b"}, "temperature": 0.5}))).await.ok();
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"), "{answer}");
    let item = &answer["output"][0];
    assert!(item["id"].as_str().unwrap().starts_with("msg_"), "{answer}");
    assert_eq!(item["content"], json!([{"type": "output_text", "text": "[user", "annotations": [], "logprobs": []}]));
    assert_eq!((&item["type"], &item["role"], &item["status"]), (&json!("message"), &json!("assistant"), &json!("completed")));
    let expected = json!({
        "object": "response", "status": "completed", "error": null, "incomplete_details": null, "instructions": null,
        "model": MODEL, "metadata": {"a": "b"}, "temperature": 0.5, "top_p": 1.0, "tools": [], "tool_choice": "auto",
        "parallel_tool_calls": true, "previous_response_id": null, "store": true, "truncation": "disabled", "background": false,
        "text": {"format": {"type": "text"}, "verbosity": null}, "reasoning": {"effort": null, "summary": null},
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(answer[field], *value, "{field}");
    }
    let usage = &answer["usage"];
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"], &usage["total_tokens"]), (&json!(19), &json!(6), &json!(25)));
    assert_eq!((&usage["input_tokens_details"]["cached_tokens"], &usage["kv_sharing"]["mode"]), (&json!(0), &json!("prefix")));

    let cut = world.post(RESPONSES, &request("hi", &json!({"max_output_tokens": 3}))).await.ok();
    assert_eq!((text_of(&cut), &cut["status"]), ("[us", &json!("incomplete")));
    assert_eq!(cut["incomplete_details"], json!({"reason": "max_output_tokens"}));
}

#[tokio::test]
async fn a_stream_adds_up_to_the_whole() {
    let world = World::new();
    let more = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 1});
    let whole = world.post(RESPONSES, &request("hi", &more)).await.ok();
    assert_eq!(whole["output"][0]["content"][0]["logprobs"].as_array().unwrap().len(), 5, "{whole}");
    let mut streamed = request("hi", &more);
    streamed["stream"] = json!(true);
    let answer = world.post(RESPONSES, &streamed).await;
    let events = answer.events();
    let names: Vec<_> = answer.text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert!(
        events.iter().map(|event| event["type"].as_str().unwrap()).eq(names.iter().copied()),
        "no [DONE], and names as types"
    );
    assert!((0..).zip(&events).all(|(number, event)| event["sequence_number"] == json!(number)), "{events:?}");
    assert_eq!((names.first(), names.last()), (Some(&"response.created"), Some(&"response.completed")));
    let of_type = |name: &str| events.iter().filter(|event| event["type"] == name).collect::<Vec<_>>();
    let deltas = of_type("response.output_text.delta");
    assert_eq!(deltas.iter().map(|event| event["delta"].as_str().unwrap()).collect::<String>(), text_of(&whole));
    let scores: Vec<_> = deltas.iter().flat_map(|event| event["logprobs"].as_array().unwrap().clone()).collect();
    assert_eq!(json!(scores), whole["output"][0]["content"][0]["logprobs"]);
    let last = &events.last().unwrap()["response"];
    assert_eq!(comparable(last.clone()), comparable(whole));
    assert_eq!(world.get(&path_of(last)).await.ok(), *last);
}

#[tokio::test]
async fn a_conversation_goes_on_from_a_stored_response() {
    let world = World::new();
    let explained = |messages: Value| json!({"model": MODEL, "messages": messages});
    let first = world.post(RESPONSES, &request("hi", &json!({"instructions": "be brief"}))).await.ok();
    assert_eq!(text_of(&first), "[system");
    let previous = json!({"previous_response_id": first["id"]});
    let second = world.post(RESPONSES, &request("and?", &previous)).await.ok();
    assert_eq!(second["previous_response_id"], first["id"]);
    let reference = json!([{"type": "item_reference", "id": second["output"][0]["id"]}, {"role": "user", "content": "so"}]);
    let third = world.post(RESPONSES, &request(reference, &json!({"previous_response_id": first["id"]}))).await.ok();

    // The prompts are those of chats, so they have as many tokens.
    let user = |text: &str| json!({"role": "user", "content": text});
    let assistant = |text: &str| json!({"role": "assistant", "content": text});
    for (response, messages) in [
        (&second, json!([user("hi"), assistant("[system"), user("and?")])),
        (&third, json!([user("hi"), assistant("[system"), assistant("[user"), user("so")])),
    ] {
        let told = world.post("/v1/kv/explain", &explained(messages)).await.ok();
        assert_eq!(response["usage"]["input_tokens"], told["prompt_tokens"], "{response}");
    }

    world.send("DELETE", &path_of(&first), "").await.ok();
    let answer = world.post(RESPONSES, &request("and?", &json!({"previous_response_id": second["id"]}))).await;
    check_refused(&answer, 400, Some("previous_response_id"));
    assert!(answer.text.contains(first["id"].as_str().unwrap()), "{}", answer.text);
}

#[tokio::test]
async fn a_response_belongs_to_its_tenant() {
    let world = World::with_tenants();
    let input = json!([{"type": "message", "id": "msg_of_a", "role": "user", "content": "hi"}]);
    let response = create(&world, KEY_A, &request(input, &json!({}))).await.ok();
    let path = path_of(&response);
    assert_eq!(world.send_as(KEY_A, "GET", &path, &Value::Null).await.ok(), response);
    for key in [KEY_B, KEY_OPS] {
        for (method, path) in [
            ("GET", path.clone()),
            ("DELETE", path.clone()),
            ("GET", format!("{path}/input_items")),
            ("POST", format!("{path}/cancel")),
        ] {
            let answer = world.send_as(key, method, &path, &Value::Null).await;
            check_refused(&answer, 404, None);
            assert_eq!(answer.json()["error"]["code"], "not_found");
        }
        let answer = create(&world, key, &request("and?", &json!({"previous_response_id": response["id"]}))).await;
        check_refused(&answer, 400, Some("previous_response_id"));
        assert_eq!(answer.json()["error"]["code"], "previous_response_not_found");
        for id in [json!("msg_of_a"), response["output"][0]["id"].clone()] {
            let answer = create(&world, key, &request(json!([{"type": "item_reference", "id": id}]), &json!({}))).await;
            check_refused(&answer, 400, Some("input[0].id"));
        }
    }
    check_refused(&world.send_as(KEY_A, "POST", &format!("{path}/cancel"), &Value::Null).await, 400, Some("id"));
    let deleted = world.send_as(KEY_A, "DELETE", &path, &Value::Null).await.ok();
    assert_eq!(deleted, json!({"id": response["id"], "object": "response", "deleted": true}));
    check_refused(&world.send_as(KEY_A, "GET", &path, &Value::Null).await, 404, None);
}

#[tokio::test]
async fn what_is_not_to_be_kept_is_not() {
    let world = World::new();
    for more in [json!({"store": false}), json!({"kv_sharing": {"store": false}})] {
        let response = world.post(RESPONSES, &request("hi", &more)).await.ok();
        assert_eq!(response["store"], false);
        check_refused(&world.get(&path_of(&response)).await, 404, None);
    }
    let server = ServerConfig { max_responses: 1, ..ServerConfig::default() };
    let world = World::with(Options { server, ..Options::default() });
    let first = world.post(RESPONSES, &request("hi", &json!({}))).await.ok();
    let second = world.post(RESPONSES, &request("hi", &json!({}))).await.ok();
    check_refused(&world.get(&path_of(&first)).await, 404, None);
    world.get(&path_of(&second)).await.ok();
}

#[tokio::test]
async fn tenants_share_the_store_fairly() {
    let server = ServerConfig { max_responses: 4, ..ServerConfig::default() };
    let access = Access::new(tenants(), ScopeSecret::random());
    let world = World::with(Options { server, access, ..Options::default() });
    let first = create(&world, KEY_A, &request("hi", &json!({}))).await.ok();
    for _ in 0..8 {
        create(&world, KEY_B, &request("hi", &json!({}))).await.ok();
    }
    world.send_as(KEY_A, "GET", &path_of(&first), &Value::Null).await.ok();
}

#[tokio::test]
async fn erasing_a_cache_erases_its_responses() {
    let erasures = [
        (KEY_A, "/v1/kv/cache", [true, true]),
        (KEY_A, "/v1/kv/cache?session=s", [true, false]),
        (KEY_B, "/v1/kv/cache", [false, false]),
        (KEY_B, "/v1/kv/cache?session=s", [false, false]),
        (KEY_OPS, "/admin/tenants/a/cache", [true, true]),
        (KEY_OPS, "/admin/sessions/s/cache?tenant=a", [true, false]),
    ];
    for (key, path, are_gone) in erasures {
        let world = World::with_tenants();
        let in_session = create(&world, KEY_A, &request("hi", &json!({"kv_sharing": {"session": "s"}}))).await.ok();
        let other = create(&world, KEY_A, &request("hi", &json!({}))).await.ok();
        world.send_as(key, "DELETE", path, &Value::Null).await.ok();
        for (response, is_gone) in [&in_session, &other].into_iter().zip(are_gone) {
            let answer = world.send_as(KEY_A, "GET", &path_of(response), &Value::Null).await;
            assert_eq!(answer.status, if is_gone { 404 } else { 200 }, "{path}");
        }
    }
}

#[tokio::test]
async fn the_input_is_listed_in_pages() {
    let world = World::new();
    let input = json!([
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "input_text", "text": "three"}]},
    ]);
    let response = world.post(RESPONSES, &request(input, &json!({}))).await.ok();
    let path = format!("{}/input_items", path_of(&response));
    let texts = |list: &Value| {
        let items = list["data"].as_array().unwrap().iter();
        items.map(|item| item["content"][0]["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = world.get(&path).await.ok();
    assert_eq!((texts(&all), &all["has_more"]), (vec!["three".into(), "two".into(), "one".into()], &json!(false)));
    let page = world.get(&format!("{path}?order=asc&limit=2")).await.ok();
    assert_eq!(
        (texts(&page), &page["has_more"], &page["object"]),
        (vec!["one".into(), "two".into()], &json!(true), &json!("list"))
    );
    let after = page["last_id"].as_str().unwrap();
    let rest = world.get(&format!("{path}?order=asc&limit=2&after={after}")).await.ok();
    assert_eq!((texts(&rest), &rest["has_more"]), (vec!["three".to_owned()], &json!(false)));
    check_refused(&world.get(&format!("{path}?limit=0")).await, 400, Some("limit"));
    check_refused(&world.get(&format!("{path}?after=msg_0")).await, 400, Some("after"));
    check_refused(&world.get(&format!("{}?stream=true", path_of(&response))).await, 400, Some("stream"));
}

#[tokio::test]
async fn a_field_is_refused_under_its_own_name() {
    let world = World::new();
    for (more, param) in [
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"input": 3}), "input"),
        (json!({"input": "x".repeat(2000)}), "input"),
        (json!({"text": {"format": {"type": "poem"}}}), "text.format"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "n", "strict": true, "schema": {"type": "x"}}}}),
            "text.format",
        ),
        (json!({"kv_sharing": {"mode": "everything"}}), "kv_sharing.mode"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"previous_response_id": "resp_0"}), "previous_response_id"),
    ] {
        check_refused(&world.post(RESPONSES, &request("hi", &more)).await, 400, Some(param));
    }
    let image = json!([{"role": "user", "content": [{"type": "input_image", "image_url": "data:,", "detail": "auto"}]}]);
    let answer = world.post(RESPONSES, &request(image, &json!({}))).await;
    check_refused(&answer, 400, Some("input[0].content[0].type"));
    assert!(answer.text.contains("this model has no vision tower"), "{}", answer.text);
    assert_eq!(
        world.post(RESPONSES, &request("hi", &json!({"model": "other"}))).await.json()["error"]["code"],
        "model_not_found"
    );
}

#[tokio::test]
async fn a_failure_ends_a_stream_with_an_event_and_keeps_nothing() {
    let world = World::new();
    world.control.slow_down(Duration::from_millis(5));
    let body = world.begin(RESPONSES, &json!({"input": "hi", "stream": true, "max_output_tokens": 500})).await;
    world.wait_for("running", |stats| stats.num_running == 1).await;
    world.control.fail(Fault::Error);
    let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
    let events = crate::world::events_of(&text);
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")), "{last}");
    assert_eq!(last["response"]["error"]["code"], "server_error");
    check_refused(&world.get(&path_of(&last["response"])).await, 404, None);
}

#[tokio::test]
async fn a_client_that_leaves_leaves_nothing_stored() {
    let server = ServerConfig { max_responses: 2, ..ServerConfig::default() };
    let world = World::with(Options { server, ..Options::default() });
    let kept = world.post(RESPONSES, &request("hi", &json!({}))).await.ok();
    for _ in 0..3 {
        world.control.slow_down(Duration::from_millis(2));
        let body = world.begin(RESPONSES, &json!({"input": "hi", "stream": true, "max_output_tokens": 500})).await;
        world.wait_for("running", |stats| stats.num_running == 1).await;
        drop(body);
        world.wait_until_free().await;
    }
    world.get(&path_of(&kept)).await.ok();
}
