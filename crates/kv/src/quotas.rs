//! How many blocks each tenant may fill, and which of its own it gives up for that.
//!
//! A tenant without a quota has no account here and costs nothing.

use std::collections::BTreeMap;

use tokens::{BlockId, TenantId};

use crate::rings::BlockRings;

/// Accounts of the tenants with a quota.
#[derive(Debug)]
pub(crate) struct Quotas {
    accounts: BTreeMap<TenantId, Account>,
    /// Cached blocks that nobody holds, least recently freed first; one ring for each account.
    idle: BlockRings,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    ring: u32,
    limit: usize,
    /// Blocks the tenant filled that are held or can be found.
    num_used: usize,
    /// Those of them that nobody holds.
    num_idle: usize,
}

impl Quotas {
    pub(crate) fn new(num_blocks: u32, limits: &BTreeMap<TenantId, usize>) -> Self {
        let open = |(ring, (&tenant, &limit))| (tenant, Account { ring, limit, num_used: 0, num_idle: 0 });
        let accounts: BTreeMap<_, _> = (0..).zip(limits).map(open).collect();
        let num_linked = if accounts.is_empty() { 0 } else { num_blocks };
        Self { idle: BlockRings::new(num_linked, accounts.len() as u32), accounts }
    }

    /// What each tenant may fill in another memory of which this one is `of` and that one `share`: as large a part, at least one block.
    pub(crate) fn scaled(&self, share: u32, of: usize) -> BTreeMap<TenantId, usize> {
        let scale = |limit: usize| (limit * share as usize).div_ceil(of);
        self.accounts.iter().map(|(&tenant, account)| (tenant, scale(account.limit))).collect()
    }

    /// `tenant` fills one block more.
    pub(crate) fn charge(&mut self, tenant: TenantId) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_used += 1;
        }
    }

    /// A block of `tenant` is neither held nor found any more.
    pub(crate) fn discharge(&mut self, tenant: TenantId) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_used -= 1;
        }
    }

    /// Nobody holds `block` of `tenant` any more; it can be found.
    pub(crate) fn insert_idle(&mut self, tenant: TenantId, block: BlockId) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_idle += 1;
            self.idle.push_back(account.ring, block);
        }
    }

    /// `block` of `tenant` is held again, or forgotten.
    pub(crate) fn remove_idle(&mut self, tenant: TenantId, block: BlockId) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_idle -= 1;
            self.idle.remove(block);
        }
    }

    /// By how much `num_new` blocks of `tenant` exceed its quota, when `num_kept` of its idle ones are not to be given up.
    pub(crate) fn short_by(&self, tenant: TenantId, num_kept: usize, num_new: usize) -> Option<usize> {
        let account = self.accounts.get(&tenant)?;
        let num_fixed = account.num_used - account.num_idle + num_kept;
        (num_fixed + num_new).checked_sub(account.limit).filter(|&short_by| short_by > 0)
    }

    /// Blocks that `tenant` may fill without giving up any.
    pub(crate) fn num_left(&self, tenant: TenantId) -> usize {
        self.accounts.get(&tenant).map_or(usize::MAX, |account| account.limit.saturating_sub(account.num_used))
    }

    /// The block of its own that `tenant` gives up for the next one: its least recently freed one, once its quota is full.
    pub(crate) fn victim(&self, tenant: TenantId) -> Option<BlockId> {
        let account = self.accounts.get(&tenant).filter(|account| account.num_used >= account.limit)?;
        self.idle.front(account.ring)
    }

    /// Panics unless each account says what `count`, `(used, idle)` of a tenant, counted.
    pub(crate) fn check_invariants(&self, count: impl Fn(TenantId) -> (usize, usize)) {
        for (&tenant, account) in &self.accounts {
            assert_eq!((account.num_used, account.num_idle), count(tenant), "blocks of {tenant:?} were miscounted");
            assert_eq!(self.idle.iter(account.ring).count(), account.num_idle, "idle blocks of {tenant:?} were lost");
            assert!(account.num_used <= account.limit, "{tenant:?} exceeds its quota");
        }
    }
}
