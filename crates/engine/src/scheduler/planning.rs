//! Plans spans: one plan for each request and state of its donors.
//!
//! A plan takes time in proportion to its prompt, some milliseconds for the longest, on the thread that all requests wait for. So
//! the scheduler plans once and keeps the plan until admission, unless donors changed meanwhile or the blocks it needs were
//! evicted. Between two steps it plans for a limited number of tokens; later steps plan for the other arrivals, which count
//! without spans until then. Planning on another thread was considered: it needs a copy of the index, or a lock around it, and
//! makes the order of steps depend on thread timing.

use tokens::{RequestId, SharingMode};

use super::plan_book::PlanningWork;
use super::{Scheduler, target_of};
use crate::donors::{FoundSpans, PlannedSpans, Planning, Residency, scopes};
use crate::host::FetchGate;
use crate::sequence::{ExpectedSpans, Planned, Sequence, Shadow};
use crate::{SchedulePolicy, SchedulerOutput, SpanOutcome};

impl Scheduler {
    /// Returns the work of all plans of spans so far.
    #[must_use]
    pub fn planning_work(&self) -> PlanningWork {
        self.plans.work
    }

    /// Predicts the spans of a request that is being added. The prediction holds until its admission.
    pub(super) fn expect_spans(&mut self, sequence: &mut Sequence) -> Option<ExpectedSpans> {
        if self.config.policy == SchedulePolicy::Fcfs || !sequence.sharing().copies_spans() || sequence.trial.is_some() {
            return None;
        }
        let prefix_end = self.hit(sequence).end();
        if !self.plans.has_time_for(sequence.num_tokens() as usize) {
            self.plans.postponed.push_back(sequence.request_id);
            return None;
        }
        let spans = self.planned_spans(sequence, prefix_end).ok()?;
        if sequence.sharing() == SharingMode::Auto && !self.is_proven(sequence, &spans.plan) {
            return None;
        }
        Some(ExpectedSpans { prefix_end, num_tokens: spans.plan.num_reused_tokens() })
    }

    /// Plans for postponed requests, as far as the budget allows.
    pub(super) fn plan_postponed(&mut self) {
        self.plans.num_tokens = 0;
        while let Some(&request_id) = self.plans.postponed.front() {
            let is_waiting = |sequence: &&Sequence| self.queue.get(sequence.arrival).is_some();
            let num_tokens = self.sequences.get(&request_id).filter(is_waiting).map(Sequence::num_tokens);
            if num_tokens.is_some_and(|num_tokens| !self.plans.has_time_for(num_tokens as usize)) {
                return;
            }
            self.plans.postponed.pop_front();
            if num_tokens.is_some() {
                let mut sequence = self.sequences.remove(&request_id).expect("it was found above");
                sequence.expected_spans = self.expect_spans(&mut sequence);
                let forecast = self.forecast(&sequence);
                self.queue.set_forecast(sequence.arrival, forecast);
                self.sequences.insert(request_id, sequence);
            }
        }
    }

    /// True if the budget allows planning spans after a prefix hit up to `from` before `step` begins; always if nothing else runs
    /// in it.
    pub(super) fn may_plan(&self, sequence: &Sequence, from: u32, step: &SchedulerOutput) -> bool {
        let is_alone = self.running.is_empty() && step.probes.is_empty();
        let is_due = is_due(sequence, from) && !self.is_planned(sequence, from);
        is_alone || !is_due || self.plans.has_time_for(sequence.num_tokens() as usize)
    }

    /// Finds the current spans of a waiting request after a prefix hit up to `from`; `None` if it searches for none.
    pub(super) fn find_spans(&mut self, request_id: RequestId, from: u32) -> Option<Result<FoundSpans, SpanOutcome>> {
        if !is_due(&self.sequences[&request_id], from) {
            return None;
        }
        let mut sequence = self.sequences.remove(&request_id).expect("a waiting sequence is known");
        if sequence.trial.is_some() {
            let found = self.spans_of_trial(&sequence, from).ok_or(SpanOutcome::NotResident);
            self.sequences.insert(request_id, sequence);
            return Some(found);
        }
        let found = self.resident_spans(&mut sequence, from);
        sequence.sketch = None;
        sequence.planned = None;
        let found = found.and_then(|found| self.worthy_spans(found, &mut sequence, from));
        self.sequences.insert(request_id, sequence);
        Some(found)
    }

