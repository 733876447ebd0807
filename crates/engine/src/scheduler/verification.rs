//! Schedules the comparison of answers with full computation.

use std::time::Duration;

use tokens::Timestamp;

use super::Scheduler;
use super::admission::pinned;
use super::hit::Hit;
use crate::EngineEvent;
use crate::arrival::ArrivalKey;
use crate::continuations::RetainedKv;
use crate::cost::Work;
use crate::sequence::Sequence;
use crate::verifier::{AnswerToVerify, Comparison, num_bytes};

/// Rows of a comparison's step before the step costs are fitted. Chosen: on the slowest machines these still take a fraction of a
/// second, and on all others far less than a step of a prompt.
const ROWS_AT_FIRST: usize = 16;

/// Availability of blocks for a comparison.
enum Room {
    /// The comparison can run without evicting recently used blocks.
    Free,
    /// Too few blocks are available at present.
    Short,
    /// The KV that the comparison would reuse was evicted.
    Gone,
}

impl Scheduler {
    /// Returns the time from which on a step compares an answer, if no request arrives before; `None` if there is nothing to
    /// compare, or while the engine [has work](Scheduler::has_work).
    #[must_use]
    pub fn idle_work_at(&self) -> Option<Timestamp> {
        self.verifier.due_at().filter(|_| !self.has_work())
    }

    /// Preempts the running comparison because a request arrived.
    pub(super) fn put_off_verification(&mut self) {
        if let Some(comparison) = self.verifier.put_off() {
            self.abort(comparison);
            self.events.retain(|event: &EngineEvent| event.request_id() != comparison);
        }
    }

    /// Starts a comparison at `now`, if the engine has been idle for long enough and enough blocks are free or long unused.
    pub(super) fn start_verification(&mut self, now: Timestamp) {
        if !self.sequences.is_empty() || !self.verifier.is_due(now) {
            return;
        }
        let next = self.next_comparison();
        if let Some(Comparison { request, trial }) = self.verifier.start(next, now) {
            self.enqueue_sequence(request, trial, now);
        }
    }

    /// Selects the newest comparison with room: its KV is most likely still resident. Drops newer ones whose spans are gone.
    fn next_comparison(&mut self) -> Option<usize> {
        for idx in (0..self.verifier.num_candidates()).rev() {
            match self.room_for(self.verifier.candidate(idx)?) {
                Room::Free => return Some(idx),
                Room::Short => {}
                Room::Gone => self.verifier.drop_candidate(idx),
            }
        }
        None
    }

    fn room_for(&self, Comparison { request, trial }: Comparison) -> Room {
        let mut sequence = Sequence::new(request, ArrivalKey::default(), self.config.block_size);
        sequence.trial = trial;
        let hit = Hit { prefix: self.match_prefix(&sequence), kept: None };
        let spans = self.spans_of_trial(&sequence, hit.end());
        if sequence.trial.is_some() && spans.is_none() {
            return Room::Gone;
        }
        let pinned = pinned(&hit.prefix, spans.as_ref());
        let slot_request = kv::SlotRequest { pinned: &pinned, ..self.whole_request(&sequence, &hit, spans.as_ref()) };
        match self.pool.has_idle_room(&slot_request, self.config.verification.unused) {
            true => Room::Free,
            false => Room::Short,
        }
    }

    /// Returns the row budget of the next step: small while only a comparison runs, so that an arriving request hardly waits for
    /// it.
    pub(super) fn token_budget(&self) -> usize {
        let comparison = self.verifier.active().and_then(|active| self.sequences.get(&active));
        comparison.map_or(self.config.max_num_batched_tokens, |sequence| self.num_verification_rows(sequence))
    }

    /// Returns the maximum rows of `sequence` that fit into the time limit of a comparison's step, at least 1.
    fn num_verification_rows(&self, sequence: &Sequence) -> usize {
        let max_rows = (sequence.num_rows_left() as usize).clamp(1, self.config.max_num_batched_tokens);
        if !self.step_costs.is_fitted() {
            return max_rows.min(ROWS_AT_FIRST);
        }
        let is_admitted = !sequence.lease.is_empty();
        let from = if is_admitted { sequence.num_computed_tokens() } else { self.hit(sequence).end() };
        let takes = |num_rows: usize| {
            let end = from + num_rows as u32;
            let num_scored = end.saturating_sub(sequence.first_scored().unwrap_or(end)).min(num_rows as u32);
            let prompt_steps = u64::from(num_rows > 1);
            let work = Work { scored_rows: num_scored.into(), prompt_steps, ..Work::of_rows(num_rows as u32, end) };
            Duration::from_micros(self.step_costs.step_micros(work))
        };
        let (mut enough, mut too_many) = (1, max_rows + 1);
        while too_many - enough > 1 {
            let middle = enough.midpoint(too_many);
            match takes(middle) <= self.config.verification.step {
                true => enough = middle,
                false => too_many = middle,
            }
        }
        enough
    }

    /// Returns the bytes of the answers that are being recorded.
    pub(super) fn num_recording_bytes(&self) -> usize {
        let recorded = self.running.iter().filter_map(|id| self.sequences.get(id)?.recorded_logprobs.as_deref());
        recorded.map(num_bytes).sum()
    }

    /// Takes the answer of a sequence that has ended, if it is to be compared, or healed: recomputed exactly because its
    /// conversation may go on.
    pub(super) fn comparison_of(&self, sequence: &mut Sequence) -> Option<AnswerToVerify> {
        let recorded_logprobs = sequence.recorded_logprobs.take().filter(|logprobs| !logprobs.is_empty());
        let shadow = sequence.shadow.take();
        let may_go_on = sequence.request.store && sequence.may_be_continued;
        // Answers that were computed exactly in the end give no information on reuse.
        let is_due = match (&recorded_logprobs, &shadow) {
            (Some(_), Some(_)) => true,
            (Some(_), None) => !sequence.is_exact(),
            (None, _) => self.verifier.heals() && may_go_on && !sequence.is_exact(),
        };
        let traffic = sequence.traffic;
        let class = sequence.usage?.class.or(traffic.filter(|_| shadow.is_some()).map(|traffic| traffic.class));
        let class = class.filter(|_| is_due)?;
        let num_recorded = recorded_logprobs.as_ref().map_or(sequence.num_output_tokens() as usize, Vec::len);
        let tokens = &sequence.token_ids()[..sequence.num_prompt_tokens() as usize + num_recorded];
        let request = crate::Request { prompt_token_ids: tokens.into(), ..sequence.request.clone() };
        Some(AnswerToVerify { class, request, recorded_logprobs: recorded_logprobs.unwrap_or_default(), traffic, shadow })
    }

    /// Frees the approximate KV of a conversation that has exact KV now.
    pub(super) fn forget_healed(&mut self) {
        let Some((scope, tokens)) = self.verifier.take_healed() else { return };
        let is_healed = |kept: &RetainedKv| kept.scope == scope && tokens.starts_with(&kept.tokens);
        self.continuations.extract(is_healed).into_iter().for_each(|lease| self.pool.free(lease));
    }
}
