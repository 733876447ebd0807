//! Requests for responses as chat requests.

use protocol::{
    ChatCompletionRequest, ChatMessage, InputItem, ResponseObject, ResponseRequest, ResponseStatus, ResponseText, Tool,
};
use serde_json::{Map, Value, json};

use super::items::{Find, Messages, complete_items};
use crate::body::shortened;
use crate::error::ApiError;
use crate::sampling_defaults::SamplingDefaults;

/// A request for a response in the terms of chat.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Translated {
    pub(crate) chat: ChatCompletionRequest,
    /// The response, in progress and without output.
    pub(crate) object: ResponseObject,
    /// Items of the request, each with an id.
    pub(crate) input: Vec<InputItem>,
}

/// Parts of a response that its request does not give.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created_at: u64,
    pub(crate) defaults: SamplingDefaults,
}

/// Fields of chat requests that have another place here.
const MOVED: [(&str, &str); 9] = [
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("verbosity", "text.verbosity"),
    ("reasoning_effort", "reasoning.effort"),
    ("logprobs", "include"),
    ("functions", "tools"),
    ("function_call", "tool_choice"),
];
/// Fields of OpenAI's endpoint that would change the answer, and that only their own servers can honour.
const REFUSED: [&str; 5] = ["conversation", "context_management", "moderation", "prompt", "background_options"];
/// Value of `include` that has a part of its own.
const LOGPROBS: &str = "message.output_text.logprobs";
/// Values of `include` about items that do not occur here, and about reasoning, which is never encrypted.
const NOTHING_TO_INCLUDE: [&str; 7] = [
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
];
/// Service tiers of OpenAI's API. All are the one there is.
const TIERS: [&str; 6] = ["auto", "default", "flex", "fast", "priority", "scale"];
/// Maximum pairs of metadata, and maximum characters of their names and values, as in OpenAI's API.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);
/// Maximum likeliest tokens reported per position, as in OpenAI's API.
const MAX_TOP_LOGPROBS: i64 = 20;

/// Translates `request`, which continues the conversation `earlier`. References are replaced by the items that `find` returns for their ids.
///
/// # Errors
/// Names the first field that is invalid or not supported. Ranges of sampling parameters are not checked here.
pub(crate) fn translate(
    request: ResponseRequest,
    earlier: Vec<InputItem>,
    find: &Find<'_>,
    origin: Origin,
) -> Result<Translated, ApiError> {
    refuse(&request)?;
    let wants_logprobs = wants_logprobs(&request)?;
    let object = object_of(&request, origin);
    let input = request.input.ok_or_else(|| ApiError::param("input", "you must provide an input"))?;
    let input = complete_items(input, find)?;
    let mut chat = fields_of_chat(request.other)?;
    chat.model = request.model;
    chat.messages = Some(messages_of(request.instructions, earlier, &input)?);
    chat.max_completion_tokens = request.max_output_tokens;
    chat.logprobs = wants_logprobs.then_some(true);
    chat.top_logprobs = request.top_logprobs.filter(|_| wants_logprobs);
    let tools = functions(request.tools.unwrap_or_default())?;
    let tool_choice = request.tool_choice.filter(|choice| !choice.is_null()).map(tool_choice).transpose()?;
    // Without tools, only a choice that demands a call means anything.
    let tool_choice = tool_choice.filter(|choice| !tools.is_empty() || !(choice == "auto" || choice == "none"));
    chat.tools.tool_choice = tool_choice;
    chat.tools.parallel_tool_calls = request.parallel_tool_calls;
    chat.template.tools = Some(tools).filter(|tools| !tools.is_empty());
    chat.template.reasoning_effort = request.reasoning.and_then(|reasoning| reasoning.effort);
    chat.constraint.response_format = request.text.and_then(|text| text.format).map(response_format).transpose()?;
    chat.sampling.temperature = request.temperature;
    chat.sampling.top_p = request.top_p;
    chat.sampling.stream = request.stream;
    chat.sampling.user = request.user;
    chat.sampling.cache_salt = request.cache_salt;
    chat.sampling.kv_sharing = request.kv_sharing;
    Ok(Translated { chat, object, input })
}

