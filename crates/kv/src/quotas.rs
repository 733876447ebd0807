//! Quotas of blocks that each tenant may fill, and the blocks it evicts for that.
//!
//! A tenant without a quota has no account here and costs nothing.

use std::collections::BTreeMap;

use tokens::{BlockId, TenantId};

use crate::rings::BlockRings;

/// Accounts of the tenants with a quota.
#[derive(Debug)]
pub(crate) struct Quotas {
    accounts: BTreeMap<TenantId, Account>,
    /// Cached blocks that are not held, least recently freed first; one ring for each account.
    idle: BlockRings,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    ring: u32,
    limit: usize,
    /// Number of blocks the tenant filled that are held or findable.
    num_used: usize,
    /// Number of those that are not held.
    num_idle: usize,
}

impl Quotas {
    pub(crate) fn new(num_blocks: u32, limits: &BTreeMap<TenantId, usize>) -> Self {
        let open = |(ring, (&tenant, &limit))| (tenant, Account { ring, limit, num_used: 0, num_idle: 0 });
        let accounts: BTreeMap<_, _> = (0..).zip(limits).map(open).collect();
        let num_linked = if accounts.is_empty() { 0 } else { num_blocks };
        Self { idle: BlockRings::new(num_linked, accounts.len() as u32), accounts }
    }

    /// Scales each quota to another memory, of `share` blocks where this one has `of`: as large a part, at least one block.
    pub(crate) fn scaled(&self, share: u32, of: usize) -> BTreeMap<TenantId, usize> {
        let scale = |limit: usize| (limit * share as usize).div_ceil(of);
        self.accounts.iter().map(|(&tenant, account)| (tenant, scale(account.limit))).collect()
    }

    /// Charges `tenant` for one more block.
    pub(crate) fn charge(&mut self, tenant: TenantId) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_used += 1;
        }
    }

    /// Discharges `tenant` for a block that is no longer held or findable.
    pub(crate) fn discharge(&mut self, tenant: TenantId) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_used -= 1;
        }
    }

    /// Adds `block` of `tenant`, which is no longer held but findable.
    pub(crate) fn insert_idle(&mut self, tenant: TenantId, block: BlockId) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_idle += 1;
            self.idle.push_back(account.ring, block);
        }
    }

    /// Removes `block` of `tenant`, which is held again, or forgotten.
    pub(crate) fn remove_idle(&mut self, tenant: TenantId, block: BlockId) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_idle -= 1;
            self.idle.remove(block);
        }
    }

    /// Returns the excess of `num_new` blocks of `tenant` over its quota, when `num_kept` of its idle ones must not be evicted.
    pub(crate) fn short_by(&self, tenant: TenantId, num_kept: usize, num_new: usize) -> Option<usize> {
        let account = self.accounts.get(&tenant)?;
        let num_fixed = account.num_used - account.num_idle + num_kept;
        (num_fixed + num_new).checked_sub(account.limit).filter(|&short_by| short_by > 0)
    }

    /// Returns the number of blocks that `tenant` may fill without evicting any.
    pub(crate) fn num_left(&self, tenant: TenantId) -> usize {
        self.accounts.get(&tenant).map_or(usize::MAX, |account| account.limit.saturating_sub(account.num_used))
    }

    /// Returns the block that `tenant` evicts for the next one: its least recently freed one, once its quota is full.
    pub(crate) fn victim(&self, tenant: TenantId) -> Option<BlockId> {
        let account = self.accounts.get(&tenant).filter(|account| account.num_used >= account.limit)?;
        self.idle.front(account.ring)
    }

    /// Panics unless each account equals the result of `count`, `(used, idle)` of a tenant.
    pub(crate) fn check_invariants(&self, count: impl Fn(TenantId) -> (usize, usize)) {
        for (&tenant, account) in &self.accounts {
            assert_eq!((account.num_used, account.num_idle), count(tenant), "blocks of {tenant:?} were miscounted");
            assert_eq!(self.idle.iter(account.ring).count(), account.num_idle, "idle blocks of {tenant:?} were lost");
            assert!(account.num_used <= account.limit, "{tenant:?} exceeds its quota");
        }
    }
}
