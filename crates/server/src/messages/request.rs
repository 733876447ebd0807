//! Translates requests.

use protocol::{
    ChatCompletionRequest, ConstraintFields, InputMessage, KvSharingOptions, MessagesRequest, OutputConfig, OutputFormat,
    SamplingFields, SegmentMark, Stop, TemplateFields, ThinkingConfig,
};
use serde_json::{Map, Value, json};

use super::history::{History, history};
use super::tools::{tool_definitions, tool_fields};
use crate::body::shortened;
use crate::error::ApiError;

/// Fields of Anthropic's API that would change the answer and are not supported, except for values that request nothing.
const UNSUPPORTED: [&str; 2] = ["container", "mcp_servers"];

/// Translates a request for a message.
pub(crate) fn to_chat(request: MessagesRequest) -> Result<ChatCompletionRequest, ApiError> {
    if request.max_tokens.is_none() {
        return Err(ApiError::param("max_tokens", "you must provide `max_tokens`"));
    }
    translated(request)
}

/// Translates a request for the number of input tokens: its prompt is that of the message.
pub(crate) fn to_counted_chat(request: MessagesRequest) -> Result<ChatCompletionRequest, ApiError> {
    translated(MessagesRequest { max_tokens: None, ..request })
}

fn translated(request: MessagesRequest) -> Result<ChatCompletionRequest, ApiError> {
    refuse_unsupported(&request.other)?;
    if let Some(temperature) = request.temperature.filter(|temperature| !(0.0..=1.0).contains(temperature)) {
        return Err(ApiError::param("temperature", format!("`temperature` must be between 0 and 1, is {temperature}")));
    }
    let messages: Vec<InputMessage> = request.messages.ok_or_else(|| ApiError::param("messages", "you must provide messages"))?;
    if messages.is_empty() {
        return Err(ApiError::param("messages", "must not be empty"));
    }
    let History { messages, starts, continues } = history(request.system, messages)?;
    let OutputConfig { effort, format } = request.output_config.unwrap_or_default();
    Ok(ChatCompletionRequest {
        model: request.model,
        messages: Some(messages),
        template: TemplateFields {
            continue_final_message: continues.then_some(true),
            chat_template_kwargs: request.thinking.as_ref().and_then(template_variables),
            tools: tool_definitions(request.tools.unwrap_or_default())?,
            reasoning_effort: effort.map(reasoning_effort),
            ..TemplateFields::default()
        },
        tools: tool_fields(request.tool_choice)?,
        constraint: ConstraintFields { response_format: format.map(response_format).transpose()?, ..ConstraintFields::default() },
        sampling: SamplingFields {
            max_tokens: request.max_tokens,
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            stop: request.stop_sequences.filter(|stop| !stop.is_empty()).map(Stop::Many),
            stream: request.stream,
            user: request.metadata.and_then(|metadata| metadata.user_id),
            cache_salt: request.cache_salt,
            kv_sharing: request.kv_sharing.map(|options| with_marks(options, &starts)).transpose()?,
            ..SamplingFields::default()
        },
        ..ChatCompletionRequest::default()
    })
}

fn refuse_unsupported(other: &Map<String, Value>) -> Result<(), ApiError> {
    let is_nothing = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    match UNSUPPORTED.iter().find(|name| other.get(**name).is_some_and(|value| !is_nothing(value))) {
        Some(name) => Err(ApiError::Unsupported { param: (*name).to_owned() }),
        None => Ok(()),
    }
}

/// Returns the variable by which chat templates switch reasoning. Other types than these leave the choice to the template.
fn template_variables(thinking: &ThinkingConfig) -> Option<Map<String, Value>> {
    let is_enabled = match thinking.kind.as_str() {
        "enabled" => true,
        "disabled" => false,
        _ => return None,
    };
    Some(Map::from_iter([("enable_thinking".to_owned(), Value::Bool(is_enabled))]))
}

/// Returns the effort under a name of OpenAI's API, whose highest is `high`.
fn reasoning_effort(effort: String) -> String {
    if matches!(effort.as_str(), "xhigh" | "max") { "high".to_owned() } else { effort }
}

fn response_format(format: OutputFormat) -> Result<Value, ApiError> {
    match (format.kind.as_str(), format.schema) {
        ("json_schema", Some(schema)) => {
            Ok(json!({"type": "json_schema", "json_schema": {"name": "output", "strict": true, "schema": schema}}))
        }
        ("json_schema", None) => Err(ApiError::param("output_config.format.schema", "missing")),
        (other, _) => {
            let message = format!("must be `json_schema`, not `{}`", shortened(other));
            Err(ApiError::param("output_config.format.type", message))
        }
    }
}

