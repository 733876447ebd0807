//! Compares a sample of the answers over reused KV with full computation while the engine is idle.
//!
//! A comparison scores the tokens that a request generated over reused spans again after its prompt, computed exactly. The two
//! distributions at every position of the answer measure the error of reuse on real requests, and [`QualityGuard`] acts on it. An
//! exact answer in mode `auto` is compared the other way round: its tokens are scored over the KV that it could have reused, and
//! [`TrafficGuard`] opens its class of traffic if the result is good. An answer over reused KV whose conversation may go on is
//! recomputed exactly even if it is not compared: it is healed, and the next turn finds exact KV.
//!
//! Clients come first: a comparison begins when the engine has been idle for a while, in steps so short that a request hardly
//! waits for one, takes free or long unused blocks, and is dropped when a request arrives. The bytes kept for comparisons are
//! bounded.

use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use semantic::{MatchClass, QualityGuard, TrafficChange, TrafficClass, TrafficCounts, TrafficGuard, TrafficQuality, Verdict};
use tokens::{RequestId, Scope, SharingMode, TenantId, Timestamp, TokenId};

use crate::sequence::{Shadow, Trial};
use crate::{
    EngineEvent, KvUsage, LogProb, Request, SamplingParams, TokenLogProbs, VerificationConfig, VerificationStats, kl_divergence,
};

/// Number of likeliest tokens of full computation that are distinguished; all others count as one.
const FULL_TOP: u32 = 64;
/// Number of likeliest tokens recorded of an answer over reused KV: more, so that those of full computation are rarely missing.
pub(crate) const REUSE_TOP: u32 = 256;
/// Factor of the verification share while a class has few results.
const BOOST_WHEN_NEW: f64 = 10.0;
/// Minimum share of the answers over reused KV in mode `auto` that are verified. Chosen: few enough to cost little, and enough to
/// detect a class that turns bad within some dozen answers.
const MIN_SHARE_IN_AUTO: f64 = 0.05;

/// A time that never comes.
const NEVER: Timestamp = Timestamp(Duration::MAX);

/// Pending comparisons and their results.
pub(crate) struct Verifier {
    config: VerificationConfig,
    guard: QualityGuard,
    traffic: TrafficGuard,
    num_trials: u64,
    num_healed: u64,
    /// Scope and tokens of an answer that was just recomputed exactly.
    healed: Option<(Scope, Arc<[TokenId]>)>,
    pending: VecDeque<AnswerToVerify>,
    active: Option<AnswerToVerify>,
    /// Log probabilities by full computation, or by a trial, of the running comparison.
    scored: Option<Vec<TokenLogProbs>>,
    /// Next ID of a comparison. These count down from the largest: requests count up from 0.
    next_id: u64,
    /// Time since which the engine has had no request, as observed by a step.
    idle_since: Option<Timestamp>,
    /// Set if a step found no room for any comparison: nothing changes before then, or the next request.
    stuck_until: Option<Timestamp>,
    num_dropped: u64,
    num_gone: u64,
    num_put_off: u64,
}

/// An answer to be compared.
pub(crate) struct AnswerToVerify {
    pub(crate) class: MatchClass,
    /// Prompt and answer.
    pub(crate) request: Request,
    /// Recorded log probabilities at each position of the answer; empty if it is only healed.
    pub(crate) recorded_logprobs: Vec<TokenLogProbs>,
    /// Traffic class of a request in mode `auto`.
    pub(crate) traffic: Option<TrafficClass>,
    /// Skipped reuse, if the answer is exact.
    pub(crate) shadow: Option<Shadow>,
}

/// A comparison as the engine runs it.
pub(crate) struct Comparison {
    pub(crate) request: Request,
    /// Set if it is computed over reused KV.
    pub(crate) trial: Option<Trial>,
}

impl AnswerToVerify {
    fn num_bytes(&self) -> usize {
        num_bytes(&self.recorded_logprobs) + size_of_val(&self.request.prompt_token_ids[..])
    }

