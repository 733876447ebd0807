//! Admits waiting requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kv::BlockEntry;
use tokens::{BlockId, DonorId, RequestId, SharingMode, TenantId, Timestamp, TokenRange};

use super::hit::Hit;
use super::seats::SeatOutcome;
use super::share::Demand;
use super::{Scheduler, reused_ranges};
use crate::donors::{FoundSpans, covering};
use crate::parking::Until;
use crate::queue::Ticket;
use crate::sequence::Sequence;
use crate::verifier::REUSE_TOP;
use crate::{
    BlockCopy, EngineEvent, KvUsage, NewRequest, ProbedSequence, SamplingParams, SchedulerOutput, SpanCopy, SpanOutcome,
};

/// Maximum refusals in one step. Chosen: far more than there are tenants, and quickly done.
const MAX_REFUSED_PER_STEP: usize = 128;
/// Maximum refusals of one tenant in one step: requests parked for a prefix, or with corrected forecasts.
const MAX_REFUSED_OF_TENANT: usize = 32;

/// Tokens measured at the cost of one computed: two or three layers of two or three dozen. Chosen: it only bounds a step's work.
const PROBED_PER_COMPUTED_TOKEN: usize = 8;

/// A forecast may be too low by one part in this many. Chosen: coefficients move a little with every step.
const TOLERATED_ERROR: u64 = 8;

enum AdmissionOutcome {
    Admitted,
    /// It came first by a forecast that no longer holds.
    TooLow,
    /// Another request is computing KV that it needs.
    Parked(Until),
    /// This step has no row for it, or no budget to plan its spans.
    NotNow,
    /// No seat or room is available.
    Refused,
    /// It is refused only until blocks come free, and no other request gets them.
    Claims,
}

/// Blocks of a request and their sources.
struct Placement {
    lease: kv::BlockLease,
    /// Source blocks: the block of a partial hit, then those of donors.
    pins: kv::BlockLease,
    hit: Hit,
    spans: Option<FoundSpans>,
    /// Outcome of the search for spans, if there was one.
    outcome: Option<SpanOutcome>,
}

impl Scheduler {
    /// Admits waiting requests while there are rows, seats and blocks. After a refusal it skips the tenant and goes on to others:
    /// requests of one tenant do not overtake each other here, or one that needs much might starve. If running sequences were
    /// `preempted` for lack of blocks, it considers only tenants with nothing running, and none of the preempted ones.
    pub(super) fn admit_waiting(
        &mut self,
        now: Timestamp,
        preempted: BTreeSet<TenantId>,
        demand: &mut Demand,
        step: &mut SchedulerOutput,
    ) {
        let only_outsiders = !preempted.is_empty();
        let mut passed_over = preempted;
        let mut tries: BTreeMap<TenantId, usize> = BTreeMap::new();
        let mut may_change = only_outsiders || self.queue.has_woken();
        self.is_stuck = false;
        let mut num_refused = 0;
        while num_refused < MAX_REFUSED_PER_STEP {
            let Some(ticket) = self.queue.next(now, &passed_over) else {
                self.is_stuck = !may_change;
                return;
            };
            let is_full = self.running.len() == self.config.max_num_seqs;
            if self.queue.num_running(ticket.tenant) > 0 && (only_outsiders || is_full) {
                // Tenants with nothing running come first, so all remaining ones have running sequences.
                self.is_stuck = is_full && !may_change;
                return;
            }
            // With nothing running, one request has to be admitted regardless of forecasts.
            let is_last_try = self.running.is_empty() && num_refused + 1 >= MAX_REFUSED_OF_TENANT;
            let verdict = match self.no_place(ticket, demand) {
                Some(verdict) => verdict,
                None if !is_last_try && self.forecast_was_too_low(ticket) => AdmissionOutcome::TooLow,
                None => self.try_admit(ticket, now, demand, step),
            };
            let tries = tries.entry(ticket.tenant).or_default();
            match verdict {
                AdmissionOutcome::Admitted => continue,
                AdmissionOutcome::Claims => return,
                AdmissionOutcome::TooLow => {}
                AdmissionOutcome::Parked(until) => self.queue.park(ticket.key, until),
                AdmissionOutcome::NotNow => {
                    may_change = true;
                    passed_over.insert(ticket.tenant);
                }
                AdmissionOutcome::Refused => drop(passed_over.insert(ticket.tenant)),
            }
            num_refused += 1;
            *tries += 1;
            if *tries == MAX_REFUSED_OF_TENANT {
                may_change = true;
                passed_over.insert(ticket.tenant);
            }
        }
    }

