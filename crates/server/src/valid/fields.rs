//! Verdicts on request fields: one table covers every field that OpenAI's API or a peer of this server knows.
//!
//! A field is honoured, accepted because it changes no answer here, or refused by name, except for values that request nothing. `null` is
//! no value. Unknown fields are ignored, as in vLLM, SGLang and llama.cpp.

mod table;

use protocol::{ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::table::TABLE;
use crate::error::ApiError;

/// A field, the endpoints that take it, and the peers that know it.
pub(super) struct Field {
    name: &'static str,
    on: u8,
    known_to: u8,
    verdict: Verdict,
}

/// The verdict on a field.
#[derive(Clone, Copy)]
enum Verdict {
    /// The field takes effect and is part of the request's type.
    Honoured,
    /// The field is an alias of this field, which is honoured.
    SameAs(&'static str),
    /// The field changes no answer, whatever its value, for this reason.
    Accepted(&'static str),
    /// The field is refused by name, unless its value is one of these, as JSON, which request nothing.
    Refused(&'static [&'static str]),
}

/// `/v1/chat/completions`.
pub(crate) const CHAT: u8 = 1;
/// `/v1/completions`.
pub(crate) const COMPLETIONS: u8 = 2;
/// `/tokenize`.
pub(crate) const TOKENIZE: u8 = 4;
/// `/detokenize`.
pub(crate) const DETOKENIZE: u8 = 8;
const GENERATE: u8 = CHAT | COMPLETIONS;

const O: u8 = 1;
const V: u8 = 2;
const S: u8 = 4;
const L: u8 = 8;
const T: u8 = 16;
const Q: u8 = 32;

/// APIs whose fields are known here, including Hugging Face's text-generation-inference.
const PEERS: [(u8, &str); 6] = [(O, "OpenAI"), (V, "vLLM"), (S, "SGLang"), (L, "llama.cpp"), (T, "TGI"), (Q, "Ollama")];

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

fn find(name: &str, endpoint: u8) -> Option<&'static Field> {
    TABLE.iter().find(|field| field.name == name && field.on & endpoint != 0)
}

impl Field {
    /// Lists the peers that know it.
    fn known_to(&self) -> String {
        let peers = PEERS.iter().filter(|(bit, _)| self.known_to & bit != 0).map(|(_, name)| *name);
        let peers = peers.collect::<Vec<_>>().join(", ");
        if peers.is_empty() { "kvshare".to_owned() } else { peers }
    }
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
