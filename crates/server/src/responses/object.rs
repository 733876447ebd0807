//! Response objects: their end, and the one of an answer that is sent in one piece.

use protocol::{
    ChatCompletionResponse, FinishReason, IncompleteDetails, OutputItem, OutputPart, ResponseObject, ResponseStatus,
    ResponseUsage,
};
use serde_json::Value;

use super::items::new_id;

/// Completes `object`, the response in progress, with the answer of `chat`.
pub(crate) fn whole_response(mut object: ResponseObject, chat: ChatCompletionResponse) -> ResponseObject {
    let choice = chat.choices.into_iter().next().expect("a chat request has an answer");
    let message = choice.message;
    if let Some(text) = message.reasoning_content.filter(|text| !text.is_empty()) {
        object.output.push(reasoning(new_id("rs"), text, ResponseStatus::Completed));
    }
    let is_all = object.output.is_empty() && message.tool_calls.is_empty();
    if let Some(text) = Some(message.content.unwrap_or_default()).filter(|text| is_all || !text.is_empty()) {
        let logprobs = choice.logprobs.map(|logprobs| logprobs.content).unwrap_or_default();
        let part = OutputPart::OutputText { text, annotations: vec![], logprobs };
        object.output.push(self::message(new_id("msg"), vec![part], ResponseStatus::Completed));
    }
    object.output.extend(message.tool_calls.into_iter().map(|call| OutputItem::FunctionCall {
        id: new_id("fc"),
        call_id: call.id,
        name: call.function.name,
        arguments: match call.function.arguments {
            Value::String(text) => text,
            arguments => arguments.to_string(),
        },
        status: ResponseStatus::Completed,
    }));
    let (status, _) = end_of(choice.finish_reason);
    if let Some(
        OutputItem::Reasoning { status: last, .. }
        | OutputItem::Message { status: last, .. }
        | OutputItem::FunctionCall { status: last, .. },
    ) = object.output.last_mut()
    {
        *last = status;
    }
    finish(&mut object, choice.finish_reason, chat.usage.into());
    object
}

/// Ends `object`, whose output is there, for `reason`.
pub(super) fn finish(object: &mut ResponseObject, reason: FinishReason, usage: ResponseUsage) {
    let (status, incomplete_details) = end_of(reason);
    object.status = status;
    object.incomplete_details = incomplete_details;
    object.completed_at = (status == ResponseStatus::Completed)
        .then(|| std::time::UNIX_EPOCH.elapsed().map_or(object.created_at, |since| since.as_secs()));
    object.usage = Some(usage);
}

/// Returns the status after an end for `reason`, and what is said about it.
pub(super) fn end_of(reason: FinishReason) -> (ResponseStatus, Option<IncompleteDetails>) {
    match reason {
        FinishReason::Stop | FinishReason::ToolCalls => (ResponseStatus::Completed, None),
        FinishReason::Length => (ResponseStatus::Incomplete, Some(IncompleteDetails { reason: "max_output_tokens".to_owned() })),
    }
}

/// Builds an item of reasoning; without a part if `text` is empty.
pub(super) fn reasoning(id: String, text: String, status: ResponseStatus) -> OutputItem {
    let content = if text.is_empty() { vec![] } else { vec![OutputPart::ReasoningText { text }] };
    OutputItem::Reasoning { id, summary: vec![], content, status }
}

/// Builds a message.
pub(super) fn message(id: String, content: Vec<OutputPart>, status: ResponseStatus) -> OutputItem {
    OutputItem::Message { id, role: "assistant".to_owned(), status, content }
}

#[cfg(test)]
pub(super) mod tests {
    use protocol::{
        AssistantMessage, ChatChoice, CompletionTokensDetails, KvSharingUsage, PromptTokensDetails, ResponseRequest, SharingMode,
        ToolCall, Usage,
    };
    use serde_json::json;

    use super::super::translate::{Origin, translate};
    use super::*;
    use crate::sampling_defaults::SamplingDefaults;

    pub(in super::super) fn in_progress(id: &str) -> ResponseObject {
        let request: ResponseRequest = serde_json::from_value(json!({"model": "m", "input": "hi"})).unwrap();
        let origin = Origin { id: id.to_owned(), created_at: 7, defaults: SamplingDefaults::default() };
        translate(request, vec![], &|_| Ok(None), origin).unwrap().object
    }

