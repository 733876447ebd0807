//! `/v1/responses`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::object::read_only_from;
use crate::{ChatLogProb, KvSharingOptions, KvSharingUsage, Tool, Usage};

/// Body of a request for a response.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResponseRequest {
    /// Name of the model; the served one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Text of the user, or items of the conversation. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<ResponseInput>,
    /// System message before the conversation, of this request only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// Stored response whose conversation this request continues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_response_id: Option<String>,
    /// Functions that the model may call: `{"type": "function", "name", "description", "parameters", "strict"}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Tool>>,
    /// `none`, `auto`, `required`, or an object that names a function or allows some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    /// False limits an answer to one call; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// Maximum calls of built-in tools, of which there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tool_calls: Option<i64>,
    /// Format of the answer's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<ResponseText>,
    /// Options of models that reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<ResponseReasoning>,
    /// Maximum number of tokens to generate, reasoning included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<i64>,
    /// Temperature; 0 is greedy; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus sampling mass, in `0 < p <= 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Likeliest tokens to report at each position, if log probabilities are included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<i64>,
    /// Further parts of the response: `message.output_text.logprobs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<String>>,
    /// Pairs of the caller, returned as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// True to keep the response for later requests; true when absent, unless `kv_sharing.store` is false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<bool>,
    /// True to answer in server-sent events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Only false is supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<bool>,
    /// Only `disabled` is supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncation: Option<String>,
    /// Accepted: there is one tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<String>,
    /// End user of the caller; returned, never interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// End user of the caller; returned, never interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_identifier: Option<String>,
    /// Returned, never interpreted: KV is found by content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_cache_key: Option<String>,
    /// Narrows the scope of cache sharing to requests with the same salt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// KV that this request may reuse and store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_sharing: Option<KvSharingOptions>,
    /// Unknown fields: those of a chat request mean the same here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Input of a request: a text of the user, or items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a string or a list of items")]
pub enum ResponseInput {
    /// Text of a user's message.
    Text(String),
    /// Items in order.
    Items(Vec<InputItem>),
}

/// An item of a conversation: a message, a call of a function, its output, reasoning, or a reference to a stored item.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InputItem {
    /// `message` (when absent too), `function_call`, `function_call_output`, `reasoning` or `item_reference`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Id of the item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `in_progress`, `completed` or `incomplete`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Role of a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Content of a message, or of reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<ItemContent>,
    /// Call that a `function_call` makes, or that its output answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// Function of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Arguments of a call: the text of a JSON object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
    /// Output of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<ItemContent>,
    /// Summary of reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Vec<ItemPart>>,
    /// Unknown fields.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A text, or a list of parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a string or a list of content parts")]
pub enum ItemContent {
    /// The text itself.
    Text(String),
    /// Parts, joined in order.
    Parts(Vec<ItemPart>),
}

/// One part of an item.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ItemPart {
    /// `input_text`, `output_text`, `refusal`, `reasoning_text` or `summary_text`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Text of a `refusal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Format of an answer's text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, remote = "Self")]
pub struct ResponseText {
    /// `{"type": "text"}`, `{"type": "json_object"}` or `{"type": "json_schema", "name", "schema", "strict"}`.
    pub format: Option<Map<String, Value>>,
    /// Accepted and returned.
    pub verbosity: Option<String>,
}

/// Options of models that reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, remote = "Self")]
pub struct ResponseReasoning {
    /// Effort: a variable of chat templates.
    pub effort: Option<String>,
    /// Accepted and returned: reasoning is shown as it is, never summarized.
    pub summary: Option<String>,
}

read_only_from!(deserialize_map, FromObject, ResponseText);
read_only_from!(deserialize_map, FromObject, ResponseReasoning);

