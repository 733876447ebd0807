//! OpenAI's API, and Anthropic's Messages, over HTTP: routes, validation, the engine thread, streams, metrics, shutdown.
//!
//! Contains [`EngineThread`], which runs an engine on a thread of its own; [`router`], which answers requests through its
//! [`EngineHandle`]; and [`serve()`], which accepts connections until it is signalled to end. A request is validated once, in `valid.rs`,
//! and every error is OpenAI's error object, or Anthropic's on its endpoints. Deliberately excludes models and tensors (only the engine thread is generic over the
//! executor), scheduling, and the command line.

#![forbid(unsafe_code)]

mod access;
mod answer;
mod body;
mod config;
mod connections;
mod corpora;
mod deviation;
mod echo;
mod embedding;
mod encode;
mod engine_thread;
mod error;
mod explain;
mod forms;
mod grammars;
mod heavy;
mod messages;
mod metrics;
mod model;
mod normalize;
mod openapi;
mod paths;
mod requests;
mod responses;
mod routes;
mod sampling_defaults;
mod scope;
mod serve;
mod state;
mod tenants;
mod text_embedding;
mod valid;
mod web;

pub use access::{Access, Reload, ReloadError};
pub use config::{ServerConfig, ServerConfigError, SharingDefaults};
pub use connections::Overload;
pub use deviation::deviation_preset;
pub use embedding::{Embedder, Embedding};
pub use engine_thread::{EngineHandle, EngineThread, EngineThreadConfig, Fatal, Phase};
pub use error::ApiError;
pub use forms::AnswerForms;
pub use grammars::vocabulary;
pub use metrics::Metrics;
pub use model::{ModelInfo, ServedModel};
pub use routes::router;
pub use sampling_defaults::SamplingDefaults;
pub use scope::{ScopeSecret, ShortSecret};
pub use serve::{Ended, serve};
#[cfg(unix)]
pub use serve::{hangup_signals, termination_signals};
pub use state::AppState;
pub use tenants::{ApiKey, Tenants, TenantsError};
pub use text_embedding::TextEmbedder;
pub use web::WebAccess;
