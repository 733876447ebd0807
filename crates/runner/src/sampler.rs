//! Tokens sampled for a request so far, and their effect on its next token.
//!
//! Order of operations: `logit_bias`, repetition, presence and frequency penalties, stop tokens masked before `min_tokens`, the grammar's mask; log
//! probabilities are reported from there; then temperature, top-k, top-p, min-p, and a draw.
//!
//! The draw depends on seed and position alone, so a preempted or batched request continues as if it had run alone.

use std::collections::HashMap;
use std::sync::Arc;

use engine::{LogProb, SamplingParams, TokenLogProbs};
use kernels::cpu::{Adjustment, Distribution, RankedLogProb};
use tokens::{SPLITMIX64_STEP, TokenId, splitmix64};

use crate::masks::{Constrained, MaskSlot, MaskThreads};

/// A token to sample from one row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRow {
    /// Row of the batch.
    pub row: usize,
    /// Changes of logits by ascending token, each token at most once.
    pub adjustments: Arc<Vec<Adjustment>>,
    /// Distribution to draw from.
    pub distribution: Distribution,
    /// Random number of the draw; in 0..1.
    pub uniform: f64,
    /// Number of likeliest tokens to report log probabilities of, besides the sampled one.
    pub logprobs: Option<u32>,
    /// Mask of a constrained row, to wait for before it is sampled.
    pub mask: Option<MaskSlot>,
}

/// A row of logits that scores a known token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreRow {
    /// Row of the batch.
    pub row: usize,
    /// Token that follows it in the prompt.
    pub token: TokenId,
    /// Number of likeliest tokens to report log probabilities of as well.
    pub top: u32,
}

/// Returns the number of rows of logits that are scored together, at most about 16 MiB of them. Chosen: so many share one read of the
/// head's weights.
pub(crate) fn scored_rows(vocab_size: usize) -> usize {
    const SCORED_LOGITS: usize = 4 << 20;
    (SCORED_LOGITS / vocab_size).clamp(1, 256)
}

impl ScoreRow {
    /// Scores on the host, from the model's unmodified logits of the row.
    #[must_use]
    pub fn score(&self, logits: &[f32]) -> TokenLogProbs {
        log_probs(logits, self.token, self.top)
    }
}

/// Result of sampling one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Sampled token.
    pub token: TokenId,
    /// Difference of the largest and the second largest logit, after adjustments, before temperature and truncation. NaN if the row
    /// contains NaN: then no token was sampled.
    pub margin: f32,
    /// Log probabilities, if requested: after adjustments, before temperature and truncation.
    pub logprobs: Option<TokenLogProbs>,
}

impl SampleRow {
    /// Samples on the host, from the row's logits, which are adjusted in place.
    pub fn choose(&self, logits: &mut [f32]) -> Sampled {
        self.adjustments.iter().for_each(|adjustment| adjustment.apply(logits));
        if let Some(slot) = &self.mask {
            kernels::cpu::mask(logits, slot.wait().words());
        }
        let margin = kernels::cpu::margin(logits);
        if margin.is_nan() {
            return Sampled { token: TokenId(0), margin, logprobs: None };
        }
        let token = if self.distribution.is_greedy() {
            kernels::cpu::argmax(logits)
        } else {
            kernels::cpu::draw(logits, &self.distribution, self.uniform)
        };
        let logprobs = self.logprobs.map(|top| log_probs(logits, TokenId(token), top));
        Sampled { token: TokenId(token), margin, logprobs }
    }
}

/// Returns the log probabilities of `chosen` and of the `top` likeliest tokens.
fn log_probs(logits: &[f32], chosen: TokenId, top: u32) -> TokenLogProbs {
    let (chosen, top) = kernels::cpu::log_probs(logits, chosen.0, top);
    named(chosen, top)
}

/// Converts to the engine's type.
pub(crate) fn named(chosen: RankedLogProb, top: Vec<RankedLogProb>) -> TokenLogProbs {
    let one = |found: RankedLogProb| LogProb { token: TokenId(found.token), logprob: found.logprob, rank: found.rank };
    TokenLogProbs { chosen: one(chosen), top: top.into_iter().map(one).collect() }
}

