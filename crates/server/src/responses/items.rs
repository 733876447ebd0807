//! Items of a conversation, and the messages that they become.

use protocol::{ChatMessage, InputItem, ItemContent, ItemPart, MessageContent, ResponseInput, ToolCall};

use crate::body::shortened;
use crate::error::ApiError;

/// Look-up of a stored item by its id.
pub(super) type Find<'a> = dyn Fn(&str) -> Result<Option<InputItem>, ApiError> + 'a;

/// Message about parts that only a model with a vision tower could read.
const NO_VISION: &str = "this model has no vision tower";

/// Returns the items of `input`, each with an id, a type and a status. References are replaced by what `find` returns for their ids.
///
/// # Errors
/// If an item is referred to that is not stored.
pub(super) fn complete_items(input: ResponseInput, find: &Find<'_>) -> Result<Vec<InputItem>, ApiError> {
    let items = match input {
        ResponseInput::Text(text) => {
            let content = Some(ItemContent::Text(text));
            vec![InputItem { role: Some("user".to_owned()), content, ..InputItem::default() }]
        }
        ResponseInput::Items(items) => items,
    };
    let complete = |(idx, item): (usize, InputItem)| match &item.id {
        Some(id) if is_reference(&item) => find(id)?
            .ok_or_else(|| ApiError::param(format!("input[{idx}].id"), format!("there is no stored item `{}`", shortened(id)))),
        _ => Ok(complete_item(item)),
    };
    items.into_iter().enumerate().map(complete).collect()
}

/// True if `item` only names another one. Its type may be absent, as in OpenAI's API.
fn is_reference(item: &InputItem) -> bool {
    match item.kind.as_deref() {
        Some(kind) => kind == "item_reference",
        None => item.role.is_none() && item.content.is_none(),
    }
}

fn complete_item(mut item: InputItem) -> InputItem {
    let kind = item.kind.get_or_insert_with(|| "message".to_owned());
    let prefix = match kind.as_str() {
        "message" => "msg",
        "function_call" => "fc",
        "function_call_output" => "fco",
        "reasoning" => "rs",
        _ => "item",
    };
    if kind == "message"
        && let Some(ItemContent::Text(text)) = item.content
    {
        let kind = if item.role.as_deref() == Some("assistant") { "output_text" } else { "input_text" };
        let part = ItemPart { kind: kind.to_owned(), text: Some(text), ..ItemPart::default() };
        item.content = Some(ItemContent::Parts(vec![part]));
    }
    item.id.get_or_insert_with(|| new_id(prefix));
    item.status.get_or_insert_with(|| "completed".to_owned());
    item
}

/// Returns a new id of OpenAI's form.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}

/// Builds the messages of a conversation from items.
#[derive(Default)]
pub(super) struct Messages {
    messages: Vec<ChatMessage>,
    /// Reasoning for the next message or call of the assistant.
    reasoning: String,
    /// True if the last message is one of the assistant that may make further calls.
    takes_calls: bool,
}

impl Messages {
    /// Creates a conversation that begins with `instructions`.
    pub(super) fn new(instructions: Option<String>) -> Self {
        let mut messages = Self::default();
        if let Some(text) = instructions {
            messages.messages.push(message("system", Some(text)));
        }
        messages
    }

    /// Appends the item at `path` of the request.
    pub(super) fn push(&mut self, path: &str, item: InputItem) -> Result<(), ApiError> {
        match item.kind.as_deref() {
            None | Some("message") => self.push_message(path, item),
            Some("reasoning") => self.push_reasoning(path, item),
            Some("function_call") => self.push_call(path, item),
            Some("function_call_output") => self.push_output(path, item),
            Some(_) => Err(ApiError::Unsupported { param: format!("{path}.type") }),
        }
    }

    /// Returns the messages. Reasoning that no message and no call follows is left out, as by OpenAI.
    pub(super) fn finish(self) -> Vec<ChatMessage> {
        self.messages
    }