/// A response, with the settings of its request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResponseObject {
    /// `resp_...`.
    pub id: String,
    /// `response`.
    pub object: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Seconds since 1970; `null` unless completed.
    pub completed_at: Option<u64>,
    /// Progress of the response.
    pub status: ResponseStatus,
    /// Always false.
    pub background: bool,
    /// Reason of a failure.
    pub error: Option<ResponseError>,
    /// Reason why the output is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// As in the request.
    pub instructions: Option<String>,
    /// As in the request.
    pub max_output_tokens: Option<i64>,
    /// As in the request.
    pub max_tool_calls: Option<i64>,
    /// As in the request.
    pub metadata: BTreeMap<String, String>,
    /// Name of the model.
    pub model: String,
    /// Items of the answer: reasoning, then a message, then calls.
    pub output: Vec<OutputItem>,
    /// True if the answer may call several functions.
    pub parallel_tool_calls: bool,
    /// As in the request.
    pub previous_response_id: Option<String>,
    /// As in the request.
    pub prompt_cache_key: Option<String>,
    /// As in the request.
    pub reasoning: ResponseReasoning,
    /// As in the request.
    pub safety_identifier: Option<String>,
    /// `default`.
    pub service_tier: String,
    /// True if the response was to be kept.
    pub store: bool,
    /// Temperature in force.
    pub temperature: f64,
    /// As in the request.
    pub text: ResponseText,
    /// As in the request; `auto` when absent.
    pub tool_choice: Value,
    /// As in the request.
    pub tools: Vec<Tool>,
    /// As in the request; 0 when absent.
    pub top_logprobs: i64,
    /// Nucleus sampling mass in force.
    pub top_p: f64,
    /// `disabled`.
    pub truncation: String,
    /// Token counts; `null` until the end.
    pub usage: Option<ResponseUsage>,
    /// As in the request.
    pub user: Option<String>,
}

/// Progress of a response or of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    /// It is being generated.
    InProgress,
    /// It is complete.
    Completed,
    /// The token limit ended it.
    Incomplete,
    /// An error ended it.
    Failed,
}

/// Reason of a failed response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseError {
    /// `server_error` or `rate_limit_exceeded`.
    pub code: String,
    /// Message for a human.
    pub message: String,
}

/// Reason why a response is incomplete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: String,
}

/// An item that the model made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// Reasoning before the answer.
    Reasoning {
        /// `rs_...`.
        id: String,
        /// Always empty.
        summary: Vec<Value>,
        /// One part, `reasoning_text`.
        content: Vec<OutputPart>,
        /// Progress.
        status: ResponseStatus,
    },
    /// The answer's text.
    Message {
        /// `msg_...`.
        id: String,
        /// `assistant`.
        role: String,
        /// Progress.
        status: ResponseStatus,
        /// One part, `output_text`.
        content: Vec<OutputPart>,
    },
    /// A call of a function.
    FunctionCall {
        /// `fc_...`.
        id: String,
        /// `call_...`, by which a `function_call_output` answers it.
        call_id: String,
        /// Name of the function.
        name: String,
        /// Text of a JSON object.
        arguments: String,
        /// Progress.
        status: ResponseStatus,
    },
}

impl OutputItem {
    /// Returns its id.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. } | Self::Message { id, .. } | Self::FunctionCall { id, .. } => id,
        }
    }
}

/// A part of an item that the model made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputPart {
    /// Text of an answer.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        annotations: Vec<Value>,
        /// Log probabilities of the text's tokens; empty unless included.
        logprobs: Vec<ChatLogProb>,
    },
    /// Text of reasoning.
    ReasoningText {
        /// The text.
        text: String,
    },
}

/// Token counts of a response.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResponseUsage {
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Always present.
    pub input_tokens_details: InputTokensDetails,
    /// Tokens of the answer, reasoning and stop tokens included.
    pub output_tokens: u32,
    /// Always present.
    pub output_tokens_details: OutputTokensDetails,
    /// Sum of both.
    pub total_tokens: u32,
    /// Source of the prompt's KV.
    pub kv_sharing: KvSharingUsage,
}

/// Prompt tokens that were not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputTokensDetails {
    /// Tokens whose KV was reused exactly, as a prefix.
    pub cached_tokens: u32,
    /// Always 0: writes are not charged.
    #[serde(default)]
    pub cache_write_tokens: u32,
}

