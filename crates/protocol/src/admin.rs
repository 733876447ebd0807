//! Inspection and erasure of the KV that requests stored.

use serde::{Deserialize, Serialize};

use crate::ChatMessage;

/// A page of donors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DonorList {
    /// `list`.
    pub object: String,
    /// Donors by ascending id.
    pub data: Vec<Donor>,
    /// True if there are more donors; the next page starts with `after` set to the last id of this one.
    pub has_more: bool,
}

/// An earlier prompt whose spans may be reused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Donor {
    /// Id of the donor, unique inside this process.
    pub id: u64,
    /// `kv.donor`.
    pub object: String,
    /// Tenant whose request stored it; `null` for a public corpus.
    pub tenant: Option<String>,
    /// Length of the prompt in tokens.
    pub tokens: u32,
    /// Tokens of the prompt whose KV is still resident.
    pub resident_tokens: u32,
    /// Number of times it was reused.
    pub hits: u64,
    /// Seconds since it was stored.
    pub age_seconds: f64,
    /// Seconds since it was last reused or stored.
    pub idle_seconds: f64,
}

/// Counts of an erasure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// Donors removed from the index.
    pub donors: usize,
    /// KV blocks removed from the cache.
    pub blocks: usize,
}

/// A public text, to be computed without any preceding context.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorpusRequest {
    /// Name that keys refer to for read access. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A text. Either this or `messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// A conversation, rendered by the chat template. Either this or `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<ChatMessage>>,
}

/// A public corpus: all texts that were registered under one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corpus {
    /// Name of the corpus.
    pub name: String,
    /// `kv.corpus`.
    pub object: String,
    /// Texts registered since the server started.
    pub texts: u64,
    /// Tokens of these texts.
    pub tokens: u64,
}

/// All public corpora.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusList {
    /// `list`.
    pub object: String,
    /// Corpora by name.
    pub data: Vec<Corpus>,
}
