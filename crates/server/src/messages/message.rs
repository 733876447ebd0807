//! Translates whole answers.

use protocol::{ChatCompletionResponse, FinishReason, Message, MessageUsage, OutputBlock, StopReason, Usage};
use serde_json::{Map, Value};

/// Returns a new id of a message.
pub(crate) fn message_id() -> String {
    format!("msg_{}", uuid::Uuid::new_v4().simple())
}

/// Translates a whole answer with one choice.
pub(crate) fn message(answer: ChatCompletionResponse) -> Message {
    let mut message = empty_message(answer.id, answer.model, &answer.usage);
    if let Some(choice) = answer.choices.into_iter().next() {
        message.content.extend(choice.message.reasoning_content.filter(|text| !text.is_empty()).map(thinking_block));
        let text = choice.message.content.filter(|text| !text.is_empty());
        message.content.extend(text.map(|text| OutputBlock::Text { text }));
        let calls = choice.message.tool_calls.into_iter();
        message.content.extend(calls.map(|call| OutputBlock::ToolUse {
            id: call.id,
            name: call.function.name,
            input: input(call.function.arguments),
        }));
        message.stop_reason = Some(stop_reason(choice.finish_reason, choice.matched_stop.is_some()));
        message.stop_sequence = choice.matched_stop;
    }
    message
}

/// Returns a message that has not begun.
pub(super) fn empty_message(id: String, model: String, usage: &Usage) -> Message {
    Message {
        id,
        kind: "message".to_owned(),
        role: "assistant".to_owned(),
        model,
        content: vec![],
        stop_reason: None,
        stop_sequence: None,
        usage: message_usage(usage),
    }
}

pub(super) fn thinking_block(thinking: String) -> OutputBlock {
    OutputBlock::Thinking { thinking, signature: String::new() }
}

pub(super) fn stop_reason(reason: FinishReason, has_matched: bool) -> StopReason {
    match reason {
        FinishReason::ToolCalls => StopReason::ToolUse,
        FinishReason::Length => StopReason::MaxTokens,
        FinishReason::Stop if has_matched => StopReason::StopSequence,
        FinishReason::Stop => StopReason::EndTurn,
    }
}

/// Converts token counts: tokens found in the cache are no input tokens in Anthropic's count.
pub(super) fn message_usage(usage: &Usage) -> MessageUsage {
    let cached = usage.prompt_tokens_details.cached_tokens;
    MessageUsage {
        input_tokens: usage.prompt_tokens.saturating_sub(cached),
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: cached,
        output_tokens: usage.completion_tokens,
        kv_sharing: usage.kv_sharing,
    }
}

/// Reads the arguments of a call. Arguments that the token limit has cut are no object: they are left out.
fn input(arguments: Value) -> Map<String, Value> {
    let arguments = match arguments {
        Value::String(text) => serde_json::from_str(&text).unwrap_or_default(),
        object => object,
    };
    if let Value::Object(input) = arguments { input } else { Map::new() }
}

#[cfg(test)]
mod tests {
    use protocol::{AssistantMessage, ChatChoice, ToolCall};
    use serde_json::json;

    use super::*;
    use crate::messages::tests::usage;

    fn translated(message: AssistantMessage, finish_reason: FinishReason, stop: Option<&str>) -> Value {
        let choice = ChatChoice { index: 0, message, logprobs: None, finish_reason, matched_stop: stop.map(str::to_owned) };
        let answer = ChatCompletionResponse {
            id: "msg_1".into(),
            object: "chat.completion".into(),
            created: 1,
            model: "m".into(),
            system_fingerprint: "f".into(),
            choices: vec![choice],
            usage: usage(),
        };
        serde_json::to_value(super::message(answer)).unwrap()
    }

    fn said(text: &str) -> AssistantMessage {
        let content = Some(text.to_owned());
        AssistantMessage { role: "assistant".into(), content, refusal: None, reasoning_content: None, tool_calls: vec![] }
    }

    #[test]
    fn a_text_is_a_block() {
        let message = translated(said("hi"), FinishReason::Stop, None);
        assert_eq!(
            (&message["id"], &message["type"], &message["role"]),
            (&json!("msg_1"), &json!("message"), &json!("assistant"))
        );
        assert_eq!(message["content"], json!([{"type": "text", "text": "hi"}]));
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("end_turn"), &json!(null)));
        assert_eq!(translated(said(""), FinishReason::Stop, None)["content"], json!([]));
    }

    #[test]
    fn cached_tokens_are_counted_apart() {
        let mut usage = translated(said("hi"), FinishReason::Stop, None)["usage"].take();
        assert_eq!(usage["kv_sharing"].take()["prefix_tokens"], 32);
        let expected = json!({
            "input_tokens": 68, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 32, "output_tokens": 7, "kv_sharing": null,
        });
        assert_eq!(usage, expected);
    }

    #[test]
    fn every_reason_has_its_counterpart() {
        let reason = |reason, stop| {
            let message = translated(said("x"), reason, stop);
            (message["stop_reason"].clone(), message["stop_sequence"].clone())
        };
        assert_eq!(reason(FinishReason::Length, None), (json!("max_tokens"), json!(null)));
        assert_eq!(reason(FinishReason::Stop, Some("END")), (json!("stop_sequence"), json!("END")));
        assert_eq!(reason(FinishReason::ToolCalls, None), (json!("tool_use"), json!(null)));
    }

    #[test]
    fn reasoning_comes_first_and_calls_last() {
        let call = |arguments: &str| ToolCall::new("c".into(), "f".into(), arguments.into());
        let tool_calls = vec![call(r#"{"b": 1.0, "a": [2]}"#), call(""), call("{\"cut")];
        let message = AssistantMessage { reasoning_content: Some("hm".into()), tool_calls, ..said("so") };
        let used = |input: Value| json!({"type": "tool_use", "id": "c", "name": "f", "input": input});
        assert_eq!(
            translated(message, FinishReason::ToolCalls, None)["content"],
            json!([
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "so"},
                used(json!({"b": 1.0, "a": [2]})),
                used(json!({})),
                used(json!({})),
            ])
        );
    }
}
