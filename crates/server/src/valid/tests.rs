use serde_json::{Value, json};
use tokens::SharingMode;

use super::*;
use crate::config::ServerConfig;
use crate::forms::AnswerForms;

fn model() -> ModelInfo {
    ModelInfo {
        id: "m".to_owned(),
        aliases: vec!["alias".to_owned()],
        max_model_len: 100,
        vocab_size: 300,
        eos_token_ids: vec![TokenId(2)],
        created: 0,
        forms: AnswerForms::of_template("tools <tool_call>"),
    }
}

fn with(base: Value, field: &str, value: Value) -> Value {
    let mut request = base;
    request[field] = value;
    request
}

fn chat(field: &str, value: Value) -> Result<ValidRequest, ApiError> {
    let request = with(json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}), field, value);
    let (model, config) = (model(), ServerConfig::default());
    let limits = Limits { model: &model, config: &config, max_choices: 10 };
    ValidRequest::from_chat(serde_json::from_value(request).unwrap(), limits)
}

fn completion(field: &str, value: Value) -> Result<ValidRequest, ApiError> {
    let request = with(json!({"model": "m", "prompt": "hi"}), field, value);
    let (model, config) = (model(), ServerConfig::default());
    let limits = Limits { model: &model, config: &config, max_choices: 10 };
    ValidRequest::from_completion(serde_json::from_value(request).unwrap(), limits)
}

/// Returns the field that the error names.
#[track_caller]
fn param_of<T: std::fmt::Debug>(result: Result<T, ApiError>) -> Option<String> {
    result.unwrap_err().body().error.param
}

#[track_caller]
fn check_chat_refuses(field: &str, values: &[Value]) {
    for value in values {
        assert_eq!(param_of(chat(field, value.clone())).as_deref(), Some(field), "{value}");
    }
}

#[test]
fn defaults_are_openais() {
    let request = chat("user", json!("me")).unwrap();
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (1.0, 1.0, 0, 0.0));
    assert_eq!((request.n, request.max_tokens, request.sharing.store), (1, MaxTokens::AtMost(u32::MAX), true));
    assert_eq!(sampling.stop_token_ids, [TokenId(2)]);
    assert_eq!(completion("user", json!("me")).unwrap().max_tokens, MaxTokens::AtMost(16));
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    check_chat_refuses("temperature", &[json!(-0.1), json!(2.1)]);
    check_chat_refuses("top_p", &[json!(0), json!(1.1)]);
    check_chat_refuses("top_k", &[json!(-2)]);
    check_chat_refuses("min_p", &[json!(-0.1), json!(1.5)]);
    check_chat_refuses("n", &[json!(0), json!(9)]);
    check_chat_refuses("max_tokens", &[json!(0), json!(-1)]);
    check_chat_refuses("max_completion_tokens", &[json!(0)]);
    check_chat_refuses("frequency_penalty", &[json!(3)]);
    check_chat_refuses("presence_penalty", &[json!(-3)]);
    check_chat_refuses(
        "repetition_penalty",
        &[json!(0), json!(-1), json!(1e-45), json!(1e-40), json!(0.009), json!(101), json!(1e38)],
    );
    check_chat_refuses("min_tokens", &[json!(-1), json!(101)]);
    check_chat_refuses("top_logprobs", &[json!(21), json!(1)]);
    check_chat_refuses("stop", &[json!(""), json!(["a", ""])]);
    check_chat_refuses("stop_token_ids", &[json!([300])]);
    check_chat_refuses(
        "logit_bias",
        &[json!({"300": 1}), json!({"x": 1}), json!({"1": 101}), json!({"01": 1}), json!({"+1": 1})],
    );
    check_chat_refuses("cache_salt", &[json!("")]);
    check_chat_refuses("stream_options", &[json!({"include_usage": true})]);
    check_chat_refuses("messages", &[json!([])]);
}

