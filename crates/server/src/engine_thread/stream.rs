//! The reader's end of one request.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::EngineEvent;
use tokio::sync::{mpsc, watch};

use super::route::{InFlight, StreamFlags};
use super::shared::Phase;

/// Event stream of one request. Dropping it aborts the request: its blocks are free within two steps.
pub(crate) struct TokenStream {
    events: mpsc::Receiver<EngineEvent>,
    link: Arc<StreamFlags>,
    phase: watch::Receiver<Phase>,
    _in_flight: InFlight,
}

/// Reason why a stream ends before its request is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// The reader lagged too far.
    TooSlow,
    /// The request was not admitted in time.
    QueueTimeout,
    /// The server is ending.
    Stopped,
    /// The engine failed.
    Failed,
}

impl TokenStream {
    pub(super) fn new(
        events: mpsc::Receiver<EngineEvent>,
        link: Arc<StreamFlags>,
        phase: watch::Receiver<Phase>,
        in_flight: InFlight,
    ) -> Self {
        Self { events, link, phase, _in_flight: in_flight }
    }

    /// Waits for the next event; the first one arrives with the admission. The last one is [`EngineEvent::Finished`]; must not be called
    /// after it, nor after an error.
    pub(crate) async fn next(&mut self) -> Result<EngineEvent, StreamError> {
        match self.receive().await {
            Some(event) => Ok(event),
            None if self.link.has_timed_out.load(Ordering::Acquire) => Err(StreamError::QueueTimeout),
            None if self.link.is_too_slow.load(Ordering::Acquire) => Err(StreamError::TooSlow),
            None if *self.phase.borrow() == Phase::Stopped => Err(StreamError::Stopped),
            None => Err(StreamError::Failed),
        }
    }

    async fn receive(&mut self) -> Option<EngineEvent> {
        tokio::select! {
            biased;
            event = self.events.recv() => event,
            // The engine may be in a long step: its readers do not wait for the end of it.
            _ = self.phase.wait_for(|phase| *phase == Phase::Stopped) => None,
        }
    }

    /// Aborts the request because its answer is complete: a stop string matched.
    pub(crate) fn complete(self) {
        self.link.is_complete.store(true, Ordering::Release);
    }
}
