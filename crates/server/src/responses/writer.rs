//! Writer of streamed responses: an event for each thing that begins, grows or ends.

use std::sync::Arc;

use protocol::{
    ChatLogProb, FinishReason, OutputItem, OutputPart, ResponseError, ResponseEvent, ResponseEventKind, ResponseObject,
    ResponseStatus, Usage,
};
use tokenizer::Tokenizer;

use super::items::new_id;
use super::object::{end_of, finish, message, reasoning};
use super::store::Pending;
use crate::answer::{AnswerEvent, AnswerWriter, CallDelta, CallHead, ChoiceDelta, chat_logprobs};
use crate::error::ApiError;

/// Writer of the events of a response.
pub(crate) struct ResponseWriter {
    /// The response with the items that are complete.
    object: Box<ResponseObject>,
    /// The item that grows.
    open: Option<OpenItem>,
    tokenizer: Arc<Tokenizer>,
    /// Log probabilities of tokens without text, for the text that follows.
    held_back: Vec<ChatLogProb>,
    finish_reason: FinishReason,
    next_number: u64,
    pending: Option<Pending>,
}

/// An item in progress.
#[derive(Clone, Debug)]
enum OpenItem {
    Reasoning { id: String, text: String },
    Message { id: String, text: String, logprobs: Vec<ChatLogProb> },
    Call { id: String, head: CallHead, arguments: String },
}

impl OpenItem {
    /// Returns the item as it is now.
    fn item(&self, status: ResponseStatus) -> OutputItem {
        match self.clone() {
            Self::Reasoning { id, text } => reasoning(id, text, status),
            Self::Message { id, text, logprobs } => {
                message(id, vec![OutputPart::OutputText { text, annotations: vec![], logprobs }], status)
            }
            Self::Call { id, head, arguments } => {
                OutputItem::FunctionCall { id, call_id: head.id, name: head.name, arguments, status }
            }
        }
    }
}

impl ResponseWriter {
    /// Creates the writer of `object`, a response in progress, which is stored at its end if it has a place.
    pub(crate) fn new(object: ResponseObject, tokenizer: Arc<Tokenizer>, pending: Option<Pending>) -> Self {
        Self {
            object: Box::new(object),
            open: None,
            tokenizer,
            held_back: vec![],
            finish_reason: FinishReason::Stop,
            next_number: 0,
            pending,
        }
    }

    fn write(&mut self, kind: ResponseEventKind) -> AnswerEvent {
        let (name, sequence_number) = (kind.name(), self.next_number);
        self.next_number += 1;
        AnswerEvent::named(name, &ResponseEvent { kind, sequence_number })
    }

    fn write_all(&mut self, kinds: Vec<ResponseEventKind>) -> Vec<AnswerEvent> {
        kinds.into_iter().map(|kind| self.write(kind)).collect()
    }

    fn output_index(&self) -> u32 {
        u32::try_from(self.object.output.len()).expect("an item has at least a token")
    }

    /// Adds reasoning to its item, which is begun if it is not open.
    fn extend_reasoning(&mut self, delta: String, kinds: &mut Vec<ResponseEventKind>) {
        if !matches!(self.open, Some(OpenItem::Reasoning { .. })) {
            let id = new_id("rs");
            let part = OutputPart::ReasoningText { text: String::new() };
            self.begin(OpenItem::Reasoning { id, text: String::new() }, Some(part), kinds);
        }
        let output_index = self.output_index();
        if let Some(OpenItem::Reasoning { id, text }) = &mut self.open {
            text.push_str(&delta);
            kinds.push(ResponseEventKind::ReasoningTextDelta { item_id: id.clone(), output_index, content_index: 0, delta });
        }
    }

