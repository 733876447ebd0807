//! State of one request on the engine thread's side: its event channel and measurements.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use engine::{EngineEvent, FinishReason, KvUsage, Request};
use tokens::{SharingMode, Timestamp};
use tokio::sync::mpsc;

use super::shared::Shared;
use super::slots::QueueSlot;
use crate::metrics::{CacheOutcome, Ending, Metrics, RequestMetrics};

/// A request on its way to the engine.
pub(super) struct Submission {
    pub(super) request: Request,
    pub(super) events: mpsc::Sender<EngineEvent>,
    pub(super) link: Arc<StreamFlags>,
    /// Its slot in the queue.
    pub(super) slot: QueueSlot,
}

/// Flags shared by both ends of a request's channel.
#[derive(Default)]
pub(super) struct StreamFlags {
    /// The reader is done: a stop string matched.
    pub(super) is_complete: AtomicBool,
    /// The reader lagged too far.
    pub(super) is_too_slow: AtomicBool,
    /// The engine did not admit the request in time.
    pub(super) has_timed_out: AtomicBool,
}

/// Counts a request as in flight until it is dropped.
pub(crate) struct InFlight(Arc<Shared>);

impl InFlight {
    pub(super) fn enter(shared: &Arc<Shared>) -> Self {
        shared.in_flight.send_modify(|num_requests| *num_requests += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.send_modify(|num_requests| *num_requests -= 1);
    }
}

/// State shared by the answers of one prompt, for figures that are recorded once for all of them.
pub(super) struct Group {
    num_running: AtomicU32,
    max_generated: AtomicU32,
}

impl Group {
    pub(super) fn new(num_answers: usize) -> Arc<Self> {
        Arc::new(Self { num_running: AtomicU32::new(num_answers as u32), max_generated: AtomicU32::new(0) })
    }
}

/// A request that the engine holds.
pub(super) struct Route {
    events: mpsc::Sender<EngineEvent>,
    link: Arc<StreamFlags>,
    group: Arc<Group>,
    mode: SharingMode,
    prompt_tokens: u32,
    arrival: Timestamp,
    admitted: Option<(Timestamp, CacheOutcome)>,
    first_token_at: Option<Timestamp>,
    last_token_at: Timestamp,
    num_generated: u32,
}

impl Route {
    pub(super) fn new(request: &Request, events: mpsc::Sender<EngineEvent>, link: Arc<StreamFlags>, group: Arc<Group>) -> Self {
        Self {
            events,
            link,
            group,
            mode: request.sharing,
            prompt_tokens: u32::try_from(request.prompt_token_ids.len()).expect("a prompt is within the model's length"),
            arrival: request.arrival,
            admitted: None,
            first_token_at: None,
            last_token_at: request.arrival,
            num_generated: 0,
        }
    }

    /// True if its reader is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Marks the request as timed out, which the reader sees once the channel closes.
    pub(super) fn time_out(&self) {
        self.link.has_timed_out.store(true, Ordering::Release);
    }

    /// Sends `event` to the reader. Returns `false` if the reader lags too far or is gone.
    pub(super) fn send(&self, event: EngineEvent) -> bool {
        match self.events.try_send(event) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.link.is_too_slow.store(true, Ordering::Release);
                false
            }
        }
    }

    /// Returns the number of its prompt tokens if it has not generated any yet; else 0.
    pub(super) fn prompt_tokens_of_first(&self) -> u64 {
        if self.num_generated == 0 { u64::from(self.prompt_tokens) } else { 0 }
    }

    /// Records the admission of the prompt.
    pub(super) fn admit(&mut self, usage: &KvUsage, at: Timestamp, metrics: &Metrics) {
        metrics.kv.count_mode(self.mode);
        metrics.requests.queue.record(at.since(self.arrival));
        self.admitted = Some((at, metrics.requests.count_prompt(self.mode, usage)));
    }

    /// Records one more token.
    pub(super) fn count_token(&mut self, now: Timestamp, metrics: &RequestMetrics) {
        self.num_generated += 1;
        metrics.generation_tokens.increment(1);
        match (self.first_token_at, self.admitted) {
            (None, Some((admitted_at, outcome))) => {
                self.first_token_at = Some(now);
                metrics.record_ttft(outcome, now.since(self.arrival));
                metrics.prefill.record(now.since(admitted_at));
            }
            _ => metrics.inter_token.record(now.since(self.last_token_at)),
        }
        self.last_token_at = now;
    }

    /// Records the end of the request.
    pub(super) fn end(&self, reason: FinishReason, now: Timestamp, metrics: &RequestMetrics) {
        let ending = match reason {
            FinishReason::Stop(_) | FinishReason::Complete => Ending::Stop,
            FinishReason::Length => Ending::Length,
            FinishReason::Aborted if self.link.is_complete.load(Ordering::Acquire) => Ending::Stop,
            FinishReason::Aborted => Ending::Abort,
            FinishReason::Faulty => {
                metrics.corrupted.increment(1);
                Ending::Error
            }
        };
        self.close(ending, now, metrics);
    }

    /// Records the end of a request that failed with the engine.
    pub(super) fn fail(&self, now: Timestamp, metrics: &RequestMetrics) {
        self.close(Ending::Error, now, metrics);
    }

    fn close(&self, ending: Ending, now: Timestamp, metrics: &RequestMetrics) {
        metrics.success(ending).increment(1);
        metrics.e2e.record(now.since(self.arrival));
        metrics.generation_len.record(self.num_generated);
        if let Some((admitted_at, _)) = self.admitted {
            let end = if self.num_generated > 0 { self.last_token_at } else { now };
            metrics.inference.record(end.since(admitted_at));
        }
        if let Some(first_token_at) = self.first_token_at {
            let decoding = self.last_token_at.since(first_token_at);
            metrics.decode.record(decoding);
            // As in vLLM, an answer of one token has a mean of 0.
            metrics.per_output_token.record(decoding / (self.num_generated - 1).max(1));
        }
        let max_generated = self.group.max_generated.fetch_max(self.num_generated, Ordering::Relaxed).max(self.num_generated);
        if self.group.num_running.fetch_sub(1, Ordering::Relaxed) == 1 {
            metrics.max_generation_len.record(max_generated);
        }
    }
}
