//! The verdict on each field of a request: one table says it for every field that OpenAI's API or a peer of this server knows.
//!
//! A field is honoured, accepted because it changes no answer here, or refused by name, but for values that ask for nothing. `null` is
//! no value. What nobody knows is ignored, as vLLM, SGLang and llama.cpp do.

mod table;

use protocol::{ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::table::TABLE;
use crate::error::ApiError;

/// A field, the endpoints that take it, and who else knows it.
pub(super) struct Field {
    name: &'static str,
    on: u8,
    known_to: u8,
    verdict: Verdict,
}

/// The verdict on a field.
#[derive(Clone, Copy)]
enum Verdict {
    /// It does what its name says: it is a field of the request's type.
    Honoured,
    /// It is another name of this field, which is honoured.
    SameAs(&'static str),
    /// Whatever its value, it changes no answer, for this reason.
    Accepted(&'static str),
    /// It is refused by name, unless its value is one of these, as JSON, which ask for nothing.
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

/// Those whose fields are known here, Hugging Face's text-generation-inference among them.
const PEERS: [(u8, &str); 6] = [(O, "OpenAI"), (V, "vLLM"), (S, "SGLang"), (L, "llama.cpp"), (T, "TGI"), (Q, "Ollama")];

/// Names in the log at most: a client writes them.
const MAX_LOGGED: usize = 8;

/// A request with the fields that its type does not have.
pub(crate) trait HasOtherFields: Serialize + DeserializeOwned {
    /// Those fields.
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

/// Judges the fields of `request`, sent to `endpoint`, that its type does not have: other names of known fields become those, and the
/// first field that cannot be honoured is an error.
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

/// `request` with fields that came under other names.
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
    /// The peers that know it, in words.
    fn known_to(&self) -> String {
        let peers = PEERS.iter().filter(|(bit, _)| self.known_to & bit != 0).map(|(_, name)| *name);
        let peers = peers.collect::<Vec<_>>().join(", ");
        if peers.is_empty() { "kvshare".to_owned() } else { peers }
    }
}

/// True if `value` is one of `harmless`. Numbers are compared as numbers.
fn asks_for_nothing(value: &Value, harmless: &[&str]) -> bool {
    harmless.iter().any(|text| match (value.as_f64(), text.parse::<f64>()) {
        (Some(value), Ok(number)) => value.to_bits() == number.to_bits() || (value == 0.0 && number == 0.0),
        _ => serde_json::from_str::<Value>(text).is_ok_and(|harmless| harmless == *value),
    })
}

#[cfg(test)]
mod tests;