/// Converts marks of messages of the request into those of the chat request, of which message `i` of the request begins at `starts[i]`.
fn with_marks(mut options: KvSharingOptions, starts: &[u32]) -> Result<KvSharingOptions, ApiError> {
    for mark in options.segments.iter_mut().flatten() {
        if let SegmentMark::Message(index) = mark {
            *index = *starts.get(*index as usize).ok_or_else(|| {
                let num = starts.len();
                ApiError::param("kv_sharing.segments", format!("there is no message {index}: there are {num}, counted from 0"))
            })?;
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Translates a request with the fields `more`.
    fn translated(more: Value) -> Result<Value, ApiError> {
        let mut request = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
        let Value::Object(more) = more else { panic!("fields in an object") };
        request.as_object_mut().unwrap().extend(more);
        to_chat(serde_json::from_value(request).unwrap()).map(|chat| serde_json::to_value(chat).unwrap())
    }

    /// Checks the fields of the chat request besides model, messages and `max_tokens`.
    #[track_caller]
    fn check(more: Value, expected: impl Into<Value>) {
        let mut chat = translated(more).unwrap();
        let chat = chat.as_object_mut().unwrap();
        for name in ["model", "messages", "max_tokens"] {
            assert!(chat.remove(name).is_some(), "{name}");
        }
        assert_eq!(Value::Object(chat.clone()), expected.into());
    }

    #[track_caller]
    fn check_refused(more: Value, param: &str) {
        assert_eq!(translated(more).unwrap_err().body().error.param.as_deref(), Some(param));
    }

    #[test]
    fn sampling_keeps_its_values_under_the_names_of_the_chat_endpoint() {
        check(
            json!({
                "temperature": 0.5, "top_p": 0.9, "top_k": 3, "stop_sequences": ["a", "b"], "stream": true,
                "metadata": {"user_id": "u", "more": 1}, "cache_salt": "s",
            }),
            json!({
                "temperature": 0.5, "top_p": 0.9, "top_k": 3, "stop": ["a", "b"], "stream": true, "user": "u", "cache_salt": "s",
            }),
        );
        let ignored = json!({
            "stop_sequences": [], "metadata": {"user_id": null}, "service_tier": "auto", "cache_control": {"type": "ephemeral"},
            "mcp_servers": [], "container": null, "context_management": {"edits": []}, "a_field_of_tomorrow": 1,
        });
        check(ignored, json!({}));
    }

    #[test]
    fn what_is_missing_or_out_of_range_is_named() {
        check_refused(json!({"max_tokens": null}), "max_tokens");
        check_refused(json!({"messages": null}), "messages");
        check_refused(json!({"messages": []}), "messages");
        check_refused(json!({"temperature": 1.5}), "temperature");
        check_refused(json!({"temperature": -0.1}), "temperature");
        check_refused(json!({"mcp_servers": [{"name": "x"}]}), "mcp_servers");
        check_refused(json!({"container": "c"}), "container");
        check_refused(json!({"output_config": {"format": {"type": "text"}}}), "output_config.format.type");
    }

    #[test]
    fn tokens_are_counted_without_a_limit() {
        let request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let chat = to_counted_chat(serde_json::from_value(request).unwrap()).unwrap();
        assert_eq!((chat.model.as_deref(), chat.sampling.max_tokens), (Some("m"), None));
    }

    #[test]
    fn thinking_is_a_variable_of_the_template() {
        let budget = json!({"thinking": {"type": "enabled", "budget_tokens": 2048}});
        check(budget, json!({"chat_template_kwargs": {"enable_thinking": true}}));
        check(json!({"thinking": {"type": "disabled"}}), json!({"chat_template_kwargs": {"enable_thinking": false}}));
        check(json!({"thinking": {"type": "adaptive"}}), json!({}));
        check(json!({"output_config": {"effort": "low"}}), json!({"reasoning_effort": "low"}));
        check(json!({"output_config": {"effort": "max"}}), json!({"reasoning_effort": "high"}));
    }

    #[test]
    fn a_schema_of_the_output_is_a_strict_response_format() {
        let format = json!({"type": "json_schema", "schema": {"type": "object"}});
        let expected = json!({"name": "output", "strict": true, "schema": {"type": "object"}});
        check(
            json!({"output_config": {"format": format}}),
            json!({"response_format": {"type": "json_schema", "json_schema": expected}}),
        );
    }

    #[test]
    fn segments_begin_at_messages_of_the_request() {
        let more = |segments: Value| {
            json!({
                "system": "s", "kv_sharing": {"mode": "span", "segments": segments},
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
            })
        };
        check(more(json!([2, "--"])), json!({"kv_sharing": {"mode": "span", "segments": [3, "--"]}}));
        check_refused(more(json!([3])), "kv_sharing.segments");
    }
}
