//! What the HTTP side holds of the engine thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use engine::{
    DonorInfo, EngineStats, Erase, ErasedCounts, Explanation, Request, RequestError, SchedulerConfig, TrafficClass,
    TrafficQuality,
};
use tokens::{DonorId, RequestId, TenantId, Timestamp};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::explanations::Question;
use super::inspect::Inspection;
use super::places::Places;
use super::route::{InFlight, Link, Submission};
use super::{EngineCommand, EngineThreadConfig, PromptGroup, TokenStream};

/// Submits requests to the engine thread and reads its figures. Cheap to clone; the thread ends when the last one is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::UnboundedSender<EngineCommand>,
    shared: Arc<Shared>,
}

/// Where the daemon is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Takes requests.
    Running,
    /// Finishes what it has, takes nothing new.
    Draining,
    /// Has cut what was left.
    Stopped,
    /// The engine failed.
    Failed,
}

/// Seen by the thread and by all handles.
pub(super) struct Shared {
    pub(super) phase: watch::Sender<Phase>,
    pub(super) stats: watch::Sender<EngineStats>,
    pub(super) in_flight: watch::Sender<usize>,
    /// Of requests that wait for admission.
    pub(super) places: Arc<Places>,
    /// One permit for each question on its way.
    pub(super) inspections: Arc<Semaphore>,
    /// One permit for each request on its way to be explained.
    pub(super) explanations: Arc<Semaphore>,
    /// One more for each tenant, so that none has two of those.
    pub(super) explaining: Mutex<BTreeMap<TenantId, Arc<Semaphore>>>,
    pub(super) config: EngineThreadConfig,
    pub(super) scheduler: SchedulerConfig,
    pub(super) next_id: AtomicU64,
    pub(super) started: Instant,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubmitError {
    /// As many requests wait as may wait.
    QueueFull,
    /// Not running any more.
    NotRunning(Phase),
}

impl Shared {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp(self.started.elapsed())
    }
}

impl EngineHandle {
    pub(super) fn new(commands: mpsc::UnboundedSender<EngineCommand>, shared: Arc<Shared>) -> Self {
        Self { commands, shared }
    }