    /// Adds text to the message, which is begun if it is not open.
    fn extend_text(&mut self, delta: String, logprobs: Vec<ChatLogProb>, kinds: &mut Vec<ResponseEventKind>) {
        self.begin_message(kinds);
        let output_index = self.output_index();
        if let Some(OpenItem::Message { id, text, logprobs: all }) = &mut self.open {
            text.push_str(&delta);
            all.extend(logprobs.iter().cloned());
            kinds.push(ResponseEventKind::OutputTextDelta {
                item_id: id.clone(),
                output_index,
                content_index: 0,
                delta,
                logprobs,
            });
        }
    }

    fn begin_message(&mut self, kinds: &mut Vec<ResponseEventKind>) {
        if !matches!(self.open, Some(OpenItem::Message { .. })) {
            let part = OutputPart::OutputText { text: String::new(), annotations: vec![], logprobs: vec![] };
            self.begin(OpenItem::Message { id: new_id("msg"), text: String::new(), logprobs: vec![] }, Some(part), kinds);
        }
    }

    /// Begins a call, or adds to the arguments of the one that is open.
    fn extend_call(&mut self, call: CallDelta, kinds: &mut Vec<ResponseEventKind>) {
        if let Some(head) = call.begins {
            self.begin(OpenItem::Call { id: new_id("fc"), head, arguments: String::new() }, None, kinds);
        }
        let (output_index, delta) = (self.output_index(), call.arguments);
        if let Some(OpenItem::Call { id, arguments, .. }) = &mut self.open
            && !delta.is_empty()
        {
            arguments.push_str(&delta);
            kinds.push(ResponseEventKind::FunctionCallArgumentsDelta { item_id: id.clone(), output_index, delta });
        }
    }

    /// Begins `item` after the one that is open. Its part, if it has one, begins empty.
    fn begin(&mut self, item: OpenItem, part: Option<OutputPart>, kinds: &mut Vec<ResponseEventKind>) {
        self.close(ResponseStatus::Completed, kinds);
        let output_index = self.output_index();
        let mut added = item.item(ResponseStatus::InProgress);
        if let OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. } = &mut added {
            content.clear();
        }
        let item_id = added.id().to_owned();
        kinds.push(ResponseEventKind::OutputItemAdded { output_index, item: added });
        kinds.extend(part.map(|part| ResponseEventKind::ContentPartAdded { item_id, output_index, content_index: 0, part }));
        self.open = Some(item);
    }

    /// Ends the item that is open, if there is one.
    fn close(&mut self, status: ResponseStatus, kinds: &mut Vec<ResponseEventKind>) {
        let Some(open) = self.open.take() else { return };
        let (output_index, content_index, item) = (self.output_index(), 0, open.item(status));
        let part = match &item {
            OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. } => content.first().cloned(),
            OutputItem::FunctionCall { .. } => None,
        };
        let item_id = item.id().to_owned();
        kinds.push(match open {
            OpenItem::Reasoning { id: item_id, text } => {
                ResponseEventKind::ReasoningTextDone { item_id, output_index, content_index, text }
            }
            OpenItem::Message { id: item_id, text, logprobs } => {
                ResponseEventKind::OutputTextDone { item_id, output_index, content_index, text, logprobs }
            }
            OpenItem::Call { id: item_id, head, arguments } => {
                ResponseEventKind::FunctionCallArgumentsDone { item_id, output_index, name: head.name, arguments }
            }
        });
        kinds.extend(part.map(|part| ResponseEventKind::ContentPartDone { item_id, output_index, content_index, part }));
        kinds.push(ResponseEventKind::OutputItemDone { output_index, item: item.clone() });
        self.object.output.push(item);
    }
}

impl AnswerWriter for ResponseWriter {
    fn opening(&mut self, _index: u32) -> Vec<AnswerEvent> {
        let (created, in_progress) = (self.object.clone(), self.object.clone());
        self.write_all(vec![
            ResponseEventKind::Created { response: created },
            ResponseEventKind::InProgress { response: in_progress },
        ])
    }

