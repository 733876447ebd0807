//! Lengths of recent prompts, by tenant.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokens::{TenantId, Timestamp, UseOrder};

/// Prompts remembered per tenant. Chosen: enough to know its short ones.
const NUM_REMEMBERED: usize = 8;

/// Time without a prompt after which a tenant is forgotten. Chosen: a person who reads an answer comes back sooner.
const MEMORY: Duration = Duration::from_secs(60);

/// Recent prompts of each tenant.
#[derive(Debug, Default)]
pub(crate) struct RecentPrompts {
    by_tenant: BTreeMap<TenantId, Prompts>,
    /// Length of the shortest remembered prompt of each tenant.
    shortest: BTreeSet<(u32, TenantId)>,
    /// Arrival of the last prompt of each tenant.
    newest: UseOrder<TenantId, Timestamp>,
}

/// Prompts of one tenant.
#[derive(Debug, Default)]
struct Prompts {
    lengths: VecDeque<u32>,
    shortest: u32,
    newest: Timestamp,
}

impl RecentPrompts {
    /// Records a prompt of `num_tokens` that arrived at `now`.
    pub(crate) fn push(&mut self, tenant: TenantId, num_tokens: u32, now: Timestamp) {
        let mut prompts = self.remove(tenant);
        prompts.lengths.push_back(num_tokens);
        prompts.lengths.drain(..prompts.lengths.len().saturating_sub(NUM_REMEMBERED));
        prompts.shortest = prompts.lengths.iter().copied().min().unwrap_or(num_tokens);
        prompts.newest = now;
        self.shortest.insert((prompts.shortest, tenant));
        self.newest.insert(tenant, now);
        self.by_tenant.insert(tenant, prompts);
    }

    /// Returns the tokens of the shortest prompt of any tenant but `tenant`. O(log n).
    pub(crate) fn shortest_of_others(&self, tenant: TenantId) -> Option<u32> {
        self.shortest.iter().find(|&&(_, other)| other != tenant).map(|&(num_tokens, _)| num_tokens)
    }

    /// Removes tenants without a prompt for longer than `MEMORY`.
    pub(crate) fn forget_expired(&mut self, now: Timestamp) {
        while let Some((tenant, newest)) = self.newest.oldest()
            && now.since(newest) > MEMORY
        {
            self.remove(tenant);
        }
    }

    fn remove(&mut self, tenant: TenantId) -> Prompts {
        let prompts = self.by_tenant.remove(&tenant).unwrap_or_default();
        self.shortest.remove(&(prompts.shortest, tenant));
        self.newest.remove(tenant, prompts.newest);
        prompts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the shortest prompt of tenants other than 1 after `pushed`, `tenant:tokens` each, one every ten seconds.
    #[track_caller]
    fn check(pushed: &str, expected: Option<u32>) {
        let mut recent = RecentPrompts::default();
        for (i, prompt) in (0..).zip(pushed.split_whitespace()) {
            let now = Timestamp(Duration::from_secs(10 * i));
            let (tenant, num_tokens) = prompt.split_once(':').unwrap();
            recent.push(TenantId(tenant.parse().unwrap()), num_tokens.parse().unwrap(), now);
            recent.forget_expired(now);
        }
        assert_eq!(recent.shortest_of_others(TenantId(1)), expected);
    }

    #[test]
    fn the_own_prompts_do_not_count() {
        check("", None);
        check("1:5 1:7", None);
        check("1:5 2:9 3:8", Some(8));
    }

    #[test]
    fn a_short_one_is_forgotten_behind_eight_others() {
        check("2:3 2:9 2:9 2:9 2:9 2:9 2:9 2:9", Some(3));
        check("2:3 2:9 2:9 2:9 2:9 2:9 2:9 2:9 2:9", Some(9));
    }

    #[test]
    fn so_is_a_tenant_that_sends_nothing_for_a_minute() {
        check("2:3 3:4 1:9 1:9 1:9 1:9 1:9", Some(3));
        check("2:3 3:4 1:9 1:9 1:9 1:9 1:9 1:9", Some(4));
        check("2:3 3:4 1:9 1:9 1:9 1:9 1:9 1:9 1:9", None);
    }
}
