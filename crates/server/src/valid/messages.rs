//! Validates a conversation and converts it into the form that chat templates read.

use dialect::Dialect;
use protocol::{ContentPart, MessageContent, TemplateFields, ToolCall};
use serde_json::{Map, Value};
use tokenizer::{ChatMessage, ChatOptions};

use super::tools;
use crate::body::shortened;
use crate::error::ApiError;
use crate::forms::AnswerForms;

/// Known message fields that this server does not support.
const UNSUPPORTED: &[&str] = &["function_call", "audio"];
/// Roles of the authors of messages.
const ROLES: &str = "must be `system`, `developer`, `user`, `assistant` or `tool`";

/// A conversation with its rendering options.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conversation {
    /// Messages, at least one.
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) options: ChatOptions,
    /// Messages before the first one of the client.
    pub(crate) num_inserted: usize,
}

/// Validates a conversation and its rendering options, identically for chat, explain and tokenize requests. A template that knows no tools
/// gets them, calls and their results as text.
pub(crate) fn valid_conversation(
    messages: Option<Vec<protocol::ChatMessage>>,
    fields: TemplateFields,
    forms: AnswerForms,
) -> Result<Conversation, ApiError> {
    let continues = fields.continue_final_message.unwrap_or(false);
    if continues && fields.add_generation_prompt == Some(true) {
        let message = "`continue_final_message` and `add_generation_prompt` cannot both be true";
        return Err(ApiError::param("continue_final_message", message));
    }
    let knows_tools = fields.chat_template.as_deref().map_or(forms.knows_tools, Dialect::knows_tools);
    let tools = fields.tools.unwrap_or_default();
    tools::callable(&tools)?;
    let tools = tools::for_template(tools);
    let mut variables = fields.chat_template_kwargs.unwrap_or_default();
    if let Some(effort) = fields.reasoning_effort {
        // Templates with a switch in place of degrees.
        if effort == "none" {
            variables.entry("enable_thinking").or_insert(Value::Bool(false));
        }
        variables.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    let mut messages = valid_messages(messages, knows_tools)?;
    let mut num_inserted = 0;
    if knows_tools && !tools.is_empty() {
        variables.insert("tools".to_owned(), Value::Array(tools));
    } else if !tools.is_empty() {
        match messages.first_mut() {
            Some(first) if first.role == "system" => first.content = dialect::instructions(&first.content, &tools),
            _ => {
                messages.insert(0, ChatMessage::new("system", dialect::instructions("", &tools)));
                num_inserted = 1;
            }
        }
    }
    let options = ChatOptions {
        add_generation_prompt: fields.add_generation_prompt.unwrap_or(!continues),
        continue_final_message: continues,
        template: fields.chat_template,
        variables,
    };
    Ok(Conversation { messages, options, num_inserted })
}

/// Checks that there are messages, that roles are known and that content is text. Joins parts into one text, and renames `developer`, the
/// newer role, to `system`, the one that templates know.
fn valid_messages(messages: Option<Vec<protocol::ChatMessage>>, knows_tools: bool) -> Result<Vec<ChatMessage>, ApiError> {
    let messages = messages.ok_or_else(|| ApiError::param("messages", "you must provide messages"))?;
    if messages.is_empty() {
        return Err(ApiError::param("messages", "must not be empty"));
    }
    messages.into_iter().enumerate().map(|(idx, message)| valid_message(idx, message, knows_tools)).collect()
}

fn valid_message(idx: usize, message: protocol::ChatMessage, knows_tools: bool) -> Result<ChatMessage, ApiError> {
    for field in UNSUPPORTED {
        if message.other.get(*field).is_some_and(|value| !is_nothing(value)) {
            return Err(ApiError::Unsupported { param: format!("messages[{idx}].{field}") });
        }
    }
    let role = match message.role.as_str() {
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" | "tool" => message.role,
        "function" => return Err(ApiError::Unsupported { param: format!("messages[{idx}].role") }),
        role => {
            return Err(ApiError::param(format!("messages[{idx}].role"), format!("{ROLES}, not `{}`", shortened(role))));
        }
    };
    let calls = message.tool_calls.filter(|calls| !calls.is_empty());
    if calls.is_some() && role != "assistant" {
        return Err(ApiError::param(format!("messages[{idx}].tool_calls"), "only an assistant's message calls tools"));
    }
    let content = match message.content {
        Some(MessageContent::Text(text)) => text,
        Some(MessageContent::Parts(parts)) => join_parts(idx, parts)?,
        None if role == "assistant" => String::new(),
        None => return Err(ApiError::param(format!("messages[{idx}].content"), "must not be null")),
    };
    let calls = calls.map(|calls| valid_calls(idx, calls)).transpose()?.unwrap_or_default();
    if !knows_tools && role == "tool" {
        return Ok(ChatMessage::new("user", dialect::response_as_text(&content)));
    }
    if !knows_tools && !calls.is_empty() {
        let calls: Vec<_> = calls.into_iter().map(|call| (call.function.name, call.function.arguments)).collect();
        return Ok(ChatMessage::new(role, dialect::calls_as_text(&content, &calls)));
    }
    let calls: Vec<_> = calls.iter().map(|call| serde_json::to_value(call).expect("calls have string keys only")).collect();
    let extra = [
        ("name", message.name.map(Value::String)),
        ("tool_calls", (!calls.is_empty()).then_some(Value::Array(calls))),
        ("tool_call_id", message.tool_call_id.map(Value::String)),
        ("reasoning_content", message.reasoning_content.map(Value::String)),
    ];
    let extra = extra.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Ok(ChatMessage { role, content, extra: extra.collect() })
}

/// Checks the calls of a message. Templates write arguments as JSON, so the text of an object becomes that object; another text stays one.
fn valid_calls(idx: usize, mut calls: Vec<ToolCall>) -> Result<Vec<ToolCall>, ApiError> {
    for (call_idx, call) in calls.iter_mut().enumerate() {
        if call.function.name.is_empty() {
            return Err(ApiError::param(format!("messages[{idx}].tool_calls[{call_idx}].function.name"), "missing"));
        }
        let parsed = match &call.function.arguments {
            Value::String(text) if text.trim().is_empty() => Some(Value::Object(Map::new())),
            Value::String(text) => serde_json::from_str(text).ok().filter(Value::is_object),
            Value::Null => Some(Value::Object(Map::new())),
            _ => None,
        };
        if let Some(parsed) = parsed {
            call.function.arguments = parsed;
        }
        if call.kind.is_empty() {
            "function".clone_into(&mut call.kind);
        }
    }
    Ok(calls)
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn join_parts(idx: usize, parts: Vec<ContentPart>) -> Result<String, ApiError> {
    let mut joined = String::new();
    for (part_idx, part) in parts.into_iter().enumerate() {
        let field = |name: &str| format!("messages[{idx}].content[{part_idx}].{name}");
        match (part.kind.as_str(), part.text) {
            ("text", Some(text)) => joined.push_str(&text),
            ("text", None) => return Err(ApiError::param(field("text"), "missing")),
            ("image_url" | "image" | "input_image", _) => {
                return Err(ApiError::param(field("type"), "this model has no vision tower, so it cannot see images"));
            }
            _ => return Err(ApiError::Unsupported { param: field("type") }),
        }
    }
    Ok(joined)
}