    /// Returns the spans that a trial is to reuse, if they are still resident.
    pub(super) fn spans_of_trial(&self, sequence: &Sequence, from: u32) -> Option<FoundSpans> {
        let spans = sequence.trial.as_ref()?.shadow.spans.clone();
        self.with_sources(spans, sequence, from)
    }

    /// Returns `found` if it pays and may be used. Keeps unproven spans for a trial.
    fn worthy_spans(&mut self, mut found: FoundSpans, sequence: &mut Sequence, from: u32) -> Result<FoundSpans, SpanOutcome> {
        found.plan = self.gated(&found, sequence, from);
        if let Some(reason) = found.plan.rejected {
            return Err(SpanOutcome::Rejected(reason));
        }
        if sequence.sharing() == SharingMode::Auto {
            sequence.traffic = sequence.traffic_of(&found.plan);
            sequence.traffic.into_iter().for_each(|class| self.verifier.note_traffic(class));
        }
        let permission = self.permission(sequence, &found.plan);
        if permission == Err(SpanOutcome::Unproven) {
            let FoundSpans { plan, by_embedding, .. } = &found;
            let spans = PlannedSpans { plan: plan.clone(), by_embedding: by_embedding.clone() };
            sequence.shadow = Some(Shadow { prefix_end: from, spans });
        }
        match (permission, found.plan.class()) {
            (Err(SpanOutcome::Shadowed), _) => self.num_shadowed_tokens += u64::from(found.plan.num_reused_tokens()),
            (Err(SpanOutcome::SwitchedOff), Some(class)) => self.verifier.count_refusal(sequence.request.tenant, class),
            _ => {}
        }
        permission.map(|()| found)
    }

    /// Returns the plan of `sequence` with the blocks it needs.
    fn resident_spans(&mut self, sequence: &mut Sequence, from: u32) -> Result<FoundSpans, SpanOutcome> {
        let found = self.planned_spans(sequence, from)?;
        if let Some(found) = self.with_sources(found, sequence, from) {
            return Ok(found);
        }
        // Blocks were evicted since.
        let found = self.plan_spans(sequence, from, Residency::Estimated)?;
        if let Some(found) = self.with_sources(found, sequence, from) {
            return Ok(found);
        }
        let found = self.plan_spans(sequence, from, Residency::Confirmed)?;
        Ok(self.with_sources(found, sequence, from).expect("what was confirmed is there"))
    }

    fn with_sources(&self, found: PlannedSpans, sequence: &Sequence, from: u32) -> Option<FoundSpans> {
        let PlannedSpans { plan, by_embedding } = found;
        let sources = self.donors.sources(&self.pool, target_of(sequence, from), &plan)?;
        Some(FoundSpans { plan, sources, by_embedding })
    }

    fn is_planned(&self, sequence: &Sequence, from: u32) -> bool {
        sequence.planned.as_ref().is_some_and(|planned| planned.prefix_end == from && planned.version == self.version(sequence))
    }

    fn version(&self, sequence: &Sequence) -> u64 {
        self.donors.version(scopes(sequence.request.scope, &sequence.request.readable))
    }

    /// Returns the kept plan if it still holds, else a new one.
    fn planned_spans(&mut self, sequence: &mut Sequence, from: u32) -> Result<PlannedSpans, SpanOutcome> {
        match &sequence.planned {
            Some(planned) if self.is_planned(sequence, from) => planned.spans.clone(),
            _ => self.plan_spans(sequence, from, Residency::Estimated),
        }
    }

    fn plan_spans(&mut self, sequence: &mut Sequence, from: u32, residency: Residency) -> Result<PlannedSpans, SpanOutcome> {
        if sequence.sketch.is_none() {
            sequence.sketch = Some({
                let crate::Request { prompt_token_ids, borders, template, .. } = &sequence.request;
                self.donors.sketch(prompt_token_ids, borders, template)
            });
        }
        let target = target_of(sequence, from);
        let gate = FetchGate { step_costs: &self.step_costs, link: &self.host_link };
        let planning: Planning = self.donors.plan_resident(&self.pool, target, gate, residency);
        self.plans.record(sequence.num_tokens() as usize, planning.steps);
        let spans = self.donors.settle(&self.pool, target, planning);
        let version = self.version(sequence);
        sequence.planned = Some(Planned { prefix_end: from, version, spans: spans.clone() });
        spans
    }
}

fn is_due(sequence: &Sequence, from: u32) -> bool {
    sequence.sharing().searches_spans() && from < sequence.num_prompt_tokens()
}