    fn delta(&mut self, _index: u32, delta: ChoiceDelta, _usage: &dyn Fn() -> Usage) -> Vec<AnswerEvent> {
        let mut kinds = Vec::new();
        let is_text = delta.reasoning.is_empty() && delta.calls.is_empty();
        if !delta.reasoning.is_empty() {
            self.extend_reasoning(delta.reasoning, &mut kinds);
        }
        // Only the text has log probabilities, so those of reasoning and of calls are left out.
        if is_text || !delta.text.is_empty() {
            self.held_back.extend(chat_logprobs(&self.tokenizer, &delta.scores).content);
        }
        let is_scored = !self.held_back.is_empty() && matches!(self.open, Some(OpenItem::Message { .. }));
        if !delta.text.is_empty() || (is_text && is_scored) {
            let logprobs = std::mem::take(&mut self.held_back);
            self.extend_text(delta.text, logprobs, &mut kinds);
        }
        for call in delta.calls {
            self.extend_call(call, &mut kinds);
        }
        if let Some(reason) = delta.finish_reason {
            self.finish_reason = reason;
            if self.object.output.is_empty() && self.open.is_none() {
                // An answer without a token has a message too.
                self.begin_message(&mut kinds);
            }
            self.close(end_of(reason).0, &mut kinds);
        }
        self.write_all(kinds)
    }

    fn end(&mut self, usage: Usage) -> Vec<AnswerEvent> {
        finish(&mut self.object, self.finish_reason, usage.into());
        if let Some(pending) = self.pending.take() {
            pending.keep(&self.object);
        }
        let response = self.object.clone();
        vec![self.write(match response.status {
            ResponseStatus::Incomplete => ResponseEventKind::Incomplete { response },
            _ => ResponseEventKind::Completed { response },
        })]
    }

