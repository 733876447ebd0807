//! Translates a conversation.
//!
//! Blocks of one message become one message of the chat request, except that each result of a tool is a message of its own.

use protocol::{BlockContent, ChatMessage, ContentPart, InputBlock, InputMessage, MessageContent, ToolCall};

use crate::body::shortened;
use crate::error::ApiError;

/// A translated conversation.
pub(super) struct History {
    pub(super) messages: Vec<ChatMessage>,
    /// Index in `messages` of the first part of each message of the request.
    pub(super) starts: Vec<u32>,
    /// True if the answer continues the last message.
    pub(super) continues: bool,
}

/// Translates the instructions `system` and the conversation `input`.
pub(super) fn history(system: Option<BlockContent>, input: Vec<InputMessage>) -> Result<History, ApiError> {
    let mut messages = Vec::new();
    let mut starts = Vec::with_capacity(input.len());
    if let Some(content) = system {
        let content = text_content("system", content)?;
        if !is_empty(&content) {
            messages.push(message("system", content));
        }
    }
    for (idx, InputMessage { role, content }) in input.into_iter().enumerate() {
        starts.push(u32::try_from(messages.len()).unwrap_or(u32::MAX));
        let path = format!("messages[{idx}].content");
        let content = content.ok_or_else(|| ApiError::param(&path, "must not be null"))?;
        match role.as_str() {
            "user" => push_user(&mut messages, &path, content)?,
            "assistant" => messages.push(assistant(&path, content)?),
            "system" => messages.push(message("system", text_content(&path, content)?)),
            role => {
                let message = format!("must be `user`, `assistant` or `system`, not `{}`", shortened(role));
                return Err(ApiError::param(format!("messages[{idx}].role"), message));
            }
        }
    }
    let continues = continues_last(&mut messages, starts.len())?;
    Ok(History { messages, starts, continues })
}

/// True if the answer continues the last message, which is the assistant's then. Removes that message if it is empty.
fn continues_last(messages: &mut Vec<ChatMessage>, num_input: usize) -> Result<bool, ApiError> {
    let Some(last) = messages.last().filter(|last| last.role == "assistant") else { return Ok(false) };
    if last.tool_calls.is_some() {
        let path = format!("messages[{}].content", num_input.saturating_sub(1));
        return Err(ApiError::param(path, "a `tool_use` block must be answered by a `tool_result` block of the next message"));
    }
    let continues = last.content.as_ref().is_some_and(|content| !is_empty(content));
    if !continues {
        messages.pop();
    }
    Ok(continues)
}

fn message(role: &str, content: MessageContent) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: Some(content), ..ChatMessage::default() }
}

fn is_empty(content: &MessageContent) -> bool {
    match content {
        MessageContent::Text(text) => text.is_empty(),
        MessageContent::Parts(parts) => parts.iter().all(|part| part.text.as_ref().is_none_or(String::is_empty)),
    }
}

fn text_part(path: &str, idx: usize, text: Option<String>) -> Result<ContentPart, ApiError> {
    let text = text.ok_or_else(|| missing(path, idx, "text"))?;
    Ok(ContentPart { kind: "text".to_owned(), text: Some(text) })
}

fn missing(path: &str, idx: usize, field: &str) -> ApiError {
    ApiError::param(format!("{path}[{idx}].{field}"), "missing")
}

/// Reports a block whose kind cannot stand at this place.
fn misplaced(path: &str, idx: usize, kind: &str) -> ApiError {
    let param = format!("{path}[{idx}].type");
    match kind {
        "text" | "thinking" | "redacted_thinking" | "tool_use" | "tool_result" => {
            ApiError::param(param, format!("a block of type `{kind}` cannot stand here"))
        }
        "" => ApiError::param(param, "missing"),
        _ => ApiError::param(param, format!("blocks of type `{}` are not supported by this server", shortened(kind))),
    }
}

/// Translates content that may hold only text.
fn text_content(path: &str, content: BlockContent) -> Result<MessageContent, ApiError> {
    let blocks = match content {
        BlockContent::Text(text) => return Ok(MessageContent::Text(text)),
        BlockContent::Blocks(blocks) => blocks,
    };
    let parts = blocks.into_iter().enumerate().map(|(idx, block)| match block.kind.as_str() {
        "text" => text_part(path, idx, block.text),
        kind => Err(misplaced(path, idx, kind)),
    });
    Ok(MessageContent::Parts(parts.collect::<Result<_, _>>()?))
}

/// Adds a user's message: its results of tools and the text between them, in order.
fn push_user(messages: &mut Vec<ChatMessage>, path: &str, content: BlockContent) -> Result<(), ApiError> {
    let blocks = match content {
        BlockContent::Text(text) => {
            messages.push(message("user", MessageContent::Text(text)));
            return Ok(());
        }
        BlockContent::Blocks(blocks) => blocks,
    };
    let (mut parts, mut has_results) = (Vec::new(), false);
    for (idx, block) in blocks.into_iter().enumerate() {
        match block.kind.as_str() {
            "text" => parts.push(text_part(path, idx, block.text)?),
            "tool_result" => {
                if !parts.is_empty() {
                    messages.push(message("user", MessageContent::Parts(std::mem::take(&mut parts))));
                }
                messages.push(tool_result(path, idx, block)?);
                has_results = true;
            }
            kind => return Err(misplaced(path, idx, kind)),
        }
    }
    if !parts.is_empty() || !has_results {
        messages.push(message("user", MessageContent::Parts(parts)));
    }
    Ok(())
}

