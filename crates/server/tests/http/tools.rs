//! Calls of tools, in answers that repeat their prompt.

use serde_json::{Value, json};

use crate::world::{CHAT, World};

/// Makes a request whose answer is `answer`.
fn request(answer: &str, more: &Value) -> Value {
    let weather = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let mut request = json!({
        "messages": [{"role": "user", "content": format!("{answer}~")}],
        // The tools are not part of this prompt, so that the answer is the message alone.
        "chat_template": "{{ messages[-1].content }}{# tools #}",
        "tools": [
            {"type": "function", "function": {"name": "get_weather", "parameters": weather}},
            {"type": "function", "function": {"name": "now"}},
        ],
        "stop": "~", "max_tokens": 400,
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

const CALL: &str = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";

/// Returns text, calls and finish reason of a streamed answer.
fn joined(events: &[Value], index: u64) -> (String, Vec<(String, String)>, Value) {
    let (mut text, mut calls, mut reason) = (String::new(), Vec::<(String, String)>::new(), Value::Null);
    let choices = events.iter().flat_map(|event| event["choices"].as_array().into_iter().flatten());
    for choice in choices.filter(|choice| choice["index"] == index) {
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            if let Some(name) = call["function"]["name"].as_str() {
                assert_eq!(call["index"], calls.len());
                assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")) && call["type"] == "function");
                calls.push((name.to_owned(), String::new()));
            }
            calls.last_mut().unwrap().1.push_str(call["function"]["arguments"].as_str().unwrap());
        }
        reason = if choice["finish_reason"].is_null() { reason } else { choice["finish_reason"].clone() };
    }
    (text, calls, reason)
}

#[track_caller]
fn check(answer: &Value, text: Option<&str>, calls: &[(&str, &str)], reason: &str) {
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], json!(text), "{choice}");
    let found: Vec<_> = choice["message"]["tool_calls"].as_array().into_iter().flatten().collect();
    let found: Vec<_> = found
        .iter()
        .map(|call| (call["function"]["name"].as_str().unwrap(), call["function"]["arguments"].as_str().unwrap()))
        .collect();
    assert_eq!((found.as_slice(), choice["finish_reason"].as_str()), (calls, Some(reason)));
}

#[tokio::test]
async fn calls_are_told_from_text_whole_and_streamed() {
    let world = World::new();
    let weather = ("get_weather", "{\"city\": \"Oslo\"}");
    for (answer, text, calls, reason) in [
        (CALL.to_owned(), None, vec![weather], "tool_calls"),
        (format!("Let me see.\n{CALL}\n{CALL}"), Some("Let me see."), vec![weather, weather], "tool_calls"),
        ("{\"name\": \"now\", \"arguments\": {}}".to_owned(), None, vec![("now", "{}")], "tool_calls"),
        ("No tool is needed.".to_owned(), Some("No tool is needed."), vec![], "stop"),
    ] {
        let whole = world.post(CHAT, &request(&answer, &json!({}))).await.ok();
        check(&whole, text, &calls, reason);
        let events = world.post(CHAT, &request(&answer, &json!({"stream": true, "n": 2}))).await.events();
        for index in 0..2 {
            let (streamed, found, last) = joined(&events, index);
            let found: Vec<_> = found.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
            assert_eq!((streamed.as_str(), found, last), (text.unwrap_or_default(), calls.clone(), json!(reason)));
        }
    }
}

#[tokio::test]
async fn one_call_is_all_there_is_without_parallel_calls_and_none_without_tools() {
    let world = World::new();
    let twice = format!("{CALL}\n{CALL}");
    let one = world.post(CHAT, &request(&twice, &json!({"parallel_tool_calls": false}))).await.ok();
    check(&one, None, &[("get_weather", "{\"city\": \"Oslo\"}")], "tool_calls");
    let none = world.post(CHAT, &request(CALL, &json!({"tool_choice": "none"}))).await.ok();
    check(&none, Some(CALL), &[], "stop");
    let none = world.post(CHAT, &request(CALL, &json!({"tools": []}))).await.ok();
    check(&none, Some(CALL), &[], "stop");
}

#[tokio::test]
async fn log_probabilities_of_calls_are_those_of_their_tokens() {
    let world = World::new();
    let answer = world.post(CHAT, &request(CALL, &json!({"logprobs": true}))).await.ok();
    let scored = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().len();
    let generated = answer["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    assert!(scored == CALL.len() && generated >= scored, "{scored} of {generated}");
}

#[tokio::test]
async fn a_schema_that_cannot_be_enforced_is_refused_only_where_it_must_hold() {
    let world = World::new();
    for parameters in [json!({"properties": {"a": {"type": "nonsense"}}}), json!({"$ref": "#/nowhere"})] {
        let tools = |is_strict: bool| {
            let function = json!({"name": "odd", "parameters": parameters, "strict": is_strict});
            json!({"tool_choice": "required", "tools": [{"type": "function", "function": function}]})
        };
        world.post(CHAT, &request(CALL, &tools(false))).await.ok();
        let refused = world.post(CHAT, &request(CALL, &tools(true))).await;
        assert_eq!(refused.status.as_u16(), 400);
        let error = refused.json()["error"].clone();
        assert!(
            error["param"] == "tools" && error["message"].as_str().is_some_and(|message| message.contains("`odd`")),
            "{error}"
        );
    }
    let regex = json!({"tool_choice": "required", "response_format": {"type": "regex", "value": "a+"}});
    assert_eq!(world.post(CHAT, &request(CALL, &regex)).await.json()["error"]["param"], "response_format");
}

#[tokio::test]
async fn a_stop_string_inside_a_call_does_not_finish_it() {
    let world = World::new();
    let cut = world.post(CHAT, &request(CALL, &json!({"stop": ["slo"]}))).await.ok();
    check(&cut, None, &[("get_weather", "{\"city\": \"O")], "stop");
}
