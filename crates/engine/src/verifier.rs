//! Compares a sample of the answers over reused KV with full computation, while nothing else is to do.
//!
//! The tokens that a request said over reused spans are scored again behind its prompt, computed exactly. Two distributions at every
//! position of the answer then tell how far reuse was off, on the requests that really come, and [`QualityGuard`] draws the
//! consequence. Clients come first: a comparison begins when the engine has been idle for a while, in steps so short that a request
//! hardly waits for one, takes blocks that hold nothing, and is dropped when a request arrives. What is kept for comparisons is bounded
//! in bytes.

use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use semantic::{MatchClass, QualityGuard, Verdict};
use tokens::{RequestId, TenantId, Timestamp, TokenId};

use crate::{
    EngineEvent, KvSharingMode, LogProb, Request, SamplingParams, TokenLogProbs, VerificationConfig, VerificationStats,
    kl_divergence,
};

/// Likeliest tokens of full computation that are told apart; all others count as one.
const FULL_TOP: u32 = 64;
/// Likeliest tokens remembered of an answer over reused KV: more, so that those of full computation are hardly ever missing.
pub(crate) const REUSE_TOP: u32 = 256;
/// How much likelier an answer is verified while little is known of its class.
const BOOST_WHEN_NEW: f64 = 10.0;

/// What is verified, and what came of it.
pub(crate) struct Verifier {
    config: VerificationConfig,
    guard: QualityGuard,
    pending: VecDeque<Case>,
    active: Option<Case>,
    /// Names of comparisons count down from the largest: requests count up from 0.
    next_id: u64,
    /// Since when no request has been in the engine, as far as a step has seen it.
    idle_since: Option<Timestamp>,
    /// True if a step found no room for any comparison; nothing will change before the next request.
    is_stuck: bool,
    num_dropped: u64,
    num_put_off: u64,
}

/// An answer to be compared.
pub(crate) struct Case {
    pub(crate) class: MatchClass,
    /// Prompt and answer.
    pub(crate) request: Request,
    /// At each position of the answer.
    pub(crate) said: Vec<TokenLogProbs>,
}

impl Case {
    fn num_bytes(&self) -> usize {
        num_bytes(&self.said) + size_of_val(&self.request.prompt_token_ids[..])
    }

    /// The request that scores the answer.
    fn scoring(&self) -> Request {
        let num_tokens = self.request.prompt_token_ids.len();
        Request {
            sampling: SamplingParams {
                prompt_logprobs: Some(FULL_TOP),
                prompt_logprobs_from: (num_tokens - self.said.len()) as u32,
                ..SamplingParams::greedy(0)
            },
            sharing: KvSharingMode::Prefix,
            // What is computed here is exact. Kept as that of any request, it is where the comparison goes on after it was put off.
            ..self.request.clone()
        }
    }
}

/// Memory that `said` takes.
pub(crate) fn num_bytes(said: &[TokenLogProbs]) -> usize {
    size_of_val(said) + said.iter().map(|said| said.top.len() * size_of::<LogProb>()).sum::<usize>()
}

impl Verifier {
    pub(crate) fn new(config: VerificationConfig, guard: QualityGuard) -> Self {
        Self {
            config,
            guard,
            pending: VecDeque::new(),
            active: None,
            next_id: u64::MAX,
            idle_since: None,
            is_stuck: false,
            num_dropped: 0,
            num_put_off: 0,
        }
    }

    pub(crate) fn guard(&self) -> &QualityGuard {
        &self.guard
    }

    /// `num_recording` bytes are those of answers that are being recorded.
    pub(crate) fn stats(&self, num_recording: usize) -> VerificationStats {
        VerificationStats {
            num_pending: self.pending.len() + usize::from(self.active.is_some()),
            num_bytes: self.num_bytes() + num_recording,
            num_dropped: self.num_dropped,
            num_put_off: self.num_put_off,
        }
    }

    /// True if spans of `class` may be reused for `tenant`; see [`QualityGuard::allows`].
    pub(crate) fn allows(&self, tenant: TenantId, class: MatchClass) -> bool {
        self.config.share == 0.0 || self.guard.allows(tenant, class)
    }

    /// Counts a request that was computed because its class is switched off.
    pub(crate) fn count_refusal(&mut self, tenant: TenantId, class: MatchClass) {
        self.guard.count_refusal(tenant, class);
    }

    /// Whether the answer of `request_id` is to be recorded. Depends on nothing but the arguments and what was verified before.
    pub(crate) fn samples(&self, request_id: RequestId, tenant: TenantId, class: MatchClass, sampling: &SamplingParams) -> bool {
        let share = if self.guard.is_on_probation(tenant, class) {
            f64::from(u8::from(self.config.share > 0.0))
        } else if self.guard.is_new(tenant, class) {
            self.config.share * BOOST_WHEN_NEW
        } else {
            self.config.share
        };
        let draw = BuildHasherDefault::<DefaultHasher>::default().hash_one(request_id.0) as f64 / u64::MAX as f64;
        draw < share && is_comparable(sampling)
    }

