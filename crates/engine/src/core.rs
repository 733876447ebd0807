//! Joins scheduler and executor: runs one step after the other and schedules the next one while the device computes, where
//! possible.

use std::time::Duration;

use tokens::{DonorId, RequestId, TenantId, Timestamp};

use crate::{
    ConfigError, DonorInfo, EngineEvent, EngineStats, Erase, ErasedCounts, Executor, ExecutorError, Explanation,
    ModelRunnerOutput, Request, RequestError, Scheduler, SchedulerConfig, SchedulerOutput,
};

/// One engine: scheduler and executor. Owned by one thread.
pub struct EngineCore<E> {
    scheduler: Scheduler,
    executor: E,
    last_step: SchedulerOutput,
    /// The step after it, if launched.
    ahead: Option<SchedulerOutput>,
}

impl<E: Executor> EngineCore<E> {
    /// Creates an idle engine.
    ///
    /// # Errors
    /// If `config` contradicts itself or exceeds what `executor` is built for.
    pub fn new(config: SchedulerConfig, executor: E) -> Result<Self, ConfigError> {
        config.check_executor(executor.limits())?;
        Ok(Self { scheduler: Scheduler::try_new(config)?, executor, last_step: SchedulerOutput::default(), ahead: None })
    }

    /// Puts `request` into the waiting queue.
    ///
    /// # Panics
    /// If it does not [fit](Self::fits), or if its id is in use: the caller has to refuse such requests.
    pub fn add_request(&mut self, request: Request, now: Timestamp) {
        self.scheduler.add_request(request, now);
    }

    /// Aborts a request: frees its blocks at once; the next step reports its end. Returns true if the request was known.
    pub fn abort(&mut self, request_id: RequestId) -> bool {
        self.scheduler.abort(request_id)
    }

    /// True if [`step`](Self::step) would do anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work() || self.ahead.is_some()
    }

    /// Returns the time from which on a step does work that no request waits for; see [`Scheduler::idle_work_at`].
    #[must_use]
    pub fn idle_work_at(&self) -> Option<Timestamp> {
        self.scheduler.idle_work_at().filter(|_| self.ahead.is_none())
    }

    /// Computes one step at `now` and returns its events. May launch the next step.
    ///
    /// # Errors
    /// As the executor's. The caller must not use the engine any more then.
    pub fn step(&mut self, now: Timestamp) -> Result<Vec<EngineEvent>, ExecutorError> {
        let has_begun = self.choose_step(now);
        let output = self.compute(has_begun)?;
        let events = self.scheduler.update_from_output(&self.last_step, output);
        if cfg!(debug_assertions) {
            self.scheduler.check_invariants();
        }
        Ok(events)
    }

    /// Makes the launched step the last one, or schedules one. Returns true if it was launched already.
    fn choose_step(&mut self, now: Timestamp) -> bool {
        let ahead = self.ahead.take();
        let has_begun = ahead.is_some();
        self.last_step = match ahead {
            Some(step) => {
                self.scheduler.begin_ahead(&step, now);
                step
            }
            None => self.scheduler.schedule(now),
        };
        has_begun
    }

    /// Returns the output of the last step. Schedules the step after it meanwhile, if possible, and launches it.
    fn compute(&mut self, has_begun: bool) -> Result<ModelRunnerOutput, ExecutorError> {
        let Self { scheduler, executor, last_step, ahead } = self;
        if last_step.is_empty() {
            return Ok(ModelRunnerOutput::default());
        }
        let Some(device) = executor.as_overlapping() else { return executor.execute_model(last_step) };
        if !has_begun {
            device.launch(last_step)?;
        }
        let next = scheduler.schedule_ahead(last_step);
        if let Some(next) = &next {
            device.prepare(next);
        }
        let output = device.collect()?;
        *ahead = next;
        if let Some(next) = ahead {
            scheduler.complete_ahead(next, &output.sampled);
            if !next.is_empty() {
                device.launch(next)?;
            }
        }
        Ok(output)
    }

    /// Checks that `request` can run here to its end.
    ///
    /// # Errors
    /// Names the limit that it exceeds.
    pub fn fits(&self, request: &Request) -> Result<(), RequestError> {
        self.scheduler.fits(request)
    }

    /// Returns the state between two steps.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.scheduler.stats()
    }

    /// Returns the work of span planning so far.
    #[must_use]
    pub fn planning_work(&self) -> crate::PlanningWork {
        self.scheduler.planning_work()
    }

    /// Returns the step that the last call of [`step`](Self::step) reported.
    #[must_use]
    pub fn last_step(&self) -> &SchedulerOutput {
        &self.last_step
    }

    /// Returns the step after it, if the executor has it: for the log, when one of them fails or panics.
    #[must_use]
    pub fn step_ahead(&self) -> Option<&SchedulerOutput> {
        self.ahead.as_ref()
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        self.scheduler.config()
    }

    /// Returns the executor.
    #[must_use]
    pub fn executor(&self) -> &E {
        &self.executor
    }

    /// Returns the executor for changes between two steps.
    pub fn executor_mut(&mut self) -> &mut E {
        &mut self.executor
    }

    /// Lists the donors after `after`, oldest first, at most `limit`.
    #[must_use]
    pub fn donors(&self, after: Option<DonorId>, limit: usize) -> Vec<DonorInfo> {
        self.scheduler.donors(after, limit)
    }

    /// Returns the classes of traffic in mode `auto`; see [`Scheduler::traffic`].
    #[must_use]
    pub fn traffic(&self, tenant: Option<TenantId>) -> Vec<(semantic::TrafficClass, semantic::TrafficQuality)> {
        self.scheduler.traffic(tenant)
    }

    /// Erases the donors and blocks of requests; see [`Scheduler::erase`].
    pub fn erase(&mut self, what: Erase) -> ErasedCounts {
        self.scheduler.erase(what)
    }

    /// Predicts the reuse that `request` would get now; see [`Scheduler::explain`].
    #[must_use]
    pub fn explain(&self, request: &Request) -> Explanation {
        self.scheduler.explain(request)
    }

    /// Charges `tenant` for time spent on its query; see [`Scheduler::charge`].
    pub fn charge(&mut self, tenant: TenantId, time: Duration) {
        self.scheduler.charge(tenant, time);
    }

    /// Attaches the embedding of a request's prompt; see [`Scheduler::attach_embedding`].
    ///
    /// # Panics
    /// If `embedding` does not have the dimensions of the index.
    pub fn attach_embedding(&mut self, request_id: RequestId, embedding: &std::sync::Arc<[f32]>) {
        self.scheduler.attach_embedding(request_id, embedding);
    }

    /// Drops all KV that no running request holds, and all donors.
    pub fn reset_prefix_cache(&mut self) {
        self.scheduler.reset_prefix_cache();
    }
}