/// Output tokens that are not text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputTokensDetails {
    /// Tokens of reasoning.
    pub reasoning_tokens: u32,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails {
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
                cache_write_tokens: 0,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: usage.completion_tokens_details.reasoning_tokens },
            total_tokens: usage.total_tokens,
            kv_sharing: usage.kv_sharing,
        }
    }
}

/// One event of a streamed response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResponseEvent {
    /// Type and fields of the event.
    #[serde(flatten)]
    pub kind: ResponseEventKind,
    /// Index among the events of the stream.
    pub sequence_number: u64,
}

/// Type of an event, with its own fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum ResponseEventKind {
    /// The response exists.
    #[serde(rename = "response.created")]
    Created {
        /// Without output.
        response: Box<ResponseObject>,
    },
    /// The response is being generated.
    #[serde(rename = "response.in_progress")]
    InProgress {
        /// Without output.
        response: Box<ResponseObject>,
    },
    /// An item begins.
    #[serde(rename = "response.output_item.added")]
    OutputItemAdded {
        /// Index among the items of the output.
        output_index: u32,
        /// The item, still empty.
        item: OutputItem,
    },
    /// A part of an item begins.
    #[serde(rename = "response.content_part.added")]
    ContentPartAdded {
        /// Id of the item.
        item_id: String,
        /// Index among the items of the output.
        output_index: u32,
        /// Index among the parts of the item.
        content_index: u32,
        /// The part, still empty.
        part: OutputPart,
    },
    /// Text is added.
    #[serde(rename = "response.output_text.delta")]
    OutputTextDelta {
        /// Id of the item.
        item_id: String,
        /// Index among the items of the output.
        output_index: u32,
        /// Index among the parts of the item.
        content_index: u32,
        /// Further text.
        delta: String,
        /// Log probabilities of its tokens; empty unless included.
        logprobs: Vec<ChatLogProb>,
    },
    /// The text is complete.
    #[serde(rename = "response.output_text.done")]
    OutputTextDone {
        /// Id of the item.
        item_id: String,
        /// Index among the items of the output.
        output_index: u32,
        /// Index among the parts of the item.
        content_index: u32,
        /// The text.
        text: String,
        /// Log probabilities of its tokens; empty unless included.
        logprobs: Vec<ChatLogProb>,
    },
    /// Reasoning is added.
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningTextDelta {
        /// Id of the item.
        item_id: String,
        /// Index among the items of the output.
        output_index: u32,
        /// Index among the parts of the item.
        content_index: u32,
        /// Further text.
        delta: String,
    },
    /// The reasoning is complete.
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningTextDone {
        /// Id of the item.
        item_id: String,
        /// Index among the items of the output.
        output_index: u32,
        /// Index among the parts of the item.
        content_index: u32,
        /// The text.
        text: String,
    },
    /// Text of a call's arguments is added.
    #[serde(rename = "response.function_call_arguments.delta")]
    FunctionCallArgumentsDelta {
        /// Id of the item.
        item_id: String,
        /// Index among the items of the output.
        output_index: u32,
        /// Further text.
        delta: String,
    },
    /// The arguments of a call are complete.
    #[serde(rename = "response.function_call_arguments.done")]
    FunctionCallArgumentsDone {
        /// Id of the item.
        item_id: String,
        /// Index among the items of the output.
        output_index: u32,
        /// Name of the function.
        name: String,
        /// Text of a JSON object.
        arguments: String,
    },
    /// A part of an item is complete.
    #[serde(rename = "response.content_part.done")]
    ContentPartDone {
        /// Id of the item.
        item_id: String,
        /// Index among the items of the output.
        output_index: u32,
        /// Index among the parts of the item.
        content_index: u32,
        /// The part.
        part: OutputPart,
    },
    /// An item is complete.
    #[serde(rename = "response.output_item.done")]
    OutputItemDone {
        /// Index among the items of the output.
        output_index: u32,
        /// The item.
        item: OutputItem,
    },
    /// The response is complete.
    #[serde(rename = "response.completed")]
    Completed {
        /// The whole response.
        response: Box<ResponseObject>,
    },
    /// The token limit ended the response.
    #[serde(rename = "response.incomplete")]
    Incomplete {
        /// The whole response.
        response: Box<ResponseObject>,
    },
    /// An error ended the response.
    #[serde(rename = "response.failed")]
    Failed {
        /// The response so far, with the error.
        response: Box<ResponseObject>,
    },
}

