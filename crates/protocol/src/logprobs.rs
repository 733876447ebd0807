//! Log probabilities, in the shape of each endpoint.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Log probabilities of a chat answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLogProbs {
    /// Token by token.
    pub content: Vec<ChatLogProb>,
}

/// One token of a chat answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatLogProb {
    /// Its text; broken UTF-8 is replaced.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at its position, descending.
    pub top_logprobs: Vec<TopLogProb>,
}

/// One of the likeliest tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogProb {
    /// Its text; broken UTF-8 is replaced.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Log probabilities of a completion: parallel lists, one entry a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogProbs {
    /// Texts.
    pub tokens: Vec<String>,
    /// Natural logarithms; `null` for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// Text of each likeliest token to its log probability; `null` for the first token of an echoed prompt.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token starts in the answer, in characters.
    pub text_offset: Vec<u32>,
}
