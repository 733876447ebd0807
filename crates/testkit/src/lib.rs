//! Small deterministic inputs for tests: prompts made of words, requests with defaults, and an executor without a model.
//!
//! Contains [`prompt`], [`passage`], [`RequestBuilder`], [`EchoExecutor`]. Deliberately excludes tensors and real models
//! (`runner::testing`), and anything a daemon would need at run time.

#![forbid(unsafe_code)]

mod echo;
mod request;
mod text;

pub use echo::{EchoExecutor, Reply};
pub use request::RequestBuilder;
pub use text::{passage, prompt};
