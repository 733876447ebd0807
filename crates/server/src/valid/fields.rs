//! Verdicts on request fields: one table covers every field that OpenAI's API or a peer of this server knows.
//!
//! A field is honoured, accepted because it changes no answer here, or refused by name, except for values that request nothing. `null` is
//! no value. Unknown fields are ignored, as in vLLM, SGLang and llama.cpp.

mod embeddings;
mod field;
mod table;

use protocol::{
    ChatCompletionRequest, CompletionRequest, DetokenizeRequest, EmbeddingsRequest, RerankRequest, ScoreRequest, TokenizeRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::embeddings::EMBEDDINGS_TABLE;
pub(crate) use self::field::{CHAT, COMPLETIONS, DETOKENIZE, EMBEDDINGS, RERANK, SCORE, TOKENIZE};
use self::field::{Field, Verdict};
use self::table::TABLE;
use crate::error::ApiError;

/// Maximum names in the log, because clients choose them.
const MAX_LOGGED: usize = 8;

/// A request with a map of the fields that its type lacks.
pub(crate) trait HasOtherFields: Serialize + DeserializeOwned {
    /// Returns those fields.
    fn other(&mut self) -> &mut Map<String, Value>;
}

impl HasOtherFields for ChatCompletionRequest {
    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }
}

impl HasOtherFields for CompletionRequest {
    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }
}

impl HasOtherFields for TokenizeRequest {
    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }
}

impl HasOtherFields for DetokenizeRequest {
    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }
}

impl HasOtherFields for EmbeddingsRequest {
    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }
}

impl HasOtherFields for RerankRequest {
    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }
}

impl HasOtherFields for ScoreRequest {
    fn other(&mut self) -> &mut Map<String, Value> {
        &mut self.other
    }
}

/// Judges the fields of `request`, sent to `endpoint`, that its type lacks: aliases are renamed, and the first field that cannot be
/// honoured is an error.
pub(crate) fn judge<T: HasOtherFields>(mut request: T, endpoint: u8) -> Result<T, ApiError> {
    let mut renamed = Vec::new();
    let mut unknown = Vec::new();
    for (name, value) in std::mem::take(request.other()) {
        let Some(field) = find(&name, endpoint) else {
            unknown.push(name);
            continue;
        };
        match field.verdict {
            _ if value.is_null() => {}
            Verdict::Refused(harmless) if !asks_for_nothing(&value, harmless) => {
                tracing::debug!(name, known_to = field.known_to(), "a field is refused");
                return Err(ApiError::Unsupported { param: name });
            }
            Verdict::SameAs(target) => renamed.push((name, target, value)),
            Verdict::Accepted(reason) => tracing::debug!(name, reason, "a field changes nothing"),
            Verdict::Honoured | Verdict::Refused(_) => {}
        }
    }
    if !unknown.is_empty() {
        unknown.truncate(MAX_LOGGED);
        tracing::debug!(fields = ?unknown, "unknown fields are ignored");
    }
    if renamed.is_empty() { Ok(request) } else { with_renamed(&request, renamed) }
}

/// Adds the fields that were sent under other names to `request`.
fn with_renamed<T: HasOtherFields>(request: &T, renamed: Vec<(String, &'static str, Value)>) -> Result<T, ApiError> {
    let mut fields = serde_json::to_value(request).expect("requests have string keys only");
    for (name, target, value) in renamed {
        let alone = serde_json::from_value::<T>(Value::Object(Map::from_iter([(target.to_owned(), value)])));
        let alone = alone
            .map_err(|_| ApiError::param(&name, format!("Invalid value for `{name}`, which is another name of `{target}`")))?;
        let value = serde_json::to_value(alone).expect("requests have string keys only")[target].take();
        let place = &mut fields[target];
        if !place.is_null() && *place != value {
            return Err(ApiError::param(&name, format!("`{name}` and `{target}` are two names of one field and differ")));
        }
        *place = value;
    }
    Ok(serde_json::from_value(fields).expect("each field was parsed before"))
}

/// Returns all fields.
fn all() -> impl Iterator<Item = &'static Field> + Clone {
    TABLE.iter().chain(EMBEDDINGS_TABLE)
}

fn find(name: &str, endpoint: u8) -> Option<&'static Field> {
    all().find(|field| field.name == name && field.on & endpoint != 0)
}

/// True if `value` is one of `harmless`. Numbers are compared numerically.
fn asks_for_nothing(value: &Value, harmless: &[&str]) -> bool {
    harmless.iter().any(|text| match (value.as_f64(), text.parse::<f64>()) {
        (Some(value), Ok(number)) => value.to_bits() == number.to_bits() || (value == 0.0 && number == 0.0),
        _ => serde_json::from_str::<Value>(text).is_ok_and(|harmless| harmless == *value),
    })
}

#[cfg(test)]
mod tests;