/// Sampling state of one request.
pub(crate) struct RequestState {
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) prompt_token_ids: Arc<[TokenId]>,
    /// Tokens of the prompt, ascending, each once; empty without a repetition penalty, the only parameter that needs them.
    prompt_vocabulary: Vec<u32>,
    /// Number of times each token was generated; empty without penalties.
    output_counts: HashMap<u32, u32>,
    num_output_tokens: u32,
    last_token: Option<u32>,
    /// Place of the answer in its grammar.
    constrained: Option<Constrained>,
    /// Changes by ascending token; updated when a token is recorded, so that a long prompt with a penalty is not scanned each time.
    /// Shared with the row that is being sampled, which is dropped before the next change.
    adjustments: Arc<Vec<Adjustment>>,
}

impl RequestState {
    /// Creates the state before the first token; `masks` compute what a grammar allows.
    pub(crate) fn new(params: Arc<SamplingParams>, prompt_token_ids: Arc<[TokenId]>, masks: &MaskThreads) -> Self {
        let mut prompt_vocabulary = Vec::new();
        if params.repetition_penalty != 1.0 {
            prompt_vocabulary.extend(prompt_token_ids.iter().map(|token| token.0));
            prompt_vocabulary.sort_unstable();
            prompt_vocabulary.dedup();
        }
        let mut adjusted: Vec<u32> =
            params.logit_bias.iter().map(|(token, _)| token.0).chain(prompt_vocabulary.clone()).collect();
        adjusted.sort_unstable();
        adjusted.dedup();
        let mut state = Self {
            params,
            prompt_token_ids,
            prompt_vocabulary,
            output_counts: HashMap::new(),
            num_output_tokens: 0,
            last_token: None,
            constrained: None,
            adjustments: Arc::default(),
        };
        let constrained = |grammar| Constrained::new(grammar, state.premature(), masks.clone());
        state.constrained = state.params.grammar.as_ref().map(constrained);
        state.adjustments = Arc::new(adjusted.into_iter().map(|token| state.adjustment(token)).collect());
        state
    }

    /// Returns the parameters for sampling the token after `position` from `row`.
    pub(crate) fn sample_row(&self, row: usize, position: u32) -> SampleRow {
        let params = &self.params;
        let mask = self.constrained.as_ref().and_then(Constrained::next_mask);
        let mut adjustments = Arc::clone(&self.adjustments);
        // A mask forbids them where another token may follow.
        if mask.is_none() && !self.premature().is_empty() {
            for stop in self.premature() {
                adjustment_mut(Arc::make_mut(&mut adjustments), stop.0).subtract = f32::INFINITY;
            }
        }
        let distribution =
            Distribution { temperature: params.temperature, top_k: params.top_k, top_p: params.top_p, min_p: params.min_p };
        SampleRow { row, adjustments, distribution, uniform: uniform(params.seed, position), logprobs: params.logprobs, mask }
    }

    /// Returns the stop tokens that may not follow yet.
    fn premature(&self) -> &[TokenId] {
        premature(&self.params, self.num_output_tokens)
    }

    /// Records that `token` was sampled. Returns true if it completes the grammar.
    pub(crate) fn record(&mut self, token: TokenId) -> bool {
        self.num_output_tokens += 1;
        self.last_token = Some(token.0);
        if self.penalises_output() {
            *self.output_counts.entry(token.0).or_default() += 1;
            *adjustment_mut(Arc::make_mut(&mut self.adjustments), token.0) = self.adjustment(token.0);
        }
        let premature = premature(&self.params, self.num_output_tokens);
        self.constrained.as_mut().is_some_and(|constrained| constrained.record(token, premature))
    }

    /// Removes the last token.
    pub(crate) fn retract(&mut self) {
        let Some(token) = self.last_token.take() else { return };
        self.num_output_tokens -= 1;
        let premature = premature(&self.params, self.num_output_tokens);
        if let Some(constrained) = &mut self.constrained {
            constrained.retract(premature);
        }
        if let Some(count) = self.output_counts.get_mut(&token) {
            *count -= 1;
            *adjustment_mut(Arc::make_mut(&mut self.adjustments), token) = self.adjustment(token);
        }
    }

    fn penalises_output(&self) -> bool {
        let params = &self.params;
        params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0
    }

