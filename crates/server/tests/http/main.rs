//! HTTP tests of the server over an engine without a model.

mod admin;
mod embedding;
mod embeddings;
mod errors;
mod explain;
mod faults;
mod info;
mod limits;
mod messages;
mod pages;
mod queue;
mod responses;
mod serving;
mod sharing;
mod streams;
mod tenants;
mod tools;
mod whole;
mod world;
