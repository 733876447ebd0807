//! Validates a conversation and converts it into the form that chat templates read.

use protocol::{ContentPart, MessageContent, TemplateFields};
use serde_json::{Map, Value};
use tokenizer::{ChatMessage, ChatOptions};

use crate::body::shortened;
use crate::error::ApiError;

/// Known message fields that this server does not support.
const UNSUPPORTED: &[&str] = &["tool_calls", "tool_call_id", "function_call", "audio"];

/// A conversation with its rendering options.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conversation {
    /// Messages, at least one.
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) options: ChatOptions,
}

/// Validates a conversation and its rendering options, identically for chat, explain and tokenize requests.
pub(crate) fn valid_conversation(
    messages: Option<Vec<protocol::ChatMessage>>,
    fields: TemplateFields,
) -> Result<Conversation, ApiError> {
    let continues = fields.continue_final_message.unwrap_or(false);
    if continues && fields.add_generation_prompt == Some(true) {
        let message = "`continue_final_message` and `add_generation_prompt` cannot both be true";
        return Err(ApiError::param("continue_final_message", message));
    }
    if fields.tools.is_some_and(|tools| !tools.is_empty()) {
        return Err(ApiError::Unsupported { param: "tools".to_owned() });
    }
    let options = ChatOptions {
        add_generation_prompt: fields.add_generation_prompt.unwrap_or(!continues),
        continue_final_message: continues,
        template: fields.chat_template,
        variables: fields.chat_template_kwargs.unwrap_or_default(),
    };
    Ok(Conversation { messages: valid_messages(messages)?, options })
}

/// Checks that there are messages, that roles are known and that content is text. Joins parts into one text, and renames `developer`, the
/// newer role, to `system`, the one that templates know.
fn valid_messages(messages: Option<Vec<protocol::ChatMessage>>) -> Result<Vec<ChatMessage>, ApiError> {
    let messages = messages.ok_or_else(|| ApiError::param("messages", "you must provide messages"))?;
    if messages.is_empty() {
        return Err(ApiError::param("messages", "must not be empty"));
    }
    messages.into_iter().enumerate().map(|(idx, message)| valid_message(idx, message)).collect()
}

fn valid_message(idx: usize, message: protocol::ChatMessage) -> Result<ChatMessage, ApiError> {
    for field in UNSUPPORTED {
        if message.other.get(*field).is_some_and(|value| !is_nothing(value)) {
            return Err(ApiError::Unsupported { param: format!("messages[{idx}].{field}") });
        }
    }
    let role = match message.role.as_str() {
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" => message.role,
        "tool" | "function" => return Err(ApiError::Unsupported { param: format!("messages[{idx}].role") }),
        role => {
            let message = format!("must be `system`, `developer`, `user` or `assistant`, not `{}`", shortened(role));
            return Err(ApiError::param(format!("messages[{idx}].role"), message));
        }
    };
    let content = match message.content {
        Some(MessageContent::Text(text)) => text,
        Some(MessageContent::Parts(parts)) => join_parts(idx, parts)?,
        None if role == "assistant" => String::new(),
        None => return Err(ApiError::param(format!("messages[{idx}].content"), "must not be null")),
    };
    let extra = message.name.map(|name| ("name".to_owned(), Value::String(name)));
    Ok(ChatMessage { role, content, extra: Map::from_iter(extra) })
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
            _ => return Err(ApiError::Unsupported { param: field("type") }),
        }
    }
    Ok(joined)
}