    /// Returns the change of the logit of `token` by the tokens so far.
    fn adjustment(&self, token: u32) -> Adjustment {
        let params = &self.params;
        let mut adjustment = Adjustment::none(token);
        adjustment.bias = params.logit_bias.iter().filter(|(biased, _)| biased.0 == token).map(|(_, bias)| bias).sum();
        let count = self.output_counts.get(&token).copied().unwrap_or(0);
        if count > 0 || self.prompt_vocabulary.binary_search(&token).is_ok() {
            adjustment.repetition = params.repetition_penalty;
        }
        if count > 0 {
            adjustment.subtract = params.presence_penalty + params.frequency_penalty * count as f32;
        }
        adjustment
    }
}

/// Returns the stop tokens that may not follow yet.
fn premature(params: &SamplingParams, num_output_tokens: u32) -> &[TokenId] {
    if num_output_tokens < params.min_tokens { &params.stop_token_ids } else { &[] }
}

/// Returns the entry of `token`, inserted if missing.
fn adjustment_mut(adjustments: &mut Vec<Adjustment>, token: u32) -> &mut Adjustment {
    let idx = adjustments.binary_search_by_key(&token, |adjustment| adjustment.token).unwrap_or_else(|idx| {
        adjustments.insert(idx, Adjustment::none(token));
        idx
    });
    &mut adjustments[idx]
}

