//! Order of use of the donors that several tenants keep: max-min fair between tenants, least recently used first within one.
//!
//! Unused room is lent to other tenants. When it runs out, the tenant that holds most gives up its least recently used donor; the new one
//! counts towards its own tenant's load. So a tenant that holds less than an equal share never loses anything to another one, and a tenant
//! that floods the store evicts its own donors first. Each tenant may keep one donor in any case, however large.
//!
//! Room for vectors is shared likewise, and by the same uses: a donor may lose its vector and stay.

use std::collections::BTreeMap;

use tokens::{DonorId, TenantId, UseOrder};

/// Donors by tenant and last use. Uses are counted, not timed.
#[derive(Default)]
pub(crate) struct FairLru {
    tenants: BTreeMap<TenantId, TenantDonors>,
    num_uses: u64,
}

/// Donors of one tenant.
#[derive(Default)]
struct TenantDonors {
    /// Never empty.
    donors: UseOrder<DonorId, u64>,
    /// Those of them that have a vector.
    with_vector: UseOrder<DonorId, u64>,
    num_tokens: usize,
}

/// Measure of a tenant's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Number of its donors.
    Donors,
    /// Total tokens of its donors.
    Tokens,
    /// Number of its donors with a vector.
    Vectors,
}

/// A donor's place in the order, as its owner remembers it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LruEntry {
    donor: DonorId,
    tenant: TenantId,
    last_use: u64,
    num_tokens: usize,
    has_vector: bool,
}

impl LruEntry {
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant
    }
}

impl FairLru {
    /// Adds a donor without a vector as the most recently used one.
    pub(crate) fn insert(&mut self, tenant: TenantId, donor: DonorId, num_tokens: usize) -> LruEntry {
        self.num_uses += 1;
        let entry = LruEntry { donor, tenant, last_use: self.num_uses, num_tokens, has_vector: false };
        self.add(&entry);
        entry
    }

    /// Removes `entry`.
    ///
    /// # Panics
    /// If it is not there.
    pub(crate) fn remove(&mut self, entry: &LruEntry) {
        let held = self.tenants.get_mut(&entry.tenant).expect("an entry's tenant is known");
        held.num_tokens -= entry.num_tokens;
        assert!(held.donors.remove(entry.donor, entry.last_use), "an entry is where it was put");
        held.with_vector.remove(entry.donor, entry.last_use);
        if held.donors.is_empty() {
            self.tenants.remove(&entry.tenant);
        }
    }

    /// Makes `entry` the most recently used one.
    pub(crate) fn touch(&mut self, entry: &mut LruEntry) {
        self.remove(entry);
        self.num_uses += 1;
        entry.last_use = self.num_uses;
        self.add(entry);
    }

    /// Records that `entry` has a vector, or none. This is no use.
    pub(crate) fn set_vector(&mut self, entry: &mut LruEntry, has_vector: bool) {
        self.remove(entry);
        entry.has_vector = has_vector;
        self.add(entry);
    }

    /// Returns the donor to evict, or to take the vector from, when `newcomer` adds `num_added` to its load and there is no room; `None` if
    /// there is none.
    pub(crate) fn victim(&self, load: Load, newcomer: TenantId, num_added: usize) -> Option<DonorId> {
        let candidates = self.tenants.iter().filter_map(|(&tenant, held)| {
            let (donor, _) = held.order(load).oldest()?;
            let is_newcomer = tenant == newcomer;
            let sum = held.load(load) + if is_newcomer { num_added } else { 0 };
            // Among equals the newcomer evicts.
            Some(((sum, is_newcomer), donor))
        });
        candidates.max_by_key(|&(most, _)| most).map(|(_, donor)| donor)
    }

    /// Returns the least recently used donor of all tenants. Looks at one of each.
    pub(crate) fn oldest(&self) -> Option<DonorId> {
        let oldest = self.tenants.values().filter_map(|held| held.donors.oldest());
        oldest.min_by_key(|&(_, last_use)| last_use).map(|(donor, _)| donor)
    }

    fn add(&mut self, entry: &LruEntry) {
        let held = self.tenants.entry(entry.tenant).or_default();
        held.num_tokens += entry.num_tokens;
        held.donors.insert(entry.donor, entry.last_use);
        if entry.has_vector {
            held.with_vector.insert(entry.donor, entry.last_use);
        }
    }
}

impl TenantDonors {
    /// Returns the donors among which a victim is chosen.
    fn order(&self, load: Load) -> &UseOrder<DonorId, u64> {
        match load {
            Load::Donors | Load::Tokens => &self.donors,
            Load::Vectors => &self.with_vector,
        }
    }

    fn load(&self, load: Load) -> usize {
        match load {
            Load::Donors | Load::Vectors => self.order(load).len(),
            Load::Tokens => self.num_tokens,
        }
    }
}

