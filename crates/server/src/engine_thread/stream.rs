//! The reader's end of one request.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::EngineEvent;
use tokio::sync::{mpsc, watch};

use super::route::{InFlight, Link};
use super::{EngineHandle, Phase};

/// Events of one request. Dropping it takes the request back: its blocks are free within two steps.
pub(crate) struct TokenStream {
    events: mpsc::Receiver<EngineEvent>,
    link: Arc<Link>,
    phase: watch::Receiver<Phase>,
    _in_flight: InFlight,
}

/// Why a stream ends before its request is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// The reader fell behind.
    TooSlow,
    /// It was not admitted in time.
    QueueTimeout,
    /// The server ends.
    Stopped,
    /// The engine failed.
    Failed,
}

impl TokenStream {
    pub(super) fn new(events: mpsc::Receiver<EngineEvent>, link: Arc<Link>, engine: &EngineHandle, in_flight: InFlight) -> Self {
        Self { events, link, phase: engine.watch_phase(), _in_flight: in_flight }
    }

    /// Waits for the next event; the first one comes with the admission. The last one is [`EngineEvent::Finished`]; not to be called
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
            // The engine may be in a step that lasts: its readers do not wait for the end of it.
            _ = self.phase.wait_for(|phase| *phase == Phase::Stopped) => None,
        }
    }

    /// Takes the request back because its answer is complete: a stop string was found.
    pub(crate) fn complete(self) {
        self.link.is_complete.store(true, Ordering::Release);
    }
}
