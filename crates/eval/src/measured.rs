//! Comparison of one request under one policy with full computation.

use serde::{Deserialize, Serialize};

use super::policy::label;

/// Measurements of one request. Divergences are in nats, times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Position of the request among all planned ones.
    pub index: usize,
    /// Name of the request.
    pub id: String,
    /// File of the request.
    pub file: String,
    /// Kind of the request.
    pub workload: String,
    /// Name of the policy.
    pub policy: String,
    /// Share of the prompt that the policy may recompute, if it has such a setting.
    pub r: Option<f32>,
    /// True if KV was reused at first. Always for full computation.
    pub is_hit: bool,
    /// True if the reused KV was given up before the first token.
    pub bailed_out: bool,
    /// Length of the prompt.
    pub prompt_tokens: u32,
    /// Tokens found as an exact prefix.
    pub prefix_tokens: u32,
    /// Least equal class of its spans.
    pub class: Option<String>,
    /// Tokens found in spans, before the selection of rows to recompute.
    pub matched_tokens: u32,
    /// Tokens reused as the donor had them.
    pub span_tokens: u32,
    /// Tokens computed although a donor had them.
    pub recomputed_tokens: u32,
    /// Donors that gave spans.
    pub donors: u32,
    /// Share of the prompt in runs of 16 tokens that the donor's prompt has.
    pub cover: f64,
    /// Share of (token, layer) pairs computed.
    pub work: f64,
    /// Deviation that the policy estimated to remain after repair, if it measured any; see `engine::KvUsage::deviation`.
    pub deviation: Option<f64>,
    /// Deviation of a second look, if one was taken; see `engine::KvUsage::deep_deviation`.
    pub deep_deviation: Option<f32>,
    /// KL(full ‖ reuse) at each position of full computation's answer.
    pub kl: Vec<f64>,
    /// True where the top-1 token is the same.
    pub agrees: Vec<bool>,
    /// Mean divergence of another exact run of the same request.
    pub floor_kl: f64,
    /// Share of that run's positions with the same top-1 token.
    pub floor_top1: f64,
    /// Time to the first token.
    pub ttft_ms: f64,
    /// Time to first token of full computation.
    pub full_ttft_ms: f64,
    /// Time to first token with the donor's exact prefix.
    pub prefix_ttft_ms: f64,
    /// Time to the donor's first token, divided among its recipients.
    pub donor_ttft_ms: f64,
    /// Scores of its free-running answer, if it generated one.
    pub answer: Option<AnswerScores>,
}

/// Scores of a free-running answer, compared with that of full computation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerScores {
    /// Text of the answer.
    pub text: String,
    /// Text of full computation's answer.
    pub full_text: String,
    /// F1 of the longest common subsequence of words.
    pub rouge_l: f64,
    /// Smoothed BLEU-4.
    pub bleu: f64,
    /// Ratio of its tokens to those of full computation.
    pub length_ratio: f64,
    /// Score by the workload's metric.
    pub task: Option<f64>,
    /// Score of full computation.
    pub task_full: Option<f64>,
    /// True if the answer is right.
    pub is_right: Option<bool>,
    /// True if full computation's answer is right.
    pub full_is_right: Option<bool>,
    /// True if the answer contains facts that only the donor's prompt contains.
    pub is_stale: Option<bool>,
    /// True if full computation's answer contains them too, by chance.
    pub full_is_stale: Option<bool>,
}

impl Measured {
    /// Returns the mean divergence over positions.
    pub fn mean_kl(&self) -> f64 {
        mean(&self.kl)
    }

    /// Returns the share of positions with the same top-1 token.
    pub fn top1(&self) -> f64 {
        share(&self.agrees)
    }

    /// Counts positions before the first with another top-1 token.
    pub fn num_agreed(&self) -> usize {
        self.agrees.iter().take_while(|agrees| **agrees).count()
    }

    /// Returns `name@share`, as the policy was requested.
    pub fn policy_label(&self) -> String {
        label(&self.policy, self.r)
    }
}

/// Returns the arithmetic mean; 0 for no values.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Returns the share of true values; 0 for no values.
pub(crate) fn share(values: &[bool]) -> f64 {
    values.iter().filter(|value| **value).count() as f64 / values.len().max(1) as f64
}
