//! The loop of the engine thread.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use engine::{EngineCore, EngineEvent, Executor};
use tokens::{RequestId, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error};

use super::command::EngineCommand;
use super::dispatch::Dispatch;
use super::explanations::Explanations;
use super::fatal::Fatal;
use super::report::describe_step;
use super::route::{Group, Route, Submission};
use super::shared::{Phase, Shared};
use super::slots::QueueSlot;
use crate::metrics::Metrics;

/// State of the engine thread.
pub(super) struct Worker<E: Executor> {
    pub(super) engine: EngineCore<E>,
    pub(super) commands: mpsc::UnboundedReceiver<EngineCommand>,
    /// Channel to the dispatch task.
    pub(super) dispatches: mpsc::Sender<Dispatch>,
    /// Requests whose reader is gone.
    pub(super) abandoned: std::sync::mpsc::Receiver<RequestId>,
    /// Queue slots by request, released at admission.
    pub(super) slots: BTreeMap<RequestId, QueueSlot>,
    /// Requests by arrival, kept only if a timeout bounds how long they wait. Some may have been admitted or ended since.
    pub(super) arrivals: VecDeque<(Timestamp, RequestId)>,
    /// Explanations that wait for time between steps.
    pub(super) explanations: Explanations,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shared: Arc<Shared>,
}

/// Result of a wait.
enum Waited {
    Command(EngineCommand),
    /// No command arrived, and the engine has idle work.
    Idle,
    /// All senders are gone.
    Closed,
}