    /// Returns the request that scores the answer.
    fn scoring(&self) -> Comparison {
        // At least one row is scored: a request cannot score fewer.
        let num_prompt_tokens = (self.request.prompt_token_ids.len() - self.recorded_logprobs.len().max(1)) as u32;
        let sampling = SamplingParams { prompt_logprobs_from: num_prompt_tokens, ..SamplingParams::greedy(0) };
        let Some(shadow) = &self.shadow else {
            // The result is exact. It is cached like that of any request, so that a preempted comparison continues from it.
            let sampling = SamplingParams { prompt_logprobs: Some(FULL_TOP), ..sampling };
            let request = Request { sampling, sharing: SharingMode::Prefix, ..self.request.clone() };
            return Comparison { request, trial: None };
        };
        let sampling = SamplingParams { prompt_logprobs: Some(REUSE_TOP), ..sampling };
        let request = Request { sampling, sharing: SharingMode::Span, store: false, ..self.request.clone() };
        Comparison { request, trial: Some(Trial { shadow: shadow.clone(), num_prompt_tokens }) }
    }
}

/// Returns the bytes of memory of `logprobs`.
pub(crate) fn num_bytes(logprobs: &[TokenLogProbs]) -> usize {
    size_of_val(logprobs) + logprobs.iter().map(|token| token.top.len() * size_of::<LogProb>()).sum::<usize>()
}

impl Verifier {
    pub(crate) fn new(config: VerificationConfig, guard: QualityGuard, traffic: TrafficGuard) -> Self {
        Self {
            config,
            guard,
            traffic,
            num_trials: 0,
            num_healed: 0,
            healed: None,
            scored: None,
            pending: VecDeque::new(),
            active: None,
            next_id: u64::MAX,
            idle_since: None,
            stuck_until: None,
            num_dropped: 0,
            num_gone: 0,
            num_put_off: 0,
        }
    }

    pub(crate) fn guard(&self) -> &QualityGuard {
        &self.guard
    }

    /// Returns statistics; `num_recording` is the bytes of answers that are being recorded.
    pub(crate) fn stats(&self, num_recording: usize) -> VerificationStats {
        VerificationStats {
            num_pending: self.pending.len() + usize::from(self.active.is_some()),
            num_bytes: self.num_bytes() + num_recording,
            num_dropped: self.num_dropped,
            num_gone: self.num_gone,
            num_put_off: self.num_put_off,
            num_healed: self.num_healed,
            num_trials: self.num_trials,
        }
    }

    /// Counts the classes of traffic over all tenants.
    pub(crate) fn traffic_counts(&self) -> TrafficCounts {
        self.traffic.counts()
    }

    /// Returns the classes of traffic of `tenant`, or of all tenants.
    pub(crate) fn traffic(&self, tenant: Option<TenantId>) -> Vec<(TrafficClass, TrafficQuality)> {
        self.traffic.classes(tenant).collect()
    }

    /// True if requests of `class` may reuse in mode `auto`.
    pub(crate) fn is_proven(&self, class: &TrafficClass) -> bool {
        self.config.share > 0.0 && self.traffic.is_open(class)
    }

    /// Records a request of `class` in mode `auto`.
    pub(crate) fn note_traffic(&mut self, class: TrafficClass) {
        self.traffic.note_request(class);
    }

    /// Counts an answer over reused KV of `class` in mode `auto`.
    pub(crate) fn note_reuse(&mut self, class: &TrafficClass) {
        self.traffic.note_reuse(class);
    }

    /// Drops the traffic records of `tenant`, or of all.
    pub(crate) fn erase_traffic(&mut self, tenant: Option<TenantId>) {
        self.traffic.erase(tenant);
    }

    /// True if the exact answer to `request`, which could have reused as a request of `traffic`, is to be recorded. Only such
    /// answers open a class, so all are recorded while it may open.
    pub(crate) fn samples_shadow(&self, request: &Request, traffic: &TrafficClass) -> bool {
        let share = if self.traffic.is_tried_seldom(traffic) { MIN_SHARE_IN_AUTO } else { 1.0 };
        self.config.share > 0.0 && is_drawn(request, share)
    }