    pub(in super::super) fn usage() -> Usage {
        Usage {
            prompt_tokens: 10,
            completion_tokens: 4,
            total_tokens: 14,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: 8 },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: 3 },
            kv_sharing: KvSharingUsage {
                mode: SharingMode::Prefix,
                prefix_tokens: 8,
                continued_tokens: 0,
                span_tokens: 0,
                recomputed_tokens: 0,
                donors: 0,
                class: None,
                deviation: None,
                normalized: false,
                reason: None,
            },
        }
    }

    fn answer(message: AssistantMessage, finish_reason: FinishReason) -> ChatCompletionResponse {
        ChatCompletionResponse {
            id: "resp_1".to_owned(),
            object: "chat.completion".to_owned(),
            created: 7,
            model: "m".to_owned(),
            system_fingerprint: "f".to_owned(),
            choices: vec![ChatChoice { index: 0, message, logprobs: None, finish_reason, matched_stop: None }],
            usage: usage(),
        }
    }

    fn said(text: &str) -> AssistantMessage {
        AssistantMessage {
            role: "assistant".to_owned(),
            content: Some(text.to_owned()),
            refusal: None,
            reasoning_content: None,
            tool_calls: vec![],
        }
    }

    /// Returns a whole response that says "ok".
    pub(in super::super) fn object(id: &str) -> ResponseObject {
        whole_response(in_progress(id), answer(said("ok"), FinishReason::Stop))
    }

    /// Returns the items of a whole response without their ids, and its status.
    fn output(message: AssistantMessage, reason: FinishReason) -> (Value, String) {
        let response = serde_json::to_value(whole_response(in_progress("resp_1"), answer(message, reason))).unwrap();
        let mut output = response["output"].clone();
        for item in output.as_array_mut().unwrap() {
            assert!(item.as_object_mut().unwrap().remove("id").is_some_and(|id| id.as_str().unwrap().len() > 30));
        }
        (output, response["status"].as_str().unwrap().to_owned())
    }

    fn text_item(text: &str, status: &str) -> Value {
        let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
        json!({"type": "message", "role": "assistant", "status": status, "content": [part]})
    }

    #[test]
    fn a_text_is_a_message() {
        assert_eq!(output(said("ok"), FinishReason::Stop), (json!([text_item("ok", "completed")]), "completed".to_owned()));
        assert_eq!(output(said("o"), FinishReason::Length), (json!([text_item("o", "incomplete")]), "incomplete".to_owned()));
        assert_eq!(output(said(""), FinishReason::Stop).0, json!([text_item("", "completed")]));
    }

    #[test]
    fn reasoning_text_and_calls_are_items_in_their_order() {
        let reasoning = |status| {
            let part = json!({"type": "reasoning_text", "text": "hm"});
            json!({"type": "reasoning", "summary": [], "content": [part], "status": status})
        };
        let call = json!({"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}", "status": "completed"});
        let thought = |text| AssistantMessage { reasoning_content: Some("hm".to_owned()), ..said(text) };
        let calls = vec![ToolCall::new("call_1".to_owned(), "f".to_owned(), "{}".to_owned())];
        let all = AssistantMessage { tool_calls: calls.clone(), ..thought("ok") };
        assert_eq!(
            output(all, FinishReason::ToolCalls),
            (json!([reasoning("completed"), text_item("ok", "completed"), call]), "completed".to_owned())
        );
        let only_calls = AssistantMessage { content: None, tool_calls: calls, ..said("") };
        assert_eq!(output(only_calls, FinishReason::ToolCalls).0, json!([call]));
        let cut = output(thought(""), FinishReason::Length);
        assert_eq!(cut, (json!([reasoning("incomplete")]), "incomplete".to_owned()));
    }

    #[test]
    fn the_end_has_usage_and_a_reason() {
        let cut = whole_response(in_progress("resp_1"), answer(said("o"), FinishReason::Length));
        assert_eq!(cut.incomplete_details.unwrap().reason, "max_output_tokens");
        assert_eq!(cut.completed_at, None);
        let usage = serde_json::to_value(cut.usage).unwrap();
        assert_eq!(
            (&usage["input_tokens"], &usage["output_tokens"], &usage["total_tokens"]),
            (&json!(10), &json!(4), &json!(14))
        );
        assert_eq!(usage["input_tokens_details"]["cached_tokens"], 8);
        assert_eq!(usage["output_tokens_details"]["reasoning_tokens"], 3);
        assert_eq!(usage["kv_sharing"]["prefix_tokens"], 8);
        assert!(object("resp_1").completed_at.is_some());
    }
}
