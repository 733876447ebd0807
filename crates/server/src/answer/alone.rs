//! Runs a request for the KV that it stores.

use engine::{EngineEvent, FinishReason, Request};

use super::choice::stream_error;
use super::start::submit_error;
use crate::engine_thread::EngineHandle;
use crate::error::ApiError;
use crate::metrics::Metrics;

/// Runs `request`, which fits, to its end. Its output is dropped.
pub(crate) async fn run_alone(engine: &EngineHandle, metrics: &Metrics, request: Request) -> Result<(), ApiError> {
    let mut streams = engine.submit(vec![vec![request]]).map_err(|error| submit_error(engine, metrics, error))?;
    let mut events = streams.pop().expect("one request has one stream");
    loop {
        match events.next().await.map_err(stream_error)? {
            EngineEvent::Finished { reason: FinishReason::Faulty, .. } => return Err(ApiError::FaultyLogits),
            EngineEvent::Finished { .. } => return Ok(()),
            _ => {}
        }
    }
}
