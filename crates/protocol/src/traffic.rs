//! Verification results of a tenant's traffic in mode `auto`.

use serde::{Deserialize, Serialize};

use crate::MatchClass;

/// Traffic classes of a tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrafficClassList {
    /// `list`.
    pub object: String,
    /// Classes in a fixed order.
    pub data: Vec<TrafficClass>,
}

/// A class of requests with equal predictors of reuse quality.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrafficClass {
    /// `kv.class`.
    pub object: String,
    /// Hash of tenant, model and `cache_salt`.
    pub scope: String,
    /// Agreement of the left context of the worst span with its donor's.
    pub class: MatchClass,
    /// Length bucket of the prompts in tokens: `below_1024`, `from_16384`.
    pub length: String,
    /// Composition of the prompts: `prompt` or `conversation`, `in_order` or `reordered`, and `short_pieces`.
    pub format: String,
    /// Hash of the policy.
    pub policy: String,
    /// State of the class.
    pub state: TrafficState,
    /// Number of answers compared so far.
    pub verified: u64,
    /// Mean KL(full, reuse) of the answers compared since the class was last closed, in nats; `null` without any.
    pub mean_kl: Option<f64>,
    /// Share of positions in these answers with the same likeliest token.
    pub top1: Option<f64>,
    /// Progress of the proof that the mean KL is low enough, from 0 to 1.
    pub proof_kl: f64,
    /// Progress of the proof that top-1 agreement is high enough. The class opens when both are 1.
    pub proof_top1: f64,
    /// Times the class was opened.
    pub opened: u32,
    /// Times the class was closed.
    pub closed: u32,
}

/// State of a traffic class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrafficState {
    /// Requests are computed exactly; the reuse they would have had is verified in idle time.
    Shadow,
    /// Requests reuse spans; some are verified.
    Open,
}