    /// True if an answer may go on being recorded when all that are take `num_recording` bytes. Waiting answers make room, oldest first;
    /// if that is not enough, this one is given up, and counted.
    pub(crate) fn may_record(&mut self, num_recording: usize) -> bool {
        self.shrink_to(self.config.max_bytes.saturating_sub(num_recording));
        let fits = self.num_bytes() + num_recording <= self.config.max_bytes;
        self.num_dropped += u64::from(!fits);
        fits
    }

    /// Takes an answer that is complete. `num_recording` bytes are those of answers that are still being recorded.
    pub(crate) fn submit(&mut self, mut case: Case, num_recording: usize) {
        // One name however often it is put off: what it leaves in the pool is erased as one request's.
        case.request.request_id = RequestId(self.next_id);
        self.next_id -= 1;
        self.pending.push_back(case);
        self.shrink_to(self.config.max_bytes.saturating_sub(num_recording));
    }

    fn num_bytes(&self) -> usize {
        self.pending.iter().chain(self.active.iter()).map(Case::num_bytes).sum()
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

    /// Forgets the waiting answers to requests that `is_erased` names.
    pub(crate) fn erase(&mut self, is_erased: impl Fn(&Request) -> bool) {
        self.pending.retain(|case| !is_erased(&case.request));
    }

    /// A request has arrived: the running comparison, if there is one, is to be taken back by the caller, and made later. Those of others
    /// come first then, so that a long one does not keep short ones from ever being made.
    pub(crate) fn put_off(&mut self) -> Option<RequestId> {
        self.idle_since = None;
        self.is_stuck = false;
        let case = self.active.take()?;
        let request_id = case.request.request_id;
        self.num_put_off += 1;
        self.pending.push_back(case);
        Some(request_id)
    }

    /// A step at `now` has found no request. Whether the engine has been idle for long enough to compare something.
    pub(crate) fn is_due(&mut self, now: Timestamp) -> bool {
        let idle_since = *self.idle_since.get_or_insert(now);
        !self.is_stuck && now.since(idle_since) >= self.config.idle
    }

    /// From when on an idle engine has something to compare.
    pub(crate) fn due_at(&self) -> Option<Timestamp> {
        let waits = self.active.is_none() && !self.is_stuck && !self.pending.is_empty();
        waits.then(|| self.idle_since.map_or(Timestamp::default(), |since| Timestamp(since.0.saturating_add(self.config.idle))))
    }

    /// The requests that would score the waiting answers, oldest first.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = Request> + '_ {
        self.pending.iter().map(Case::scoring)
    }

    /// Starts the comparison of candidate `idx`; the request for it, to be added to the idle engine. `None` says that there is no room
    /// for any.
    pub(crate) fn start(&mut self, idx: Option<usize>) -> Option<Request> {
        debug_assert!(self.active.is_none(), "an idle engine compares nothing");
        self.is_stuck = idx.is_none();
        let case = self.pending.remove(idx?).expect("a candidate waits");
        let request = case.scoring();
        self.active = Some(case);
        Some(request)
    }

    /// The running comparison.
    pub(crate) fn active(&self) -> Option<RequestId> {
        self.active.as_ref().map(|case| case.request.request_id)
    }

    /// Keeps what `events` say of the running comparison, which is nobody else's business.
    pub(crate) fn absorb(&mut self, events: &mut Vec<EngineEvent>) {
        let Some(active) = self.active() else { return };
        let is_over = |event: &EngineEvent| matches!(event, EngineEvent::Finished { .. });
        for event in events.extract_if(.., |event| event.request_id() == active) {
            match event {
                EngineEvent::PromptLogProbs { logprobs, .. } => self.conclude(&logprobs),
                event if is_over(&event) => self.active = None,
                _ => {}
            }
        }
    }

    fn conclude(&mut self, full: &[TokenLogProbs]) {
        let Some(Case { class, said, request }) = &self.active else { return };
        let (class, tenant, verdict) = (*class, request.tenant, compare(full, said));
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

/// Penalties and biases depend on the answer so far, which scoring does not apply.
fn is_comparable(sampling: &SamplingParams) -> bool {
    let SamplingParams { frequency_penalty, presence_penalty, repetition_penalty, min_tokens, .. } = sampling;
    (*frequency_penalty, *presence_penalty, *repetition_penalty, *min_tokens) == (0.0, 0.0, 1.0, 0)
        && sampling.logit_bias.is_empty()
}

fn compare(full: &[TokenLogProbs], said: &[TokenLogProbs]) -> Verdict {
    let likeliest = |found: &TokenLogProbs| -> Option<TokenId> { found.top.first().map(|top| top.token) };
    let kl: Vec<f64> = full.iter().zip(said).map(|(full, said)| kl_divergence(&full.top, &said.top)).collect();
    let num_equal = full.iter().zip(said).filter(|(full, said)| likeliest(full) == likeliest(said)).count();
    let n = kl.len().max(1) as f64;
    Verdict { mean_kl: kl.iter().sum::<f64>() / n, first_kl: kl.first().copied().unwrap_or(0.0), top1: num_equal as f64 / n }
}
