//! Log probabilities, in the shape of each endpoint.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Log probabilities of a chat answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLogProbs {
    /// Entries by token.
    pub content: Vec<ChatLogProb>,
}

/// One token of a chat answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatLogProb {
    /// Text of the token; invalid UTF-8 is replaced.
    pub token: String,
    /// Natural logarithm of the probability.
    pub logprob: f32,
    /// Bytes of the token.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at its position, descending.
    pub top_logprobs: Vec<TopLogProb>,
}

/// One of the likeliest tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogProb {
    /// Text of the token; invalid UTF-8 is replaced.
    pub token: String,
    /// Natural logarithm of the probability.
    pub logprob: f32,
    /// Bytes of the token.
    pub bytes: Vec<u8>,
}

/// Log probabilities of a completion: parallel lists with one entry per token.
///
/// A value that occurs in several places is written with the same digits in each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogProbs {
    /// Token names: texts, and `bytes:\xNN` for an incomplete character.
    pub tokens: Vec<String>,
    /// Natural logarithms; `null` for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// Log probabilities by name of the likeliest tokens, descending, including the token of this position; `null` for the first token of
    /// an echoed prompt.
    pub top_logprobs: Vec<Option<NamedLogProbs>>,
    /// Start of each token in the answer, in characters. Tokens that the text does not show have no length.
    pub text_offset: Vec<u32>,
}

/// Ordered log probabilities by name, an object in JSON. Names are unique.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamedLogProbs(Vec<(String, f32)>);

impl NamedLogProbs {
    /// Adds an entry unless the name exists. Returns true if it was added.
    pub fn insert(&mut self, name: String, logprob: f32) -> bool {
        let is_new = self.get(&name).is_none();
        if is_new {
            self.0.push((name, logprob));
        }
        is_new
    }

    /// Returns the entry of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f32> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, logprob)| *logprob)
    }

    /// Returns all entries.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f32)> {
        self.0.iter().map(|(name, logprob)| (name.as_str(), *logprob))
    }
}

impl Serialize for NamedLogProbs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for NamedLogProbs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = NamedLogProbs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("log probabilities by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NamedLogProbs, A::Error> {
                let mut named = NamedLogProbs::default();
                while let Some((name, logprob)) = map.next_entry()? {
                    named.insert(name, logprob);
                }
                Ok(named)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_written_alike_in_every_place() {
        let logprob = -0.132_156;
        let mut top = NamedLogProbs::default();
        assert!(top.insert("a".to_owned(), logprob) && !top.insert("a".to_owned(), 0.0));
        let completion = CompletionLogProbs {
            tokens: vec!["a".to_owned()],
            token_logprobs: vec![Some(logprob)],
            top_logprobs: vec![Some(top)],
            text_offset: vec![0],
        };
        let top = TopLogProb { token: "a".to_owned(), logprob, bytes: vec![97] };
        let chat = ChatLogProb { token: "a".to_owned(), logprob, bytes: vec![97], top_logprobs: vec![top] };
        let text = serde_json::to_string(&completion).unwrap() + &serde_json::to_string(&chat).unwrap();
        assert_eq!(text.matches("-0.132156").count(), 4, "{text}");
        assert_eq!(text.matches("-0.1321").count(), 4, "{text}");
        assert_eq!(serde_json::from_str::<CompletionLogProbs>(&serde_json::to_string(&completion).unwrap()).unwrap(), completion);
    }
}
