//! Limits of the engine thread.

use std::time::Duration;

/// Limits between the HTTP side and the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineThreadConfig {
    /// Maximum requests waiting for admission; further ones are refused. At the limit, a tenant with less than its equal share of the
    /// waiting requests still gets that share.
    pub max_queue: usize,
    /// Maximum time a request may wait for admission; `None` for no limit.
    pub queue_timeout: Option<Duration>,
    /// Maximum events a reader may lag before its request is aborted.
    pub stream_buffer: usize,
}

impl Default for EngineThreadConfig {
    fn default() -> Self {
        Self { max_queue: 256, queue_timeout: None, stream_buffer: 1024 }
    }
}
