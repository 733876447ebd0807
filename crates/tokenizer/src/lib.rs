//! Tokenization and detokenization: vocabularies, chat templates, incremental detokenization, stop strings.
//!
//! Contains [`Tokenizer`] (from `tokenizer.json` or from the vocabulary of a GGUF file), [`ChatTemplate`], [`DetokenizeStream`],
//! [`StopMatcher`] and [`SegmentRule`]. Deliberately excludes reading GGUF files (the model loader fills [`GgufVocabulary`]), HTTP, and
//! the engine.

#![forbid(unsafe_code)]

mod added;
mod bound;
mod byte_level;
mod chat;
mod contents;
mod detokenize;
mod enumeration;
mod error;
mod file;
mod folder;
mod gguf_rules;
mod parts;
mod pre_tokenizer;
mod prompt;
mod segments;
mod stop;
mod tables;
mod token_bytes;
mod tokenizer;
mod vocabulary;

pub use chat::{ChatMessage, ChatOptions, ChatTemplate};
pub use detokenize::DetokenizeStream;
pub use error::{ChatError, TokenizerError};
pub use prompt::{ContentStart, EncodedPrompt};
pub use segments::SegmentRule;
pub use stop::{StopMatcher, StopOutput};
pub use tokenizer::Tokenizer;
pub use vocabulary::GgufVocabulary;