    fn error(&mut self, error: &ApiError) -> AnswerEvent {
        self.object.output.extend(self.open.take().map(|open| open.item(ResponseStatus::Incomplete)));
        self.object.status = ResponseStatus::Failed;
        let body = error.body().error;
        let code = if body.kind == "rate_limit_error" { "rate_limit_exceeded" } else { "server_error" };
        self.object.error = Some(ResponseError { code: code.to_owned(), message: body.message });
        let response = self.object.clone();
        self.write(ResponseEventKind::Failed { response })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokenizer::GgufVocabulary;

    use super::super::object::tests::{in_progress, usage};
    use super::*;

    fn tokenizer() -> Arc<Tokenizer> {
        let tokens: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        let (token_types, scores) = (vec![6; 256], Some(vec![0.0; 256]));
        let vocabulary = GgufVocabulary { model: "llama".into(), tokens, token_types, scores, ..GgufVocabulary::default() };
        Arc::new(Tokenizer::from_gguf(vocabulary).unwrap())
    }

    /// Returns the events of a stream of `deltas`, whose names and numbers are checked.
    fn events(deltas: Vec<ChoiceDelta>) -> Vec<Value> {
        let mut writer = ResponseWriter::new(in_progress("resp_1"), tokenizer(), None);
        let mut events = writer.opening(0);
        for delta in deltas {
            events.extend(writer.delta(0, delta, &usage));
        }
        events.extend(writer.end(usage()));
        let parsed = (0..).zip(events).map(|(number, event): (u64, AnswerEvent)| {
            let value: Value = serde_json::from_str(&event.data).unwrap();
            assert_eq!((&value["type"], &value["sequence_number"]), (&json!(event.name), &json!(number)));
            value
        });
        parsed.collect()
    }

    fn names(events: &[Value]) -> Vec<&str> {
        events.iter().map(|event| event["type"].as_str().unwrap().trim_start_matches("response.")).collect()
    }

    fn text(text: &str) -> ChoiceDelta {
        ChoiceDelta { text: text.to_owned(), ..ChoiceDelta::default() }
    }

    fn end(reason: FinishReason) -> ChoiceDelta {
        ChoiceDelta { finish_reason: Some(reason), ..ChoiceDelta::default() }
    }

    fn call(index: u32, begins: Option<&str>, arguments: &str) -> ChoiceDelta {
        let begins = begins.map(|id| CallHead { id: id.to_owned(), name: "f".to_owned() });
        ChoiceDelta { calls: vec![CallDelta { index, begins, arguments: arguments.to_owned() }], ..ChoiceDelta::default() }
    }

    #[test]
    fn a_text_begins_grows_and_ends() {
        let events = events(vec![text("a"), text("b"), end(FinishReason::Stop)]);
        let expected = [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ];
        assert_eq!(names(&events), expected);
        assert_eq!((&events[0]["response"]["output"], &events[2]["item"]["content"]), (&json!([]), &json!([])));
        let id = &events[2]["item"]["id"];
        assert!(events[3..8].iter().all(|event| event["item_id"] == *id && event["output_index"] == 0), "{events:?}");
        assert_eq!((&events[6]["text"], &events[7]["part"]["text"]), (&json!("ab"), &json!("ab")));
        let response = &events[9]["response"];
        assert_eq!((&response["output"], &response["status"]), (&json!([events[8]["item"]]), &json!("completed")));
        assert_eq!(response["usage"]["total_tokens"], 14);
    }

    #[test]
    fn reasoning_text_and_calls_are_items_in_their_order() {
        let thought = ChoiceDelta { reasoning: "hm".to_owned(), ..ChoiceDelta::default() };
        let both = ChoiceDelta { text: "a".to_owned(), ..thought.clone() };
        let calls = [call(0, Some("call_1"), "{\"x\""), call(0, None, ": 1}"), call(1, Some("call_2"), "{}")];
        let deltas = [&[thought, both][..], &calls, &[end(FinishReason::ToolCalls)]].concat();
        let events = events(deltas);
        let expected = [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ];
        assert_eq!(names(&events), expected);
        let output = &events[24]["response"]["output"];
        assert_eq!(output[0]["content"], json!([{"type": "reasoning_text", "text": "hmhm"}]));
        assert_eq!(output[1]["content"][0]["text"], "a");
        assert_eq!((&output[2]["arguments"], &output[2]["call_id"]), (&json!("{\"x\": 1}"), &json!("call_1")));
        assert_eq!((&output[3]["arguments"], &output[3]["name"]), (&json!("{}"), &json!("f")));
        let indexes: Vec<_> =
            events.iter().filter(|event| event["item"].is_object()).map(|event| &event["output_index"]).collect();
        assert_eq!(json!(indexes), json!([0, 0, 1, 1, 2, 2, 3, 3]));
    }

    #[test]
    fn a_limit_leaves_the_last_item_and_the_response_incomplete() {
        let events = events(vec![text("a"), end(FinishReason::Length)]);
        let response = &events.last().unwrap()["response"];
        assert_eq!(names(&events).last(), Some(&"incomplete"));
        assert_eq!((&response["status"], &response["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
        assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    }

    #[test]
    fn an_answer_without_a_token_has_an_empty_message() {
        let events = events(vec![end(FinishReason::Stop)]);
        let output = &events.last().unwrap()["response"]["output"];
        assert_eq!((output.as_array().unwrap().len(), &output[0]["content"][0]["text"]), (1, &json!("")));
    }

    #[test]
    fn a_failure_shows_what_was_there() {
        let mut writer = ResponseWriter::new(in_progress("resp_1"), tokenizer(), None);
        writer.opening(0);
        writer.delta(0, text("a"), &usage);
        let event = writer.error(&ApiError::EngineFailed);
        let value: Value = serde_json::from_str(&event.data).unwrap();
        let response = &value["response"];
        assert_eq!((event.name, &response["status"]), (Some("response.failed"), &json!("failed")));
        assert_eq!(
            (&response["error"]["code"], &response["output"][0]["content"][0]["text"]),
            (&json!("server_error"), &json!("a"))
        );
    }
}
