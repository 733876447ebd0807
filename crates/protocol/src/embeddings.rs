//! `/v1/embeddings`, in OpenAI's shapes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Prompt;
use crate::object::read_only_from;

/// Body of a request for embeddings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddingsRequest {
    /// Name of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Texts, or token ids of the embedding model. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Prompt>,
    /// Form of the embeddings; `float` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding_format: Option<EncodingFormat>,
    /// Elements of an embedding: the first ones, scaled to length 1 again. All when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<i64>,
    /// Maximum tokens of an input, the further ones of which are dropped; -1 for the model's maximum. A longer input is an error when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate_prompt_tokens: Option<i64>,
    /// End user of the caller; never interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Unknown fields. Some of them must be refused rather than ignored.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Form of an embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// Base64 (RFC 4648, with padding) of the numbers, each an f32 in little-endian order.
    Base64,
}

read_only_from!(deserialize_str, FromName, EncodingFormat);

/// Body of an answer with embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingsResponse {
    /// `list`.
    pub object: String,
    /// One for each input, in their order.
    pub data: Vec<EmbeddingObject>,
    /// Name of the model.
    pub model: String,
    /// Token counts.
    pub usage: EmbeddingUsage,
}

/// Embedding of one input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingObject {
    /// `embedding`.
    pub object: String,
    /// Index of the input.
    pub index: usize,
    /// Its embedding, of length 1.
    pub embedding: EmbeddingValue,
}

/// An embedding, in the requested form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a list of numbers, or their base64")]
pub enum EmbeddingValue {
    /// As numbers.
    Float(Vec<f32>),
    /// As base64.
    Base64(String),
}

/// Token counts of a request that generates nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingUsage {
    /// Tokens of all texts, the model's special tokens included.
    pub prompt_tokens: usize,
    /// The same number.
    pub total_tokens: usize,
}

impl From<usize> for EmbeddingUsage {
    /// Creates the usage of a number of tokens.
    fn from(num_tokens: usize) -> Self {
        Self { prompt_tokens: num_tokens, total_tokens: num_tokens }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_format_is_a_name_and_nothing_else() {
        let parse = |value: Value| serde_json::from_value::<EncodingFormat>(value);
        assert_eq!(parse(json!("base64")).unwrap(), EncodingFormat::Base64);
        for value in [json!("BASE64"), json!({"float": null}), json!(1)] {
            assert!(parse(value.clone()).is_err(), "{value}");
        }
    }

    #[test]
    fn an_answer_has_the_shape_of_openai() {
        let object = |index, embedding| EmbeddingObject { object: "embedding".into(), index, embedding };
        let answer = EmbeddingsResponse {
            object: "list".into(),
            data: vec![
                object(0, EmbeddingValue::Float(vec![0.5, -1.0])),
                object(1, EmbeddingValue::Base64("AAAAPwAAgL8=".into())),
            ],
            model: "m".into(),
            usage: 7.into(),
        };
        let expected = json!({
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
                {"object": "embedding", "index": 1, "embedding": "AAAAPwAAgL8="},
            ],
            "model": "m",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        });
        assert_eq!(serde_json::to_value(&answer).unwrap(), expected);
        assert_eq!(serde_json::from_value::<EmbeddingsResponse>(expected).unwrap(), answer);
    }
}