/// Returns a number in 0..1 that depends on seed and position alone (SplitMix64 over both).
fn uniform(seed: u64, position: u32) -> f64 {
    let offset = u64::from(position).wrapping_sub(1).wrapping_mul(SPLITMIX64_STEP);
    let bits = splitmix64(splitmix64(seed).wrapping_add(offset));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(edit: impl FnOnce(&mut SamplingParams)) -> RequestState {
        let mut params = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::greedy(100) };
        edit(&mut params);
        RequestState::new(Arc::new(params), [TokenId(0)].into(), &MaskThreads::new())
    }

    #[test]
    fn draws_at_many_positions_follow_the_distribution() {
        let state = state(|_| {});
        let mut counts = [0; 3];
        for position in 0..2000 {
            let mut logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
            counts[state.sample_row(0, position).choose(&mut logits).token.0 as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([1000.0, 600.0, 400.0]) {
            assert!((f64::from(*count) - expected).abs() < 90.0, "{counts:?}");
        }
    }

    #[test]
    fn equal_seeds_draw_equally_and_others_differ() {
        let draws = |seed: u64| (0..64).map(|p| uniform(seed, p).to_bits()).collect::<Vec<_>>();
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let sampled = state(|p| p.temperature = 0.0).sample_row(0, 0).choose(&mut [1.0, 5.0, 5.0]);
        assert_eq!(sampled, Sampled { token: TokenId(1), margin: 0.0, logprobs: None });
    }

    /// A change of parameters.
    type Edit = Box<dyn Fn(&mut SamplingParams)>;

    /// Checks every parameter at the ends of its range and at subnormal values, over logits of several kinds.
    #[test]
    fn no_parameter_that_is_accepted_gives_what_is_no_number() {
        let ends = |range: std::ops::RangeInclusive<f32>| [*range.start(), *range.end()];
        let noise: Vec<f32> = (0..40u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 4096.0 - 8.0).collect();
        let scaled = |by: f32| noise.iter().map(|x| x * by).collect::<Vec<_>>();
        let rows = [noise.clone(), scaled(1e4), scaled(1e-30), vec![0.0; 40], vec![-7.0; 40], vec![1e4; 40]];
        let tiny = [1e-45, f32::MIN_POSITIVE, 1.0];
        let mut edits: Vec<Edit> = vec![Box::new(|_| {})];
        for temperature in ends(SamplingParams::TEMPERATURE).into_iter().chain(tiny) {
            edits.push(Box::new(move |p| p.temperature = temperature));
            for share in tiny {
                edits.push(Box::new(move |p| (p.temperature, p.top_p) = (temperature, share)));
                edits.push(Box::new(move |p| (p.temperature, p.min_p, p.top_k) = (temperature, share, 3)));
            }
        }
        for penalty in ends(SamplingParams::REPETITION_PENALTY) {
            edits.push(Box::new(move |p| p.repetition_penalty = penalty));
        }
        for penalty in ends(SamplingParams::ADDITIVE_PENALTY).into_iter().chain([1e-45]) {
            edits.push(Box::new(move |p| (p.presence_penalty, p.frequency_penalty) = (penalty, penalty)));
        }
        for bias in ends(SamplingParams::LOGIT_BIAS).into_iter().chain([1e-45]) {
            edits.push(Box::new(move |p| p.logit_bias = (0..40).map(|token| (TokenId(token), bias)).collect()));
        }
        for (number, edit) in edits.iter().enumerate() {
            for (kind, row) in rows.iter().enumerate() {
                let mut state = state(|p| {
                    edit(p);
                    p.logprobs = Some(40);
                });
                for position in 0..4 {
                    let sampled = state.sample_row(0, position).choose(&mut row.clone());
                    let what = format!("edit {number}, row {kind}: {sampled:?}");
                    assert!(sampled.margin.is_finite() && sampled.token.0 < 40, "{what}");
                    let logprobs = sampled.logprobs.as_ref().unwrap();
                    assert!(logprobs.top.iter().chain([&logprobs.chosen]).all(|entry| entry.logprob.is_finite()), "{what}");
                    state.record(sampled.token);
                }
            }
        }
    }

    #[test]
    fn nothing_is_chosen_from_what_is_no_number() {
        for temperature in [0.0, 1.0] {
            let mut state = state(|p| (p.temperature, p.logprobs) = (temperature, Some(2)));
            let sampled = state.sample_row(0, 0).choose(&mut [1.0, f32::NAN, 0.0]);
            assert!(sampled.margin.is_nan() && sampled.logprobs.is_none(), "{sampled:?}");
            state.record(TokenId(1));
        }
    }

    #[track_caller]
    fn check_adjusted(edit: impl FnOnce(&mut SamplingParams), generated: &[u32], expected: [f32; 4]) {
        let mut state = state(edit);
        for token in generated {
            assert!(!state.record(TokenId(*token)), "without a grammar no token completes it");
        }
        let mut logits = [2.0, -2.0, 1.0, 0.5];
        let row = state.sample_row(0, 0);
        assert!(row.adjustments.is_sorted_by(|a, b| a.token < b.token), "{:?}", row.adjustments);
        row.adjustments.iter().for_each(|adjustment| adjustment.apply(&mut logits));
        assert_eq!(logits, expected);
    }

    #[test]
    fn each_adjustment_does_its_own() {
        check_adjusted(|p| p.logit_bias = vec![(TokenId(3), 1.5), (TokenId(99), 1.0)], &[], [2.0, -2.0, 1.0, 2.0]);
        check_adjusted(|p| p.presence_penalty = 0.5, &[2, 2, 3], [2.0, -2.0, 0.5, 0.0]);
        check_adjusted(|p| p.frequency_penalty = 0.5, &[2, 2, 3], [2.0, -2.0, 0.0, 0.0]);
        check_adjusted(|p| p.repetition_penalty = 2.0, &[1], [1.0, -4.0, 1.0, 0.5]);
        check_adjusted(|p| p.repetition_penalty = 2.0, &[0, 0], [1.0, -2.0, 1.0, 0.5]);
    }

    #[test]
    fn stop_tokens_wait_for_min_tokens() {
        let edit = |p: &mut SamplingParams| (p.min_tokens, p.stop_token_ids) = (2, vec![TokenId(0)]);
        check_adjusted(edit, &[2], [f32::NEG_INFINITY, -2.0, 1.0, 0.5]);
        check_adjusted(edit, &[2, 2], [2.0, -2.0, 1.0, 0.5]);
    }

    #[test]
    fn what_is_retracted_counts_no_more() {
        let penalised = |retract: bool| {
            let mut state = state(|p| (p.temperature, p.presence_penalty) = (0.0, 3.0));
            let next = |state: &mut RequestState| {
                let sampled = state.sample_row(0, 0).choose(&mut [1.0, 5.0, 3.5]);
                state.record(sampled.token);
                sampled
            };
            assert_eq!(next(&mut state), Sampled { token: TokenId(1), margin: 1.5, logprobs: None });
            if retract {
                state.retract();
            }
            next(&mut state).token
        };
        assert_eq!((penalised(false), penalised(true)), (TokenId(2), TokenId(1)));
    }
}
