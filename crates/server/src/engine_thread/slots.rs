//! Queue slots, shared by tenants.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokens::TenantId;

/// Queue slots by tenant. The lock is held for a few instructions: to take slots, and to release one.
pub(crate) struct QueueSlots {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_tenant: BTreeMap<TenantId, usize>,
}

/// A queue slot, released when dropped.
pub(crate) struct QueueSlot {
    tenant: TenantId,
    slots: Arc<QueueSlots>,
}

impl QueueSlots {
    /// Creates `max` slots for all tenants; when they are taken, a tenant with less than its equal share can still take up to that share.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, taken: Mutex::default() }
    }

    /// Takes `count` slots for `tenant`, or none. Any tenant may take free ones. When all are taken, a tenant without any still gets
    /// them, and one with some does up to its equal share.
    pub(crate) fn take(slots: &Arc<Self>, tenant: TenantId, count: usize) -> Option<Vec<QueueSlot>> {
        let mut taken = slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_tenant.get(&tenant).copied().unwrap_or(0);
        let num_tenants = taken.by_tenant.len() + usize::from(own == 0);
        let are_free = taken.total.saturating_add(count) <= slots.max;
        let is_first = own == 0 && count <= slots.max;
        if !are_free && !is_first && own.saturating_add(count) > slots.max / num_tenants {
            return None;
        }
        taken.total += count;
        *taken.by_tenant.entry(tenant).or_default() += count;
        Some((0..count).map(|_| QueueSlot { tenant, slots: Arc::clone(slots) }).collect())
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        let own = taken.by_tenant.get_mut(&self.tenant).expect("who has a slot is counted");
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
        let slots = Arc::new(QueueSlots::new(8));
        let held = QueueSlots::take(&slots, A, 7).unwrap();
        assert!(QueueSlots::take(&slots, A, 2).is_none());
        let last = QueueSlots::take(&slots, A, 1).unwrap();
        assert!(QueueSlots::take(&slots, A, 1).is_none());
        drop(last);
        assert!(QueueSlots::take(&slots, A, 1).is_some());
        drop(held);
        assert!(QueueSlots::take(&slots, A, 9).is_none());
    }

    #[test]
    fn a_full_queue_has_places_for_those_who_have_less_than_their_part() {
        let slots = Arc::new(QueueSlots::new(8));
        let _of_a = QueueSlots::take(&slots, A, 8).unwrap();
        let mut of_b: Vec<_> = (0..4).map(|_| QueueSlots::take(&slots, B, 1).unwrap()).collect();
        assert!(QueueSlots::take(&slots, B, 1).is_none(), "half of the queue is its part");
        let _of_c = QueueSlots::take(&slots, C, 5).unwrap();
        assert!(QueueSlots::take(&slots, C, 1).is_none(), "a third is");
        of_b.clear();
        assert!(QueueSlots::take(&slots, B, 9).is_none(), "nobody takes more than there are");
        assert!(QueueSlots::take(&slots, A, 1).is_none());
        assert!(QueueSlots::take(&slots, B, 8).is_some());
    }
}
