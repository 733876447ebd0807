//! The loop of the engine thread.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use engine::{EngineCore, EngineEvent, Executor, FinishReason};
use tokens::RequestId;
use tokio::sync::mpsc;
use tracing::{debug, error, info};

use super::handle::{Phase, Shared};
use super::report::describe_step;
use super::route::{Group, Route, Submission};
use super::{EngineCommand, Fatal};
use crate::metrics::Metrics;

/// State of the engine thread.
pub(super) struct Worker<E: Executor> {
    engine: EngineCore<E>,
    commands: mpsc::Receiver<EngineCommand>,
    /// Ordered, so that equal commands lead to equal steps.
    routes: BTreeMap<RequestId, Route>,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
}

impl<E: Executor> Worker<E> {
    pub(super) fn new(
        engine: EngineCore<E>,
        commands: mpsc::Receiver<EngineCommand>,
        metrics: Arc<Metrics>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { engine, commands, routes: BTreeMap::new(), metrics, shared }
    }

    /// Runs until told to end, or to the first fault.
    pub(super) fn run(mut self, on_fatal: impl FnOnce(Fatal)) {
        // After a panic nothing but the last step is read from the engine, so its broken invariants do not matter.
        let fatal = match catch_unwind(AssertUnwindSafe(|| self.run_steps())) {
            Ok(Ok(())) => return self.cut_all(),
            Ok(Err(fatal)) => fatal,
            Err(panic) => Fatal::Panic(panic_message(panic.as_ref())),
        };
        error!(error = %fatal, step = describe_step(self.engine.last_step()), "engine failed");
        self.shared.phase.send_replace(Phase::Failed);
        let now = self.shared.now();
        for (_, route) in std::mem::take(&mut self.routes) {
            route.fail(now, &self.metrics.requests);
        }
        // Nothing more is taken in, also by handles that have not seen the phase yet.
        self.commands.close();
        on_fatal(fatal);
    }

    fn cut_all(mut self) {
        info!(num_requests = self.routes.len(), "engine stopped");
        let now = self.shared.now();
        for (_, route) in std::mem::take(&mut self.routes) {
            route.end(FinishReason::Aborted, now, &self.metrics.requests);
        }
    }

    fn run_steps(&mut self) -> Result<(), Fatal> {
        while self.take_commands() {
            self.abort_abandoned();
            if self.engine.has_work() {
                self.step()?;
            }
            self.shared.stats.send_replace(self.engine.stats());
        }
        Ok(())
    }

    /// Takes what has been sent; waits for something when there is nothing to do. `false` when it is time to end.
    fn take_commands(&mut self) -> bool {
        if !self.engine.has_work() {
            let command = self.commands.blocking_recv();
            if !command.is_some_and(|command| self.take(command)) {
                return false;
            }
        }
        loop {
            let goes_on = match self.commands.try_recv() {
                Ok(command) => self.take(command),
                Err(mpsc::error::TryRecvError::Disconnected) => false,
                Err(mpsc::error::TryRecvError::Empty) => return true,
            };
            if !goes_on {
                return false;
            }
        }
    }

    /// `false` when it is time to end.
    fn take(&mut self, command: EngineCommand) -> bool {
        match command {
            EngineCommand::Add(groups) => self.add(groups),
            EngineCommand::Inspect(inspection, permit) => {
                // It has been received: another one may be sent.
                drop(permit);
                inspection.answer(&mut self.engine);
            }
            EngineCommand::Stop => return false,
        }
        true
    }

    fn add(&mut self, groups: Vec<Vec<Submission>>) {
        for submissions in groups {
            if let Some(first) = submissions.first() {
                self.metrics.requests.params_n.record(submissions.len() as f64);
                self.metrics.requests.params_max_tokens.record(first.request.sampling.max_tokens);
            }
            let group = Group::new(submissions.len());
            for submission in submissions {
                self.add_one(submission, Arc::clone(&group));
            }
        }
    }

    fn add_one(&mut self, submission: Submission, group: Arc<Group>) {
        let Submission { request, events, link, permit } = submission;
        let now = self.shared.now();
        let route = Route::new(&request, events, link, group, permit);
        debug!(request_id = %request.request_id, prompt_tokens = request.prompt_token_ids.len(), "added");
        self.routes.insert(request.request_id, route);
        self.engine.add_request(request, now);
    }

    /// Takes back every request whose reader has gone.
    fn abort_abandoned(&mut self) {
        let now = self.shared.now();
        for (request_id, route) in self.routes.extract_if(.., |_, route| route.is_abandoned()) {
            debug!(%request_id, "reader has gone");
            self.engine.abort(request_id);
            route.end(FinishReason::Aborted, now, &self.metrics.requests);
        }
    }

    fn step(&mut self) -> Result<(), Fatal> {
        let events = self.engine.step(self.shared.now())?;
        let num_tokens = self.engine.last_step().num_scheduled_tokens();
        if num_tokens > 0 {
            self.metrics.requests.iteration_tokens.record(num_tokens as f64);
        }
        for event in events {
            self.deliver(event);
        }
        Ok(())
    }

    /// Measures `event` and hands it to its reader. Events of requests that were taken back have no reader.
    fn deliver(&mut self, event: EngineEvent) {
        let now = self.shared.now();
        let request_id = event.request_id();
        let Some(route) = self.routes.get_mut(&request_id) else { return };
        let mut finished = None;
        match &event {
            EngineEvent::Admitted { usage, at, .. } => route.admit(usage, *at, &self.metrics),
            EngineEvent::Token { .. } => route.count_token(now, &self.metrics.requests),
            EngineEvent::Finished { reason, usage, .. } => {
                self.metrics.kv.count_reuse(usage);
                finished = Some(*reason);
            }
            EngineEvent::PromptLogProbs { .. } => {}
        }
        let is_delivered = route.send(event);
        let reason = match (finished, is_delivered) {
            (Some(reason), _) => reason,
            (None, true) => return,
            (None, false) => {
                debug!(%request_id, "reader has gone or fell behind");
                self.engine.abort(request_id);
                FinishReason::Aborted
            }
        };
        if let Some(route) = self.routes.remove(&request_id) {
            route.end(reason, now, &self.metrics.requests);
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