    /// Adds a request that was just admitted to `demand`. A request whose spans are being measured has no rows yet.
    fn demand_of_admitted(&self, request_id: RequestId, demand: &mut Demand, step: &SchedulerOutput) {
        match step.probes.last() {
            Some(probe) if probe.request_id == request_id => {
                demand.add_measured(probe.num_rows() / PROBED_PER_COMPUTED_TOKEN);
            }
            _ => self.add_demand(request_id, demand),
        }
    }

    /// True if the request came first by a forecast that no longer holds; corrects it.
    fn forecast_was_too_low(&mut self, ticket: Ticket) -> bool {
        self.num_examined += 1;
        let Some(before) = ticket.forecast else { return false };
        let forecast = self.forecast(&self.sequences[&ticket.request_id]);
        let forecast_was_too_low =
            forecast.rank > before.rank && forecast.micros > before.micros + before.micros / TOLERATED_ERROR;
        if forecast_was_too_low {
            self.queue.set_forecast(ticket.key, forecast);
        }
        forecast_was_too_low
    }

    /// Returns the reason for a refusal, if there is no row or seat for it.
    fn no_place(&self, ticket: Ticket, demand: &Demand) -> Option<AdmissionOutcome> {
        if !demand.has_rows_for(&self.wanted(ticket)) {
            return Some(AdmissionOutcome::NotNow);
        }
        (!self.may_have_seat(ticket.tenant)).then_some(AdmissionOutcome::Refused)
    }

    fn try_admit(&mut self, ticket: Ticket, now: Timestamp, demand: &mut Demand, step: &mut SchedulerOutput) -> AdmissionOutcome {
        let request_id = ticket.request_id;
        let sequence = &self.sequences[&request_id];
        let hit = self.hit(sequence);
        let awaited = self.awaited_block(sequence, &hit);
        if let Some(until) = awaited.or_else(|| self.awaited_prompt(request_id, hit.end(), now, step)) {
            return AdmissionOutcome::Parked(until);
        }
        if !self.may_plan(&self.sequences[&request_id], hit.end(), step) {
            return AdmissionOutcome::NotNow;
        }
        match self.find_seat(ticket, &hit, demand) {
            SeatOutcome::Available => {}
            SeatOutcome::Unavailable => return AdmissionOutcome::Refused,
            SeatOutcome::Claimed => return AdmissionOutcome::Claims,
        }
        let found = self.find_spans(request_id, hit.end());
        let placement = self.place(request_id, hit, found);
        self.start(request_id, placement, now, step);
        self.demand_of_admitted(request_id, demand, step);
        AdmissionOutcome::Admitted
    }

    /// Returns the block that it waits for if the next one that it may share is being computed: the last consecutive one of those
    /// after `hit`. The wait is bounded: every running sequence computes in every step.
    fn awaited_block(&self, sequence: &Sequence, hit: &Hit) -> Option<Until> {
        let num_shared = self.config.block_size.full_blocks(sequence.max_prefix_tokens() as usize);
        let missing = sequence.block_hashes().get(hit.num_blocks()..num_shared);
        let missing = missing.filter(|_| sequence.sharing() != SharingMode::Off)?;
        self.in_flight.last_of(missing).map(Until::Block)
    }

    /// Ok if `sequence` may copy the spans of `plan`; else the reason.
    pub(super) fn permission(&self, sequence: &Sequence, plan: &semantic::ReusePlan) -> Result<(), SpanOutcome> {
        let is_on = |class| self.verifier.allows(sequence.request.tenant, class);
        match plan.class() {
            _ if sequence.sharing() == SharingMode::Shadow => Err(SpanOutcome::Shadowed),
            Some(_) if sequence.sharing() == SharingMode::Auto => match self.is_proven(sequence, plan) {
                true => Ok(()),
                false => Err(SpanOutcome::Unproven),
            },
            Some(class) if !is_on(class) => Err(SpanOutcome::SwitchedOff),
            _ => Ok(()),
        }
    }

