//! Queue places, shared by tenants.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokens::TenantId;

/// Queue places by tenant. The lock is held for a few instructions: to take places, and to release one.
pub(super) struct Places {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_tenant: BTreeMap<TenantId, usize>,
}

/// A queue place, released when dropped.
pub(super) struct Place {
    tenant: TenantId,
    places: Arc<Places>,
}

impl Places {
    /// Creates `max` places for all tenants; when they are taken, a tenant with less than its equal share can still take up to that share.
    pub(super) fn new(max: usize) -> Self {
        Self { max, taken: Mutex::default() }
    }

    /// Takes `count` places for `tenant`, or none. Any tenant may take free ones. When all are taken, a tenant without any still gets
    /// them, and one with some does up to its equal share.
    pub(super) fn take(places: &Arc<Self>, tenant: TenantId, count: usize) -> Option<Vec<Place>> {
        let mut taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_tenant.get(&tenant).copied().unwrap_or(0);
        let num_tenants = taken.by_tenant.len() + usize::from(own == 0);
        let are_free = taken.total.saturating_add(count) <= places.max;
        let is_first = own == 0 && count <= places.max;
        if !are_free && !is_first && own.saturating_add(count) > places.max / num_tenants {
            return None;
        }
        taken.total += count;
        *taken.by_tenant.entry(tenant).or_default() += count;
        Some((0..count).map(|_| Place { tenant, places: Arc::clone(places) }).collect())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        let own = taken.by_tenant.get_mut(&self.tenant).expect("who has a place is counted");
        *own -= 1;
        if *own == 0 {
            taken.by_tenant.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId(1);
    const B: TenantId = TenantId(2);
    const C: TenantId = TenantId(3);

    #[test]
    fn one_tenant_may_take_all_and_no_more() {
        let places = Arc::new(Places::new(8));
        let held = Places::take(&places, A, 7).unwrap();
        assert!(Places::take(&places, A, 2).is_none());
        let last = Places::take(&places, A, 1).unwrap();
        assert!(Places::take(&places, A, 1).is_none());
        drop(last);
        assert!(Places::take(&places, A, 1).is_some());
        drop(held);
        assert!(Places::take(&places, A, 9).is_none());
    }

    #[test]
    fn a_full_queue_has_places_for_those_who_have_less_than_their_part() {
        let places = Arc::new(Places::new(8));
        let _of_a = Places::take(&places, A, 8).unwrap();
        let mut of_b: Vec<_> = (0..4).map(|_| Places::take(&places, B, 1).unwrap()).collect();
        assert!(Places::take(&places, B, 1).is_none(), "half of the queue is its part");
        let _of_c = Places::take(&places, C, 5).unwrap();
        assert!(Places::take(&places, C, 1).is_none(), "a third is");
        of_b.clear();
        assert!(Places::take(&places, B, 9).is_none(), "nobody takes more than there are");
        assert!(Places::take(&places, A, 1).is_none());
        assert!(Places::take(&places, B, 8).is_some());
    }
}
