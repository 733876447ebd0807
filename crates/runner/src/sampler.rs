//! From a row of logits to a token.
//!
//! Order of operations: `logit_bias`, repetition, presence and frequency penalties, stop tokens masked before `min_tokens`; log
//! probabilities are reported from there; then temperature, top-k, top-p, min-p, and a draw.
//!
//! The draw is a function of seed and position alone, so a preempted or batched request continues as if it had run alone.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use engine::{LogProb, SamplingParams, TokenLogProbs};
use tokens::TokenId;

/// Sampling state of one request.
pub(crate) struct RequestState {
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) prompt_token_ids: Arc<[TokenId]>,
    /// Tokens of the prompt, ascending, each once; empty without a repetition penalty, which alone asks for them.
    prompt_vocabulary: Vec<u32>,
    /// How often each token was generated.
    output_counts: HashMap<u32, u32>,
    num_output_tokens: u32,
    last_token: Option<u32>,
}

impl RequestState {
    pub(crate) fn new(params: Arc<SamplingParams>, prompt_token_ids: Arc<[TokenId]>) -> Self {
        let mut prompt_vocabulary = Vec::new();
        if params.repetition_penalty != 1.0 {
            prompt_vocabulary.extend(prompt_token_ids.iter().map(|token| token.0));
            prompt_vocabulary.sort_unstable();
            prompt_vocabulary.dedup();
        }
        Self {
            params,
            prompt_token_ids,
            prompt_vocabulary,
            output_counts: HashMap::new(),
            num_output_tokens: 0,
            last_token: None,
        }
    }

    /// Chooses the token after `position` and remembers it; with the distance of the two largest logits. Changes `logits`.
    pub(crate) fn sample(&mut self, logits: &mut [f32], position: u32) -> (TokenId, f32, Option<TokenLogProbs>) {
        self.adjust(logits);
        let params = &self.params;
        let token = if params.temperature <= 0.0 { argmax(logits) } else { draw(logits, params, uniform(params.seed, position)) };
        let logprobs = params.logprobs.map(|k| log_probs(logits, TokenId(token), k));
        *self.output_counts.entry(token).or_default() += 1;
        self.num_output_tokens += 1;
        self.last_token = Some(token);
        (TokenId(token), margin(logits), logprobs)
    }

    /// Forgets the last token.
    pub(crate) fn retract(&mut self) {
        let Some(token) = self.last_token.take() else { return };
        self.num_output_tokens -= 1;
        if let Some(count) = self.output_counts.get_mut(&token) {
            *count -= 1;
        }
        self.output_counts.retain(|_, count| *count > 0);
    }