/// Waker that unparks a thread.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<E: Executor> Worker<E> {
    /// Runs until told to stop, or to the first fault.
    pub(super) fn run(mut self, on_fatal: impl FnOnce(Fatal)) {
        // After a panic only the last steps are read from the engine, so its broken invariants do not matter.
        let fatal = match catch_unwind(AssertUnwindSafe(|| self.run_steps())) {
            Ok(Ok(())) => return,
            // The runtime may end before the step that was cut.
            Ok(Err(Fatal::NoReaders)) if *self.shared.phase.borrow() == Phase::Stopped => return,
            Ok(Err(fatal)) => fatal,
            Err(panic) => Fatal::Panic(panic_message(panic.as_ref())),
        };
        let ahead = self.engine.step_ahead().map(describe_step);
        error!(error = %fatal, step = describe_step(self.engine.last_step()), ahead, "engine failed");
        self.shared.phase.send_replace(Phase::Failed);
        let (done, readers_failed) = oneshot::channel();
        // Without the dispatch task the readers have already lost their channels.
        if self.send(Dispatch::Fail(done)).is_ok() {
            let _closed = readers_failed.blocking_recv();
        }
        // Refuses further commands, also from handles that have not seen the phase yet.
        self.commands.close();
        on_fatal(fatal);
    }

    fn run_steps(&mut self) -> Result<(), Fatal> {
        while self.take_commands()? {
            self.abort_abandoned();
            self.explanations.answer_next(&mut self.engine);
            if self.engine.has_work() || self.is_due() {
                self.step()?;
            } else {
                publish(&self.shared, &self.engine);
            }
        }
        Ok(())
    }

    /// True if the engine has been idle long enough to run background work.
    fn is_due(&self) -> bool {
        self.engine.idle_work_at().is_some_and(|at| at <= self.shared.now())
    }

    /// Processes all pending commands; waits for one if there is nothing to do. Returns `false` when it is time to end.
    fn take_commands(&mut self) -> Result<bool, Fatal> {
        if !self.engine.has_work() && self.explanations.is_empty() {
            let goes_on = match self.wait() {
                Waited::Command(command) => self.take(command)?,
                Waited::Idle => true,
                Waited::Closed => false,
            };
            if !goes_on {
                return Ok(false);
            }
        }
        loop {
            let goes_on = match self.commands.try_recv() {
                Ok(command) => self.take(command)?,
                Err(mpsc::error::TryRecvError::Disconnected) => false,
                Err(mpsc::error::TryRecvError::Empty) => return Ok(true),
            };
            if !goes_on {
                return Ok(false);
            }
        }
    }

    /// Waits for a command, or until the engine has background work to do.
    fn wait(&mut self) -> Waited {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match self.commands.poll_recv(&mut context) {
                Poll::Ready(Some(command)) => return Waited::Command(command),
                Poll::Ready(None) => return Waited::Closed,
                Poll::Pending => {}
            }
            match self.engine.idle_work_at().map(|at| at.since(self.shared.now())) {
                Some(Duration::ZERO) => return Waited::Idle,
                Some(left) => std::thread::park_timeout(left),
                None => std::thread::park(),
            }
        }
    }

    /// Processes a command. Returns `false` when it is time to end.
    fn take(&mut self, command: EngineCommand) -> Result<bool, Fatal> {
        match command {
            EngineCommand::Add(groups) => self.add(groups)?,
            EngineCommand::Inspect(inspection, permit) => {
                // The command has been received, so another one may be sent.
                drop(permit);
                let shared = Arc::clone(&self.shared);
                inspection.answer(&mut self.engine, |engine| publish(&shared, engine));
            }
            EngineCommand::Explain(question) => self.explanations.push(question),
            EngineCommand::Stop => return Ok(false),
        }
        Ok(true)
    }

    fn add(&mut self, groups: Vec<Vec<Submission>>) -> Result<(), Fatal> {
        for submissions in groups {
            if !submissions.is_empty() {
                self.metrics.requests.params_n.record(submissions.len() as f64);
            }
            let group = Group::new(submissions.len());
            submissions.into_iter().try_for_each(|submission| self.add_one(submission, Arc::clone(&group)))?;
        }
        Ok(())
    }

    fn add_one(&mut self, submission: Submission, group: Arc<Group>) -> Result<(), Fatal> {
        let Submission { request, events, link, slot } = submission;
        self.metrics.requests.params_max_tokens.record(request.sampling.max_tokens);
        let route = Route::new(&request, events, link, group);
        self.slots.insert(request.request_id, slot);
        if self.shared.config.queue_timeout.is_some() {
            self.arrivals.push_back((request.arrival, request.request_id));
        }
        debug!(request_id = %request.request_id, prompt_tokens = request.prompt_token_ids.len(), "added");
        self.send(Dispatch::Open(request.request_id, route))?;
        self.engine.add_request(request, self.shared.now());
        Ok(())
    }

    fn abort_abandoned(&mut self) {
        for request_id in self.abandoned.try_iter() {
            self.engine.abort(request_id);
            self.slots.remove(&request_id);
        }
    }

    /// Aborts requests that exceeded the queue timeout. Runs after a step, so that a request is refused only if a step was scheduled
    /// without it. An admitted request has released its slot and is never refused, however long its steps last.
    fn refuse_overdue(&mut self) -> Result<(), Fatal> {
        let Some(timeout) = self.shared.config.queue_timeout else { return Ok(()) };
        let now = self.shared.now();
        while let Some((_, request_id)) = self.arrivals.pop_front_if(|(arrival, _)| now.since(*arrival) >= timeout) {
            if self.slots.remove(&request_id).is_some() {
                self.engine.abort(request_id);
                self.send(Dispatch::TimedOut(request_id))?;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Fatal> {
        let events = self.engine.step(self.shared.now())?;
        for event in &events {
            if let EngineEvent::Admitted { request_id, .. } | EngineEvent::Finished { request_id, .. } = event {
                self.slots.remove(request_id);
            }
        }
        // Published first, so that a reader notified of the end of a request sees figures without it.
        publish(&self.shared, &self.engine);
        // A step without events is dispatched too, because the task checks the readers at each.
        self.send(Dispatch::Step(events))?;
        self.refuse_overdue()
    }

    /// Sends to the dispatch task; waits if it lags many steps.
    fn send(&self, dispatch: Dispatch) -> Result<(), Fatal> {
        self.dispatches.blocking_send(dispatch).map_err(|_| Fatal::NoReaders)
    }
}

/// Publishes the engine's figures.
fn publish<E: Executor>(shared: &Shared, engine: &EngineCore<E>) {
    shared.stats.send_replace(engine.stats());
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