    /// True if spans of `class` may be reused for `tenant`; see [`QualityGuard::allows`].
    pub(crate) fn allows(&self, tenant: TenantId, class: MatchClass) -> bool {
        self.config.share == 0.0 || self.guard.allows(tenant, class)
    }

    /// Counts a request that was computed because its class is switched off.
    pub(crate) fn count_refusal(&mut self, tenant: TenantId, class: MatchClass) {
        self.guard.count_refusal(tenant, class);
    }

    /// True if the answer to `request` over spans of `class` is to be recorded; `traffic` is its class in mode `auto`. Depends
    /// only on the arguments and earlier results.
    pub(crate) fn samples(&self, request: &Request, class: MatchClass, traffic: Option<&TrafficClass>) -> bool {
        let tenant = request.tenant;
        let is_doubted = traffic.is_some_and(|traffic| self.traffic.is_doubted(traffic));
        let share = if is_doubted || self.guard.is_on_probation(tenant, class) {
            f64::from(u8::from(self.config.share > 0.0))
        } else if self.guard.is_new(tenant, class) {
            self.config.share * BOOST_WHEN_NEW
        } else {
            self.config.share
        };
        let least = if traffic.is_some() && share > 0.0 { MIN_SHARE_IN_AUTO } else { 0.0 };
        is_drawn(request, share.max(least))
    }

    /// True if recording of an answer may continue when all recordings take `num_recording` bytes. Drops waiting answers to make
    /// room, oldest first; if that is not enough, counts this one as dropped.
    pub(crate) fn may_record(&mut self, num_recording: usize) -> bool {
        self.shrink_to(self.config.max_bytes.saturating_sub(num_recording));
        let fits = self.num_bytes() + num_recording <= self.config.max_bytes;
        self.num_dropped += u64::from(!fits);
        fits
    }

    /// True if answers over reused KV are recomputed exactly afterwards.
    pub(crate) fn heals(&self) -> bool {
        self.config.heals
    }

    /// Queues a complete answer. `num_recording` is the bytes of answers that are still being recorded.
    pub(crate) fn submit(&mut self, mut case: AnswerToVerify, num_recording: usize) {
        // The ID stays the same when it is preempted: its blocks in the pool are erased as one request's.
        case.request.request_id = RequestId(self.next_id);
        self.next_id -= 1;
        self.pending.push_back(case);
        self.shrink_to(self.config.max_bytes.saturating_sub(num_recording));
    }

    fn num_bytes(&self) -> usize {
        self.pending.iter().chain(self.active.iter()).map(AnswerToVerify::num_bytes).sum()
    }

    /// Drops waiting answers, oldest first, until all take at most `max_bytes`.
    fn shrink_to(&mut self, max_bytes: usize) {
        let mut num_bytes = self.num_bytes();
        while num_bytes > max_bytes
            && let Some(oldest) = self.pending.pop_front()
        {
            num_bytes -= oldest.num_bytes();
            self.num_dropped += 1;
        }
    }

    /// Drops the waiting answers to requests for which `is_erased` is true.
    pub(crate) fn erase(&mut self, is_erased: impl Fn(&Request) -> bool) {
        self.pending.retain(|case| !is_erased(&case.request));
    }

    /// Preempts the running comparison because a request has arrived; the caller has to abort the returned request. It is queued
    /// to run after all others, so that a long one does not starve short ones.
    pub(crate) fn put_off(&mut self) -> Option<RequestId> {
        self.idle_since = None;
        self.stuck_until = None;
        let case = self.active.take()?;
        let request_id = case.request.request_id;
        self.num_put_off += 1;
        self.pending.push_front(case);
        Some(request_id)
    }

    /// True if the engine has been idle for long enough to start a comparison. Called by a step at `now` that has no request.
    pub(crate) fn is_due(&mut self, now: Timestamp) -> bool {
        let idle_since = *self.idle_since.get_or_insert(now);
        self.stuck_until.is_none_or(|until| now >= until) && now.since(idle_since) >= self.config.idle
    }

