//! Options of a simulation.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use engine::{SchedulePolicy, SchedulerConfig};
use tokens::SharingMode;

use crate::CostModel;

/// Runs over one trace: every pool with every policy.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Sizes of the pool.
    pub pools: Vec<PoolSize>,
    /// Orders of the waiting requests.
    pub policies: Vec<SchedulePolicy>,
    /// KV that all requests may reuse.
    pub sharing: SharingMode,
    /// Factor of the arrival times: below 1 is more load. Finite and not negative.
    pub time_scale: f64,
    /// Requests to replay from the trace's start; `None` for all.
    pub max_requests: Option<usize>,
    /// Cost of steps.
    pub cost: CostModel,
    /// Maximum rows in a step.
    pub max_num_batched_tokens: usize,
    /// Maximum sequences in a step.
    pub max_num_seqs: usize,
    /// Longest time for which later requests may go first in a short queue.
    pub max_overtake: Duration,
    /// Same limit in a long queue, as a multiple of the time that queue takes.
    pub max_overtake_ratio: f64,
    /// Share of the longest recent delay that a request with much work waits longer than by arrival.
    pub overtake_share: f64,
    /// Maximum share of the waiting time that counts against predicted work.
    pub ageing: f64,
    /// Share of a step's rows for a long prompt while shorter ones wait.
    pub long_prompt_share: f64,
}

impl Default for SimOptions {
    /// Pools of 1,000, 4,000 and 16,000 blocks (64, 256 and 1,024 GiB of an 8B model's KV), and one that holds everything.
    fn default() -> Self {
        let engine = SchedulerConfig::new(1, 2);
        Self {
            pools: vec![PoolSize::Blocks(1_000), PoolSize::Blocks(4_000), PoolSize::Blocks(16_000), PoolSize::Unlimited],
            policies: vec![SchedulePolicy::Fcfs, SchedulePolicy::KvHitRate, SchedulePolicy::RemainingWork],
            sharing: SharingMode::Prefix,
            time_scale: 1.0,
            max_requests: None,
            cost: CostModel::default(),
            max_num_batched_tokens: 8192,
            max_num_seqs: 256,
            max_overtake: engine.max_overtake,
            max_overtake_ratio: engine.max_overtake_ratio,
            ageing: engine.ageing,
            overtake_share: engine.overtake_share,
            long_prompt_share: engine.long_prompt_share,
        }
    }
}

/// Capacity of the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSize {
    /// This many blocks of [`crate::BLOCK_TOKENS`].
    Blocks(usize),
    /// Room for all prompts and answers of the trace.
    Unlimited,
}

impl fmt::Display for PoolSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(num_blocks) => write!(f, "{num_blocks}"),
            Self::Unlimited => f.write_str("unlimited"),
        }
    }
}

/// Invalid pool size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pool is a number of blocks, at least 1, or `unlimited`")]
pub struct UnknownPoolSize;

impl FromStr for PoolSize {
    type Err = UnknownPoolSize;

    fn from_str(text: &str) -> Result<Self, UnknownPoolSize> {
        match text {
            "unlimited" => Ok(Self::Unlimited),
            _ => text.parse().ok().filter(|&num_blocks| num_blocks > 0).map(Self::Blocks).ok_or(UnknownPoolSize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<PoolSize>) {
        assert_eq!(text.parse(), expected.ok_or(UnknownPoolSize));
    }

    #[test]
    fn a_pool_size_reads_as_it_prints() {
        check("unlimited", Some(PoolSize::Unlimited));
        check("1000", Some(PoolSize::Blocks(1000)));
        for text in ["0", "-1", "much", ""] {
            check(text, None);
        }
        assert_eq!(format!("{} {}", PoolSize::Blocks(7), PoolSize::Unlimited), "7 unlimited");
    }
}
