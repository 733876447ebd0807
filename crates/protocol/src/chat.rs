//! `/v1/chat/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::object::read_only_from;
use crate::{
    ChatLogProbs, ConstraintFields, FinishReason, SamplingFields, TemplateFields, ToolCall, ToolCallDelta, ToolFields, Usage,
};

/// Body of a chat request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatCompletionRequest {
    /// Name of the model. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation so far. Required, not empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<ChatMessage>>,
    /// Newer name of `max_tokens`; wins over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<i64>,
    /// True to report log probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// Likeliest tokens to report at each position; needs `logprobs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<i64>,
    /// Options of rendering the conversation into a prompt.
    #[serde(flatten)]
    pub template: TemplateFields,
    /// Choice among the tools.
    #[serde(flatten)]
    pub tools: ToolFields,
    /// Constraint of the answer's text.
    #[serde(flatten)]
    pub constraint: ConstraintFields,
    /// All other supported fields.
    #[serde(flatten)]
    pub sampling: SamplingFields,
    /// Unknown fields. Some of them must be refused rather than ignored.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Content of the message.
    pub content: Option<MessageContent>,
    /// Name of the author, for templates that use names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls that an assistant's message made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Call that a message with role `tool` answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Reasoning before an assistant's message, for templates that show it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A text, or a list of parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a string or a list of content parts")]
pub enum MessageContent {
    /// The text itself.
    Text(String),
    /// Parts, joined in order.
    Parts(Vec<ContentPart>),
}

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct ContentPart {
    /// Only `text` is supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a `text` part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

read_only_from!(deserialize_map, FromObject, ContentPart);

/// Body of a chat answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletionResponse {
    /// Id of this response.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// Changes when the same seed may give another response.
    pub system_fingerprint: String,
    /// One choice for each of the `n`.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
}

/// One of the `n` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// Index among the `n`.
    pub index: u32,
    /// The message.
    pub message: AssistantMessage,
    /// `null` unless requested.
    pub logprobs: Option<ChatLogProbs>,
    /// Reason why generation ended.
    pub finish_reason: FinishReason,
    /// Stop string that ended generation. Only Anthropic's Messages show it.
    #[serde(skip)]
    pub matched_stop: Option<String>,
}

/// A message of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: String,
    /// The text; `null` for a message that only calls tools.
    pub content: Option<String>,
    /// Always `null`: this server refuses nothing on behalf of the model.
    pub refusal: Option<String>,
    /// Reasoning of a model that shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls of tools; absent without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// One event of a streamed chat answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletionChunk {
    /// Id of the response, the same in all its chunks.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Seconds since 1970, the same in all chunks.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// As in [`ChatCompletionResponse`].
    pub system_fingerprint: String,
    /// Empty in the chunk that carries the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Absent unless requested: then null in all chunks but the last, or in each chunk the usage so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// Update of one choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChunkChoice {
    /// Index among the `n`.
    pub index: u32,
    /// Text added by this chunk.
    pub delta: Delta,
    /// Log probabilities of the tokens in `delta`.
    pub logprobs: Option<ChatLogProbs>,
    /// Set in the last chunk of this choice.
    pub finish_reason: Option<FinishReason>,
}

/// Increment that a chunk adds to the message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Set only in the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Further text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Further reasoning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Updates of calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_are_not_understood_are_kept_apart() {
        let request: ChatCompletionRequest = serde_json::from_value(json!({
            "model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 1, "suffix": "s", "my_field": 3,
        }))
        .unwrap();
        assert_eq!(request.sampling.temperature, Some(1.0));
        assert_eq!(request.other.keys().collect::<Vec<_>>(), ["suffix", "my_field"]);
    }

    #[test]
    fn content_is_a_text_or_parts_or_null() {
        let message = |value: Value| serde_json::from_value::<ChatMessage>(value).unwrap().content;
        assert_eq!(message(json!({"role": "user", "content": "a"})), Some(MessageContent::Text("a".into())));
        assert_eq!(message(json!({"role": "assistant", "content": null})), None);
        let part = ContentPart { kind: "text".into(), text: Some("b".into()) };
        assert_eq!(
            message(json!({"role": "user", "content": [{"type": "text", "text": "b"}]})),
            Some(MessageContent::Parts(vec![part]))
        );
    }

    #[test]
    fn a_chunk_without_usage_does_not_name_it() {
        let chunk = ChatCompletionChunk {
            id: "i".into(),
            object: "chat.completion.chunk".into(),
            created: 1,
            model: "m".into(),
            system_fingerprint: "f".into(),
            choices: vec![ChatChunkChoice {
                index: 0,
                delta: Delta::default(),
                logprobs: None,
                finish_reason: Some(FinishReason::Stop),
            }],
            usage: None,
        };
        assert_eq!(
            serde_json::to_value(chunk).unwrap(),
            json!({"id": "i", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "f",
                   "choices": [{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}]})
        );
    }
}
