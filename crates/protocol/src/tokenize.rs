//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{ChatMessage, TemplateFields};

/// A text, or a conversation, to be tokenized.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizeRequest {
    /// Name of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A text. Either this or `messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// A conversation, rendered by the chat template. Either this or `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<ChatMessage>>,
    /// True if the model's special tokens are added to a text; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_special_tokens: Option<bool>,
    /// True to return the texts of the tokens too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_token_strs: Option<bool>,
    /// Options of rendering the conversation into a prompt.
    #[serde(flatten)]
    pub template: TemplateFields,
    /// Unknown fields. Some of them must be refused rather than ignored.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Tokens of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeResponse {
    /// Number of tokens.
    pub count: usize,
    /// Maximum number of tokens of prompt and answer together.
    pub max_model_len: u32,
    /// Ids of the tokens.
    pub tokens: Vec<u32>,
    /// Texts of the tokens, if requested.
    pub token_strs: Option<Vec<String>>,
}

/// Tokens to be turned back into text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DetokenizeRequest {
    /// Name of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Ids of the tokens. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<u32>>,
    /// True if special tokens are omitted; false when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_special_tokens: Option<bool>,
    /// Unknown fields. Some of them must be refused rather than ignored.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Text of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetokenizeResponse {
    /// The text, special tokens included unless the request omits them.
    pub prompt: String,
}