/// Refuses settings that this server does not have.
fn refuse(request: &ResponseRequest) -> Result<(), ApiError> {
    if request.background == Some(true) {
        return Err(ApiError::param("background", "responses in the background are not supported by this server"));
    }
    match request.truncation.as_deref() {
        None | Some("disabled") => {}
        Some("auto") => return Err(ApiError::param("truncation", "only `disabled` is supported by this server")),
        Some(other) => return Err(ApiError::param("truncation", format!("must be `disabled`, not `{}`", shortened(other)))),
    }
    if let Some(tier) = request.service_tier.as_deref().filter(|tier| !TIERS.contains(tier)) {
        return Err(ApiError::param("service_tier", format!("must be one of {}, not `{}`", TIERS.join(", "), shortened(tier))));
    }
    let (max_pairs, max_name, max_value) = MAX_METADATA;
    if let Some(metadata) = &request.metadata {
        let is_long = |(name, value): (&String, &String)| name.chars().count() > max_name || value.chars().count() > max_value;
        if metadata.len() > max_pairs || metadata.iter().any(is_long) {
            let limits = format!("at most {max_pairs} pairs, of names of {max_name} and values of {max_value} characters");
            return Err(ApiError::param("metadata", limits));
        }
    }
    Ok(())
}

/// True if log probabilities are to be included.
fn wants_logprobs(request: &ResponseRequest) -> Result<bool, ApiError> {
    let include = request.include.as_deref().unwrap_or_default();
    for (idx, name) in include.iter().enumerate() {
        if name != LOGPROBS && !NOTHING_TO_INCLUDE.contains(&name.as_str()) {
            return Err(ApiError::param(format!("include[{idx}]"), format!("`{}` cannot be included", shortened(name))));
        }
    }
    if let Some(top) = request.top_logprobs.filter(|top| !(0..=MAX_TOP_LOGPROBS).contains(top)) {
        return Err(ApiError::param("top_logprobs", format!("must be between 0 and {MAX_TOP_LOGPROBS}, is {top}")));
    }
    Ok(include.iter().any(|name| name == LOGPROBS))
}

/// Builds the response in progress, with the settings of `request`.
fn object_of(request: &ResponseRequest, origin: Origin) -> ResponseObject {
    let text = request.text.clone().unwrap_or_default();
    let format = text.format.unwrap_or_else(|| Map::from_iter([("type".to_owned(), json!("text"))]));
    let keeps_kv = request.kv_sharing.as_ref().and_then(|options| options.store).unwrap_or(true);
    let in_force = |sent: Option<f64>, default: Option<f32>| sent.or(default.map(f64::from)).unwrap_or(1.0);
    ResponseObject {
        id: origin.id,
        object: "response".to_owned(),
        created_at: origin.created_at,
        completed_at: None,
        status: ResponseStatus::InProgress,
        background: false,
        error: None,
        incomplete_details: None,
        instructions: request.instructions.clone(),
        max_output_tokens: request.max_output_tokens,
        max_tool_calls: request.max_tool_calls,
        metadata: request.metadata.clone().unwrap_or_default(),
        model: request.model.clone().unwrap_or_default(),
        output: vec![],
        parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
        previous_response_id: request.previous_response_id.clone(),
        prompt_cache_key: request.prompt_cache_key.clone(),
        reasoning: request.reasoning.clone().unwrap_or_default(),
        safety_identifier: request.safety_identifier.clone(),
        service_tier: "default".to_owned(),
        store: request.store.unwrap_or(keeps_kv),
        temperature: in_force(request.temperature, origin.defaults.temperature),
        text: ResponseText { format: Some(format), verbosity: text.verbosity },
        tool_choice: request.tool_choice.clone().filter(|choice| !choice.is_null()).unwrap_or_else(|| json!("auto")),
        tools: request.tools.iter().flatten().map(shown_tool).collect(),
        top_logprobs: request.top_logprobs.unwrap_or(0),
        top_p: in_force(request.top_p, origin.defaults.top_p),
        truncation: "disabled".to_owned(),
        usage: None,
        user: request.user.clone(),
    }
}

/// Returns `tool` with the fields that clients' types require.
fn shown_tool(tool: &Tool) -> Tool {
    let mut tool = tool.clone();
    for (field, default) in [("description", Value::Null), ("parameters", Value::Null), ("strict", json!(false))] {
        tool.entry(field).or_insert(default);
    }
    tool
}

