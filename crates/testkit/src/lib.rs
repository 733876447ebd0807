//! Small deterministic worlds for tests: prompts made of words, requests with defaults, and an executor without a model.
//!
//! What is here: [`prompt`], [`passage`], [`RequestBuilder`], [`EchoExecutor`].
//! What is deliberately not here: tensors and real models (`runner::testing`), and anything a daemon would need at run time.

#![forbid(unsafe_code)]

mod echo;
mod request;
mod text;

pub use echo::{EchoExecutor, Reply};
pub use request::RequestBuilder;
pub use text::{passage, prompt};