#[test]
fn what_is_asked_for_arrives() {
    let sampling = chat("logit_bias", json!({"7": -3})).unwrap().sampling;
    assert_eq!(sampling.logit_bias, [(TokenId(7), -3.0)]);
    assert_eq!(chat("ignore_eos", json!(true)).unwrap().sampling.stop_token_ids, []);
    assert_eq!(chat("stop_token_ids", json!([5])).unwrap().sampling.stop_token_ids, [TokenId(5), TokenId(2)]);
    assert_eq!(chat("stop", json!("x")).unwrap().text.stop, ["x"]);
    assert_eq!(chat("stop", json!(["x", "y"])).unwrap().text.stop, ["x", "y"]);
    assert_eq!(chat("seed", json!(7)).unwrap().sampling.seed, 7);
    assert_eq!(chat("top_k", json!(-1)).unwrap().sampling.top_k, 0);
    assert_eq!(chat("logprobs", json!(true)).unwrap().sampling.logprobs, Some(0));
    assert_eq!(chat("max_completion_tokens", json!(4)).unwrap().max_tokens, MaxTokens::Exactly(4));
    assert_eq!(completion("logprobs", json!(3)).unwrap().sampling.logprobs, Some(3));
    let sharing = chat("kv_sharing", json!({"mode": "span", "store": false})).unwrap();
    assert_eq!((sharing.sharing.mode, sharing.sharing.store), (SharingMode::Span, false));
}

#[test]
fn some_token_is_left_to_choose() {
    let all: Vec<u32> = (0..300).collect();
    let wishes = |min_tokens: u32, ids: &[u32]| {
        let request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "min_tokens": min_tokens});
        let (model, config) = (model(), ServerConfig::default());
        let limits = Limits { model: &model, config: &config, max_choices: 10 };
        ValidRequest::from_chat(serde_json::from_value(with(request, "stop_token_ids", json!(ids))).unwrap(), limits)
    };
    assert_eq!(param_of(wishes(1, &all)).as_deref(), Some("stop_token_ids"));
    assert!(wishes(0, &all).is_ok() && wishes(1, &all[3..]).is_ok());
}

/// Returns the constraint of a chat request with `fields`.
fn constraint(fields: &Value) -> Result<Option<grammar::Constraint>, ApiError> {
    let mut request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let (model, config) = (model(), ServerConfig::default());
    let limits = Limits { model: &model, config: &config, max_choices: 10 };
    let request = ValidRequest::from_chat(serde_json::from_value(request).unwrap(), limits)?;
    Ok(request.constraint.map(|valid| valid.constraint))
}

#[test]
fn constraints_are_read_under_the_names_of_every_peer() {
    use grammar::Constraint::{Choice, JsonObject, JsonSchema, Lark, Regex};
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let strict = |strict: serde_json::Value| json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": strict}});
    let mut lenient = schema.clone();
    lenient["x-guidance"] = json!({"lenient": true});
    let number = || Some(Regex("[0-9]".to_owned()));
    let yes_no = || Some(Choice(vec!["yes".to_owned(), "no".to_owned()]));
    let exact = || Some(JsonSchema(schema.clone()));
    let digit = "start: /[0-9]/";
    for (fields, expected) in [
        (json!({}), None),
        (json!({"response_format": null, "guided_json": null, "regex": "", "grammar": ""}), None),
        (json!({"response_format": {"type": "text"}}), None),
        (json!({"response_format": {"type": "json_object"}}), Some(JsonObject)),
        (json!({"response_format": {"type": "json_object", "schema": schema}}), exact()),
        (json!({"response_format": strict(json!(true))}), exact()),
        (json!({"response_format": strict(json!(false))}), Some(JsonSchema(lenient.clone()))),
        (json!({"response_format": strict(json!(null))}), Some(JsonSchema(lenient))),
        (json!({"response_format": {"type": "regex", "value": "[0-9]"}}), number()),
        (json!({"response_format": {"type": "grammar", "grammar": digit}}), Some(Lark(digit.to_owned()))),
        (json!({"structured_outputs": {"json": schema}}), exact()),
        (json!({"structured_outputs": {"json": schema.to_string(), "regex": null}}), exact()),
        (json!({"structured_outputs": {"json_object": true}}), Some(JsonObject)),
        (json!({"structured_outputs": {"regex": "[0-9]"}}), number()),
        (json!({"structured_outputs": {"choice": ["yes", "no"]}}), yes_no()),
        (json!({"structured_outputs": {"grammar": digit}}), Some(Lark(digit.to_owned()))),
        (json!({"structured_outputs": {}}), None),
        (json!({"guided_json": schema}), exact()),
        (json!({"guided_json": schema.to_string()}), exact()),
        (json!({"guided_regex": "[0-9]"}), number()),
        (json!({"guided_choice": ["yes", "no"]}), yes_no()),
        (json!({"guided_grammar": digit}), Some(Lark(digit.to_owned()))),
        (json!({"json_schema": schema}), exact()),
        (json!({"regex": "[0-9]"}), number()),
        (json!({"grammar": digit}), Some(Lark(digit.to_owned()))),
        (json!({"grammar": {"type": "json", "value": schema}}), exact()),
        (json!({"grammar": {"type": "regex", "value": "[0-9]"}}), number()),
    ] {
        assert_eq!(constraint(&fields).unwrap_or_else(|error| panic!("{fields}: {error:?}")), expected, "{fields}");
    }
}

