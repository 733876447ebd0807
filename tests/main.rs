//! Integration tests: the daemon as a process, and the rules that the repository keeps about itself.
//!
//! Tests that need a model get the default one with `kvshare pull`, as a user would, and fail without it.

#![forbid(unsafe_code)]

mod anthropic_sdk;
mod daemon;
mod demo;
mod embeddings;
mod hostile;
mod memory;
mod messages;
mod openai_sdk;
mod places;
mod reference;
mod responses;
mod server;
mod structured;
mod terminal;
mod tidy;
mod tiny;
mod tools;
mod vocabulary;
