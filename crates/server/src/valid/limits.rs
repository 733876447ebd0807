//! Limits of requests.

use crate::config::ServerConfig;
use crate::model::ModelInfo;

/// Limits that requests are validated against.
#[derive(Clone, Copy)]
pub(crate) struct Limits<'a> {
    pub(crate) model: &'a ModelInfo,
    pub(crate) config: &'a ServerConfig,
    /// Maximum answers of one request in total: more could never be queued.
    pub(crate) max_choices: usize,
}