    fn push_message(&mut self, path: &str, item: InputItem) -> Result<(), ApiError> {
        let role = needed(path, "role", item.role)?;
        if !["user", "assistant", "system", "developer"].contains(&role.as_str()) {
            let text = format!("must be `user`, `assistant`, `system` or `developer`, not `{}`", shortened(&role));
            return Err(ApiError::param(format!("{path}.role"), text));
        }
        let text = text_of(&format!("{path}.content"), needed(path, "content", item.content)?)?;
        self.takes_calls = role == "assistant";
        let reasoning = std::mem::take(&mut self.reasoning);
        let reasoning_content = Some(reasoning).filter(|text| self.takes_calls && !text.is_empty());
        self.messages.push(ChatMessage { reasoning_content, ..message(&role, Some(text)) });
        Ok(())
    }

    fn push_reasoning(&mut self, path: &str, item: InputItem) -> Result<(), ApiError> {
        let text = match (item.content, item.summary) {
            (Some(content), _) => text_of(&format!("{path}.content"), content)?,
            (None, Some(parts)) => text_of(&format!("{path}.summary"), ItemContent::Parts(parts))?,
            (None, None) => String::new(),
        };
        if !text.is_empty() {
            self.takes_calls = false;
            self.reasoning.push_str(&text);
        }
        Ok(())
    }

    fn push_call(&mut self, path: &str, item: InputItem) -> Result<(), ApiError> {
        let call = ToolCall::new(
            needed(path, "call_id", item.call_id)?,
            needed(path, "name", item.name)?,
            needed(path, "arguments", item.arguments)?,
        );
        match self.messages.last_mut().filter(|_| self.takes_calls) {
            Some(last) => last.tool_calls.get_or_insert_default().push(call),
            None => {
                let reasoning_content = Some(std::mem::take(&mut self.reasoning)).filter(|text| !text.is_empty());
                self.messages.push(ChatMessage { tool_calls: Some(vec![call]), reasoning_content, ..message("assistant", None) });
                self.takes_calls = true;
            }
        }
        Ok(())
    }

    fn push_output(&mut self, path: &str, item: InputItem) -> Result<(), ApiError> {
        let tool_call_id = Some(needed(path, "call_id", item.call_id)?);
        let text = text_of(&format!("{path}.output"), needed(path, "output", item.output)?)?;
        self.takes_calls = false;
        self.reasoning.clear();
        self.messages.push(ChatMessage { tool_call_id, ..message("tool", Some(text)) });
        Ok(())
    }
}

fn message(role: &str, text: Option<String>) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: text.map(MessageContent::Text), ..ChatMessage::default() }
}

fn needed<T>(path: &str, field: &str, value: Option<T>) -> Result<T, ApiError> {
    value.ok_or_else(|| ApiError::param(format!("{path}.{field}"), "missing"))
}

