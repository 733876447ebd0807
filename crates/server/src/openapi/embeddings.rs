//! Schemas of embeddings, orders and scores of texts.

use serde_json::{Value, json};

/// Returns the schema of a request for embeddings.
pub(super) fn embeddings_request() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    let ids = json!({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1});
    let list = |items: &Value| json!({"type": "array", "items": items, "minItems": 1, "maxItems": 2048});
    let input = json!({
        "oneOf": [&text, list(&text), &ids, list(&ids)], "examples": [["a text", "another"]],
        "description": "Texts, or ids of the embedding model's vocabulary, which are taken as they are, without special tokens around them.",
    });
    let format = json!({
        "enum": ["float", "base64", null], "examples": ["base64"],
        "description": "base64: of the elements as f32, little-endian. float when absent.",
    });
    let dimensions = json!({
        "type": ["integer", "null"], "minimum": 1, "examples": [64],
        "description": "The first elements only, scaled to length 1 again.",
    });
    request(
        &["input"],
        json!({
            "model": name(), "input": input, "encoding_format": format, "dimensions": dimensions,
            "truncate_prompt_tokens": cut("an input"), "user": user(),
        }),
    )
}

/// Returns the schema of an answer with embeddings.
pub(super) fn embeddings_response() -> Value {
    let embedding = json!({
        "oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string", "contentEncoding": "base64"}],
        "description": "Of length 1.",
    });
    let object = response(json!({"object": {"const": "embedding"}, "index": index("input"), "embedding": embedding}));
    response(json!({
        "object": {"const": "list"}, "data": {"type": "array", "items": object}, "model": {"type": "string"}, "usage": usage(),
    }))
}

/// Returns the schema of a request to order documents.
pub(super) fn rerank_request() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    let document = json!({"oneOf": [&text, {"type": "object", "required": ["text"], "properties": {"text": &text}}]});
    let documents = json!({
        "type": "array", "items": document, "minItems": 1, "maxItems": 2048, "examples": [["a text", {"text": "another"}]],
    });
    let top_n =
        json!({"type": ["integer", "null"], "minimum": 1, "examples": [1], "description": "Number of results; all when absent."});
    let returns =
        json!({"type": ["boolean", "null"], "examples": [true], "description": "Whether results carry their documents."});
    let max_tokens_per_doc = json!({
        "type": ["integer", "null"], "minimum": 1, "examples": [256],
        "description": "Further tokens of a document are dropped; so are those beyond the model's maximum, if this is given.",
    });
    request(
        &["query", "documents"],
        json!({
            "model": name(), "query": {"type": "string", "minLength": 1, "examples": ["a question"]}, "documents": documents,
            "top_n": top_n, "return_documents": returns, "max_tokens_per_doc": max_tokens_per_doc,
            "truncate_prompt_tokens": cut("the query or a document"), "user": user(),
        }),
    )
}

/// Returns the schema of an answer with documents in order.
pub(super) fn rerank_response() -> Value {
    let mut result = response(json!({"index": index("document"), "relevance_score": cosine()}));
    result["properties"]["document"] = response(json!({"text": {"type": "string"}}));
    let results = json!({"type": "array", "items": result, "description": "Most relevant first."});
    response(json!({"id": {"type": "string"}, "model": {"type": "string"}, "results": results, "usage": usage()}))
}

/// Returns the schema of a request to compare texts.
pub(super) fn score_request() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    let many = json!({"type": "array", "items": &text, "minItems": 1, "maxItems": 2048});
    let first = json!({
        "oneOf": [&text, &many], "examples": ["a text"], "description": "One text, or as many as there are in text_2.",
    });
    let second = json!({"oneOf": [&text, &many], "examples": [["another", "a third"]]});
    let cut = cut("a text");
    request(
        &["text_1", "text_2"],
        json!({"model": name(), "text_1": first, "text_2": second, "truncate_prompt_tokens": cut, "user": user()}),
    )
}

/// Returns the schema of an answer with scores.
pub(super) fn score_response() -> Value {
    let object = response(json!({"index": index("pair"), "object": {"const": "score"}, "score": cosine()}));
    response(json!({
        "id": {"type": "string"}, "object": {"const": "list"}, "created": {"type": "integer"}, "model": {"type": "string"},
        "data": {"type": "array", "items": object}, "usage": usage(),
    }))
}

#[expect(clippy::needless_pass_by_value, reason = "a JSON literal at every call")]
fn request(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": true})
}

/// Returns the schema of an object that has all of `properties`.
#[expect(clippy::needless_pass_by_value, reason = "a JSON literal at every call")]
fn response(properties: Value) -> Value {
    let required: Vec<_> = properties.as_object().into_iter().flat_map(serde_json::Map::keys).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

fn name() -> Value {
    json!({"type": ["string", "null"], "examples": ["m"], "description": "The model that embeds; it is the only one."})
}

fn user() -> Value {
    json!({"type": ["string", "null"], "examples": ["me"]})
}

fn cut(of: &str) -> Value {
    json!({
        "type": ["integer", "null"], "minimum": -1, "examples": [-1],
        "description": format!("Further tokens of {of} are dropped; -1: those beyond the model's maximum. When absent, a longer one is an error."),
    })
}

fn index(of: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": format!("Index of the {of} in the request.")})
}

fn cosine() -> Value {
    json!({"type": "number", "minimum": -1, "maximum": 1, "description": "Cosine of the two embeddings."})
}

fn usage() -> Value {
    let count = json!({"type": "integer", "minimum": 0, "description": "Tokens of all texts, special tokens included."});
    response(json!({"prompt_tokens": &count, "total_tokens": &count}))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use protocol::{
        DocumentText, EmbeddingObject, EmbeddingUsage, EmbeddingValue, EmbeddingsResponse, RerankResponse, RerankResult,
        ScoreObject, ScoreResponse,
    };

    use super::*;

    fn keys(object: &Value) -> BTreeSet<&String> {
        object.as_object().unwrap().keys().collect()
    }

    /// Checks that `schema` documents the fields of `written`, and of the first element of its list `list`.
    #[track_caller]
    fn check(schema: &Value, list: &str, written: impl serde::Serialize) {
        let written = serde_json::to_value(written).unwrap();
        assert_eq!(keys(&schema["properties"]), keys(&written));
        assert_eq!(keys(&schema["properties"][list]["items"]["properties"]), keys(&written[list][0]));
        assert_eq!(keys(&schema["properties"]["usage"]["properties"]), keys(&written["usage"]));
    }

    #[test]
    fn answers_have_the_fields_of_the_types() {
        let (text, usage) = (String::new, EmbeddingUsage::default());
        let data = vec![EmbeddingObject { object: text(), index: 0, embedding: EmbeddingValue::Float(vec![]) }];
        check(&embeddings_response(), "data", EmbeddingsResponse { object: text(), data, model: text(), usage });
        let document = Some(DocumentText { text: text() });
        let results = vec![RerankResult { index: 0, relevance_score: 1.0, document }];
        check(&rerank_response(), "results", RerankResponse { id: text(), model: text(), results, usage });
        let data = vec![ScoreObject { index: 0, object: text(), score: 1.0 }];
        let answer = ScoreResponse { id: text(), object: text(), created: 0, model: text(), data, usage };
        check(&score_response(), "data", answer);
    }
}
