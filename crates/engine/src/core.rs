//! Scheduler and executor joined: one step after the other, the next one chosen while the device computes where that is possible.

use std::time::Duration;

use tokens::{DonorId, RequestId, TenantId, Timestamp};

use crate::{
    ConfigError, DonorInfo, EngineEvent, EngineStats, Erase, ErasedCounts, Executor, ExecutorError, Explanation,
    ModelRunnerOutput, Request, RequestError, Scheduler, SchedulerConfig, SchedulerOutput,
};

/// One engine: decides and has it computed. Owned by one thread.
pub struct EngineCore<E> {
    scheduler: Scheduler,
    executor: E,
    last_step: SchedulerOutput,
    /// The step behind it, if that has begun.
    ahead: Option<SchedulerOutput>,
}

impl<E: Executor> EngineCore<E> {
    /// An idle engine.
    ///
    /// # Errors
    /// If `config` contradicts itself or goes beyond what `executor` is built for.
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

    /// Takes a request back; its blocks are free at once, and the next step reports its end. Whether it was here.
    pub fn abort(&mut self, request_id: RequestId) -> bool {
        self.scheduler.abort(request_id)
    }

    /// Whether [`step`](Self::step) would do anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work() || self.ahead.is_some()
    }

    /// From when on a step does what no request waits for; see [`Scheduler::idle_work_at`].
    #[must_use]
    pub fn idle_work_at(&self) -> Option<Timestamp> {
        self.scheduler.idle_work_at().filter(|_| self.ahead.is_none())
    }

    /// Computes one step at `now` and reports what became of it. The next one may have begun then.
    ///
    /// # Errors
    /// As the executor's. The engine must not be used any more then.
    pub fn step(&mut self, now: Timestamp) -> Result<Vec<EngineEvent>, ExecutorError> {
        let has_begun = self.choose_step(now);
        let output = self.compute(has_begun)?;
        let events = self.scheduler.update_from_output(&self.last_step, output);
        if cfg!(debug_assertions) {
            self.scheduler.check_invariants();
        }
        Ok(events)
    }

    /// Makes the step that has begun the last one, or chooses one. Whether it has begun.
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

    /// What the last step brings. The step behind it is chosen meanwhile, if that can be done, and has begun then.
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

    /// Whether `request` can run here to its end.
    ///
    /// # Errors
    /// Says what is in the way.
    pub fn fits(&self, request: &Request) -> Result<(), RequestError> {
        self.scheduler.fits(request)
    }

    /// State between two steps.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.scheduler.stats()
    }

    /// The work that plans of spans took so far.
    #[must_use]
    pub fn planning_work(&self) -> crate::PlanningWork {
        self.scheduler.planning_work()
    }

    /// The step that the last call of [`step`](Self::step) reported.
    #[must_use]
    pub fn last_step(&self) -> &SchedulerOutput {
        &self.last_step
    }

    /// The step behind it, if that was given to the executor: for the log, when one of them fails or panics.
    #[must_use]
    pub fn step_ahead(&self) -> Option<&SchedulerOutput> {
        self.ahead.as_ref()
    }

    /// As built.
    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        self.scheduler.config()
    }

    /// Who computes.
    #[must_use]
    pub fn executor(&self) -> &E {
        &self.executor
    }

    /// Who computes, to be changed between two steps.
    pub fn executor_mut(&mut self) -> &mut E {
        &mut self.executor
    }

    /// The donors behind `after`, oldest first, at most `limit`.
    #[must_use]
    pub fn donors(&self, after: Option<DonorId>, limit: usize) -> Vec<DonorInfo> {
        self.scheduler.donors(after, limit)
    }

    /// Classes of traffic in mode `auto`; see [`Scheduler::traffic`].
    #[must_use]
    pub fn traffic(&self, tenant: Option<TenantId>) -> Vec<(semantic::TrafficClass, semantic::TrafficQuality)> {
        self.scheduler.traffic(tenant)
    }

    /// Erases what requests left behind; see [`Scheduler::erase`].
    pub fn erase(&mut self, what: Erase) -> ErasedCounts {
        self.scheduler.erase(what)
    }

    /// What sharing could give `request` now; see [`Scheduler::explain`].
    #[must_use]
    pub fn explain(&self, request: &Request) -> Explanation {
        self.scheduler.explain(request)
    }

    /// Counts time that a question of `tenant` took; see [`Scheduler::charge`].
    pub fn charge(&mut self, tenant: TenantId, time: Duration) {
        self.scheduler.charge(tenant, time);
    }

    /// Notes what the prompt of a request means; see [`Scheduler::attach_embedding`].
    ///
    /// # Panics
    /// If `embedding` does not have the dimensions of the index.
    pub fn attach_embedding(&mut self, request_id: RequestId, embedding: &std::sync::Arc<[f32]>) {
        self.scheduler.attach_embedding(request_id, embedding);
    }

    /// Forgets all KV that no running request holds, and all donors.
    pub fn reset_prefix_cache(&mut self) {
        self.scheduler.reset_prefix_cache();
    }
}
