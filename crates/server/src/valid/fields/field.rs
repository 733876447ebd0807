//! A field of requests, the endpoints and peers that know it, and the verdict on it.

/// A field, the endpoints that take it, and the peers that know it.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) on: u8,
    pub(super) known_to: u8,
    pub(super) verdict: Verdict,
}

/// The verdict on a field.
#[derive(Clone, Copy)]
pub(super) enum Verdict {
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
/// `/v1/embeddings`.
pub(crate) const EMBEDDINGS: u8 = 32;
/// `/v1/rerank`.
pub(crate) const RERANK: u8 = 64;
/// `/v1/score`.
pub(crate) const SCORE: u8 = 128;
pub(super) const GENERATE: u8 = CHAT | COMPLETIONS;

pub(super) const O: u8 = 1;
pub(super) const V: u8 = 2;
pub(super) const S: u8 = 4;
pub(super) const L: u8 = 8;
pub(super) const T: u8 = 16;
pub(super) const Q: u8 = 32;
pub(super) const C: u8 = 64;

/// APIs whose fields are known here, including Hugging Face's text-generation-inference.
const PEERS: [(u8, &str); 7] =
    [(O, "OpenAI"), (C, "Cohere"), (V, "vLLM"), (S, "SGLang"), (L, "llama.cpp"), (T, "TGI"), (Q, "Ollama")];

impl Field {
    /// Lists the peers that know it.
    pub(super) fn known_to(&self) -> String {
        let peers = PEERS.iter().filter(|(bit, _)| self.known_to & bit != 0).map(|(_, name)| *name);
        let peers = peers.collect::<Vec<_>>().join(", ");
        if peers.is_empty() { "kvshare".to_owned() } else { peers }
    }
}