fn tool_result(path: &str, idx: usize, block: InputBlock) -> Result<ChatMessage, ApiError> {
    let id = block.tool_use_id.ok_or_else(|| missing(path, idx, "tool_use_id"))?;
    let content = block.content.unwrap_or(BlockContent::Text(String::new()));
    let mut content = text_content(&format!("{path}[{idx}].content"), content)?;
    if block.is_error == Some(true) {
        content = marked_as_error(content);
    }
    Ok(ChatMessage { tool_call_id: Some(id), ..message("tool", content) })
}

/// Adds `Error:` before the result of a tool that failed, unless it says so itself: chat templates have no other mark.
fn marked_as_error(content: MessageContent) -> MessageContent {
    const MARK: &str = "Error: ";
    let says_so = |text: &str| text.trim_start().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("error"));
    match content {
        MessageContent::Text(text) if !says_so(&text) => MessageContent::Text(format!("{MARK}{text}")),
        MessageContent::Parts(mut parts) => {
            let first = parts.first().and_then(|part| part.text.as_deref()).unwrap_or_default();
            if !says_so(first) {
                parts.insert(0, ContentPart { kind: "text".to_owned(), text: Some(MARK.to_owned()) });
            }
            MessageContent::Parts(parts)
        }
        content @ MessageContent::Text(_) => content,
    }
}

fn assistant(path: &str, content: BlockContent) -> Result<ChatMessage, ApiError> {
    let blocks = match content {
        BlockContent::Text(text) => return Ok(message("assistant", MessageContent::Text(text))),
        BlockContent::Blocks(blocks) => blocks,
    };
    let (mut parts, mut reasoning, mut calls) = (Vec::new(), String::new(), Vec::new());
    for (idx, block) in blocks.into_iter().enumerate() {
        match block.kind.as_str() {
            "text" => parts.push(text_part(path, idx, block.text)?),
            "thinking" => reasoning.push_str(&block.thinking.ok_or_else(|| missing(path, idx, "thinking"))?),
            // Only its server can read it.
            "redacted_thinking" => {}
            "tool_use" => calls.push(tool_call(path, idx, block)?),
            kind => return Err(misplaced(path, idx, kind)),
        }
    }
    let content = (!parts.is_empty() || calls.is_empty()).then_some(MessageContent::Parts(parts));
    Ok(ChatMessage {
        role: "assistant".to_owned(),
        content,
        tool_calls: (!calls.is_empty()).then_some(calls),
        reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
        ..ChatMessage::default()
    })
}

