//! How many rows of a step a long prompt may take while shorter ones wait.
//!
//! A prompt of many steps would keep everybody else from a first token until its own. While somebody has far less work, it goes on with
//! a share of each step instead: it is delayed by what the others take, and they are delayed by a share of it. Only those who are far
//! shorter profit: if several long prompts went on beside each other, all of them would end when the last one does.

use std::collections::HashMap;

use tokens::{RequestId, TenantId, Timestamp};

use super::Scheduler;
use crate::SchedulePolicy;
use crate::queue::Waiting;
use crate::sequence::Sequence;

/// A prompt is long beside another one that has this many times less work (algorithms of batch formation bin by the same ratio).
const LONG_RATIO: u64 = 4;

/// Limits of one step, by request. Who is not here has none.
#[derive(Debug, Default)]
pub(super) struct Shares {
    limits: HashMap<RequestId, usize>,
    /// Those who are limited.
    long: Vec<Prompt>,
}

/// Somebody without a first token.
#[derive(Clone, Copy, Debug)]
struct Prompt {
    tenant: TenantId,
    /// Predicted time to the first token: known to its own tenant only.
    micros: u64,
    /// What it would be without any cache: what others may see.
    uncached_micros: u64,
}

impl Shares {
    pub(super) fn limit(&self, request_id: RequestId) -> usize {
        self.limits.get(&request_id).copied().unwrap_or(usize::MAX)
    }

    /// Whether the rows that long prompts leave are also for `waiting`: for far shorter ones, and for other tenants.
    pub(super) fn admits(&self, waiting: &Waiting) -> bool {
        let waiting = Prompt::from(waiting);
        self.long.iter().all(|long| long.tenant != waiting.tenant || waiting.is_far_shorter_than(long))
    }
}

impl From<&Waiting> for Prompt {
    fn from(waiting: &Waiting) -> Self {
        Self { tenant: waiting.tenant, micros: waiting.forecast.micros, uncached_micros: waiting.uncached_micros }
    }
}

impl Prompt {
    fn is_far_shorter_than(&self, other: &Self) -> bool {
        let seen = if self.tenant == other.tenant { self.micros } else { self.uncached_micros };
        seen.saturating_mul(LONG_RATIO) <= other.micros
    }
}

impl Scheduler {
    /// Limits for long prompts that are being computed at `now`. Whoever is past its deadline has none.
    pub(super) fn shares(&self, now: Timestamp) -> Shares {
        let mut shares = Shares::default();
        if self.config.policy != SchedulePolicy::RemainingWork {
            return shares;
        }
        let is_prefill = |sequence: &&Sequence| sequence.num_computed_tokens() < sequence.num_prompt_tokens();
        let running: Vec<_> = self.running.iter().map(|id| &self.sequences[id]).filter(is_prefill).collect();
        let prompts: Vec<_> = running.iter().map(|sequence| self.prompt(sequence)).collect();
        let waiting = self.queue.heads(now).map(Prompt::from);
        let others: Vec<_> = prompts.iter().copied().chain(waiting).collect();
        let limit = (self.config.max_num_batched_tokens as f64 * self.config.long_prompt_share).ceil().max(1.0) as usize;
        for (sequence, prompt) in running.iter().zip(&prompts) {
            if sequence.deadline > now && others.iter().any(|other| other.is_far_shorter_than(prompt)) {
                shares.limits.insert(sequence.request_id, limit);
                shares.long.push(*prompt);
            }
        }
        shares
    }

    fn prompt(&self, sequence: &Sequence) -> Prompt {
        Prompt {
            tenant: sequence.request.tenant,
            micros: self.micros_left(sequence),
            uncached_micros: self.uncached_micros(sequence),
        }
    }
}