    /// True if traffic like `sequence`, which would copy the spans of `plan`, has proven that reuse keeps its quality.
    pub(super) fn is_proven(&self, sequence: &Sequence, plan: &semantic::ReusePlan) -> bool {
        sequence.traffic_of(plan).is_some_and(|class| self.verifier.is_proven(&class))
    }

    /// Allocates blocks; if room is short, without spans, and then without copying a part of a block: both pin blocks of others
    /// too.
    fn place(&mut self, request_id: RequestId, mut hit: Hit, found: Option<Result<FoundSpans, SpanOutcome>>) -> Placement {
        let mut outcome = None;
        if let Some(found) = found {
            let reason = match found {
                Ok(spans) => match self.allocate(request_id, &hit, Some(&spans)) {
                    Some(kv::Slots { lease, pins }) => {
                        if self.sequences[&request_id].trial.is_none() {
                            self.span_lookups.count(SpanOutcome::Reused);
                            self.donors.note_reuse(&spans);
                        }
                        return Placement { lease, pins, hit, spans: Some(spans), outcome: Some(SpanOutcome::Reused) };
                    }
                    None => SpanOutcome::NoRoom,
                },
                Err(reason) => reason,
            };
            self.span_lookups.count(reason);
            outcome = Some(reason);
        }
        if let Some(kv::Slots { lease, pins }) = self.allocate(request_id, &hit, None) {
            return Placement { lease, pins, hit, spans: None, outcome };
        }
        hit.prefix.partial = None;
        let slots = self.allocate(request_id, &hit, None);
        let kv::Slots { lease, pins } = slots.expect("there is room when nothing else is held");
        Placement { lease, pins, hit, spans: None, outcome }
    }

    /// Allocates blocks for all known tokens, exact ones up to the first span, and pins their source blocks: those in the host
    /// tier are fetched.
    fn allocate(&mut self, request_id: RequestId, hit: &Hit, spans: Option<&FoundSpans>) -> Option<kv::Slots> {
        let pinned = pinned(&hit.prefix, spans);
        loop {
            let sequence = &self.sequences[&request_id];
            let slot_request = kv::SlotRequest { pinned: &pinned, ..self.whole_request(sequence, hit, spans) };
            let of_tenant = match self.pool.allocate_slots(&slot_request) {
                kv::Allocation::Ready(slots) => return Some(self.after_kept(request_id, hit, slots)),
                kv::Allocation::CapacityExhausted { .. } => None,
                kv::Allocation::QuotaExhausted { .. } => Some(slot_request.owner.tenant),
            };
            if !self.reclaim(of_tenant, hit.kept_id()) {
                return None;
            }
        }
    }

    /// True if [`Scheduler::allocate`] would find room for `sequence`.
    pub(super) fn has_room(&self, sequence: &Sequence, hit: &Hit, spans: Option<&FoundSpans>) -> bool {
        let pinned = pinned(&hit.prefix, spans);
        let slot_request = kv::SlotRequest { pinned: &pinned, ..self.whole_request(sequence, hit, spans) };
        match self.pool.check_room(&slot_request) {
            kv::Allocation::Ready(()) => true,
            kv::Allocation::CapacityExhausted { short_by } => short_by <= self.num_reclaimable(None, hit.kept_id()),
            kv::Allocation::QuotaExhausted { short_by } => {
                short_by <= self.num_reclaimable(Some(slot_request.owner.tenant), hit.kept_id())
            }
        }
    }

