//! Calls of tools by the default model, whose template knows none: each is what its schema describes.

use serde_json::{Value, json};

use crate::daemon::{Daemon, MODEL};

/// Makes a request with two strict tools, drawn at a high temperature, so that the model alone would hardly write a call.
fn request(more: &Value, seed: u32) -> Value {
    let parameters = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": false,
    });
    let mut request = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "What will the weather be in Oslo?"}],
        "tools": [
            {"type": "function", "function": {"name": "forecast", "parameters": parameters, "strict": true}},
            {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}},
        ],
        "temperature": 1.5, "seed": seed, "max_tokens": 200,
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// Checks the calls of a choice that must have some. Returns their names.
#[track_caller]
fn check_calls(choice: &Value) -> Vec<String> {
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
    let calls = choice["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("{choice}"));
    let mut names = Vec::new();
    for call in calls {
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).expect("arguments are JSON");
        let name = call["function"]["name"].as_str().unwrap();
        match name {
            "forecast" => {
                assert!(arguments["city"].as_str().is_some_and(|city| city.chars().count() <= 12), "{arguments}");
                assert!(arguments["days"].as_i64().is_some_and(|days| (1..=9).contains(&days)), "{arguments}");
                assert_eq!(arguments.as_object().unwrap().len(), 2);
            }
            "now" => assert_eq!(arguments, json!({})),
            _ => panic!("{name} is no tool"),
        }
        names.push(name.to_owned());
    }
    names
}

#[tokio::test]
async fn a_required_call_matches_its_schema() {
    let daemon = Daemon::start(&[]).await;
    let named =
        json!({"tool_choice": {"type": "function", "function": {"name": "forecast"}}, "parallel_tool_calls": false, "n": 3});
    let answer = daemon.chat(&request(&named, 1)).await;
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!(check_calls(choice), ["forecast"]);
    }
    for seed in 2..6 {
        let answer = daemon.chat(&request(&json!({"tool_choice": "required", "parallel_tool_calls": false}), seed)).await;
        assert_eq!(check_calls(&answer["choices"][0]).len(), 1);
    }
    // A history with the call and its result is rendered, and answered with text.
    let call = json!({"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}});
    let history = json!({"tool_choice": "none", "max_tokens": 8, "messages": [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "12:00"},
    ]});
    let answer = daemon.chat(&request(&history, 7)).await;
    assert!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
}

#[tokio::test]
async fn a_strict_tool_is_text_or_a_call_that_matches() {
    let daemon = Daemon::start(&[]).await;
    for seed in 0..4 {
        let answer = daemon.chat(&request(&json!({"max_tokens": 40}), seed)).await;
        let choice = &answer["choices"][0];
        if choice["finish_reason"] == "tool_calls" {
            check_calls(choice);
        } else {
            assert!(choice["message"]["tool_calls"].is_null(), "{choice}");
        }
    }
}