#[test]
fn a_constraint_that_is_malformed_or_one_of_two_is_refused_by_its_name() {
    for (fields, param) in [
        (json!({"response_format": "json"}), "response_format"),
        (json!({"response_format": {}}), "response_format"),
        (json!({"response_format": {"type": "yaml"}}), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        (json!({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}), "response_format"),
        (json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}}), "response_format"),
        (json!({"structured_outputs": {"json": {}, "regex": "a"}}), "structured_outputs"),
        (json!({"structured_outputs": {"choice": [1]}}), "structured_outputs"),
        (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs"),
        (json!({"structured_outputs": {"jsonn": {}}}), "structured_outputs"),
        (json!({"guided_json": "{"}), "guided_json"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"grammar": "root ::= \"a\""}), "grammar"),
        (json!({"grammar": {"type": "xml", "value": "a"}}), "grammar"),
        (json!({"guided_json": {}, "guided_regex": "a"}), "guided_regex"),
        (json!({"response_format": {"type": "json_object"}, "json_schema": {}}), "json_schema"),
    ] {
        assert_eq!(param_of(constraint(&fields).map(drop)).as_deref(), Some(param), "{fields}");
    }
}

#[test]
fn two_requests_without_a_seed_get_different_ones() {
    assert_ne!(chat("n", json!(1)).unwrap().sampling.seed, chat("n", json!(1)).unwrap().sampling.seed);
}

#[test]
fn fields_that_cannot_be_honoured_are_refused_by_name() {
    check_chat_refuses("structural_tag", &[json!({})]);
    assert_eq!(param_of(completion("suffix", json!("x"))).as_deref(), Some("suffix"));
}

#[test]
fn fields_that_ask_for_nothing_and_unknown_fields_are_tolerated() {
    for (field, value) in [
        ("tools", json!(null)),
        ("tools", json!([])),
        ("tool_choice", json!("none")),
        ("parallel_tool_calls", json!(false)),
        ("reasoning_effort", json!("low")),
        ("response_format", json!({"type": "text"})),
        ("my_field", json!({"a": 1})),
        ("metadata", json!({"a": "b"})),
    ] {
        assert!(chat(field, value.clone()).is_ok(), "{field} {value}");
    }
}

#[test]
fn an_unknown_model_is_not_found_and_an_alias_is() {
    assert_eq!(chat("model", json!("alias")).unwrap().model, "alias");
    assert_eq!(chat("model", json!("gpt")).unwrap_err(), ApiError::ModelNotFound { model: "gpt".into() });
    assert_eq!(chat("model", json!(null)).unwrap().model, "m", "the one there is");
}

#[test]
fn messages_are_brought_into_one_form() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let request = chat("messages", json!([{"role": "developer", "content": "s"}, {"role": "user", "content": parts}])).unwrap();
    let [PromptSource::Chat(Conversation { messages, .. })] = &request.prompts[..] else { panic!("one chat prompt") };
    assert_eq!(messages[0].role, "system");
    assert_eq!(messages[1].content, "ab");
}

#[test]
fn messages_that_cannot_be_rendered_are_refused_where_they_are() {
    let check = |message: Value, param: &str| {
        let messages = json!([{"role": "user", "content": "hi"}, message]);
        assert_eq!(param_of(chat("messages", messages)).as_deref(), Some(param));
    };
    check(json!({"role": "robot", "content": "x"}), "messages[1].role");
    check(json!({"role": "function", "content": "x"}), "messages[1].role");
    check(json!({"role": "tool"}), "messages[1].content");
    check(json!({"role": "user"}), "messages[1].content");
    check(json!({"role": "user", "content": [{"type": "image_url"}]}), "messages[1].content[0].type");
    check(json!({"role": "assistant", "tool_calls": [{"id": "x"}]}), "messages[1].tool_calls[0].function.name");
    check(json!({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}), "messages[1].tool_calls");
}

