//! `/v1/messages` and `/v1/messages/count_tokens`, in the shapes of Anthropic's API.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::object::read_only_from;
use crate::{KvSharingOptions, KvSharingUsage};

/// Body of a request for a message, or for the number of its input tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessagesRequest {
    /// Name of the model. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation so far. Required, not empty. The answer continues a last message of the assistant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<InputMessage>>,
    /// Instructions before the conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<BlockContent>,
    /// Maximum number of tokens to generate. Required for a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i64>,
    /// Texts that end generation and are not returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_sequences: Option<Vec<String>>,
    /// True to answer in server-sent events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Temperature in `0..=1`; 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus sampling mass, in `0 < p <= 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Likeliest tokens to keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// Facts about the request; only `user_id` is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MessageMetadata>,
    /// Tools that the model may call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<InputTool>>,
    /// Choice among the tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<InputToolChoice>,
    /// Switch of the model's reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<ThinkingConfig>,
    /// Constraint of the answer's text, and effort of models that reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_config: Option<OutputConfig>,
    /// Narrows the scope of cache sharing to requests with the same salt. An extension of this server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// KV that this request may reuse and store. An extension of this server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_sharing: Option<KvSharingOptions>,
    /// Unknown fields. Some of them must be refused rather than ignored.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InputMessage {
    /// `user`, `assistant` or `system`.
    pub role: String,
    /// Content of the message.
    pub content: Option<BlockContent>,
}

/// A text, or a list of blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a string or a list of content blocks")]
pub enum BlockContent {
    /// The text itself.
    Text(String),
    /// Blocks in order.
    Blocks(Vec<InputBlock>),
}

/// One block of a message. Each kind has some of the fields; hints such as `cache_control` are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, remote = "Self")]
pub struct InputBlock {
    /// `text`, `thinking`, `redacted_thinking`, `tool_use` or `tool_result`. No other kind is supported.
    #[serde(rename = "type")]
    pub kind: String,
    /// Text of a `text` block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Reasoning of a `thinking` block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    /// Id of a `tool_use` block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Name of the tool of a `tool_use` block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Arguments of a `tool_use` block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Map<String, Value>>,
    /// Id of the `tool_use` block that a `tool_result` block answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_use_id: Option<String>,
    /// Content of a `tool_result` block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<BlockContent>,
    /// True if the tool of a `tool_result` block failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_error: Option<bool>,
}

read_only_from!(deserialize_map, FromObject, InputBlock);

/// Facts about a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, remote = "Self")]
pub struct MessageMetadata {
    /// End user of the caller; passed on, never interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
}

read_only_from!(deserialize_map, FromObject, MessageMetadata);

/// A tool that the model may call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, remote = "Self")]
pub struct InputTool {
    /// `custom` when absent. Tools that Anthropic's servers run have other types, which are not supported.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name of the tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Description for the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of the arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Map<String, Value>>,
    /// True if the arguments must match the schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

read_only_from!(deserialize_map, FromObject, InputTool);

/// Choice among the tools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, remote = "Self")]
pub struct InputToolChoice {
    /// `auto`, `any`, `tool` or `none`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name of the tool, for the type `tool`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// True limits an answer to one call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_parallel_tool_use: Option<bool>,
}

read_only_from!(deserialize_map, FromObject, InputToolChoice);

/// Switch of the model's reasoning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, remote = "Self")]
pub struct ThinkingConfig {
    /// `enabled`, `disabled`, or another type, which leaves the choice to the model.
    #[serde(rename = "type")]
    pub kind: String,
}

read_only_from!(deserialize_map, FromObject, ThinkingConfig);

/// Constraint of the answer's text, and effort of models that reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, remote = "Self")]
pub struct OutputConfig {
    /// Effort of models that reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effort: Option<String>,
    /// `{"type": "json_schema", "schema": {...}}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<OutputFormat>,
}

read_only_from!(deserialize_map, FromObject, OutputConfig);

/// Constraint of the answer's text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, remote = "Self")]
pub struct OutputFormat {
    /// `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
}

read_only_from!(deserialize_map, FromObject, OutputFormat);

/// A message of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Id of this message.
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `assistant`.
    pub role: String,
    /// Name of the model.
    pub model: String,
    /// Blocks in the order of generation.
    pub content: Vec<OutputBlock>,
    /// Reason why generation ended; `null` in the first event of a stream.
    pub stop_reason: Option<StopReason>,
    /// Stop sequence that matched.
    pub stop_sequence: Option<String>,
    /// Token counts.
    pub usage: MessageUsage,
}

/// One block of a message of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// Reasoning before the answer.
    Thinking {
        /// The reasoning.
        thinking: String,
        /// Always empty: this server trusts the reasoning that a client sends back.
        signature: String,
    },
    /// Call of a tool.
    ToolUse {
        /// Id by which a `tool_result` block answers it.
        id: String,
        /// Name of the tool.
        name: String,
        /// Arguments.
        input: Map<String, Value>,
    },
}