fn tool_call(path: &str, idx: usize, block: InputBlock) -> Result<ToolCall, ApiError> {
    let id = block.id.ok_or_else(|| missing(path, idx, "id"))?;
    let name = block.name.ok_or_else(|| missing(path, idx, "name"))?;
    let input = block.input.unwrap_or_default();
    let arguments = serde_json::to_string(&input).expect("a JSON object has string keys only");
    Ok(ToolCall::new(id, name, arguments))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn translated(system: Value, messages: Value) -> Result<History, ApiError> {
        history(serde_json::from_value(system).unwrap(), serde_json::from_value(messages).unwrap())
    }

    #[track_caller]
    fn check(messages: Value, expected: impl Into<Value>) {
        let history = translated(Value::Null, messages).unwrap();
        assert_eq!(serde_json::to_value(history.messages).unwrap(), expected.into());
    }

    #[track_caller]
    fn check_refused(messages: Value, param: &str, part: &str) {
        let error = translated(Value::Null, messages).err().unwrap();
        assert_eq!(error.body().error.param.as_deref(), Some(param));
        assert!(error.to_string().contains(part), "{error}");
    }

    fn user(content: impl Into<Value>) -> Value {
        json!({"role": "user", "content": content.into()})
    }

    #[test]
    fn texts_are_strings_or_blocks() {
        let text = |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
        let part = |text: &str| json!({"type": "text", "text": text});
        let conversation = json!([user(json!([text("a"), text("b")])), {"role": "assistant", "content": "c"}, user(json!("d"))]);
        let history = translated(json!([text("be"), text("brief")]), conversation).unwrap();
        assert_eq!(
            serde_json::to_value(&history.messages).unwrap(),
            json!([
                {"role": "system", "content": [part("be"), part("brief")]},
                {"role": "user", "content": [part("a"), part("b")]},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "d"},
            ])
        );
        assert_eq!((history.starts, history.continues), (vec![1, 2, 3], false));
        assert_eq!(translated(json!("be brief"), json!([user(json!("x"))])).unwrap().messages.len(), 2);
        assert_eq!(translated(json!(""), json!([user(json!("x"))])).unwrap().messages.len(), 1);
    }

    #[test]
    fn an_answer_continues_the_assistants_last_message() {
        let conversation = |content: Value| json!([user(json!("x")), {"role": "assistant", "content": content}]);
        let continued = |content: Value| {
            let history = translated(Value::Null, conversation(content)).unwrap();
            (history.messages.len(), history.continues)
        };
        assert_eq!(continued(json!("The answer is (")), (2, true));
        assert_eq!(continued(json!([{"type": "text", "text": "Well"}])), (2, true));
        assert_eq!(continued(json!("")), (1, false));
        assert_eq!(continued(json!([])), (1, false));
        let call = json!([{"type": "tool_use", "id": "t", "name": "f", "input": {}}]);
        check_refused(conversation(call), "messages[1].content", "tool_result");
    }

    #[test]
    fn calls_and_their_results_are_messages_of_the_chat_endpoint() {
        let call = |id: &str, input: Value| json!({"type": "tool_use", "id": id, "name": "weather", "input": input});
        let result = |id: &str, content: Value| json!({"type": "tool_result", "tool_use_id": id, "content": content});
        let thinking = json!({"type": "thinking", "thinking": "I must look.", "signature": "s"});
        let said = json!({"type": "text", "text": "Let me see."});
        let redacted = json!({"type": "redacted_thinking", "data": "x"});
        let results = json!([
            result("a", json!("rain")), result("b", json!([{"type": "text", "text": "sun"}])), {"type": "text", "text": "So?"},
        ]);
        let function = |arguments: &str| json!({"name": "weather", "arguments": arguments});
        check(
            json!([
                user(json!("Where does it rain?")),
                {"role": "assistant", "content": [thinking, redacted, said, call("a", json!({"city": "Oslo", "days": 1.5})), call("b", json!({}))]},
                user(results),
            ]),
            json!([
                {"role": "user", "content": "Where does it rain?"},
                {"role": "assistant", "content": [said], "reasoning_content": "I must look.", "tool_calls": [
                    {"id": "a", "type": "function", "function": function(r#"{"city":"Oslo","days":1.5}"#)},
                    {"id": "b", "type": "function", "function": function("{}")},
                ]},
                {"role": "tool", "content": "rain", "tool_call_id": "a"},
                {"role": "tool", "content": [{"type": "text", "text": "sun"}], "tool_call_id": "b"},
                {"role": "user", "content": [{"type": "text", "text": "So?"}]},
            ]),
        );
    }

    #[test]
    fn a_message_that_only_calls_has_no_content() {
        let call = json!({"type": "tool_use", "id": "a", "name": "f", "input": {}});
        let result = json!({"type": "tool_result", "tool_use_id": "a"});
        check(
            json!([{"role": "assistant", "content": [call]}, user(json!([result]))]),
            json!([
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                ]},
                {"role": "tool", "content": "", "tool_call_id": "a"},
            ]),
        );
    }

    #[test]
    fn a_failed_tool_says_so() {
        let failed = |content: Value| {
            let block = json!({"type": "tool_result", "tool_use_id": "a", "is_error": true, "content": content});
            let history = translated(Value::Null, json!([user(json!([block]))])).unwrap();
            serde_json::to_value(&history.messages[0]).unwrap()["content"].clone()
        };
        let part = |text: &str| json!({"type": "text", "text": text});
        assert_eq!(failed(json!("no such city")), "Error: no such city");
        assert_eq!(failed(json!("error 404")), "error 404");
        assert_eq!(failed(json!([part("no")])), json!([part("Error: "), part("no")]));
        assert_eq!(failed(json!([part("ERROR")])), json!([part("ERROR")]));
    }

    #[test]
    fn what_cannot_be_translated_is_named_by_its_place_in_the_request() {
        let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}});
        check_refused(
            json!([user(json!([{"type": "text", "text": "a"}, image]))]),
            "messages[0].content[1].type",
            "not supported",
        );
        check_refused(json!([user(json!([{"type": "document"}]))]), "messages[0].content[0].type", "not supported");
        let result = json!({"type": "tool_result", "tool_use_id": "a", "content": [image]});
        check_refused(json!([user(json!([result]))]), "messages[0].content[0].content[0].type", "not supported");
        check_refused(json!([user(json!([{"type": "text"}]))]), "messages[0].content[0].text", "missing");
        check_refused(json!([user(json!([{"text": "a"}]))]), "messages[0].content[0].type", "missing");
        let call = json!({"type": "tool_use", "id": "a", "name": "f"});
        check_refused(json!([user(json!([call]))]), "messages[0].content[0].type", "cannot stand here");
        check_refused(json!([user(json!([{"type": "tool_result"}]))]), "messages[0].content[0].tool_use_id", "missing");
        check_refused(json!([{"role": "tool", "content": "x"}]), "messages[0].role", "`user`");
        check_refused(json!([{"role": "user"}]), "messages[0].content", "null");
        let nameless = json!([{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}, user(json!("x"))]);
        check_refused(nameless, "messages[0].content[0].name", "missing");
        let error = translated(json!([image]), json!([user(json!("x"))])).err().unwrap();
        assert_eq!(error.body().error.param.as_deref(), Some("system[0].type"));
    }
}
