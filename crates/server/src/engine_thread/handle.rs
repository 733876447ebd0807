//! Handle of the engine thread for the HTTP side.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use engine::{DonorInfo, EngineStats, Erase, ErasedCounts, Explanation, Request, RequestError, TrafficClass, TrafficQuality};
use tokens::{DonorId, RequestId, TenantId, Timestamp};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::command::{EngineCommand, PromptGroup};
use super::explanations::Question;
use super::inspect::Inspection;
use super::route::{InFlight, StreamFlags, Submission};
use super::shared::{Phase, Shared};
use super::slots::QueueSlots;
use super::stream::TokenStream;

/// Handle that submits requests to the engine thread and reads its figures. Cheap to clone; the thread ends when the last one is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::UnboundedSender<EngineCommand>,
    shared: Arc<Shared>,
}

/// Reason why a request was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubmitError {
    /// The queue is full.
    QueueFull,
    /// The engine is not running any more.
    NotRunning(Phase),
}

impl EngineHandle {
    pub(super) fn new(commands: mpsc::UnboundedSender<EngineCommand>, shared: Arc<Shared>) -> Self {
        Self { commands, shared }
    }

    /// Returns the time on the engine's clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.shared.now()
    }

    /// Returns the id for a new request.
    pub(crate) fn next_request_id(&self) -> RequestId {
        RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns a receiver of phase changes.
    fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// Returns the maximum number of requests waiting for admission.
    pub(crate) fn max_queue(&self) -> usize {
        self.shared.config.max_queue
    }

    /// Checks if the engine can ever run `request`. To be called before it is submitted.
    pub(crate) fn fits(&self, request: &Request) -> Result<(), RequestError> {
        self.shared.scheduler.fits(request)
    }

    /// True if a request may be refused while it waits for admission.
    pub(crate) fn bounds_waiting(&self) -> bool {
        self.shared.config.queue_timeout.is_some()
    }

    /// Returns the maximum length, prompt and answer together, of a request of `tenant` that the engine can run, in tokens.
    pub(crate) fn most_tokens(&self, tenant: TenantId) -> usize {
        self.shared.scheduler.most_tokens(tenant)
    }

    /// Returns the maximum time that a request may wait to be begun.
    pub(crate) fn queue_timeout(&self) -> Option<Duration> {
        self.shared.config.queue_timeout
    }

    /// Counts a request that is not the engine's as in flight, until the result is dropped: the end of the server waits for it.
    pub(crate) fn enter(&self) -> Result<InFlight, SubmitError> {
        match self.phase() {
            Phase::Running => Ok(InFlight::enter(&self.shared)),
            phase => Err(SubmitError::NotRunning(phase)),
        }
    }

    /// Waits until running requests are cut, and returns the phase.
    pub(crate) async fn ended(&self) -> Phase {
        let mut phase = self.watch_phase();
        // The sender is in `self`, so the channel cannot close.
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Stopped | Phase::Failed)).await;
        ended.map_or(Phase::Stopped, |phase| *phase)
    }

    /// Submits all answers of all prompts of one HTTP request, or none of them. The streams are in the given order.
    pub(crate) fn submit(&self, prompts: Vec<PromptGroup>) -> Result<Vec<TokenStream>, SubmitError> {
        match self.phase() {
            Phase::Running => {}
            phase => return Err(SubmitError::NotRunning(phase)),
        }
        let num_requests = prompts.iter().map(Vec::len).sum::<usize>();
        let Some(tenant) = prompts.iter().flatten().map(|request| request.tenant).next() else { return Ok(Vec::new()) };
        let mut slots = QueueSlots::take(&self.shared.slots, tenant, num_requests).ok_or(SubmitError::QueueFull)?;
        let mut streams = Vec::with_capacity(num_requests);
        let mut connect = |request| {
            let (sender, events) = mpsc::channel(self.shared.config.stream_buffer);
            let link = Arc::new(StreamFlags::default());
            let in_flight = InFlight::enter(&self.shared);
            streams.push(TokenStream::new(events, Arc::clone(&link), self.watch_phase(), in_flight));
            let slot = slots.pop().expect("one slot was taken for each request");
            Submission { request, events: sender, link, slot }
        };
        let groups = prompts.into_iter().map(|group| group.into_iter().map(&mut connect).collect()).collect();
        // Fails only if the thread has ended.
        self.commands.send(EngineCommand::Add(groups)).map_err(|_| SubmitError::NotRunning(self.phase()))?;
        Ok(streams)
    }

    /// Returns at most `limit` donors after `after`, by id.
    pub(crate) async fn donors(&self, after: Option<DonorId>, limit: usize) -> Result<Vec<DonorInfo>, SubmitError> {
        self.inspect(|reply| Inspection::Donors { after, limit, reply }).await
    }

    /// Returns the traffic classes of `tenant` in mode `auto`.
    pub(crate) async fn traffic(&self, tenant: TenantId) -> Result<Vec<(TrafficClass, TrafficQuality)>, SubmitError> {
        self.inspect(|reply| Inspection::Traffic { tenant, reply }).await
    }

    /// Erases KV and returns the counts.
    pub(crate) async fn erase(&self, what: Erase) -> Result<ErasedCounts, SubmitError> {
        self.inspect(|reply| Inspection::Erase { what, reply }).await
    }

    /// Predicts the reuse of `request`, which fits. Tenants take turns.
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

    /// Attaches the embedding of the prompt to a submitted request.
    pub(crate) async fn attach_embedding(&self, request_id: RequestId, embedding: Arc<[f32]>) -> Result<(), SubmitError> {
        self.inspect(|reply| Inspection::Attach { request_id, embedding, reply }).await
    }

    /// Sends an inspection and waits for the answer.
    async fn inspect<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Inspection) -> Result<T, SubmitError> {
        let permit = Arc::clone(&self.shared.inspections).acquire_owned().await.expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        self.ask(EngineCommand::Inspect(question(reply), permit), answer).await
    }

    /// Sends a command and waits for its answer.
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

    /// Returns the current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.shared.phase.borrow()
    }

    /// Returns the engine's figures after its last step.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.shared.stats.borrow().clone()
    }

    /// Returns the number of submitted requests whose reader still listens.
    #[must_use]
    pub fn num_in_flight(&self) -> usize {
        *self.shared.in_flight.borrow()
    }

    /// Stops accepting requests.
    pub fn begin_drain(&self) {
        self.shared.phase.send_if_modified(|phase| {
            let was_running = *phase == Phase::Running;
            if was_running {
                *phase = Phase::Draining;
            }
            was_running
        });
    }

    /// Waits until no request is in flight.
    pub async fn wait_idle(&self) {
        let mut in_flight = self.shared.in_flight.subscribe();
        // The sender is in `self`, so the channel cannot close.
        let _ = in_flight.wait_for(|&num_requests| num_requests == 0).await;
    }

    /// Cuts running requests at once, and ends the thread after its current step.
    pub fn stop(&self) {
        self.shared.phase.send_if_modified(|phase| {
            let has_failed = *phase == Phase::Failed;
            if !has_failed {
                *phase = Phase::Stopped;
            }
            !has_failed
        });
        // Fails only if the thread has already ended.
        let _ = self.commands.send(EngineCommand::Stop);
    }

    /// Waits until `is_reached` holds for the engine's figures, or the engine has ended.
    pub async fn wait_for_stats(&self, is_reached: impl FnMut(&EngineStats) -> bool) {
        let mut stats = self.shared.stats.subscribe();
        // The sender is in `self`, so the channel cannot close.
        let _ = stats.wait_for(is_reached).await;
    }
}