/// Reason why generation of a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// End of the model's turn.
    EndTurn,
    /// The token limit.
    MaxTokens,
    /// One of `stop_sequences`.
    StopSequence,
    /// Calls of tools.
    ToolUse,
}

/// Token counts of one message. The three counts of input tokens add up to the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageUsage {
    /// Prompt tokens that were not reused as a prefix.
    pub input_tokens: u32,
    /// Always 0: storing KV costs nothing extra.
    pub cache_creation_input_tokens: u32,
    /// Prompt tokens whose KV was reused exactly, as a prefix.
    pub cache_read_input_tokens: u32,
    /// Generated tokens, stop tokens included.
    pub output_tokens: u32,
    /// Source of the prompt's KV. An extension of this server.
    pub kv_sharing: KvSharingUsage,
}

/// Number of tokens of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageTokensCount {
    /// Tokens of the prompt, those of its template included.
    pub input_tokens: usize,
}

/// One event of a streamed message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MessageEvent {
    /// Start of the message, without content.
    MessageStart {
        /// The message so far.
        message: Message,
    },
    /// Start of a block, without content.
    ContentBlockStart {
        /// Index of the block.
        index: u32,
        /// The block so far.
        content_block: OutputBlock,
    },
    /// Increment of a block.
    ContentBlockDelta {
        /// Index of the block.
        index: u32,
        /// Addition to the block.
        delta: BlockDelta,
    },
    /// End of a block.
    ContentBlockStop {
        /// Index of the block.
        index: u32,
    },
    /// End of the content.
    MessageDelta {
        /// Fields of the message that were not known at its start.
        delta: MessageDelta,
        /// Token counts of the whole message.
        usage: MessageUsage,
    },
    /// End of the stream.
    MessageStop,
    /// Sign of life while nothing is generated.
    Ping,
}

impl MessageEvent {
    /// Returns the type, which is the name of the server-sent event too.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Ping => "ping",
        }
    }
}

/// Increment of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BlockDelta {
    /// Further text.
    TextDelta {
        /// The text.
        text: String,
    },
    /// Further reasoning.
    ThinkingDelta {
        /// The reasoning.
        thinking: String,
    },
    /// Signature at the end of the reasoning.
    SignatureDelta {
        /// Always empty.
        signature: String,
    },
    /// Further text of the arguments of a call.
    InputJsonDelta {
        /// Part of the text of a JSON object.
        partial_json: String,
    },
}

/// Fields of a message that are known at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageDelta {
    /// Reason why generation ended.
    pub stop_reason: Option<StopReason>,
    /// Stop sequence that matched.
    pub stop_sequence: Option<String>,
}

/// Anthropic's error object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageErrorResponse {
    /// `error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The error itself.
    pub error: MessageError,
    /// Id of the request, as in the header `request-id`; `null` if the request was refused before it had one.
    pub request_id: Option<String>,
}

/// Type and description of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageError {
    /// Type, as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Description of the fault.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_keeps_unknown_fields_apart_and_ignores_hints_on_blocks() {
        let request: MessagesRequest = serde_json::from_value(json!({
            "model": "m", "max_tokens": 5, "service_tier": "auto",
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "messages": [{"role": "user", "content": "hi"}],
        }))
        .unwrap();
        assert_eq!(request.other.keys().collect::<Vec<_>>(), ["service_tier"]);
        let block = InputBlock { kind: "text".into(), text: Some("s".into()), ..InputBlock::default() };
        assert_eq!(request.system, Some(BlockContent::Blocks(vec![block])));
    }

    #[test]
    fn blocks_are_objects() {
        for content in [json!(3), json!(["hi"]), json!([["text", "hi"]])] {
            let message = json!({"role": "user", "content": content});
            assert!(serde_json::from_value::<InputMessage>(message.clone()).is_err(), "{message}");
        }
    }

    #[test]
    fn events_carry_their_name_as_type() {
        let events = [
            MessageEvent::ContentBlockStart { index: 0, content_block: OutputBlock::Text { text: String::new() } },
            MessageEvent::ContentBlockDelta { index: 0, delta: BlockDelta::InputJsonDelta { partial_json: "{".into() } },
            MessageEvent::ContentBlockStop { index: 0 },
            MessageEvent::MessageStop,
            MessageEvent::Ping,
        ];
        for event in events {
            assert_eq!(serde_json::to_value(&event).unwrap()["type"], event.name());
        }
        let delta = MessageDelta { stop_reason: Some(StopReason::StopSequence), stop_sequence: Some("x".into()) };
        assert_eq!(serde_json::to_value(delta).unwrap(), json!({"stop_reason": "stop_sequence", "stop_sequence": "x"}));
    }
}
