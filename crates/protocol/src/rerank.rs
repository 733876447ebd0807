//! `/v1/rerank`, in the shapes of Cohere and Jina, and `/v1/score`, in vLLM's.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::EmbeddingUsage;
use crate::object::read_only_from;

/// Body of a request that orders documents by their relevance to a query.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RerankRequest {
    /// Name of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The query. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The documents. Required, not empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents: Option<Vec<RerankDocument>>,
    /// Number of results; all documents when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_n: Option<i64>,
    /// True if results carry their documents; false when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_documents: Option<bool>,
    /// Maximum tokens of a document, the further ones of which are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens_per_doc: Option<i64>,
    /// The same for query and documents; -1 for the model's maximum. A longer text is an error when both are absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate_prompt_tokens: Option<i64>,
    /// End user of the caller; never interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Unknown fields. Some of them must be refused rather than ignored.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A document to be ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a string, or an object with the field `text`")]
pub enum RerankDocument {
    /// The text itself.
    Text(String),
    /// The text as a field.
    Object(DocumentText),
}

/// A document as an object. Other fields of it are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct DocumentText {
    /// The text.
    pub text: String,
}

read_only_from!(deserialize_map, FromObject, DocumentText);

impl RerankDocument {
    /// Returns the text.
    #[must_use]
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object(DocumentText { text }) => text,
        }
    }
}

/// Body of an answer with documents in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RerankResponse {
    /// Id of this response.
    pub id: String,
    /// Name of the model.
    pub model: String,
    /// The most relevant documents, best first.
    pub results: Vec<RerankResult>,
    /// Token counts.
    pub usage: EmbeddingUsage,
}

/// A document's place in the order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RerankResult {
    /// Index of the document in the request.
    pub index: usize,
    /// Cosine of its embedding and the query's, in `-1..=1`.
    pub relevance_score: f32,
    /// The document, if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentText>,
}

/// Body of a request that compares texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScoreRequest {
    /// Name of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// One text, compared with each of `text_2`, or as many as there are in `text_2`. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_1: Option<Texts>,
    /// The other texts. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_2: Option<Texts>,
    /// Maximum tokens of a text, the further ones of which are dropped; -1 for the model's maximum. A longer text is an error when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate_prompt_tokens: Option<i64>,
    /// End user of the caller; never interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Unknown fields. Some of them must be refused rather than ignored.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One text or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub enum Texts {
    /// A single text.
    One(String),
    /// Several texts.
    Many(Vec<String>),
}

/// Body of an answer with scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreResponse {
    /// Id of this response.
    pub id: String,
    /// `list`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// One for each pair, in their order.
    pub data: Vec<ScoreObject>,
    /// Token counts.
    pub usage: EmbeddingUsage,
}

/// Score of one pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreObject {
    /// Index of the pair.
    pub index: usize,
    /// `score`.
    pub object: String,
    /// Cosine of the two embeddings, in `-1..=1`.
    pub score: f32,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_a_text_or_has_one() {
        let parse = |value: Value| serde_json::from_value::<RerankDocument>(value).map(RerankDocument::into_text);
        assert_eq!(parse(json!("a")).unwrap(), "a");
        assert_eq!(parse(json!({"text": "a", "title": "b"})).unwrap(), "a");
        for value in [json!({"title": "b"}), json!(["a"]), json!(3)] {
            let error = parse(value.clone()).unwrap_err().to_string();
            assert!(error.contains("an object with the field `text`"), "{value}: {error}");
        }
    }

    #[test]
    fn a_result_has_its_document_only_if_that_was_asked_for() {
        let result = RerankResult { index: 2, relevance_score: 0.5, document: None };
        assert_eq!(serde_json::to_value(&result).unwrap(), json!({"index": 2, "relevance_score": 0.5}));
        let with = RerankResult { document: Some(DocumentText { text: "a".into() }), ..result };
        assert_eq!(serde_json::to_value(&with).unwrap()["document"], json!({"text": "a"}));
    }

    #[test]
    fn texts_are_one_or_many() {
        let parse = |value: Value| serde_json::from_value::<Texts>(value);
        assert_eq!(parse(json!("a")).unwrap(), Texts::One("a".into()));
        assert_eq!(parse(json!(["a", "b"])).unwrap(), Texts::Many(vec!["a".into(), "b".into()]));
        assert!(parse(json!([1])).is_err());
    }
}
