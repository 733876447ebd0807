//! Writer of streamed messages.

use protocol::{BlockDelta, MessageDelta, MessageEvent, OutputBlock, StopReason, Usage};
use serde_json::Map;

use super::error::error_object;
use super::message::{empty_message, message_usage, stop_reason, thinking_block};
use crate::answer::{AnswerEvent, AnswerWriter, ChoiceDelta};
use crate::error::ApiError;

/// Writer of the events of one message.
///
/// The first event waits for the first token, because it has the number of tokens that were found in the cache.
pub(crate) struct MessageWriter {
    id: String,
    model: String,
    /// Id of the request, for errors.
    request_id: Option<String>,
    has_begun: bool,
    /// Block that has begun and not ended.
    open: Option<Kind>,
    /// Index of that block, or of the next one.
    index: u32,
    ending: MessageDelta,
}

/// Kind of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    ToolUse,
}

impl MessageWriter {
    /// Creates a writer of the message `id` of `model`, which answers the request `request_id`.
    pub(crate) fn new(id: String, model: String, request_id: Option<String>) -> Self {
        let ending = MessageDelta { stop_reason: None, stop_sequence: None };
        Self { id, model, request_id, has_begun: false, open: None, index: 0, ending }
    }

    /// Writes the start of the message unless it has been written.
    fn begin(&mut self, events: &mut Vec<MessageEvent>, usage: impl FnOnce() -> Usage) {
        if !std::mem::replace(&mut self.has_begun, true) {
            let message = empty_message(self.id.clone(), self.model.clone(), &usage());
            events.extend([MessageEvent::MessageStart { message }, MessageEvent::Ping]);
        }
    }

    /// Ends the open block.
    fn close(&mut self, events: &mut Vec<MessageEvent>) {
        let Some(kind) = self.open.take() else { return };
        if kind == Kind::Thinking {
            // Some clients send back only reasoning that had one.
            let delta = BlockDelta::SignatureDelta { signature: String::new() };
            events.push(MessageEvent::ContentBlockDelta { index: self.index, delta });
        }
        events.push(MessageEvent::ContentBlockStop { index: self.index });
        self.index += 1;
    }

    fn open(&mut self, events: &mut Vec<MessageEvent>, kind: Kind, content_block: OutputBlock) {
        self.close(events);
        self.open = Some(kind);
        events.push(MessageEvent::ContentBlockStart { index: self.index, content_block });
    }

    fn push(&self, events: &mut Vec<MessageEvent>, delta: BlockDelta) {
        events.push(MessageEvent::ContentBlockDelta { index: self.index, delta });
    }
}

fn named(events: &[MessageEvent]) -> Vec<AnswerEvent> {
    events.iter().map(|event| AnswerEvent::named(event.name(), event)).collect()
}

impl AnswerWriter for MessageWriter {
    fn opening(&mut self, _index: u32) -> Vec<AnswerEvent> {
        vec![]
    }

    fn delta(&mut self, _index: u32, delta: ChoiceDelta, usage: &dyn Fn() -> Usage) -> Vec<AnswerEvent> {
        let mut events = Vec::new();
        self.begin(&mut events, usage);
        if !delta.reasoning.is_empty() {
            if self.open != Some(Kind::Thinking) {
                self.open(&mut events, Kind::Thinking, thinking_block(String::new()));
            }
            self.push(&mut events, BlockDelta::ThinkingDelta { thinking: delta.reasoning });
        }
        if !delta.text.is_empty() {
            if self.open != Some(Kind::Text) {
                self.open(&mut events, Kind::Text, OutputBlock::Text { text: String::new() });
            }
            self.push(&mut events, BlockDelta::TextDelta { text: delta.text });
        }
        for call in delta.calls {
            if let Some(head) = call.begins {
                let block = OutputBlock::ToolUse { id: head.id, name: head.name, input: Map::new() };
                self.open(&mut events, Kind::ToolUse, block);
            }
            if !call.arguments.is_empty() {
                self.push(&mut events, BlockDelta::InputJsonDelta { partial_json: call.arguments });
            }
        }
        if let Some(reason) = delta.finish_reason {
            let reason: StopReason = stop_reason(reason, delta.stop.is_some());
            self.ending = MessageDelta { stop_reason: Some(reason), stop_sequence: delta.stop };
        }
        named(&events)
    }

    fn end(&mut self, usage: Usage) -> Vec<AnswerEvent> {
        let mut events = Vec::new();
        self.begin(&mut events, || usage);
        self.close(&mut events);
        events.push(MessageEvent::MessageDelta { delta: self.ending.clone(), usage: message_usage(&usage) });
        events.push(MessageEvent::MessageStop);
        named(&events)
    }

    fn keep_alive(&self) -> Option<AnswerEvent> {
        Some(AnswerEvent::named(MessageEvent::Ping.name(), &MessageEvent::Ping))
    }