    /// Returns the time from which on an idle engine has something to compare.
    pub(crate) fn due_at(&self) -> Option<Timestamp> {
        let waits = self.active.is_none() && !self.pending.is_empty();
        let idle = || self.idle_since.map_or(Timestamp::default(), |since| Timestamp(since.0.saturating_add(self.config.idle)));
        waits.then(|| self.stuck_until.map_or_else(idle, |until| until.max(idle()))).filter(|at| *at < NEVER)
    }

    /// Returns the number of waiting comparisons.
    pub(crate) fn num_candidates(&self) -> usize {
        self.pending.len()
    }

    /// Returns the waiting comparison after `idx` older ones.
    pub(crate) fn candidate(&self, idx: usize) -> Option<Comparison> {
        self.pending.get(idx).map(AnswerToVerify::scoring)
    }

    /// Drops the waiting comparison after `idx` older ones, which cannot run any more.
    pub(crate) fn drop_candidate(&mut self, idx: usize) {
        self.num_gone += u64::from(self.pending.remove(idx).is_some());
    }

    /// Starts the comparison of candidate `idx`; returns its request, to be added to the idle engine. `None` means that there is
    /// no room for any at `now`.
    pub(crate) fn start(&mut self, idx: Option<usize>, now: Timestamp) -> Option<Comparison> {
        debug_assert!(self.active.is_none(), "an idle engine compares nothing");
        self.stuck_until = idx.is_none().then(|| Timestamp(now.0.saturating_add(self.config.unused)));
        let case = self.pending.remove(idx?).expect("a candidate waits");
        let comparison = case.scoring();
        self.active = Some(case);
        self.scored = None;
        Some(comparison)
    }

    /// Returns the ID of the running comparison.
    pub(crate) fn active(&self) -> Option<RequestId> {
        self.active.as_ref().map(|case| case.request.request_id)
    }

    /// Takes the scope and tokens of the conversation that was recomputed exactly since the last call.
    pub(crate) fn take_healed(&mut self) -> Option<(Scope, Arc<[TokenId]>)> {
        self.healed.take()
    }

    /// Removes the events of the running comparison from `events` and records them.
    pub(crate) fn absorb(&mut self, events: &mut Vec<EngineEvent>) {
        let Some(active) = self.active() else { return };
        for event in events.extract_if(.., |event| event.request_id() == active) {
            match event {
                EngineEvent::PromptLogProbs { logprobs, .. } => self.scored = Some(logprobs),
                EngineEvent::Finished { usage, .. } => self.conclude(&usage),
                _ => {}
            }
        }
    }

    fn judge_traffic(&mut self, class: TrafficClass, verdict: Verdict) {
        let change = self.traffic.record(class, verdict);
        tracing::debug!(?class, ?verdict, ?change, "reuse in mode auto was compared");
        if change == Some(TrafficChange::Closed) {
            tracing::warn!(tenant = class.tenant.0, ?class, "a class of traffic has turned bad: it is computed exactly again");
        }
    }

    /// Judges the running comparison, which has ended with `usage`.
    fn conclude(&mut self, usage: &KvUsage) {
        let (Some(case), Some(scored)) = (self.active.take(), self.scored.take()) else { return };
        let AnswerToVerify { class, recorded_logprobs, request, traffic, shadow } = &case;
        let recorded_logprobs = unconstrained(&request.sampling, recorded_logprobs);
        if shadow.is_some() {
            // A trial that recomputed everything gives no information on reuse.
            if let Some(traffic) = traffic.filter(|_| usage.span_tokens > 0) {
                self.num_trials += 1;
                self.judge_traffic(traffic, compare(recorded_logprobs, &scored));
            }
            return;
        }
        if request.store {
            self.num_healed += 1;
            self.healed = Some((request.scope, Arc::clone(&request.prompt_token_ids)));
        }
        if recorded_logprobs.is_empty() {
            return;
        }
        let (class, tenant, verdict) = (*class, request.tenant, compare(&scored, recorded_logprobs));
        if let Some(traffic) = *traffic {
            self.judge_traffic(traffic, verdict);
        }
        let fault = self.guard.record(tenant, class, verdict);
        tracing::debug!(tenant = tenant.0, ?class, ?verdict, "an answer over reused KV was verified");
        if let Some(fault) = fault {
            let (class, fault) = (class.label(), fault.label());
            tracing::warn!(
                tenant = tenant.0,
                class,
                fault,
                "answers over reused KV differ too much: the class is switched off for a while"
            );
        }
    }
}

