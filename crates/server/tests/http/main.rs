//! The server as its clients see it, over an engine without a model.

mod errors;
mod faults;
mod info;
mod serving;
mod streams;
mod whole;
mod world;
