//! Dispatches engine events to the readers, in a task of the HTTP side.
//!
//! Waking a reader from a thread outside of the runtime takes microseconds, a hundred times a step with as many streams. So the engine
//! wakes only this task once per step, which wakes the readers from inside the runtime while the engine is at its next step.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::{EngineEvent, FinishReason};
use tokens::RequestId;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info};

use super::route::Route;
use super::shared::Shared;
use crate::metrics::{Metrics, ShedReason};

/// Message from the engine thread.
pub(super) enum Dispatch {
    /// A request was added.
    Open(RequestId, Route),
    /// A step has been completed.
    Step(Vec<EngineEvent>),
    /// A request exceeded its queue timeout and was aborted.
    TimedOut(RequestId),
    /// The engine failed. The sender is dropped when every reader has been notified.
    Fail(oneshot::Sender<()>),
}

/// State of the task.
pub(super) struct Dispatcher {
    dispatches: mpsc::Receiver<Dispatch>,
    /// Requests whose reader is gone, for the engine.
    abandoned: std::sync::mpsc::Sender<RequestId>,
    /// Ordered, so that requests are aborted in the order of their ids.
    routes: BTreeMap<RequestId, Route>,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
}

impl Dispatcher {
    pub(super) fn new(
        dispatches: mpsc::Receiver<Dispatch>,
        abandoned: std::sync::mpsc::Sender<RequestId>,
        metrics: Arc<Metrics>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { dispatches, abandoned, routes: BTreeMap::new(), metrics, shared }
    }

    /// Runs until the engine thread ends; then cuts the remaining streams.
    pub(super) async fn run(mut self) {
        while let Some(dispatch) = self.dispatches.recv().await {
            match dispatch {
                Dispatch::Open(request_id, route) => drop(self.routes.insert(request_id, route)),
                Dispatch::Step(events) => {
                    let num_tokens: u64 = events.iter().map(|event| self.iteration_tokens(event)).sum();
                    if num_tokens > 0 {
                        self.metrics.requests.iteration_tokens.record(num_tokens as f64);
                    }
                    events.into_iter().for_each(|event| self.deliver(event));
                    self.end_abandoned();
                }
                Dispatch::TimedOut(request_id) => self.time_out(request_id),
                Dispatch::Fail(done) => {
                    let now = self.shared.now();
                    std::mem::take(&mut self.routes).into_values().for_each(|route| route.fail(now, &self.metrics.requests));
                    drop(done);
                }
            }
        }
        info!(num_requests = self.routes.len(), "engine stopped");
        let now = self.shared.now();
        self.routes.into_values().for_each(|route| route.end(FinishReason::Aborted, now, &self.metrics.requests));
    }

    /// Aborts every request whose reader is gone.
    fn end_abandoned(&mut self) {
        let now = self.shared.now();
        for (request_id, route) in self.routes.extract_if(.., |_, route| route.is_abandoned()) {
            debug!(%request_id, "reader has gone");
            let _ = self.abandoned.send(request_id); // An engine that has ended holds no request.
            route.end(FinishReason::Aborted, now, &self.metrics.requests);
        }
    }

    /// Ends a request that the engine has aborted after its queue timeout. A reader that left before counts as gone.
    fn time_out(&mut self, request_id: RequestId) {
        let Some(route) = self.routes.remove(&request_id) else { return };
        self.metrics.http.count_shed(ShedReason::QueueTimeout);
        route.time_out();
        route.end(FinishReason::Aborted, self.shared.now(), &self.metrics.requests);
    }

    /// Counts the tokens that `event` adds to its iteration, as vLLM does: a generated one, and with the first of a request its whole
    /// prompt, including cached tokens. A request that generates nothing counts when it ends.
    fn iteration_tokens(&self, event: &EngineEvent) -> u64 {
        let Some(route) = self.routes.get(&event.request_id()) else { return 0 };
        match event {
            EngineEvent::Token { .. } => 1 + route.prompt_tokens_of_first(),
            EngineEvent::Finished { reason: FinishReason::Length, .. } => route.prompt_tokens_of_first(),
            _ => 0,
        }
    }

    /// Records metrics of `event` and sends it to its reader. Events of aborted requests have no reader.
    fn deliver(&mut self, event: EngineEvent) {
        let now = self.shared.now();
        let request_id = event.request_id();
        if let EngineEvent::Finished { reason, usage, .. } = &event {
            // Counted before the reader sees the end.
            let Some(route) = self.routes.remove(&request_id) else { return };
            self.metrics.kv.count_reuse(usage);
            route.end(*reason, now, &self.metrics.requests);
            route.send(event);
            return;
        }
        let Some(route) = self.routes.get_mut(&request_id) else { return };
        match &event {
            EngineEvent::Admitted { usage, at, .. } => route.admit(usage, *at, &self.metrics),
            EngineEvent::Token { .. } => route.count_token(now, &self.metrics.requests),
            EngineEvent::PromptLogProbs { .. } | EngineEvent::Finished { .. } => {}
        }
        if route.send(event) {
            return;
        }
        debug!(%request_id, "reader has gone or fell behind");
        let _ = self.abandoned.send(request_id); // An engine that has ended holds no request.
        if let Some(route) = self.routes.remove(&request_id) {
            route.end(FinishReason::Aborted, now, &self.metrics.requests);
        }
    }
}
