//! Schedules the work of each step: arithmetic on counters.
//!
//! A step has one budget of rows. First, it admits waiting requests while there are rows, seats and blocks for them; then it
//! divides the rows among all running sequences: one is enough in decode, a prompt takes as many as its share allows. A request
//! gets the blocks of its whole prompt at admission, so only growth by generated tokens can exhaust the pool; the scheduler then
//! preempts the newest sequence of the tenant that holds most, which is computed again later. A tenant with nothing running
//! preempts too, if others have more than their part ([`seats`]). A sequence that was preempted is protected until it has gained
//! more than it lost, so that all of them end.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use semantic::DecodeRepair;
use tokens::{RequestId, TenantId, Timestamp, TokenRange};

use self::plan_book::PlanBook;
pub use self::plan_book::PlanningWork;
use self::share::Demand;
use self::timing::{PrefillSlowdown, TimedStep};
use crate::ageing::Ageing;
use crate::arrival::ArrivalKey;
use crate::continuations::Continuations;
use crate::cost::StepCostModel;
use crate::donors::{DonorRegistry, Target, scopes};
use crate::host::HostLink;
use crate::in_flight::InFlight;
use crate::queue::{RequestQueue, Waiting};
use crate::recent::RecentPrompts;
use crate::sequence::{Sequence, Trial};
use crate::verifier::Verifier;
use crate::{
    ConfigError, EngineEvent, EngineStats, Request, RequestError, ScheduledSequence, SchedulerConfig, SchedulerOutput,
    SpanLookups,
};

mod admin;
mod admission;
mod ahead;
mod dedupe;
mod demand;
mod forecast;
mod hit;
mod host;
mod plan_book;
mod planning;
mod seats;
mod share;
mod timing;
mod update;
mod verification;

/// Decides; never computes.
///
/// [`Scheduler::schedule`] and [`Scheduler::update_from_output`] alternate, except that the next step may be scheduled before the
/// result of a running one is known: [`Scheduler::schedule_ahead`]. The same calls give the same results.
pub struct Scheduler {
    config: SchedulerConfig,
    pool: kv::BlockPool,
    sequences: HashMap<RequestId, Sequence>,
    queue: RequestQueue,
    recent: RecentPrompts,
    /// Running requests in order of admission.
    running: Vec<RequestId>,
    donors: DonorRegistry,
    plans: PlanBook,
    host_link: HostLink,
    in_flight: InFlight,
    continuations: Continuations,
    verifier: Verifier,
    /// Blocks that the open step copies from.
    pins: Vec<kv::BlockLease>,
    /// Requests the runner may drop, not yet reported to it.
    finished: Vec<RequestId>,
    /// Requests whose last sample the runner is to discard, not yet reported to it.
    retracted: Vec<RequestId>,
    /// Events not yet reported.
    events: Vec<EngineEvent>,
    /// Steps with outstanding results: at most one, and one after it that was scheduled ahead.
    open_steps: VecDeque<OpenStep>,
    num_steps: u64,
    num_added: u64,
    num_preemptions: u64,
    num_last_scheduled: usize,
    /// Lookups of a waiting request's cached KV so far.
    num_examined: u64,
    /// Predicted work of the answers of the step being processed, in microseconds.
    answered: BTreeMap<TenantId, u64>,
    /// True if no waiting request can be admitted before a sequence ends or another request arrives.
    is_stuck: bool,
    /// Number of the last step that was not scheduled ahead.
    last_chosen: u64,
    span_lookups: SpanLookups,
    num_shadowed_tokens: u64,
    /// Version of the prefix index at the last hit predictions.
    predicted_version: u64,
    step_costs: StepCostModel,
    slowdown: PrefillSlowdown,
    ageing: Ageing,
    /// Start and work of the last step, if the next one follows at its end.
    timed_step: Option<TimedStep>,
}

/// State in which a step with an outstanding result was scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpenStep {
    /// After all earlier results were known.
    Chosen,
    /// Before the result of the previous step was known: it may hold void rows.
    Ahead,
}

