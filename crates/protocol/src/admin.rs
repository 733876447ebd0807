//! Looking at and erasing what requests have left behind.

use serde::{Deserialize, Serialize};

use crate::ChatMessage;

/// A page of donors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DonorList {
    /// `list`.
    pub object: String,
    /// By ascending id.
    pub data: Vec<Donor>,
    /// Whether there are more; the next page starts with `after` set to the last id of this one.
    pub has_more: bool,
}

/// An earlier prompt whose spans may be reused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Donor {
    /// Its name inside this process.
    pub id: u64,
    /// `kv.donor`.
    pub object: String,
    /// Who left it; `null` for a public corpus.
    pub tenant: Option<String>,
    /// Length of its prompt.
    pub tokens: u32,
    /// Tokens of it whose KV is still there.
    pub resident_tokens: u32,
    /// How often it was reused.
    pub hits: u64,
    /// Seconds since it was left behind.
    pub age_seconds: f64,
    /// Seconds since it was last reused, or left behind.
    pub idle_seconds: f64,
}

/// What was erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// Prompts that can be found no more.
    pub donors: usize,
    /// Blocks of KV that were forgotten.
    pub blocks: usize,
}

/// A public text, to be computed with nothing before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorpusRequest {
    /// By which keys are allowed to read it. Required.
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
    /// Its name.
    pub name: String,
    /// `kv.corpus`.
    pub object: String,
    /// Texts registered since the start.
    pub texts: u64,
    /// Tokens of them.
    pub tokens: u64,
}

/// All public corpora.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusList {
    /// `list`.
    pub object: String,
    /// By name.
    pub data: Vec<Corpus>,
}