    /// Builds the request for the blocks of all known tokens after `hit`: exact blocks up to the first span, approximate ones after it. Pins no
    /// source blocks.
    pub(super) fn whole_request<'a>(&self, sequence: &Sequence, hit: &'a Hit, spans: Option<&FoundSpans>) -> kv::SlotRequest<'a> {
        let block_size = self.config.block_size;
        let num_blocks = block_size.blocks_for(sequence.num_tokens() as usize);
        let first_span = spans.and_then(|spans| spans.plan.spans.first());
        let num_exact = match (hit.kept, first_span) {
            (Some(_), _) => hit.num_blocks(),
            (None, Some(span)) => block_size.full_blocks(span.target_pos as usize),
            (None, None) => num_blocks,
        };
        let num_new = num_blocks - hit.num_blocks();
        let num_approximate = num_blocks - num_exact;
        let slot_request = self.slot_request(sequence, hit, num_new);
        kv::SlotRequest { num_exact: num_new - num_approximate, num_approximate, ..slot_request }
    }

    /// Builds the request for `num_new` exact blocks after `hit`. Leaves one block free for each running sequence, which may need it soon;
    /// otherwise the scheduler would preempt the new sequence right after its admission.
    pub(super) fn slot_request<'a>(&self, sequence: &Sequence, hit: &'a Hit, num_new: usize) -> kv::SlotRequest<'a> {
        let tenant = sequence.request.tenant;
        kv::SlotRequest {
            owner: sequence.request.owner(),
            shared: &hit.prefix.blocks,
            pinned: &[],
            num_exact: num_new,
            num_kept: hit.num_kept(),
            num_approximate: 0,
            headroom: self.running.len(),
            quota_headroom: self.running.iter().filter(|id| self.sequences[id].request.tenant == tenant).count(),
        }
    }

    /// Starts running the request.
    fn start(&mut self, request_id: RequestId, placement: Placement, now: Timestamp, step: &mut SchedulerOutput) {
        let Placement { lease, pins, hit, spans, outcome } = placement;
        let sequence = self.sequences.get_mut(&request_id).expect("a waiting sequence is known");
        let block_table = lease.block_table(lease.end());
        let held: Vec<_> = pins.block_ids().collect();
        if spans.is_some() {
            sequence.add_sources(held.iter().filter_map(|&block| self.pool.owner(block)));
        }
        let mut sources = held.into_iter();
        if let Some(kv::PartialMatch { num_tokens, .. }) = hit.prefix.partial {
            let src = sources.next().expect("the block of a partial hit is pinned first");
            let dst = block_table[hit.num_blocks()].block;
            step.block_copies.push(BlockCopy { src, dst, num_tokens: num_tokens as u32 });
        }
        let plan = spans.as_ref().map(|spans| &spans.plan);
        let usage = admission_usage(sequence, &hit, plan, outcome);
        if let Some(spans) = &spans {
            let donors = spans.sources.iter().map(|source| (source.donor, source.idx)).zip(sources).collect();
            step.span_copies.extend(span_copies(sequence, &spans.plan, &donors, &block_table, self.config.block_size.get()));
        }
        let num_exact = lease.num_exact().min(sequence.block_hashes().len());
        sequence.seat_term.begin(self.num_steps, hit.end());
        sequence.start(lease, hit.end(), plan.map(reused_ranges).unwrap_or_default());
        if let Some(plan) = plan {
            sequence.repair_by(sequence.request.repair.for_plan(plan, sequence.num_planned_tokens()));
        }
        if let Some(kept) = hit.kept {
            sequence.go_on(kept.continued);
        }
        if sequence.request.store {
            self.in_flight.insert(request_id, &sequence.block_hashes()[hit.num_blocks().min(num_exact)..num_exact]);
            if sequence.is_exact() {
                self.in_flight.insert_prompt(&sequence.request);
            }
        }
        if sequence.usage.replace(usage).is_none() {
            self.events.push(EngineEvent::Admitted { request_id, usage, at: now });
        }
        if let (Some(traffic), Some(_), false) = (&sequence.traffic, usage.class, sequence.known_to_runner) {
            self.verifier.note_reuse(traffic);
        }
        let is_sampled = match usage.class {
            _ if sequence.known_to_runner || sequence.trial.is_some() => false,
            Some(class) => self.verifier.samples(&sequence.request, class, sequence.traffic.as_ref()),
            None => {
                let traffic = sequence.traffic.as_ref().filter(|_| sequence.shadow.is_some());
                traffic.is_some_and(|traffic| self.verifier.samples_shadow(&sequence.request, traffic))
            }
        };
        if is_sampled {
            let logprobs = sequence.sampling.logprobs.max(Some(REUSE_TOP));
            sequence.sampling = Arc::new(SamplingParams { logprobs, ..SamplingParams::clone(&sequence.sampling) });
            sequence.recorded_logprobs = Some(Vec::new());
        }
        if !std::mem::replace(&mut sequence.known_to_runner, true) {
            step.new_requests.push(NewRequest {
                request_id,
                prompt_token_ids: sequence.request.prompt_token_ids.clone(),
                sampling: sequence.sampling.clone(),
            });
        }
        tracing::debug!(request_id = %request_id, ?usage, "admitted");
        self.queue.admit(sequence.arrival);
        self.running.push(request_id);
        self.pins.push(pins);
        if spans.is_some() {
            let sequence = &self.sequences[&request_id];
            step.probes
                .extend(sequence.request.repair.probe().map(|probe| probed(sequence, sequence.reused(), block_table, probe)));
        }
    }

    /// Adds to `step` the deep probe of running sequences whose first one measured much. It also measures tokens that will be
    /// recomputed, which costs less than to recompute them first.
    pub(super) fn schedule_deep_probes(&mut self, step: &mut SchedulerOutput) {
        for request_id in &self.running {
            let sequence = self.sequences.get_mut(request_id).expect("a running sequence is known");
            if let Some(probe) = sequence.deep_probe.take() {
                let block_table = sequence.lease.block_table(sequence.num_prompt_tokens());
                step.probes.push(probed(sequence, sequence.moved(), block_table, probe));
            }
        }
    }
}