    fn error(&mut self, error: &ApiError) -> AnswerEvent {
        AnswerEvent::named("error", &error_object(error, self.request_id.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use protocol::FinishReason;
    use serde_json::{Value, json};

    use super::*;
    use crate::answer::{CallDelta, CallHead};
    use crate::messages::tests::usage;

    /// Returns the events of `deltas` and of the end, after checking that each is named by its type.
    fn written(deltas: Vec<ChoiceDelta>) -> Vec<Value> {
        let mut writer = MessageWriter::new("msg_1".into(), "m".into(), None);
        let mut events = writer.opening(0);
        for delta in deltas {
            events.extend(writer.delta(0, delta, &usage));
        }
        events.extend(writer.end(usage()));
        let parsed = events.iter().map(|event| {
            let data: Value = serde_json::from_str(&event.data).unwrap();
            assert_eq!(data["type"], event.name.unwrap());
            data
        });
        parsed.collect()
    }

    fn finish(reason: FinishReason, stop: Option<&str>) -> ChoiceDelta {
        ChoiceDelta { finish_reason: Some(reason), stop: stop.map(str::to_owned), ..ChoiceDelta::default() }
    }

    fn text(text: &str) -> ChoiceDelta {
        ChoiceDelta { text: text.into(), ..ChoiceDelta::default() }
    }

    /// Returns the types of `events`, with the index of those about a block.
    fn outline(events: &[Value]) -> Vec<String> {
        let line = |event: &Value| {
            let kind = event["delta"]["type"].as_str().or(event["content_block"]["type"].as_str());
            let parts = [event["type"].as_str(), kind].into_iter().flatten().collect::<Vec<_>>().join(" ");
            event["index"].as_u64().map_or(parts.clone(), |index| format!("{index} {parts}"))
        };
        events.iter().map(line).collect()
    }

    #[test]
    fn a_text_is_one_block() {
        let events = written(vec![text("he"), text("y"), finish(FinishReason::Stop, Some("!"))]);
        let expected = [
            "message_start",
            "ping",
            "0 content_block_start text",
            "0 content_block_delta text_delta",
            "0 content_block_delta text_delta",
            "0 content_block_stop",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(outline(&events), expected);
        let start = &events[0]["message"];
        assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
        assert_eq!((&start["usage"]["input_tokens"], &start["usage"]["cache_read_input_tokens"]), (&json!(68), &json!(32)));
        assert_eq!(events[2]["content_block"], json!({"type": "text", "text": ""}));
        assert_eq!(events[3]["delta"], json!({"type": "text_delta", "text": "he"}));
        assert_eq!(events[6]["delta"], json!({"stop_reason": "stop_sequence", "stop_sequence": "!"}));
        assert_eq!(events[6]["usage"]["output_tokens"], 7);
    }

    #[test]
    fn reasoning_text_and_calls_are_blocks_in_order() {
        let reasoning = ChoiceDelta { reasoning: "hm".into(), ..ChoiceDelta::default() };
        let call = |index, begins: Option<&str>, arguments: &str| {
            let begins = begins.map(|id| CallHead { id: id.into(), name: "f".into() });
            let calls = vec![CallDelta { index, begins, arguments: arguments.into() }];
            ChoiceDelta { calls, ..ChoiceDelta::default() }
        };
        let calls = [call(0, Some("a"), ""), call(0, None, "{\"x\":"), call(0, None, "1}"), call(1, Some("b"), "{}")];
        let events = written([&[reasoning, text("so")], &calls[..], &[finish(FinishReason::ToolCalls, None)]].concat());
        let expected = [
            "message_start",
            "ping",
            "0 content_block_start thinking",
            "0 content_block_delta thinking_delta",
            "0 content_block_delta signature_delta",
            "0 content_block_stop",
            "1 content_block_start text",
            "1 content_block_delta text_delta",
            "1 content_block_stop",
            "2 content_block_start tool_use",
            "2 content_block_delta input_json_delta",
            "2 content_block_delta input_json_delta",
            "2 content_block_stop",
            "3 content_block_start tool_use",
            "3 content_block_delta input_json_delta",
            "3 content_block_stop",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(outline(&events), expected);
        assert_eq!(events[9]["content_block"], json!({"type": "tool_use", "id": "a", "name": "f", "input": {}}));
        assert_eq!(events[10]["delta"]["partial_json"], "{\"x\":");
        assert_eq!(events[16]["delta"], json!({"stop_reason": "tool_use", "stop_sequence": null}));
    }

    #[test]
    fn an_empty_answer_has_no_block() {
        let events = written(vec![finish(FinishReason::Stop, None)]);
        assert_eq!(outline(&events), ["message_start", "ping", "message_delta", "message_stop"]);
        assert_eq!(events[2]["delta"]["stop_reason"], "end_turn");
    }

    #[test]
    fn a_failure_is_an_event_of_its_own() {
        let mut writer = MessageWriter::new("msg_1".into(), "m".into(), Some("r".into()));
        let event = writer.error(&ApiError::CutByShutdown);
        let data: Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(event.name, Some("error"));
        assert_eq!((&data["type"], &data["error"]["type"]), (&json!("error"), &json!("overloaded_error")));
        assert_eq!(data["request_id"], "r");
    }
}
