//! A tenant's traffic in mode `auto`, and the findings about it.

use serde::{Deserialize, Serialize};

use crate::MatchClass;

/// The classes of a tenant's traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrafficClassList {
    /// `list`.
    pub object: String,
    /// In a fixed order.
    pub data: Vec<TrafficClass>,
}

/// Requests that are alike in what foretells how reuse turns out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrafficClass {
    /// `kv.class`.
    pub object: String,
    /// A number of tenant, model and `cache_salt`.
    pub scope: String,
    /// Agreement of the worst span with its donor on what stands left of it.
    pub class: MatchClass,
    /// The prompts' length in tokens: `below_1024`, `from_16384`.
    pub length: String,
    /// Composition of the prompts: `prompt` or `conversation`, `in_order` or `reordered`, and `short_pieces`.
    pub format: String,
    /// A number of the policy.
    pub policy: String,
    /// Treatment of such requests.
    pub state: TrafficState,
    /// Answers compared so far.
    pub verified: u64,
    /// Mean KL(full, reuse) of the answers compared since the class was closed last, in nats; `null` without any.
    pub mean_kl: Option<f64>,
    /// Their share of positions with the same likeliest token.
    pub top1: Option<f64>,
    /// Progress of the proof that the mean KL is low enough, from 0 to 1.
    pub proof_kl: f64,
    /// Progress of the proof that the agreement is high enough. At 1 both, the class is opened.
    pub proof_top1: f64,
    /// Times it was opened.
    pub opened: u32,
    /// Times it was closed.
    pub closed: u32,
}

/// Treatment of the requests of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrafficState {
    /// They are computed exactly; what they would have reused is tried in idle time.
    Shadow,
    /// They reuse; some are verified.
    Open,
}
