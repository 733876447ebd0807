//! Embeds texts and prompts: a separate sentence encoder, or means of the served model's input embeddings.
//!
//! Contains [`SentenceEncoder`], which embeds any text, and [`PromptEmbedder`], which embeds prompts of the served model with either of the
//! two. Deliberately excludes the index of embeddings (`semantic`) and the queue before a slow embedder (`server`).

#![forbid(unsafe_code)]

mod bert;
mod modules;
mod prompt;
mod sentence;
mod token;

pub use prompt::PromptEmbedder;
pub use sentence::SentenceEncoder;
