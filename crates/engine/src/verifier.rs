//! Compares a sample of the answers over reused KV with full computation, while nothing else is to do.
//!
//! The tokens that a request said over reused spans are scored again behind its prompt, computed exactly. Two distributions at every
//! position of the answer then tell how far reuse was off, on the requests that really come, and [`QualityGuard`] draws the
//! consequence. Work that somebody waits for comes first: a comparison starts when the engine is idle and is put off when a request
//! arrives.

use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use semantic::{MatchClass, QualityGuard, Verdict};
use tokens::{RequestId, TokenId};

use crate::{EngineEvent, KvSharingMode, Request, SamplingParams, TokenLogProbs, kl_divergence};

/// Likeliest tokens of full computation that are told apart; all others count as one.
const FULL_TOP: u32 = 64;
/// Likeliest tokens remembered of an answer over reused KV: more, so that those of full computation are hardly ever missing.
pub(crate) const REUSE_TOP: u32 = 256;
/// Answers that wait for their comparison; a further one takes the place of the oldest. Chosen: some MB.
const MAX_PENDING: usize = 32;
/// How much likelier an answer is verified while little is known of its class.
const BOOST_WHEN_NEW: f64 = 10.0;

/// What is verified, and what came of it.
pub(crate) struct Verifier {
    /// Share of answers over reused KV.
    share: f64,
    guard: QualityGuard,
    pending: VecDeque<Case>,
    active: Option<(RequestId, Case)>,
    /// Names of comparisons count down from the largest: requests count up from 0.
    next_id: u64,
}

/// An answer to be compared.
pub(crate) struct Case {
    pub(crate) class: MatchClass,
    /// Prompt and answer.
    pub(crate) request: Request,
    /// At each position of the answer.
    pub(crate) said: Vec<TokenLogProbs>,
}

impl Verifier {
    pub(crate) fn new(share: f64, guard: QualityGuard) -> Self {
        Self { share, guard, pending: VecDeque::new(), active: None, next_id: u64::MAX }
    }

    pub(crate) fn guard(&self) -> &QualityGuard {
        &self.guard
    }

    /// Whether spans of `class` may be reused; see [`QualityGuard::allows`].
    pub(crate) fn allows(&mut self, class: MatchClass) -> bool {
        self.share == 0.0 || self.guard.allows(class)
    }

    /// Whether the answer of `request_id` is to be recorded. Depends on nothing but the arguments and what was verified before.
    pub(crate) fn samples(&self, request_id: RequestId, class: MatchClass, sampling: &SamplingParams) -> bool {
        let share = if self.guard.is_on_probation(class) {
            f64::from(u8::from(self.share > 0.0))
        } else if self.guard.is_new(class) {
            self.share * BOOST_WHEN_NEW
        } else {
            self.share
        };
        let draw = BuildHasherDefault::<DefaultHasher>::default().hash_one(request_id.0) as f64 / u64::MAX as f64;
        draw < share && is_comparable(sampling)
    }

    /// Takes an answer that is complete.
    pub(crate) fn submit(&mut self, case: Case) {
        if self.pending.len() == MAX_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back(case);
    }

    /// Forgets the waiting answers to requests that `is_erased` names.
    pub(crate) fn erase(&mut self, is_erased: impl Fn(&Request) -> bool) {
        self.pending.retain(|case| !is_erased(&case.request));
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The request that scores the next answer; to be added to the idle engine.
    pub(crate) fn start_next(&mut self) -> Option<Request> {
        debug_assert!(self.active.is_none(), "an idle engine compares nothing");
        let case = self.pending.pop_front()?;
        let request_id = RequestId(self.next_id);
        self.next_id -= 1;
        let num_tokens = case.request.prompt_token_ids.len();
        let request = Request {
            request_id,
            sampling: SamplingParams {
                prompt_logprobs: Some(FULL_TOP),
                prompt_logprobs_from: (num_tokens - case.said.len()) as u32,
                ..SamplingParams::greedy(0)
            },
            sharing: KvSharingMode::Prefix,
            store: false,
            ..case.request.clone()
        };
        self.active = Some((request_id, case));
        Some(request)
    }

    /// The running comparison is to be taken back by the caller, and made later.
    pub(crate) fn put_off(&mut self) -> Option<RequestId> {
        let (request_id, case) = self.active.take()?;
        self.pending.push_front(case);
        Some(request_id)
    }

    /// Keeps what `events` say of the running comparison, which is nobody else's business.
    pub(crate) fn absorb(&mut self, events: &mut Vec<EngineEvent>) {
        let Some(&(active, _)) = self.active.as_ref() else { return };
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
        let Some((_, Case { class, said, .. })) = &self.active else { return };
        let (class, verdict) = (*class, compare(full, said));
        let is_off = self.guard.record(class, verdict);
        tracing::debug!(?class, ?verdict, "an answer over reused KV was verified");
        if is_off {
            tracing::warn!(?class, "answers over reused KV differ too much: the class is switched off for a while");
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