    /// Time on the engine's clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.shared.now()
    }

    /// A name for a new request.
    pub(crate) fn next_request_id(&self) -> RequestId {
        RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// The phase of the daemon's life, from now on.
    pub(super) fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// Requests that may wait for admission.
    pub(crate) fn max_queue(&self) -> usize {
        self.shared.config.max_queue
    }

    /// Whether the engine can ever run `request`. To be asked before it is submitted.
    pub(crate) fn fits(&self, request: &Request) -> Result<(), RequestError> {
        self.shared.scheduler.fits(request)
    }

    /// True if a request may be refused while it waits for admission.
    pub(crate) fn bounds_waiting(&self) -> bool {
        self.shared.config.queue_timeout.is_some()
    }

    /// Prompt and answer together of the longest request of `tenant` that the engine can run, in tokens.
    pub(crate) fn most_tokens(&self, tenant: TenantId) -> usize {
        self.shared.scheduler.most_tokens(tenant)
    }

    /// Hands over all answers of all prompts of one HTTP request, or none of them. The streams are in the given order.
    pub(crate) fn submit(&self, prompts: Vec<PromptGroup>) -> Result<Vec<TokenStream>, SubmitError> {
        match self.phase() {
            Phase::Running => {}
            phase => return Err(SubmitError::NotRunning(phase)),
        }
        let num_requests = prompts.iter().map(Vec::len).sum::<usize>();
        let Some(tenant) = prompts.iter().flatten().map(|request| request.tenant).next() else { return Ok(Vec::new()) };
        let mut places = Places::take(&self.shared.places, tenant, num_requests).ok_or(SubmitError::QueueFull)?;
        let mut streams = Vec::with_capacity(num_requests);
        let mut connect = |request| {
            let (sender, events) = mpsc::channel(self.shared.config.stream_buffer);
            let link = Arc::new(Link::default());
            let in_flight = InFlight::enter(&self.shared);
            streams.push(TokenStream::new(events, Arc::clone(&link), self, in_flight));
            let place = places.pop().expect("one place was taken for each request");
            Submission { request, events: sender, link, place }
        };
        let groups = prompts.into_iter().map(|group| group.into_iter().map(&mut connect).collect()).collect();
        // It fails only when the thread has ended.
        self.commands.send(EngineCommand::Add(groups)).map_err(|_| SubmitError::NotRunning(self.phase()))?;
        Ok(streams)
    }

    /// At most `limit` donors behind `after`, by id.
    pub(crate) async fn donors(&self, after: Option<DonorId>, limit: usize) -> Result<Vec<DonorInfo>, SubmitError> {
        self.inspect(|reply| Inspection::Donors { after, limit, reply }).await
    }

    /// Classes of the traffic of `tenant` in mode `auto`.
    pub(crate) async fn traffic(&self, tenant: TenantId) -> Result<Vec<(TrafficClass, TrafficQuality)>, SubmitError> {
        self.inspect(|reply| Inspection::Traffic { tenant, reply }).await
    }

    /// Forgets KV; what it was is told.
    pub(crate) async fn erase(&self, what: Erase) -> Result<ErasedCounts, SubmitError> {
        self.inspect(|reply| Inspection::Erase { what, reply }).await
    }

    /// Predicts the reuse of `request`, which fits. Tenants that ask take turns.
    pub(crate) async fn explain(&self, request: Request) -> Result<Explanation, SubmitError> {
        let of_tenant = {
            let mut explaining = self.shared.explaining.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(explaining.entry(request.tenant).or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        let own = of_tenant.acquire_owned().await.expect("the semaphore is never closed");
        let common = Arc::clone(&self.shared.explanations).acquire_owned().await.expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        let question = Question { request: Box::new(request), reply, permits: [own, common] };
        self.ask(EngineCommand::Explain(question), answer).await
    }

    /// Tells what the prompt of a request means that was submitted before.
    pub(crate) async fn attach_embedding(&self, request_id: RequestId, embedding: Arc<[f32]>) -> Result<(), SubmitError> {
        self.inspect(|reply| Inspection::Attach { request_id, embedding, reply }).await
    }

    /// Asks, and waits for the answer.
    async fn inspect<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Inspection) -> Result<T, SubmitError> {
        let permit = Arc::clone(&self.shared.inspections).acquire_owned().await.expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        self.ask(EngineCommand::Inspect(question(reply), permit), answer).await
    }

    /// Sends a question, and waits for its answer.
    async fn ask<T>(&self, command: EngineCommand, answer: oneshot::Receiver<T>) -> Result<T, SubmitError> {
        let not_running = || SubmitError::NotRunning(self.phase());
        self.commands.send(command).map_err(|_| not_running())?;
        let mut phase = self.watch_phase();
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| not_running()),
            _ = phase.wait_for(|phase| *phase == Phase::Stopped) => Err(not_running()),
        }
    }

    /// Where the daemon is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.shared.phase.borrow()
    }

    /// The engine's figures after its last step.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.shared.stats.borrow().clone()
    }

    /// Requests that were submitted and whose reader still listens.
    #[must_use]
    pub fn num_in_flight(&self) -> usize {
        *self.shared.in_flight.borrow()
    }

    /// Takes nothing new from now on.
    pub fn begin_drain(&self) {
        self.shared.phase.send_if_modified(|phase| {
            let was_running = *phase == Phase::Running;
            if was_running {
                *phase = Phase::Draining;
            }
            was_running
        });
    }

    /// Returns when nobody waits for an answer any more.
    pub async fn wait_idle(&self) {
        let mut in_flight = self.shared.in_flight.subscribe();
        // The sender is in `self`, so the channel cannot close.
        let _ = in_flight.wait_for(|&num_requests| num_requests == 0).await;
    }

    /// Cuts what still runs, at once, and ends the thread after its current step.
    pub fn stop(&self) {
        self.shared.phase.send_if_modified(|phase| {
            let has_failed = *phase == Phase::Failed;
            if !has_failed {
                *phase = Phase::Stopped;
            }
            !has_failed
        });
        // It fails only when the thread has ended, which is what was wanted.
        let _ = self.commands.send(EngineCommand::Stop);
    }

    /// Returns when `is_reached` holds for the engine's figures, or when the engine has ended.
    pub async fn wait_for_stats(&self, is_reached: impl FnMut(&EngineStats) -> bool) {
        let mut stats = self.shared.stats.subscribe();
        // The sender is in `self`, so the channel cannot close.
        let _ = stats.wait_for(is_reached).await;
    }
}