/// Returns the probe of `reused` tokens of `sequence`.
fn probed(sequence: &Sequence, reused: &[TokenRange], block_table: Vec<BlockEntry>, probe: semantic::Probe) -> ProbedSequence {
    ProbedSequence {
        request_id: sequence.request_id,
        token_ids: sequence.request.prompt_token_ids[sequence.prefix_end() as usize..].to_vec(),
        first_position: sequence.prefix_end(),
        reused: reused.to_vec(),
        block_table,
        probe,
    }
}

pub(super) fn prefix_end(prefix: &kv::PrefixMatch) -> u32 {
    (prefix.num_tokens + prefix.partial.map_or(0, |partial| partial.num_tokens)) as u32
}

/// Computes the usage at admission. After a preemption, KV that the request had computed itself does not become a hit.
pub(super) fn admission_usage(
    sequence: &Sequence,
    hit: &Hit,
    plan: Option<&semantic::ReusePlan>,
    outcome: Option<SpanOutcome>,
) -> KvUsage {
    let num_exact = hit.num_exact_tokens();
    let prefix_tokens = sequence.usage.map_or(num_exact, |before| before.prefix_tokens.min(num_exact));
    let continued_tokens = hit.end() - num_exact;
    let continued_tokens = sequence.usage.map_or(continued_tokens, |before| before.continued_tokens.min(continued_tokens));
    let continued_class = hit.kept.map(|kept| kept.continued.class);
    let spans = plan.map_or(&[][..], |plan| &plan.spans);
    let span_tokens = spans.iter().map(|span| span.num_tokens).sum();
    KvUsage {
        prefix_tokens,
        continued_tokens,
        span_tokens,
        computed_tokens: sequence.num_prompt_tokens() - prefix_tokens - continued_tokens - span_tokens,
        recomputed_tokens: plan.map_or(0, |plan| plan.recomputed_tokens),
        donors: spans.iter().map(|span| span.donor).collect::<BTreeSet<_>>().len() as u32,
        class: plan.and_then(semantic::ReusePlan::class).max(continued_class),
        deviation: None,
        deep_deviation: None,
        outcome,
    }
}

/// Returns the sources that a sequence is filled from: the block of a partial hit, then those of donors.
pub(super) fn pinned(prefix: &kv::PrefixMatch, spans: Option<&FoundSpans>) -> Vec<kv::Place> {
    let partial = prefix.partial.map(|partial| partial.block);
    let sources = spans.into_iter().flat_map(|spans| &spans.sources).map(|source| source.place);
    partial.into_iter().chain(sources).collect()
}

/// Plans the copies of spans; `donors` maps donors and block indexes to the pinned blocks.
fn span_copies<'a>(
    sequence: &'a Sequence,
    plan: &'a semantic::ReusePlan,
    donors: &'a BTreeMap<(DonorId, u32), BlockId>,
    block_table: &'a [BlockEntry],
    block_size: u32,
) -> impl Iterator<Item = SpanCopy> + 'a {
    plan.spans.iter().map(move |span| SpanCopy {
        request_id: sequence.request_id,
        donor: span.donor,
        src_blocks: covering(span.donor_pos, span.num_tokens, block_size).map(|idx| donors[&(span.donor, idx)]).collect(),
        src_pos: span.donor_pos,
        dst_blocks: covering(span.target_pos, span.num_tokens, block_size).map(|idx| block_table[idx as usize].block).collect(),
        dst_pos: span.target_pos,
        token_ids: sequence.request.prompt_token_ids[span.target_range().as_usize()].to_vec(),
    })
}
