//! Eviction order of a store that several tenants share: max-min fair between tenants, least recently used first within one.
//!
//! Unused room is lent to other tenants. When it runs out, the tenant that holds most evicts its least recently used entry; the new entry
//! counts towards its own tenant's load. So a tenant that holds less than an equal share of the store never loses an entry to another one,
//! and a tenant that floods the store evicts its own entries first. Each tenant may keep one entry in any case, however large.

use std::collections::BTreeMap;

use tokens::{TenantId, UseOrder};

/// Entries by tenant and last use. Uses are counted, not timed.
pub(crate) struct FairLru<K> {
    tenants: BTreeMap<TenantId, Held<K>>,
    num_uses: u64,
}

struct Held<K> {
    /// Never empty.
    entries: UseOrder<K, u64>,
    weight: usize,
}

/// Measure of a tenant's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Number of its entries.
    Entries,
    /// Total weight of its entries.
    Weight,
}

/// An entry, as its owner remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LruEntry<K> {
    key: K,
    tenant: TenantId,
    last_use: u64,
    weight: usize,
}

impl<K> Default for FairLru<K> {
    fn default() -> Self {
        Self { tenants: BTreeMap::new(), num_uses: 0 }
    }
}

impl<K: Copy + Ord> FairLru<K> {
    /// Adds an entry as the most recently used one.
    pub(crate) fn insert(&mut self, tenant: TenantId, key: K, weight: usize) -> LruEntry<K> {
        self.num_uses += 1;
        let held = self.tenants.entry(tenant).or_insert_with(|| Held { entries: UseOrder::default(), weight: 0 });
        held.entries.insert(key, self.num_uses);
        held.weight += weight;
        LruEntry { key, tenant, last_use: self.num_uses, weight }
    }

    /// Removes `entry`.
    ///
    /// # Panics
    /// If it is not there.
    pub(crate) fn remove(&mut self, entry: LruEntry<K>) {
        let held = self.tenants.get_mut(&entry.tenant).expect("an entry's tenant is known");
        held.weight -= entry.weight;
        assert!(held.entries.remove(entry.key, entry.last_use), "an entry is where it was put");
        if held.entries.is_empty() {
            self.tenants.remove(&entry.tenant);
        }
    }

    /// Makes `entry` the most recently used one and returns what it is from then on.
    pub(crate) fn touch(&mut self, entry: LruEntry<K>) -> LruEntry<K> {
        self.remove(entry);
        self.insert(entry.tenant, entry.key, entry.weight)
    }

    /// Returns the entry to evict when `newcomer` adds one of `weight` and there is no room; `None` if there is none.
    pub(crate) fn victim(&self, load: Load, newcomer: TenantId, weight: usize) -> Option<K> {
        // Among equals the newcomer evicts.
        let load_of = |tenant: TenantId, held: &Held<K>| {
            let is_newcomer = tenant == newcomer;
            let sum = match load {
                Load::Entries => held.entries.len() + usize::from(is_newcomer),
                Load::Weight => held.weight + if is_newcomer { weight } else { 0 },
            };
            (sum, is_newcomer)
        };
        let (_, most) = self.tenants.iter().max_by_key(|(tenant, held)| load_of(**tenant, held))?;
        most.entries.oldest().map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds `adds`, `(tenant, key, weight)`, to a store for a weight of `room` and checks the evicted keys, in their order.
    #[track_caller]
    fn check(room: usize, adds: &[(u32, u32, usize)], expected: &[u32]) {
        let mut lru = FairLru::default();
        let mut entries: BTreeMap<u32, LruEntry<u32>> = BTreeMap::new();
        let mut gone = Vec::new();
        for &(tenant, key, weight) in adds {
            while entries.values().map(|entry| entry.weight).sum::<usize>() + weight > room {
                let victim = lru.victim(Load::Weight, TenantId(tenant), weight).unwrap();
                lru.remove(entries.remove(&victim).unwrap());
                gone.push(victim);
            }
            entries.insert(key, lru.insert(TenantId(tenant), key, weight));
        }
        assert_eq!(gone, expected);
    }

    #[test]
    fn one_tenant_has_the_whole_store_and_forgets_the_least_recently_used() {
        check(3, &[(1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 4, 1), (1, 5, 1)], &[1, 2]);
    }

    #[test]
    fn a_flood_displaces_what_exceeds_a_fair_share_and_then_itself() {
        let flood: Vec<_> = (10..20).map(|key| (2, key, 1)).collect();
        check(4, &[&[(1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 4, 1)][..], &flood].concat(), &[1, 2, 10, 11, 12, 13, 14, 15, 16, 17]);
    }

    #[test]
    fn a_tenant_below_its_share_keeps_all_it_has() {
        let flood: Vec<_> = (10..40).map(|key| (2, key, 1)).collect();
        check(9, &[&[(1, 1, 1), (1, 2, 1)][..], &flood].concat(), &(10..33).collect::<Vec<_>>());
    }

    #[test]
    fn a_tenant_may_keep_one_entry_however_large() {
        check(10, &[(1, 1, 4), (2, 2, 4), (3, 3, 9), (3, 4, 9)], &[2, 1, 3]);
    }

    #[test]
    fn a_used_entry_outlives_others_of_its_tenant() {
        let mut lru = FairLru::default();
        let [first, _second] = [1, 2].map(|key| lru.insert(TenantId(1), key, 1));
        let touched = lru.touch(first);
        assert_eq!(lru.victim(Load::Entries, TenantId(1), 1), Some(2));
        lru.remove(touched);
        assert_eq!(lru.tenants[&TenantId(1)].entries.len(), 1);
    }
}
