//! OpenAI over HTTP: routes, validation, the engine thread, streams, metrics, shutdown.
//!
//! What is here: [`EngineThread`] runs an engine on a thread of its own; [`router`] answers requests through its
//! [`EngineHandle`]; [`serve`] accepts connections until it is told to end. A request is checked once, in `valid.rs`, and every
//! error is OpenAI's error object.
//! What is deliberately not here: models and tensors (the engine thread alone is generic over what executes), scheduling, and
//! the command line.

#![forbid(unsafe_code)]

mod answer;
mod body;
mod config;
mod encode;
mod engine_thread;
mod error;
mod metrics;
mod model;
mod openapi;
mod routes;
mod scope;
mod serve;
mod state;
mod valid;

pub use config::{ServerConfig, ServerConfigError};
pub use engine_thread::{EngineHandle, EngineThread, EngineThreadConfig, Fatal, Phase};
pub use error::ApiError;
pub use metrics::Metrics;
pub use model::{ModelInfo, ServedModel};
pub use routes::router;
#[cfg(unix)]
pub use serve::termination_signals;
pub use serve::{Ended, serve};
pub use state::AppState;