/// True if scoring reproduces the distributions, at least those before a grammar begins: it does not apply penalties, biases and grammars,
/// which depend on the answer so far.
fn is_comparable(sampling: &SamplingParams) -> bool {
    let SamplingParams { frequency_penalty, presence_penalty, repetition_penalty, min_tokens, .. } = sampling;
    (*frequency_penalty, *presence_penalty, *repetition_penalty, *min_tokens) == (0.0, 0.0, 1.0, 0)
        && sampling.logit_bias.is_empty()
        && sampling.grammar.as_ref().is_none_or(|grammar| grammar.trigger().is_some())
}

/// Returns the beginning of an answer that its grammar leaves free: all of it, or up to the token that begins the constraint.
fn unconstrained<'a>(sampling: &SamplingParams, recorded: &'a [TokenLogProbs]) -> &'a [TokenLogProbs] {
    let trigger = sampling.grammar.as_ref().and_then(grammar::Grammar::trigger);
    let begins = trigger.and_then(|trigger| recorded.iter().position(|entry| entry.chosen.token == trigger));
    begins.map_or(recorded, |at| &recorded[..=at])
}

/// True for `share` of the requests whose answers can be compared, by a hash of their IDs.
fn is_drawn(request: &Request, share: f64) -> bool {
    let draw = BuildHasherDefault::<DefaultHasher>::default().hash_one(request.request_id.0) as f64 / u64::MAX as f64;
    draw < share && is_comparable(&request.sampling)
}

fn compare(full: &[TokenLogProbs], other: &[TokenLogProbs]) -> Verdict {
    let likeliest = |found: &TokenLogProbs| -> Option<TokenId> { found.top.first().map(|top| top.token) };
    let top = |full: &TokenLogProbs| full.top.len().min(FULL_TOP as usize);
    let kl: Vec<f64> = full.iter().zip(other).map(|(full, other)| kl_divergence(&full.top[..top(full)], &other.top)).collect();
    let num_equal = full.iter().zip(other).filter(|(full, other)| likeliest(full) == likeliest(other)).count();
    let n = kl.len().max(1) as f64;
    Verdict { mean_kl: kl.iter().sum::<f64>() / n, first_kl: kl.first().copied().unwrap_or(0.0), top1: num_equal as f64 / n }
}

#[cfg(test)]
mod tests {
    use grammar::{Constraint, Vocabulary};

    use super::*;
    use crate::LogProb;

    fn entry(token: u32) -> TokenLogProbs {
        TokenLogProbs { chosen: LogProb { token: TokenId(token), logprob: 0.0, rank: 1 }, top: vec![] }
    }

    #[test]
    fn an_answer_is_compared_up_to_the_token_that_begins_its_constraint() {
        let vocabulary = Vocabulary::new(3, |token| [&b"a"[..], b"b", b""][token.0 as usize], &[TokenId(2)]);
        let grammar = vocabulary.compile(&Constraint::Regex("a+".to_owned())).unwrap();
        let whole = SamplingParams { grammar: Some(grammar.clone()), ..SamplingParams::greedy(1) };
        let lazy = SamplingParams { grammar: Some(grammar.after(TokenId(1))), ..SamplingParams::greedy(1) };
        assert!(is_comparable(&lazy) && !is_comparable(&whole) && is_comparable(&SamplingParams::greedy(1)));
        let answer = [0, 0, 1, 0].map(entry);
        assert_eq!(unconstrained(&lazy, &answer), &answer[..3]);
        assert_eq!(unconstrained(&lazy, &answer[..2]), &answer[..2]);
        assert_eq!(unconstrained(&SamplingParams::greedy(1), &answer), answer);
    }
}