/// Reads the fields of a chat request that mean the same here.
fn fields_of_chat(mut fields: Map<String, Value>) -> Result<ChatCompletionRequest, ApiError> {
    let is_set = |value: Option<&Value>| value.is_some_and(|value| !value.is_null() && *value != json!([]));
    for (field, instead) in MOVED {
        if is_set(fields.get(field)) {
            return Err(ApiError::param(field, format!("`{field}` is not a field of `/v1/responses`: use `{instead}`")));
        }
    }
    if let Some(field) = REFUSED.into_iter().find(|field| is_set(fields.get(*field))) {
        return Err(ApiError::Unsupported { param: field.to_owned() });
    }
    if fields.remove("n").is_some_and(|n| !n.is_null() && n != json!(1)) {
        return Err(ApiError::param("n", "a response is one answer"));
    }
    let parse = |fields| serde_json::from_value::<ChatCompletionRequest>(Value::Object(fields));
    parse(fields.clone()).map_err(|error| {
        let alone = |(name, value): (String, Value)| Some((name.clone(), parse(Map::from_iter([(name, value)])).err()?));
        match fields.into_iter().find_map(alone) {
            Some((name, error)) => ApiError::param(&name, format!("Invalid value for `{name}`: {error}")),
            None => ApiError::Invalid { param: None, message: error.to_string() },
        }
    })
}

fn messages_of(instructions: Option<String>, earlier: Vec<InputItem>, input: &[InputItem]) -> Result<Vec<ChatMessage>, ApiError> {
    let mut messages = Messages::new(instructions);
    for item in earlier {
        messages.push("previous_response_id", item)?;
    }
    for (idx, item) in input.iter().enumerate() {
        messages.push(&format!("input[{idx}]"), item.clone())?;
    }
    let messages = messages.finish();
    if messages.is_empty() { Err(ApiError::param("input", "must not be empty")) } else { Ok(messages) }
}

/// Returns `tools` in the form of chat requests, in which a function has an object of its own.
fn functions(tools: Vec<Tool>) -> Result<Vec<Tool>, ApiError> {
    tools.into_iter().enumerate().map(|(idx, tool)| function(&format!("tools[{idx}]"), tool)).collect()
}

fn function(path: &str, mut tool: Tool) -> Result<Tool, ApiError> {
    match tool.get("type").and_then(Value::as_str) {
        Some("function") => {}
        Some(_) => return Err(ApiError::Unsupported { param: format!("{path}.type") }),
        None => return Err(ApiError::param(format!("{path}.type"), "missing: only tools of type `function` are supported")),
    }
    if !tool.get("name").is_some_and(Value::is_string) {
        return Err(ApiError::param(format!("{path}.name"), "missing: the name of the function stands beside its type"));
    }
    let fields = ["name", "description", "parameters", "strict"];
    let fields = fields.into_iter().filter_map(|field| Some((field.to_owned(), tool.remove(field)?)));
    let function = fields.filter(|(_, value)| !value.is_null()).collect();
    Ok(Map::from_iter([("type".to_owned(), json!("function")), ("function".to_owned(), Value::Object(function))]))
}

/// Returns `choice` in the form of chat requests.
fn tool_choice(choice: Value) -> Result<Value, ApiError> {
    const PARAM: &str = "tool_choice";
    let chosen = match choice {
        Value::Object(chosen) => chosen,
        Value::String(mode) if ["none", "auto", "required"].contains(&mode.as_str()) => return Ok(Value::String(mode)),
        _ => return Err(ApiError::param(PARAM, "must be `none`, `auto`, `required` or an object")),
    };
    let named = |tool: &Value, path: &str| match (tool["type"].as_str(), tool["name"].as_str()) {
        (Some("function"), Some(name)) => Ok(json!({"type": "function", "function": {"name": name}})),
        (Some("function"), None) => Err(ApiError::param(format!("{path}.name"), "missing: which function?")),
        _ => Err(ApiError::Unsupported { param: format!("{path}.type") }),
    };
    if chosen.get("type").and_then(Value::as_str) != Some("allowed_tools") {
        return named(&Value::Object(chosen), PARAM);
    }
    let Some(Value::Array(allowed)) = chosen.get("tools") else {
        return Err(ApiError::param("tool_choice.tools", "must be a list of functions"));
    };
    let allowed = allowed.iter().enumerate().map(|(idx, tool)| named(tool, &format!("tool_choice.tools[{idx}]")));
    let allowed = allowed.collect::<Result<Vec<_>, _>>()?;
    let mode = chosen.get("mode").cloned().unwrap_or_else(|| json!("auto"));
    Ok(json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}))
}