impl ResponseEventKind {
    /// Returns the name of the type.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::OutputItemAdded { .. } => "response.output_item.added",
            Self::ContentPartAdded { .. } => "response.content_part.added",
            Self::OutputTextDelta { .. } => "response.output_text.delta",
            Self::OutputTextDone { .. } => "response.output_text.done",
            Self::ReasoningTextDelta { .. } => "response.reasoning_text.delta",
            Self::ReasoningTextDone { .. } => "response.reasoning_text.done",
            Self::FunctionCallArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::FunctionCallArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::ContentPartDone { .. } => "response.content_part.done",
            Self::OutputItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
        }
    }
}

/// Confirmation that a response was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedResponse {
    /// Id of the response.
    pub id: String,
    /// `response`.
    pub object: String,
    /// Always true.
    pub deleted: bool,
}

/// One page of the input of a response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputItemList {
    /// `list`.
    pub object: String,
    /// Items of the page.
    pub data: Vec<InputItem>,
    /// Id of the first one.
    pub first_id: Option<String>,
    /// Id of the last one, after which the next page begins.
    pub last_id: Option<String>,
    /// True if more items follow.
    pub has_more: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn input_is_a_text_or_items() {
        let input = |value: Value| serde_json::from_value::<ResponseRequest>(json!({"input": value})).unwrap().input;
        assert_eq!(input(json!("a")), Some(ResponseInput::Text("a".into())));
        let Some(ResponseInput::Items(items)) = input(json!([
            {"role": "user", "content": "a"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": null},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}", "status": null},
            {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "b"}]},
        ])) else {
            panic!("items")
        };
        assert_eq!(items[0].content, Some(ItemContent::Text("a".into())));
        assert_eq!((items[1].kind.as_deref(), items[1].summary.as_deref()), (Some("reasoning"), Some(&[][..])));
        assert_eq!((items[2].arguments.as_deref(), &items[2].status), (Some("{}"), &None));
        assert!(matches!(&items[3].output, Some(ItemContent::Parts(parts)) if parts[0].text.as_deref() == Some("b")));
        assert!(serde_json::from_value::<ResponseRequest>(json!({"input": [["message"]]})).is_err());
    }

    #[test]
    fn an_item_that_the_model_made_is_input_of_the_next_request() {
        let part = OutputPart::OutputText { text: "a".into(), annotations: vec![], logprobs: vec![] };
        let message = OutputItem::Message {
            id: "msg_1".into(),
            role: "assistant".into(),
            status: ResponseStatus::Completed,
            content: vec![part],
        };
        let written = serde_json::to_value(&message).unwrap();
        assert_eq!(
            written,
            json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                   "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]})
        );
        let item: InputItem = serde_json::from_value(written.clone()).unwrap();
        assert_eq!((item.kind.as_deref(), item.role.as_deref()), (Some("message"), Some("assistant")));
        assert_eq!(serde_json::to_value(item).unwrap(), written);
    }

    #[test]
    fn an_event_has_its_type_and_its_number() {
        let kind = ResponseEventKind::FunctionCallArgumentsDelta { item_id: "fc_1".into(), output_index: 1, delta: "{".into() };
        let name = kind.name();
        assert_eq!(
            serde_json::to_value(ResponseEvent { kind, sequence_number: 7 }).unwrap(),
            json!({"type": name, "item_id": "fc_1", "output_index": 1, "delta": "{", "sequence_number": 7})
        );
    }
}