    fn adjust(&self, logits: &mut [f32]) {
        let params = &self.params;
        for (token, bias) in &params.logit_bias {
            if let Some(logit) = logits.get_mut(token.0 as usize) {
                *logit += bias;
            }
        }
        if params.repetition_penalty != 1.0 {
            self.penalise_repetition(logits, params.repetition_penalty);
        }
        for (token, count) in &self.output_counts {
            logits[*token as usize] -= params.presence_penalty + params.frequency_penalty * *count as f32;
        }
        if self.num_output_tokens < params.min_tokens {
            for stop in &params.stop_token_ids {
                if let Some(logit) = logits.get_mut(stop.0 as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Keskar et al. 2019, sec. 4.1, as Hugging Face does it: each token seen is penalised once.
    fn penalise_repetition(&self, logits: &mut [f32], penalty: f32) {
        let generated = self.output_counts.keys().filter(|token| self.prompt_vocabulary.binary_search(token).is_err());
        for token in self.prompt_vocabulary.iter().chain(generated) {
            let logit = &mut logits[*token as usize];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// The largest minus the second largest.
fn margin(logits: &[f32]) -> f32 {
    let (first, second) = logits.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(first, second), x| {
        if *x > first { (*x, first) } else { (first, second.max(*x)) }
    });
    first - second
}

/// The likeliest token, the smallest id among equals.
fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, x)| if *x > best.1 { (i, *x) } else { best });
    best.0 as u32
}

/// Candidates that top-k, top-p and min-p look at before all others: a truncated distribution rarely needs more.
const FIRST_CANDIDATES: usize = 1024;

/// Draws a token with `u` in 0..1.
fn draw(logits: &[f32], params: &SamplingParams, u: f64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from((logit - max) / params.temperature).exp();
    let total: f64 = logits.iter().map(|logit| weight(*logit)).sum();
    if params.top_k == 0 && params.top_p >= 1.0 && params.min_p <= 0.0 {
        return pick(logits.iter().enumerate().map(|(i, logit)| (i as u32, weight(*logit))), u * total);
    }
    let by_logit = |a: &u32, b: &u32| descending(logits[*a as usize], logits[*b as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let mut limit = FIRST_CANDIDATES.max(params.top_k as usize);
    loop {
        if limit < ids.len() {
            ids.select_nth_unstable_by(limit, by_logit);
        }
        let candidates = &mut ids[..limit.min(logits.len())];
        candidates.sort_unstable_by(by_logit);
        let kept = truncate(candidates.iter().map(|id| weight(logits[*id as usize])), total, params);
        if kept < candidates.len() || candidates.len() == logits.len() {
            let kept = &candidates[..kept];
            let sum: f64 = kept.iter().map(|id| weight(logits[*id as usize])).sum();
            return pick(kept.iter().map(|id| (*id, weight(logits[*id as usize]))), u * sum);
        }
        limit = logits.len();
    }
}

/// How many of the descending `weights` stay; at least one.
fn truncate(weights: impl Iterator<Item = f64>, total: f64, params: &SamplingParams) -> usize {
    let top_k = if params.top_k == 0 { usize::MAX } else { params.top_k as usize };
    // Top-p is a share of what top-k left, as in vLLM; the likeliest weight is 1 by construction.
    let weights: Vec<f64> = weights.take(top_k).collect();
    let total = if top_k == usize::MAX { total } else { weights.iter().sum() };
    let mut sum = 0.0;
    let mut kept = 0;
    for weight in weights {
        if kept > 0 && (sum >= f64::from(params.top_p) * total || weight < f64::from(params.min_p)) {
            break;
        }
        sum += weight;
        kept += 1;
    }
    kept
}

/// The first token at which the running sum of weights exceeds `target`.
fn pick(weights: impl Iterator<Item = (u32, f64)>, target: f64) -> u32 {
    let mut sum = 0.0;
    let mut last = 0;
    for (id, weight) in weights.filter(|(_, weight)| *weight > 0.0) {
        sum += weight;
        last = id;
        if sum > target {
            break;
        }
    }
    last
}

fn descending(a: f32, b: f32) -> Ordering {
    b.total_cmp(&a)
}

/// A number in 0..1 that depends on seed and position alone (SplitMix64's finaliser over both).
fn uniform(seed: u64, position: u32) -> f64 {
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let bits =
        mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(u64::from(position).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Log probability of `chosen` and of the `top` likeliest tokens.
pub(crate) fn log_probs(logits: &[f32], chosen: TokenId, top: u32) -> TokenLogProbs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_total = logits.iter().map(|logit| f64::from(logit - max).exp()).sum::<f64>().ln();
    let logprob = |id: u32| (f64::from(logits[id as usize] - max) - log_total) as f32;
    let by_logit = |a: &u32, b: &u32| descending(logits[*a as usize], logits[*b as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let top = (top as usize).min(ids.len());
    if top > 0 && top < ids.len() {
        ids.select_nth_unstable_by(top - 1, by_logit);
    }
    ids.truncate(top);
    ids.sort_unstable_by(by_logit);
    let rank = 1 + logits.iter().filter(|logit| **logit > logits[chosen.0 as usize]).count() as u32;
    TokenLogProbs {
        chosen: LogProb { token: chosen, logprob: logprob(chosen.0), rank },
        top: (1..).zip(ids).map(|(rank, id)| LogProb { token: TokenId(id), logprob: logprob(id), rank }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(edit: impl FnOnce(&mut SamplingParams)) -> RequestState {
        let mut params = SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::greedy(100) };
        edit(&mut params);
        RequestState::new(Arc::new(params), [TokenId(0)].into())
    }

    /// Tokens drawn at 2,000 positions of the distribution `e^logits`.
    fn histogram(logits: &[f32], edit: impl FnOnce(&mut SamplingParams)) -> Vec<usize> {
        let state = state(edit);
        let mut counts = vec![0; logits.len()];
        for position in 0..2000 {
            counts[draw(logits, &state.params, uniform(state.params.seed, position)) as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let counts = histogram(&[0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()], |_| {});
        for (count, expected) in counts.iter().zip([1000.0, 600.0, 400.0]) {
            assert!((*count as f64 - expected).abs() < 90.0, "{counts:?}");
        }
    }

    #[test]
    fn top_k_keeps_the_likeliest() {
        let counts = histogram(&[0.0, 3.0, 1.0, 2.0], |p| p.top_k = 2);
        assert!(counts[0] == 0 && counts[2] == 0 && counts[1] > 0 && counts[3] > 0, "{counts:?}");
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let counts = histogram(&[0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()], |p| p.top_p = 0.6);
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn min_p_drops_what_is_unlikely_beside_the_likeliest() {
        let counts = histogram(&[0.0, -1.0, -3.0], |p| p.min_p = 0.2);
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn a_flat_distribution_wider_than_the_first_candidates_is_kept_whole() {
        let logits = vec![0.0; 3 * FIRST_CANDIDATES];
        let counts = histogram(&logits, |p| p.top_p = 0.99);
        assert!(counts.iter().skip(2 * FIRST_CANDIDATES).any(|count| *count > 0));
    }

    #[test]
    fn equal_seeds_draw_equally_and_others_differ() {
        let draws = |seed: u64| (0..64).map(|p| uniform(seed, p).to_bits()).collect::<Vec<_>>();
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let (token, margin, _) = state(|p| p.temperature = 0.0).sample(&mut [1.0, 5.0, 5.0], 0);
        assert_eq!(margin, 0.0);
        assert_eq!(token, TokenId(1));
    }

    #[track_caller]
    fn check_adjusted(edit: impl FnOnce(&mut SamplingParams), generated: &[u32], expected: [f32; 4]) {
        let mut state = state(edit);
        for token in generated {
            *state.output_counts.entry(*token).or_default() += 1;
            state.num_output_tokens += 1;
        }
        let mut logits = [2.0, -2.0, 1.0, 0.5];
        state.adjust(&mut logits);
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
    fn log_probs_are_normalised_and_ranked() {
        let found = log_probs(&[0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()], TokenId(0), 2);
        assert!((found.chosen.logprob - 0.2f32.ln()).abs() < 1e-6 && found.chosen.rank == 3);
        assert_eq!(found.top.iter().map(|p| (p.token.0, p.rank)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    }

    #[test]
    fn what_is_retracted_counts_no_more() {
        let penalised = |retract: bool| {
            let mut state = state(|p| (p.temperature, p.presence_penalty) = (0.0, 3.0));
            let (first, margin, _) = state.sample(&mut [1.0, 5.0, 3.5], 0);
            assert_eq!((first, margin), (TokenId(1), 1.5));
            if retract {
                state.retract();
            }
            state.sample(&mut [1.0, 5.0, 3.5], 0).0
        };
        assert_eq!((penalised(false), penalised(true)), (TokenId(2), TokenId(1)));
    }
}