/// Returns `format` in the form of chat requests, in which a schema has an object of its own.
fn response_format(mut format: Map<String, Value>) -> Result<Value, ApiError> {
    match format.remove("type") {
        Some(kind) if kind == "json_schema" => match format.get("schema") {
            Some(_) => Ok(json!({"type": kind, "json_schema": format})),
            None => Err(ApiError::param("text.format.schema", "missing: the schema stands beside its type")),
        },
        Some(kind) => {
            format.insert("type".to_owned(), kind);
            Ok(Value::Object(format))
        }
        None => Err(ApiError::param("text.format.type", "missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(request: Value) -> Result<Translated, ApiError> {
        let defaults = SamplingDefaults { temperature: Some(0.5), ..SamplingDefaults::default() };
        let origin = Origin { id: "resp_1".to_owned(), created_at: 7, defaults };
        let earlier = serde_json::from_value(json!([{"role": "user", "content": "before"}])).unwrap();
        let earlier = if request["previous_response_id"].is_string() { earlier } else { vec![] };
        translate(serde_json::from_value(request).unwrap(), earlier, &|_| Ok(None), origin)
    }

    /// Translates a request of `input` and `more`.
    fn with(more: &Value) -> Result<Translated, ApiError> {
        let mut request = json!({"input": "hi"});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        translated(request)
    }

    #[track_caller]
    fn check(more: &Value, chat: &Value) {
        let mut expected = json!({"messages": [{"role": "user", "content": "hi"}]});
        expected.as_object_mut().unwrap().extend(chat.as_object().unwrap().clone());
        assert_eq!(serde_json::to_value(with(more).unwrap().chat).unwrap(), expected);
    }

    #[track_caller]
    fn check_refused(more: &Value, param: &str) {
        let error = with(more).unwrap_err();
        assert_eq!(error.status(), 400);
        assert_eq!(error.body().error.param.as_deref(), Some(param), "{error}");
    }

    #[test]
    fn settings_become_those_of_a_chat() {
        check(&json!({}), &json!({}));
        check(
            &json!({"model": "m", "max_output_tokens": 5, "temperature": 0.25, "top_p": 0.5, "stream": true, "user": "u",
                   "cache_salt": "s", "kv_sharing": {"mode": "span"}, "reasoning": {"effort": "low", "summary": "auto"}}),
            &json!({"model": "m", "max_completion_tokens": 5, "temperature": 0.25, "top_p": 0.5, "stream": true, "user": "u",
                   "cache_salt": "s", "kv_sharing": {"mode": "span"}, "reasoning_effort": "low"}),
        );
        check(
            &json!({"include": [LOGPROBS, "reasoning.encrypted_content"], "top_logprobs": 3}),
            &json!({"logprobs": true, "top_logprobs": 3}),
        );
        check(&json!({"top_logprobs": 3}), &json!({}));
    }

    #[test]
    fn fields_of_peers_are_those_of_a_chat() {
        check(
            &json!({"seed": 7, "top_k": 3, "chat_template_kwargs": {"a": 1}, "guided_regex": "a", "field_of_tomorrow": 1, "n": 1}),
            &json!({"seed": 7, "top_k": 3, "chat_template_kwargs": {"a": 1}, "guided_regex": "a", "field_of_tomorrow": 1}),
        );
        check_refused(&json!({"seed": "x"}), "seed");
    }

    #[test]
    fn functions_have_an_object_of_their_own() {
        let parameters = json!({"type": "object", "properties": {"x": {"type": "number"}}});
        let tool = json!({"type": "function", "name": "f", "description": "d", "parameters": parameters, "strict": true});
        let function = json!({"name": "f", "description": "d", "parameters": parameters, "strict": true});
        let tools = json!([{"type": "function", "function": function}]);
        check(&json!({"tools": [tool]}), &json!({"tools": tools}));
        let named = json!({"type": "function", "function": {"name": "f"}});
        let choices = [
            (json!("required"), json!("required")),
            (json!({"type": "function", "name": "f"}), named.clone()),
            (
                json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}),
                json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}),
            ),
        ];
        for (choice, expected) in choices {
            check(
                &json!({"tools": [tool], "tool_choice": choice, "parallel_tool_calls": false}),
                &json!({"tools": tools, "tool_choice": expected, "parallel_tool_calls": false}),
            );
        }
        check(&json!({"tools": [], "tool_choice": "auto"}), &json!({}));
        let minimal = with(&json!({"tools": [{"type": "function", "name": "f", "strict": null}]})).unwrap();
        assert_eq!(minimal.chat.template.tools.unwrap()[0]["function"], json!({"name": "f"}));
        let shown = json!({"type": "function", "name": "f", "strict": null, "description": null, "parameters": null});
        assert_eq!(json!(minimal.object.tools), json!([shown]));
    }

    #[test]
    fn a_format_is_a_response_format() {
        let format = |format: Value| with(&json!({"text": {"format": format, "verbosity": "low"}}));
        let expected = |format: Value| json!({"response_format": format});
        for same in [json!({"type": "text"}), json!({"type": "json_object"})] {
            check(&json!({"text": {"format": same}}), &expected(same.clone()));
        }
        check(
            &json!({"text": {"format": {"type": "json_schema", "name": "n", "strict": true, "schema": {"type": "object"}}}}),
            &expected(json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "object"}}})),
        );
        let error = format(json!({"type": "json_schema", "json_schema": {}})).unwrap_err();
        assert_eq!(error.body().error.param.as_deref(), Some("text.format.schema"));
    }

    #[test]
    fn a_conversation_goes_on_with_its_own_instructions() {
        let chat = with(&json!({"previous_response_id": "resp_0", "instructions": "be brief"})).unwrap().chat;
        let messages = serde_json::to_value(chat.messages).unwrap();
        let expected = [("system", "be brief"), ("user", "before"), ("user", "hi")];
        assert_eq!(messages, json!(expected.map(|(role, content)| json!({"role": role, "content": content}))));
        assert!(translated(json!({"input": [], "previous_response_id": "resp_0"})).is_ok());
    }

    #[test]
    fn a_response_shows_the_settings_of_its_request() {
        let object =
            with(&json!({"metadata": {"a": "b"}, "instructions": "i", "safety_identifier": "s", "text": {"verbosity": "low"}}));
        let object = object.unwrap().object;
        assert_eq!((object.id.as_str(), object.created_at, object.status), ("resp_1", 7, ResponseStatus::InProgress));
        assert_eq!((object.temperature, object.top_p, object.store), (0.5, 1.0, true));
        assert_eq!(object.metadata["a"], "b");
        assert_eq!(json!(object.text), json!({"format": {"type": "text"}, "verbosity": "low"}));
        assert_eq!((object.tool_choice, object.parallel_tool_calls), (json!("auto"), true));
    }

    #[test]
    fn what_leaves_no_kv_is_kept_only_when_asked_for() {
        let stores = |more: Value| with(&more).unwrap().object.store;
        assert!(!stores(json!({"store": false})));
        assert!(!stores(json!({"kv_sharing": {"store": false}})));
        assert!(stores(json!({"kv_sharing": {"store": false}, "store": true})));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        check_refused(&json!({"input": []}), "input");
        check_refused(&json!({"input": null}), "input");
        check_refused(&json!({"tools": [{"type": "web_search"}]}), "tools[0].type");
        check_refused(&json!({"tools": [{"type": "function", "name": "f"}, {"type": "mcp"}]}), "tools[1].type");
        check_refused(&json!({"tools": [{"type": "function", "function": {"name": "f"}}]}), "tools[0].name");
        check_refused(&json!({"tool_choice": {"type": "web_search"}}), "tool_choice.type");
        check_refused(
            &json!({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "mcp"}]}}),
            "tool_choice.tools[0].type",
        );
        check_refused(&json!({"tool_choice": "any"}), "tool_choice");
        check_refused(&json!({"background": true}), "background");
        check_refused(&json!({"truncation": "auto"}), "truncation");
        check_refused(&json!({"service_tier": "first"}), "service_tier");
        check_refused(&json!({"include": ["everything"]}), "include[0]");
        check_refused(&json!({"top_logprobs": 21}), "top_logprobs");
        check_refused(&json!({"metadata": {"a": "b".repeat(513)}}), "metadata");
        check_refused(&json!({"messages": [{"role": "user", "content": "hi"}]}), "messages");
        check_refused(&json!({"max_tokens": 5}), "max_tokens");
        check_refused(&json!({"response_format": {"type": "text"}}), "response_format");
        check_refused(&json!({"conversation": "conv_1"}), "conversation");
        check_refused(&json!({"prompt": {"id": "pmpt_1"}}), "prompt");
        check_refused(&json!({"n": 2}), "n");
    }
}