impl Scheduler {
    /// Creates an idle scheduler with an empty pool.
    ///
    /// # Errors
    /// If `config` contradicts itself.
    pub fn try_new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        let config = config.validated()?;
        Ok(Self {
            pool: kv::BlockPool::try_new(config.cache_groups.clone(), config.num_blocks, config.block_size)?
                .with_quotas(&config.quotas)
                .with_host_tier(config.host.num_blocks)
                .with_ttl(config.donor_ttl),
            sequences: HashMap::new(),
            queue: RequestQueue::default(),
            recent: RecentPrompts::default(),
            running: Vec::new(),
            donors: DonorRegistry::new(&config),
            plans: PlanBook::default(),
            host_link: HostLink::new(&config.host),
            in_flight: InFlight::new(config.span_index()),
            continuations: Continuations::default(),
            verifier: Verifier::new(
                config.verification,
                semantic::QualityGuard::new(config.guard),
                semantic::TrafficGuard::new(config.proof),
            ),
            pins: Vec::new(),
            finished: Vec::new(),
            retracted: Vec::new(),
            events: Vec::new(),
            open_steps: VecDeque::new(),
            num_steps: 0,
            num_added: 0,
            num_preemptions: 0,
            num_last_scheduled: 0,
            num_examined: 0,
            answered: BTreeMap::new(),
            is_stuck: false,
            last_chosen: 0,
            span_lookups: SpanLookups::default(),
            num_shadowed_tokens: 0,
            predicted_version: 0,
            step_costs: StepCostModel::default(),
            slowdown: PrefillSlowdown::default(),
            ageing: Ageing::new(config.ageing, config.overtake_share),
            timed_step: None,
            config,
        })
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Checks that `request` can run here to its end. The caller must not add one that cannot.
    ///
    /// # Errors
    /// Names the limit that it exceeds.
    pub fn fits(&self, request: &Request) -> Result<(), RequestError> {
        self.config.fits(request)
    }

    /// Puts `request` into the waiting queue. An arrival later than `now` counts as `now`.
    ///
    /// # Panics
    /// If it does not fit, or if its id was added before and has not finished: the caller has to refuse such requests.
    pub fn add_request(&mut self, request: Request, now: Timestamp) {
        if let Err(error) = self.fits(&request) {
            panic!("{} was added although it can never run: {error}", request.request_id);
        }
        self.put_off_verification();
        self.enqueue(request, now);
    }

    fn enqueue(&mut self, request: Request, now: Timestamp) {
        self.enqueue_sequence(request, None, now);
    }

    /// Puts `request`, which may be a trial, into the waiting queue.
    fn enqueue_sequence(&mut self, request: Request, trial: Option<Trial>, now: Timestamp) {
        let request_id = request.request_id;
        let key = ArrivalKey { arrival: request.arrival.min(now), ordinal: self.num_added };
        self.num_added += 1;
        self.recent.push(request.tenant, request.prompt_token_ids.len() as u32, now);
        let mut sequence = Sequence::new(request, key, self.config.block_size);
        sequence.trial = trial;
        self.push_waiting(key, &mut sequence);
        let before = self.sequences.insert(request_id, sequence);
        assert!(before.is_none(), "{request_id} is in the engine already");
    }

    /// Finds donors with embeddings similar to that of `request`, if it may use them. Runs while it waits; the span index
    /// finds later donors, as it returns the newest first.
    fn similar(&self, request: &Request) -> Vec<tokens::DonorId> {
        match &request.embedding {
            Some(embedding) if request.sharing == tokens::SharingMode::Semantic => {
                self.donors.similar(scopes(request.scope, &request.readable), embedding)
            }
            _ => Vec::new(),
        }
    }

    /// Attaches the embedding of a request's prompt that was computed only after it was added: for its own search while it waits,
    /// and for those of other requests if its prompt is, or becomes, a donor. Does nothing if it left no donor.
    ///
    /// # Panics
    /// If `embedding` does not have the dimensions of the index.
    pub fn attach_embedding(&mut self, request_id: RequestId, embedding: &std::sync::Arc<[f32]>) {
        if let Err(error) = self.config.fits_index(embedding) {
            panic!("an embedding of {request_id} was attached although it is of another kind: {error}");
        }
        if let Some(sequence) = self.sequences.get_mut(&request_id) {
            sequence.request.embedding = Some(std::sync::Arc::clone(embedding));
        }
        if let Some(sequence) = self.sequences.get(&request_id)
            && self.queue.get(sequence.arrival).is_some()
        {
            let similar = self.similar(&sequence.request);
            let sequence = self.sequences.get_mut(&request_id).expect("it was found above");
            sequence.similar = similar;
            sequence.planned = None;
        }
        self.donors.attach(request_id, embedding);
    }