/// Joins the texts of `content`.
fn text_of(path: &str, content: ItemContent) -> Result<String, ApiError> {
    let parts = match content {
        ItemContent::Text(text) => return Ok(text),
        ItemContent::Parts(parts) => parts,
    };
    let mut joined = String::new();
    for (idx, part) in parts.into_iter().enumerate() {
        let field = |name: &str| format!("{path}[{idx}].{name}");
        let text = match part.kind.as_str() {
            "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text" => part.text,
            "refusal" => part.refusal,
            "input_image" | "input_file" => return Err(ApiError::param(field("type"), NO_VISION)),
            _ => return Err(ApiError::Unsupported { param: field("type") }),
        };
        joined.push_str(&text.ok_or_else(|| ApiError::param(field("text"), "missing"))?);
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn complete(input: Value) -> Result<Vec<InputItem>, ApiError> {
        let stored = |id: &str| {
            let message = json!({"type": "message", "id": id, "role": "user", "content": "kept"});
            Ok((id == "msg_kept").then(|| serde_json::from_value(message).unwrap()))
        };
        complete_items(serde_json::from_value(input).unwrap(), &stored)
    }

    fn messages(input: Value) -> Result<Value, ApiError> {
        let mut messages = Messages::new(None);
        for (idx, item) in complete(input)?.into_iter().enumerate() {
            messages.push(&format!("input[{idx}]"), item)?;
        }
        Ok(serde_json::to_value(messages.finish()).unwrap())
    }

    #[track_caller]
    fn check(input: Value, expected: &Value) {
        assert_eq!(messages(input).unwrap(), *expected);
    }

    #[track_caller]
    fn check_refused(input: Value, param: &str, message: &str) {
        let error = messages(input).unwrap_err().body().error;
        assert_eq!(error.param.as_deref(), Some(param));
        assert!(error.message.contains(message), "{}", error.message);
    }

    fn call(id: &str, arguments: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}})
    }

    #[test]
    fn a_text_is_a_message_of_the_user() {
        check(json!("hi"), &json!([{"role": "user", "content": "hi"}]));
    }

    #[test]
    fn messages_may_be_written_in_several_ways() {
        check(
            json!([
                {"role": "developer", "content": "be brief"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
                {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                 "content": [{"type": "output_text", "text": "c", "annotations": []}]},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
                {"type": "item_reference", "id": "msg_kept"},
                {"id": "msg_kept"},
            ]),
            &json!([
                {"role": "developer", "content": "be brief"}, {"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"},
                {"role": "assistant", "content": "no"}, {"role": "user", "content": "kept"}, {"role": "user", "content": "kept"},
            ]),
        );
    }

    #[test]
    fn calls_belong_to_the_message_before_them_and_so_does_reasoning_to_what_follows() {
        check(
            json!([
                {"role": "user", "content": "q"},
                {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"role": "assistant", "content": "a"},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{\"x\": 1}"},
                {"type": "function_call_output", "call_id": "c1", "output": "1"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
                {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "so"}]},
                {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c3", "output": "3"},
                {"type": "reasoning", "id": "rs_3", "summary": [{"type": "summary_text", "text": "left out"}]},
                {"role": "user", "content": "and?"},
            ]),
            &json!([
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": [call("c1", "{}"), call("c2", "{\"x\": 1}")]},
                {"role": "tool", "content": "1", "tool_call_id": "c1"},
                {"role": "tool", "content": "2", "tool_call_id": "c2"},
                {"role": "assistant", "content": null, "reasoning_content": "so", "tool_calls": [call("c3", "{}")]},
                {"role": "tool", "content": "3", "tool_call_id": "c3"},
                {"role": "user", "content": "and?"},
            ]),
        );
    }

    #[test]
    fn instructions_come_first() {
        let mut messages = Messages::new(Some("be brief".to_owned()));
        for item in complete(json!("hi")).unwrap() {
            messages.push("input[0]", item).unwrap();
        }
        let roles: Vec<_> = messages.finish().into_iter().map(|message| message.role).collect();
        assert_eq!(roles, ["system", "user"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let part = |kind: &str| json!([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": kind}]}]);
        check_refused(part("input_image"), "input[0].content[1].type", NO_VISION);
        check_refused(part("input_file"), "input[0].content[1].type", NO_VISION);
        check_refused(part("input_audio"), "input[0].content[1].type", "not supported");
        check_refused(part("input_text"), "input[0].content[1].text", "missing");
        check_refused(json!([{"type": "web_search_call", "id": "ws_1"}]), "input[0].type", "not supported");
        check_refused(json!([{"type": "item_reference", "id": "msg_x"}]), "input[0].id", "no stored item");
        check_refused(json!([{"type": "item_reference"}]), "input[0].type", "not supported");
        check_refused(json!([{"role": "tool", "content": "a"}]), "input[0].role", "must be");
        check_refused(json!([{"role": "user"}]), "input[0].content", "missing");
        check_refused(json!([{"type": "function_call", "name": "f", "arguments": "{}"}]), "input[0].call_id", "missing");
        check_refused(json!([{"type": "function_call_output", "call_id": "c"}]), "input[0].output", "missing");
    }

    #[test]
    fn an_item_is_kept_as_it_can_be_listed() {
        let items =
            serde_json::to_value(complete(json!([{"role": "user", "content": "a"}, {"id": "msg_kept"}])).unwrap()).unwrap();
        let id = items[0]["id"].as_str().unwrap();
        assert!(id.starts_with("msg_") && id.len() == 36, "{id}");
        assert_eq!(
            items[0],
            json!({"type": "message", "id": id, "status": "completed", "role": "user", "content": [{"type": "input_text", "text": "a"}]})
        );
        assert_eq!(items[1]["id"], "msg_kept");
    }
}