#[test]
fn prompts_are_texts_or_known_tokens_and_never_empty() {
    assert_eq!(completion("prompt", json!(["a", "b"])).unwrap().prompts.len(), 2);
    assert_eq!(completion("prompt", json!([1, 2])).unwrap().prompts, [PromptSource::Tokens(vec![TokenId(1), TokenId(2)])]);
    assert_eq!(completion("prompt", json!([[1], [2]])).unwrap().prompts.len(), 2);
    for refused in [json!(""), json!([]), json!(["a", ""]), json!([[]]), json!([300]), json!(null)] {
        assert_eq!(param_of(completion("prompt", refused.clone())).as_deref(), Some("prompt"), "{refused}");
    }
}

#[test]
fn best_of_must_equal_n() {
    assert!(completion("best_of", json!(1)).is_ok());
    assert_eq!(param_of(completion("best_of", json!(2))).as_deref(), Some("best_of"));
}

#[test]
fn more_answers_than_the_queue_holds_are_refused_at_once() {
    let prompts: Vec<_> = (0..11).map(|i| format!("p{i}")).collect();
    assert_eq!(param_of(completion("prompt", json!(prompts))).as_deref(), Some("prompt"));
}

#[test]
fn only_an_echo_may_generate_nothing() {
    assert_eq!(param_of(completion("max_tokens", json!(0))).as_deref(), Some("max_tokens"));
    let request = serde_json::from_value(json!({"model": "m", "prompt": "hi", "max_tokens": 0, "echo": true})).unwrap();
    let (model, config) = (model(), ServerConfig::default());
    let request = ValidRequest::from_completion(request, Limits { model: &model, config: &config, max_choices: 10 }).unwrap();
    assert_eq!((request.max_tokens, request.sampling.prompt_logprobs), (MaxTokens::Exactly(0), Some(0)));
}

#[test]
fn lengths_are_checked_against_the_model() {
    assert_eq!(MaxTokens::Exactly(10).fit_context(90, 100, "prompt"), Ok(10));
    assert_eq!(MaxTokens::AtMost(16).fit_context(90, 100, "prompt"), Ok(10));
    assert_eq!(MaxTokens::AtMost(16).fit_context(10, 100, "prompt"), Ok(16));
    let too_long = |max_tokens, prompt_tokens| {
        Err(ApiError::ContextLengthExceeded { param: "prompt", max_model_len: 100, prompt_tokens, max_tokens, is_counted: true })
    };
    assert_eq!([0, 7, 90].map(|room| MaxTokens::AtMost(16).clamp_to_pool(16, room)), [1, 7, 16]);
    assert_eq!(MaxTokens::Exactly(16).clamp_to_pool(16, 7), 16);
    assert_eq!(MaxTokens::Exactly(11).fit_context(90, 100, "prompt"), too_long(11, 90));
    assert_eq!(MaxTokens::AtMost(16).fit_context(100, 100, "prompt"), too_long(1, 100));
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}})
}

/// Validates a request with `fields` beside one message, for a model whose template is `template`.
fn with_tools(fields: &Value, template: &str) -> Result<ValidRequest, ApiError> {
    let mut request = json!({"messages": [{"role": "user", "content": "hi"}]});
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let (model, config) = (ModelInfo { forms: AnswerForms::of_template(template), ..model() }, ServerConfig::default());
    let limits = Limits { model: &model, config: &config, max_choices: 10 };
    ValidRequest::from_chat(serde_json::from_value(request).unwrap(), limits)
}

const KNOWS_TOOLS: &str = "{{ tools }}<tool_call>";

