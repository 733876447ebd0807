//! Structured output of the default model: each answer is what its constraint describes.

use serde_json::{Value, json};

use crate::daemon::{Daemon, MODEL};

/// Makes a chat request under a constraint, drawn at a high temperature, so that the model alone would hardly keep it.
fn request(text: &str, constraint: &Value, seed: u32) -> Value {
    let mut request = json!({
        "model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 1.5, "seed": seed, "max_tokens": 200,
    });
    request.as_object_mut().unwrap().extend(constraint.as_object().unwrap().clone());
    request
}

/// Returns text and finish reason of each choice.
async fn texts(daemon: &Daemon, request: &Value) -> Vec<(String, String)> {
    let answer = daemon.chat(request).await;
    let choices = answer["choices"].as_array().expect("an answer has choices");
    let text = |choice: &Value| {
        (choice["message"]["content"].as_str().unwrap().to_owned(), choice["finish_reason"].as_str().unwrap().to_owned())
    };
    choices.iter().map(text).collect()
}

/// Returns the text and the last finish reason of a stream.
async fn streamed(daemon: &Daemon, request: &Value) -> (String, String) {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let body = daemon.send("/v1/chat/completions", &request).await.text().await.unwrap();
    let chunks = body.lines().filter_map(|line| line.strip_prefix("data: {")).map(|line| format!("{{{line}"));
    let (mut text, mut reason) = (String::new(), String::new());
    for chunk in chunks {
        let chunk: Value = serde_json::from_str(&chunk).expect("every chunk is JSON");
        text.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        reason = chunk["choices"][0]["finish_reason"].as_str().unwrap_or(&reason).to_owned();
    }
    (text, reason)
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "kind": {"enum": ["cat", "dog"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": false,
    })
}

#[track_caller]
fn assert_person(text: &str) {
    let found: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let names: Vec<_> = found.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["name", "age", "kind", "tags"], "{text}");
    assert!(found["name"].as_str().unwrap().chars().count() <= 20, "{text}");
    assert!(found["age"].as_u64().unwrap() <= 120, "{text}");
    assert!(["cat", "dog"].contains(&found["kind"].as_str().unwrap()), "{text}");
    let tags = found["tags"].as_array().unwrap();
    assert!(tags.len() <= 3 && tags.iter().all(|tag| tag.as_str().unwrap().chars().count() <= 8), "{text}");
}

#[tokio::test]
async fn answers_keep_their_constraint_under_every_name() {
    let daemon = Daemon::start(&[]).await;
    let schema =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "pet", "strict": true, "schema": person()}}});
    for seed in 0..3 {
        let [(text, reason)] = &texts(&daemon, &request("Describe a pet as JSON.", &schema, seed)).await[..] else {
            panic!("one choice")
        };
        assert_eq!(reason, "stop", "{text}");
        assert_person(text);
    }
    let drawn = request("Describe a pet as JSON.", &schema, 7);
    assert_eq!(streamed(&daemon, &drawn).await, texts(&daemon, &drawn).await[0], "a stream has the text of the whole");

    let mut several = request("Is water wet?", &json!({"structured_outputs": {"choice": ["yes", "no", "perhaps"]}}), 1);
    several["n"] = json!(4);
    let found = texts(&daemon, &several).await;
    assert_eq!(found.len(), 4);
    assert!(
        found.iter().all(|(text, reason)| ["yes", "no", "perhaps"].contains(&text.as_str()) && reason == "stop"),
        "{found:?}"
    );

    let date = request("When was the tower built?", &json!({"guided_regex": r"(19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d"}), 2);
    let (text, _) = texts(&daemon, &date).await.remove(0);
    assert!(text.len() == 10 && text.bytes().enumerate().all(|(idx, byte)| (byte == b'-') == (idx == 4 || idx == 7)), "{text}");

    let sum =
        request("Add some numbers.", &json!({"grammar": "start: term (\" + \" term){1,4} \" = \" term\nterm: /[0-9]{1,3}/"}), 3);
    let (text, _) = texts(&daemon, &sum).await.remove(0);
    assert!(text.contains(" + ") && text.contains(" = ") && text.bytes().all(|byte| b"0123456789+= ".contains(&byte)), "{text}");

    let (text, reason) =
        texts(&daemon, &request("Anything.", &json!({"response_format": {"type": "json_object"}, "max_tokens": 4}), 4))
            .await
            .remove(0);
    assert!(reason == "length" && text.trim_start().starts_with('{'), "{text}");
}

#[tokio::test]
async fn constrained_and_free_answers_run_side_by_side() {
    let daemon = Daemon::start(&[]).await;
    let free =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "Name a river."}], "temperature": 0, "max_tokens": 24});
    let alone = daemon.chat(&free).await["choices"][0]["message"]["content"].clone();
    let schema = json!({"guided_json": person()});
    let pets = (0..4).map(|seed| request("Describe a pet as JSON.", &schema, seed)).collect::<Vec<_>>();
    let pets = futures::future::join_all(pets.iter().map(|pet| texts(&daemon, pet)));
    let (beside, pets) = tokio::join!(daemon.chat(&free), pets);
    assert_eq!(beside["choices"][0]["message"]["content"], alone);
    pets.iter().for_each(|pet| assert_person(&pet[0].0));
    assert!(daemon.metric("vllm:corrupted_requests_total").await == 0.0);
}

#[tokio::test]
async fn a_constraint_that_cannot_be_kept_is_an_error_with_its_place() {
    let daemon = Daemon::start(&[]).await;
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}});
    for (constraint, param, part) in [
        (schema(json!({"type": "object", "properties": {"a": {"type": "strin"}}})), "response_format", "strin"),
        (schema(json!({"type": "array", "uniqueItems": true})), "response_format", "uniqueItems"),
        (json!({"guided_regex": "[a-"}), "guided_regex", "regular expression"),
        (json!({"guided_grammar": "start: missing"}), "guided_grammar", "missing"),
    ] {
        let (status, answer) = daemon.post("/v1/chat/completions", &request("hi", &constraint, 0)).await;
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
}