    /// Forecasts the work of `sequence` and puts it into the queue.
    fn push_waiting(&mut self, key: ArrivalKey, sequence: &mut Sequence) {
        self.is_stuck &= self.running.len() == self.config.max_num_seqs && self.queue.num_running(sequence.request.tenant) > 0;
        let queue_micros = self.queue_micros();
        sequence.arrived_micros = self.ageing.advance(key.arrival);
        sequence.similar = self.similar(&sequence.request);
        sequence.expected_spans = self.expect_spans(sequence);
        sequence.deadline = self.deadline(key.arrival, queue_micros);
        let forecast = self.forecast(sequence);
        if self.step_costs.is_fitted() {
            self.ageing.observe(forecast.micros, queue_micros);
        }
        self.queue.push(
            key,
            Waiting {
                request_id: sequence.request_id,
                tenant: sequence.request.tenant,
                forecast,
                uncached_micros: self.uncached_micros(sequence),
                deadline: sequence.deadline,
            },
        );
    }

    /// Aborts a request in any state; its blocks are free at once. Returns true if the request was known.
    ///
    /// # Panics
    /// Between `schedule` and `update_from_output`, which would miss it. A step that was chosen ahead may be open.
    pub fn abort(&mut self, request_id: RequestId) -> bool {
        assert!(!self.open_steps.contains(&OpenStep::Chosen), "a step is open");
        let Some(sequence) = self.sequences.get(&request_id) else { return false };
        self.queue.remove(sequence.arrival);
        self.finish(request_id, crate::FinishReason::Aborted);
        true
    }

