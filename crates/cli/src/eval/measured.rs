//! One request under one policy, beside full computation.

use serde::{Deserialize, Serialize};

use super::policy::label;

/// What was measured. Divergences are in nats, times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Place of the request among all that were planned.
    pub(crate) index: usize,
    /// Name of the request.
    pub(crate) id: String,
    /// File it stands in.
    pub(crate) file: String,
    /// Kind of the request.
    pub(crate) workload: String,
    /// How its KV was filled.
    pub(crate) policy: String,
    /// Share of the prompt that the policy might recompute, if it has such a setting.
    pub(crate) r: Option<f32>,
    /// Whether anything was reused at first. Always, for full computation.
    pub(crate) is_hit: bool,
    /// Whether what was reused was given up before the first token.
    pub(crate) bailed_out: bool,
    /// Length of the prompt.
    pub(crate) prompt_tokens: u32,
    /// Tokens found as an exact prefix.
    pub(crate) prefix_tokens: u32,
    /// The least equal class of its spans.
    pub(crate) class: Option<String>,
    /// Tokens found in spans, before any was chosen to be recomputed.
    pub(crate) matched_tokens: u32,
    /// Tokens used as the donor had them.
    pub(crate) span_tokens: u32,
    /// Tokens that a donor had and that were computed all the same.
    pub(crate) recomputed_tokens: u32,
    /// Donors that gave spans.
    pub(crate) donors: u32,
    /// Share of the prompt in runs of 16 tokens that the donor's prompt has.
    pub(crate) cover: f64,
    /// Share of (token, layer) pairs computed.
    pub(crate) work: f64,
    /// The deviation that the policy estimated to be left after repair, if it measured any; see `engine::KvUsage::deviation`.
    pub(crate) deviation: Option<f64>,
    /// That of a second look, if one was taken; see `engine::KvUsage::deep_deviation`.
    pub(crate) deep_deviation: Option<f32>,
    /// KL(full ‖ reuse) at each position of full computation's answer.
    pub(crate) kl: Vec<f64>,
    /// Whether the likeliest token is the same there.
    pub(crate) agrees: Vec<bool>,
    /// Mean divergence of another exact run of the same request.
    pub(crate) floor_kl: f64,
    /// Share of its positions with the same likeliest token.
    pub(crate) floor_top1: f64,
    /// Time to the first token.
    pub(crate) ttft_ms: f64,
    /// The same of full computation.
    pub(crate) full_ttft_ms: f64,
    /// The same with the donor's exact prefix.
    pub(crate) prefix_ttft_ms: f64,
    /// Time to the donor's first token, divided among its recipients.
    pub(crate) donor_ttft_ms: f64,
    /// Its own answer, if it was let to give one.
    pub(crate) answer: Option<AnswerScores>,
}

/// An answer that the request gave by itself, beside that of full computation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct AnswerScores {
    /// What it says.
    pub(crate) text: String,
    /// What full computation says.
    pub(crate) full_text: String,
    /// F1 of the longest common subsequence of words.
    pub(crate) rouge_l: f64,
    /// Smoothed BLEU-4.
    pub(crate) bleu: f64,
    /// Its tokens over those of full computation.
    pub(crate) length_ratio: f64,
    /// Its score by the workload's measure.
    pub(crate) task: Option<f64>,
    /// The score of full computation.
    pub(crate) task_full: Option<f64>,
    /// Whether it is right.
    pub(crate) is_right: Option<bool>,
    /// Whether full computation is.
    pub(crate) full_is_right: Option<bool>,
    /// Whether it says what only the donor's prompt says.
    pub(crate) is_stale: Option<bool>,
    /// Whether full computation says that too, by chance.
    pub(crate) full_is_stale: Option<bool>,
}

impl Measured {
    /// Mean divergence over positions.
    pub(crate) fn mean_kl(&self) -> f64 {
        mean(&self.kl)
    }

    /// Share of positions with the same likeliest token.
    pub(crate) fn top1(&self) -> f64 {
        share(&self.agrees)
    }

    /// Positions before the first with another likeliest token.
    pub(crate) fn num_agreed(&self) -> usize {
        self.agrees.iter().take_while(|agrees| **agrees).count()
    }

    /// `name@share`, as the policy was asked for.
    pub(crate) fn policy_label(&self) -> String {
        label(&self.policy, self.r)
    }
}

/// Arithmetic mean; 0 of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Share of those that are true; 0 of nothing.
pub(crate) fn share(values: &[bool]) -> f64 {
    values.iter().filter(|value| **value).count() as f64 / values.len().max(1) as f64
}