#[test]
fn a_tool_that_is_malformed_is_refused_where_it_is() {
    let check = |tools: Value, param: &str| {
        assert_eq!(param_of(with_tools(&json!({"tools": tools}), KNOWS_TOOLS)).as_deref(), Some(param), "{tools}");
    };
    check(json!([tool("f"), {"function": {"name": "g"}}]), "tools[1].type");
    check(json!([{"type": "web_search"}]), "tools[0].type");
    check(json!([{"type": "function"}]), "tools[0].function");
    check(json!([{"type": "function", "function": {"name": ""}}]), "tools[0].function.name");
    check(json!([{"type": "function", "function": {"name": "a\"b"}}]), "tools[0].function.name");
    check(json!([{"type": "function", "function": {"name": "f", "parameters": 7}}]), "tools[0].function.parameters");
    check(json!([{"type": "function", "function": {"name": "f", "strict": "yes"}}]), "tools[0].function.strict");
    check(
        json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]),
        "tools[0].function.parameters.type",
    );
    check(json!([tool("f"), tool("f")]), "tools[1].function.name");
}

#[track_caller]
fn check_choice(choice: &Value, expected: Option<(&[&str], bool)>) {
    let request = with_tools(&json!({"tools": [tool("f"), tool("g")], "tool_choice": choice}), KNOWS_TOOLS).unwrap();
    let tools = request.output.unwrap().tools;
    let found =
        tools.as_ref().map(|tools| (tools.tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), tools.is_required));
    assert_eq!(found, expected.map(|(names, is_required)| (names.to_vec(), is_required)), "{choice}");
}

#[test]
fn a_choice_among_tools_is_enforced() {
    check_choice(&json!(null), Some((&["f", "g"], false)));
    check_choice(&json!("auto"), Some((&["f", "g"], false)));
    check_choice(&json!("none"), None);
    check_choice(&json!("required"), Some((&["f", "g"], true)));
    check_choice(&json!({"type": "function", "function": {"name": "g"}}), Some((&["g"], true)));
    let allowed = json!({"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]});
    check_choice(&json!({"type": "allowed_tools", "allowed_tools": allowed}), Some((&["f"], false)));
    let empty = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}});
    for choice in
        [empty, json!("some"), json!({"type": "function"}), json!({"type": "function", "function": {"name": "h"}}), json!(7)]
    {
        assert_eq!(
            param_of(with_tools(&json!({"tools": [tool("f")], "tool_choice": choice}), KNOWS_TOOLS)).as_deref(),
            Some("tool_choice")
        );
    }
    assert_eq!(param_of(with_tools(&json!({"tool_choice": "required"}), KNOWS_TOOLS)).as_deref(), Some("tool_choice"));
}

fn conversation(request: ValidRequest) -> Conversation {
    let Some(PromptSource::Chat(conversation)) = request.prompts.into_iter().next() else { panic!("one chat prompt") };
    conversation
}

#[test]
fn a_template_that_knows_tools_gets_them_as_objects() {
    let history = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": \"x\"}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "7"}]},
    ]);
    let mut strict = tool("f");
    strict["function"]["strict"] = json!(true);
    let found = conversation(with_tools(&json!({"messages": history, "tools": [strict]}), KNOWS_TOOLS).unwrap());
    assert_eq!(found.options.variables["tools"], json!([tool("f")]), "`strict` is not for the model");
    assert_eq!(found.messages[1].extra["tool_calls"][0]["function"], json!({"name": "f", "arguments": {"a": "x"}}));
    assert_eq!((found.messages[2].role.as_str(), found.messages[2].content.as_str()), ("tool", "7"));
    assert_eq!(found.num_inserted, 0);
}

#[test]
fn a_template_that_knows_no_tools_gets_them_as_text() {
    let history = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "7"},
    ]);
    let fields = json!({"messages": history, "tools": [tool("f")], "kv_sharing": {"segments": [2]}});
    let request = with_tools(&fields, "{{ messages }}").unwrap();
    assert_eq!(request.sharing.segments, tokenizer::SegmentRule::Named { messages: vec![3], separators: vec![] });
    let found = conversation(request);
    let roles: Vec<_> = found.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert!(found.messages[0].content.contains("\"name\":\"f\""), "{}", found.messages[0].content);
    assert_eq!(found.messages[2].content, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>");
    assert_eq!(found.messages[3].content, "<tool_response>\n7\n</tool_response>");
    let system = json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}], "tools": [tool("f")]});
    let found = conversation(with_tools(&system, "{{ messages }}").unwrap());
    assert!(found.messages.len() == 2 && found.messages[0].content.starts_with("Be brief.\n\n# Tools"));
}