#[cfg(test)]
impl FairLru {
    /// Returns the donors of `tenant`, or those that count towards `load`, least recently used first.
    pub(crate) fn donors_of(&self, load: Load, tenant: TenantId) -> Vec<DonorId> {
        let mut order = self.tenants.get(&tenant).map(|held| held.order(load).clone()).unwrap_or_default();
        let mut donors = Vec::new();
        while let Some((donor, last_use)) = order.oldest() {
            order.remove(donor, last_use);
            donors.push(donor);
        }
        donors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds `adds`, `(tenant, donor, tokens)`, to a store of `room` tokens and checks the evicted donors, in their order.
    #[track_caller]
    fn check(room: usize, adds: &[(u32, u64, usize)], expected: &[u64]) {
        let mut lru = FairLru::default();
        let mut entries: BTreeMap<DonorId, LruEntry> = BTreeMap::new();
        let mut gone = Vec::new();
        for &(tenant, donor, num_tokens) in adds {
            while entries.values().map(|entry| entry.num_tokens).sum::<usize>() + num_tokens > room {
                let victim = lru.victim(Load::Tokens, TenantId(tenant), num_tokens).unwrap();
                lru.remove(&entries.remove(&victim).unwrap());
                gone.push(victim.0);
            }
            entries.insert(DonorId(donor), lru.insert(TenantId(tenant), DonorId(donor), num_tokens));
        }
        assert_eq!(gone, expected);
    }

    #[test]
    fn one_tenant_has_the_whole_store_and_forgets_the_least_recently_used() {
        check(3, &[(1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 4, 1), (1, 5, 1)], &[1, 2]);
    }

    #[test]
    fn a_flood_displaces_what_exceeds_a_fair_share_and_then_itself() {
        let flood: Vec<_> = (10..20).map(|donor| (2, donor, 1)).collect();
        check(4, &[&[(1, 1, 1), (1, 2, 1), (1, 3, 1), (1, 4, 1)][..], &flood].concat(), &[1, 2, 10, 11, 12, 13, 14, 15, 16, 17]);
    }

    #[test]
    fn a_tenant_below_its_share_keeps_all_it_has() {
        let flood: Vec<_> = (10..40).map(|donor| (2, donor, 1)).collect();
        check(9, &[&[(1, 1, 1), (1, 2, 1)][..], &flood].concat(), &(10..33).collect::<Vec<_>>());
    }

    #[test]
    fn of_tenants_that_would_hold_equally_much_the_newcomer_gives_up_its_own() {
        check(3, &[(1, 1, 1), (1, 2, 1), (2, 3, 1), (2, 4, 1)], &[3]);
        check(3, &[(2, 1, 1), (2, 2, 1), (1, 3, 1), (1, 4, 1)], &[3]);
    }

    #[test]
    fn a_tenant_may_keep_one_donor_however_large() {
        check(10, &[(1, 1, 4), (2, 2, 4), (3, 3, 9), (3, 4, 9)], &[2, 1, 3]);
    }

    #[test]
    fn a_used_donor_outlives_others_of_its_tenant() {
        let mut lru = FairLru::default();
        let [mut first, _second] = [1, 2].map(|donor| lru.insert(TenantId(1), DonorId(donor), 1));
        lru.touch(&mut first);
        assert_eq!(lru.victim(Load::Donors, TenantId(1), 1), Some(DonorId(2)));
        lru.remove(&first);
        assert_eq!(lru.donors_of(Load::Donors, TenantId(1)), [DonorId(2)]);
    }

    #[test]
    fn a_vector_is_taken_from_the_least_recently_used_donor_that_has_one() {
        let mut lru = FairLru::default();
        let [_first, mut second, mut third] = [1, 2, 3].map(|donor| lru.insert(TenantId(1), DonorId(donor), 1));
        assert_eq!(lru.victim(Load::Vectors, TenantId(2), 1), None);
        // The order of attachment is of no account.
        lru.set_vector(&mut third, true);
        lru.set_vector(&mut second, true);
        assert_eq!(lru.victim(Load::Vectors, TenantId(2), 1), Some(DonorId(2)));
        lru.touch(&mut second);
        assert_eq!(lru.victim(Load::Vectors, TenantId(2), 1), Some(DonorId(3)));
        lru.set_vector(&mut third, false);
        assert_eq!(lru.donors_of(Load::Vectors, TenantId(1)), [DonorId(2)]);
        assert_eq!(lru.donors_of(Load::Donors, TenantId(1)), [DonorId(1), DonorId(3), DonorId(2)]);
    }

    #[test]
    fn the_oldest_is_that_of_all_tenants() {
        let mut lru = FairLru::default();
        assert_eq!(lru.oldest(), None);
        let [mut first, _second] = [(2, 1), (1, 2)].map(|(tenant, donor)| lru.insert(TenantId(tenant), DonorId(donor), 1));
        assert_eq!(lru.oldest(), Some(DonorId(1)));
        lru.touch(&mut first);
        assert_eq!(lru.oldest(), Some(DonorId(2)));
    }
}
