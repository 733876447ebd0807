//! Store of the kept prompts.

use std::collections::HashMap;
use std::sync::Arc;

use tokens::{DonorId, Scope, TenantId, TokenId};

use crate::fair_lru::{FairLru, Load, LruEntry};
use crate::{Segments, Sketch};

/// A kept prompt.
pub(crate) struct Donor {
    pub(crate) id: DonorId,
    pub(crate) scope: Scope,
    pub(crate) tokens: Arc<[TokenId]>,
    pub(crate) segments: Segments,
    /// Sampled shingles of the prompt.
    pub(crate) sketch: Sketch,
    /// Leading tokens whose shingles are posted.
    pub(crate) num_posted: u32,
    lru_entry: LruEntry<u32>,
}

/// A prompt to keep.
pub(crate) struct NewDonor {
    pub(crate) tenant: TenantId,
    pub(crate) id: DonorId,
    pub(crate) scope: Scope,
    pub(crate) tokens: Arc<[TokenId]>,
    pub(crate) segments: Segments,
    pub(crate) sketch: Sketch,
}

/// Donors in slots: a slot is a dense index that postings hold.
#[derive(Default)]
pub(crate) struct Donors {
    slots: Vec<Option<Donor>>,
    unused: Vec<u32>,
    slot_of: HashMap<DonorId, u32>,
    /// Slots in eviction order; an entry weighs its tokens.
    lru: FairLru<u32>,
    num_tokens: usize,
}

impl Donors {
    pub(crate) fn len(&self) -> usize {
        self.slot_of.len()
    }

    /// Returns the total number of tokens of all donors.
    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Returns one more than the largest slot in use.
    pub(crate) fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// Returns the donor in `slot`, which must be in use.
    pub(crate) fn at(&self, slot: u32) -> &Donor {
        self.slots[slot as usize].as_ref().expect("postings of a removed donor are removed with it")
    }

    pub(crate) fn at_mut(&mut self, slot: u32) -> &mut Donor {
        self.slots[slot as usize].as_mut().expect("postings of a removed donor are removed with it")
    }

    pub(crate) fn get(&self, id: DonorId) -> Option<&Donor> {
        self.slot(id).map(|slot| self.at(slot))
    }

    pub(crate) fn slot(&self, id: DonorId) -> Option<u32> {
        self.slot_of.get(&id).copied()
    }

    /// Returns the donors of `scope`, by id.
    pub(crate) fn in_scope(&self, scope: Scope) -> Vec<DonorId> {
        let mut donors: Vec<_> = self.slots.iter().flatten().filter(|donor| donor.scope == scope).map(|donor| donor.id).collect();
        donors.sort_unstable();
        donors
    }

    /// Returns the donor to evict when `tenant` adds one of `num_tokens`; see [`FairLru::victim`].
    pub(crate) fn victim(&self, load: Load, tenant: TenantId, num_tokens: usize) -> Option<DonorId> {
        self.lru.victim(load, tenant, num_tokens).map(|slot| self.at(slot).id)
    }

    /// Keeps a donor, whose id must be new, and returns its slot.
    pub(crate) fn insert(&mut self, new: NewDonor) -> u32 {
        let NewDonor { tenant, id, scope, tokens, segments, sketch } = new;
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 donors fit into memory")
        });
        self.num_tokens += tokens.len();
        let lru_entry = self.lru.insert(tenant, slot, tokens.len());
        self.slots[slot as usize] =
            Some(Donor { id, scope, num_posted: tokens.len() as u32, tokens, segments, sketch, lru_entry });
        self.slot_of.insert(id, slot);
        slot
    }

    pub(crate) fn remove(&mut self, id: DonorId) -> Option<(u32, Donor)> {
        let slot = self.slot_of.remove(&id)?;
        let donor = self.slots[slot as usize].take().expect("a donor with an id has its slot");
        self.lru.remove(donor.lru_entry);
        self.num_tokens -= donor.tokens.len();
        self.unused.push(slot);
        Some((slot, donor))
    }

    /// Makes `id` the most recently used; does nothing if it is not kept.
    pub(crate) fn touch(&mut self, id: DonorId) {
        let Some(&slot) = self.slot_of.get(&id) else { return };
        let lru_entry = self.lru.touch(self.at(slot).lru_entry);
        self.at_mut(slot).lru_entry = lru_entry;
    }
}