    /// True if a step would do anything for a request, or continue a comparison; [`Scheduler::idle_work_at`] returns when one may
    /// begin.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty() || !self.finished.is_empty() || !self.events.is_empty()
    }

    /// Drops all KV that no running request holds, and all donors.
    pub fn reset_prefix_cache(&mut self) {
        self.continuations.extract(|_| true).into_iter().for_each(|lease| self.pool.free(lease));
        self.pool.reset_prefix_cache();
        self.donors.clear();
    }

    /// Returns the state between two steps.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            num_running: self.running.len(),
            num_comparing: self.verifier.active().iter().filter(|active| self.running.contains(active)).count(),
            num_waiting: self.queue.len(),
            examined_requests: self.num_examined,
            oldest_waiting_arrival: self.queue.oldest_arrival(),
            blocks: self.block_stats(),
            host: self.pool.host_stats(),
            host_bandwidth: self.host_link.bandwidth(),
            preemptions: self.num_preemptions,
            num_donors: self.donors.len(),
            found_donors: self.donors.num_found(),
            last_scheduled_tokens: self.num_last_scheduled,
            span_lookups: self.span_lookups,
            shadowed_tokens: self.num_shadowed_tokens,
            quality: self.verifier.guard().classes().to_vec(),
            verification: self.verifier.stats(self.num_recording_bytes()),
            traffic: self.verifier.traffic_counts(),
        }
    }

    /// Counts blocks by state. Blocks kept for conversations count as cached: lookups find them, and they are evicted when room
    /// is needed.
    fn block_stats(&self) -> kv::PoolStats {
        let num_kept = self.num_reclaimable(None, None);
        let stats = self.pool.stats();
        kv::PoolStats { active: stats.active - num_kept, cached: stats.cached + num_kept, ..stats }
    }

    /// Schedules the work of one step at `now`.
    ///
    /// # Panics
    /// If the result of the previous step was not passed to `update_from_output`.
    pub fn schedule(&mut self, now: Timestamp) -> SchedulerOutput {
        assert!(self.open_steps.is_empty(), "the last step is still open");
        self.forget_expired(now);
        self.recent.forget_expired(now);
        self.observe_last_step(now);
        self.update_min_offload_depth();
        self.start_verification(now);
        let finished = std::mem::take(&mut self.finished);
        let retracted = std::mem::take(&mut self.retracted);
        let mut step = SchedulerOutput { finished, retracted, ..SchedulerOutput::default() };
        let preempted = self.make_room_for_running();
        self.plan_postponed();
        if preempted.is_empty() {
            self.refresh_forecasts();
        }
        self.queue.unpark(now);
        let mut demand = self.demand(now);
        self.admit_waiting(now, preempted, &mut demand, &mut step);
        self.schedule_deep_probes(&mut step);
        self.schedule_running(&demand, &mut step);
        self.last_chosen = self.num_steps;
        debug_assert!(
            self.sequences.is_empty() || !step.sequences.is_empty() || !step.probes.is_empty(),
            "a waiting request can always run alone"
        );
        self.open_step(&mut step, OpenStep::Chosen);
        self.time_step(&step, now);
        step
    }

    /// Adds the pool's pending transfers and zeroes to `step`, and its number.
    fn open_step(&mut self, step: &mut SchedulerOutput, how: OpenStep) {
        step.block_zeroes = self.pool.take_to_zero();
        kv::Transfers { offloads: step.offloads, fetches: step.fetches } = self.pool.take_transfers();
        step.step = self.num_steps;
        self.num_steps += 1;
        self.open_steps.push_back(how);
    }

    /// Starts timing `step`, which begins at `now`.
    fn time_step(&mut self, step: &SchedulerOutput, now: Timestamp) {
        // Fetches are timed separately; a step with some would attribute their time to the rest of its work.
        self.timed_step = step.fetches.is_empty().then(|| self.timed(step, now));
    }

    /// Panics with a message if the bookkeeping is inconsistent. Takes time in proportion to the pool.
    pub fn check_invariants(&self) {
        self.pool.check_invariants();
        self.continuations.check_invariants();
        assert_eq!(self.running.len() + self.queue.len(), self.sequences.len(), "a request is neither running nor waiting");
        for request_id in &self.running {
            let sequence = &self.sequences[request_id];
            assert!(sequence.num_computed_tokens() <= sequence.num_tokens(), "{request_id} has computed more than it knows");
            let tenant = sequence.request.tenant;
            let num_running = self.running.iter().filter(|id| self.sequences[id].request.tenant == tenant).count();
            assert_eq!(self.queue.num_running(tenant), num_running, "running sequences of {tenant:?}");
        }
    }

    /// Grows every running sequence by the blocks for its newest token. Returns the tenants of sequences preempted for it.
    fn make_room_for_running(&mut self) -> BTreeSet<TenantId> {
        let mut preempted = BTreeSet::new();
        for request_id in self.running.clone() {
            self.make_room(request_id, &mut preempted);
        }
        preempted
    }

    /// Grows the lease of a running sequence to its newest token, preempting others or at last itself. A full quota preempts only
    /// sequences of its tenant.
    fn make_room(&mut self, request_id: RequestId, preempted: &mut BTreeSet<TenantId>) {
        while preempted.is_empty() || self.running.contains(&request_id) {
            let sequence = self.sequences.get_mut(&request_id).expect("a running sequence is known");
            let missing = sequence.num_missing_blocks(sequence.num_tokens(), self.config.block_size);
            let tenant = sequence.request.tenant;
            let grown = self.pool.grow(&mut sequence.lease, missing);
            let of_tenant = matches!(grown, kv::Allocation::QuotaExhausted { .. }).then_some(tenant);
            if !matches!(grown, kv::Allocation::Ready(())) && self.reclaim(of_tenant, None) {
                continue;
            }
            let (victim, short_by) = match grown {
                kv::Allocation::Ready(()) => return,
                kv::Allocation::CapacityExhausted { short_by } => (self.victim_of_growth(), short_by),
                kv::Allocation::QuotaExhausted { short_by } => (self.last_of(tenant), short_by),
            };
            tracing::debug!(%victim, for_request = %request_id, short_by, "preempted");
            preempted.insert(self.sequences[&victim].request.tenant);
            self.preempt(victim);
        }
    }

    /// Puts a running sequence back into the queue. Its KV is lost except for cached blocks.
    fn preempt(&mut self, request_id: RequestId) {
        self.running.retain(|&running| running != request_id);
        self.cancel_in_flight(request_id);
        let sequence = self.sequences.get_mut(&request_id).expect("a running sequence is known");
        sequence.seat_term.lost = Some(sequence.num_computed_tokens());
        self.pool.free(sequence.reset());
        self.queue.push_preempted(sequence.arrival, request_id, sequence.request.tenant);
        self.num_preemptions += 1;
        self.is_stuck = false;
    }

    /// Wakes the requests that wait for blocks or the prompt of `request_id`, which it will not compute.
    fn cancel_in_flight(&mut self, request_id: RequestId) {
        let Self { in_flight, queue, sequences, .. } = self;
        let mut woke_any = false;
        in_flight.remove(request_id, sequences[&request_id].block_hashes(), |hash| woke_any |= queue.wake_block(hash));
        in_flight.remove_prompt(request_id);
        woke_any |= queue.wake_prompt(request_id);
        self.is_stuck &= !woke_any;
    }

    /// Adds the rows of all running sequences to `step`; sequences whose spans are measured have none yet.
    fn schedule_running(&mut self, demand: &Demand, step: &mut SchedulerOutput) {
        let grants = demand.grants(self.answer_micros(demand));
        let measured: BTreeSet<_> = step.probes.iter().map(|probe| probe.request_id).collect();
        for request_id in self.running.clone().into_iter().filter(|request_id| !measured.contains(request_id)) {
            self.schedule_rows(request_id, 1 + grants.get(&request_id).copied().unwrap_or(0), step);
        }
    }

    /// Adds the next rows of a running sequence, at most `max_rows`, to `step`.
    fn schedule_rows(&mut self, request_id: RequestId, max_rows: usize, step: &mut SchedulerOutput) {
        let may_repair = |repair: DecodeRepair| {
            let has_slack = step.num_scheduled_tokens() < repair.max_batch_rows as usize && self.queue.len() == 0;
            repair.max_batch_rows == 0 || has_slack
        };
        let sequence = self.sequences.get_mut(&request_id).expect("a running sequence is known");
        let mut rows = match sequence.request.repair.decode.is_some_and(may_repair) {
            true => sequence.take_due(max_rows - 1),
            false => Vec::new(),
        };
        if let Some(usage) = sequence.usage.as_mut() {
            usage.recompute(rows.len() as u32);
        }
        rows.extend(sequence.next_rows(max_rows - rows.len()));
        let last_position = rows.last().expect("a running sequence has at least one row to compute").position;
        step.sequences.push(ScheduledSequence {
            request_id,
            rows,
            block_table: sequence.lease.block_table(last_position + 1),
            sample: sequence.samples_at(last_position),
            drift: sequence.drift(last_position),
            watch: if sequence.samples_at(last_position) { sequence.watched().to_vec() } else { Vec::new() },
        });
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let kept = self.continuations.extract(|_| true);
        let leases = self.sequences.values_mut().map(Sequence::reset).chain(self.pins.drain(..)).chain(kept);
        leases.for_each(|lease| self.pool.free(lease));
    }
}

fn target_of(sequence: &Sequence, from: u32) -> Target<'_> {
    Target {
        scope: sequence.request.scope,
        readable: &sequence.request.readable,
        tokens: &sequence.request.prompt_token_ids[..sequence.num_planned_tokens() as usize],
        sketch: sequence.sketch.as_ref(),
        template: &sequence.request.template,
        borders: &sequence.request.borders,
        from,
        policy: sequence.request.repair.policy,
        ranks_donors: sequence.request.sharing == tokens::SharingMode::Semantic,
        similar: &sequence.similar,
    }
}

fn reused_ranges(plan: &semantic::ReusePlan) -> Vec<TokenRange> {
    plan.spans.iter().map(semantic::ReuseSpan::target_range).collect()
}
