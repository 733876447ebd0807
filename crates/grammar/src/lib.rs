//! Constrained output: which tokens may follow, so that an answer is a sentence of a grammar.
//!
//! A [`Vocabulary`] compiles a [`Constraint`] (JSON Schema, regular expression, choice, Lark) into a [`Grammar`]. Each answer has a
//! [`Matcher`] of its own, which yields a [`TokenMask`] before each token and accepts the token after. The parser is llguidance's; this crate bounds its
//! work and gives errors that a client can act on. Deliberately excludes sampling (`runner`) and the fields of requests (`server`).

#![forbid(unsafe_code)]

mod constraint;
mod grammar;
mod mask;
mod matcher;
mod vocabulary;

pub use constraint::Constraint;
pub use grammar::{Grammar, GrammarError, schema_item};
pub use mask::TokenMask;
pub use matcher::{Matcher, MatcherError};
pub use vocabulary::Vocabulary;
