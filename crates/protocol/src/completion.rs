//! `/v1/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{CompletionLogProbs, ConstraintFields, FinishReason, SamplingFields, Usage};

/// Body of a completion request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompletionRequest {
    /// Name of the model. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Prompt to continue. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// Number of likeliest tokens whose log probabilities are reported besides that of the sampled token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<i64>,
    /// True if the text starts with the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Must equal `n`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_of: Option<i64>,
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

/// One prompt or several, as text or as token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a string, a list of strings, a list of token ids, or a list of lists of token ids")]
pub enum Prompt {
    /// One text.
    Text(String),
    /// One list of token ids. An empty list deserializes as this variant.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// Body of a completion answer, and one event of a streamed one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionResponse {
    /// Id of this response, the same in all its events.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// Changes when the same seed may give another response.
    pub system_fingerprint: String,
    /// Choices by prompt, `n` for each.
    pub choices: Vec<CompletionChoice>,
    /// Token counts: in whole responses; in events as in those of a chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One continuation, or an increment of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// `prompt_idx * n + i`.
    pub index: u32,
    /// The text.
    pub text: String,
    /// `null` unless requested.
    pub logprobs: Option<CompletionLogProbs>,
    /// `null` until generation ends.
    pub finish_reason: Option<FinishReason>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(prompt: Value, expected: &Prompt) {
        assert_eq!(serde_json::from_value::<Prompt>(prompt).unwrap(), *expected);
    }

    #[test]
    fn a_prompt_has_four_shapes() {
        check(json!("a"), &Prompt::Text("a".into()));
        check(json!(["a", "b"]), &Prompt::Texts(vec!["a".into(), "b".into()]));
        check(json!([1, 2]), &Prompt::Tokens(vec![1, 2]));
        check(json!([[1], [2, 3]]), &Prompt::TokenLists(vec![vec![1], vec![2, 3]]));
    }

    #[test]
    fn a_mixed_prompt_is_refused_in_words() {
        let error = serde_json::from_value::<Prompt>(json!([1, "a"])).unwrap_err();
        assert!(error.to_string().contains("a list of token ids"), "{error}");
    }
}
