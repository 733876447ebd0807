//! The prompts that are kept, and the order in which they leave: least recently used first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokens::{CacheSalt, DonorId, TokenId};

use crate::{Segments, Sketch};

/// A kept prompt.
pub(crate) struct Donor {
    pub(crate) id: DonorId,
    pub(crate) scope: CacheSalt,
    pub(crate) tokens: Arc<[TokenId]>,
    pub(crate) segments: Segments,
    /// Its sampled shingles.
    pub(crate) sketch: Sketch,
    /// Leading tokens whose shingles are posted.
    pub(crate) num_posted: u32,
    last_use: u64,
}

/// A prompt to be kept.
pub(crate) struct NewDonor {
    pub(crate) id: DonorId,
    pub(crate) scope: CacheSalt,
    pub(crate) tokens: Arc<[TokenId]>,
    pub(crate) segments: Segments,
    pub(crate) sketch: Sketch,
}

/// Donors in slots: a slot is a dense number that postings can hold.
#[derive(Default)]
pub(crate) struct Donors {
    slots: Vec<Option<Donor>>,
    unused: Vec<u32>,
    slot_of: HashMap<DonorId, u32>,
    /// Slot by last use. Uses are counted, not timed.
    by_last_use: BTreeMap<u64, u32>,
    num_uses: u64,
    num_tokens: usize,
}

impl Donors {
    pub(crate) fn len(&self) -> usize {
        self.slot_of.len()
    }

    /// Tokens of all donors together.
    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// One more than the largest slot in use.
    pub(crate) fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// The donor in `slot`, which must be in use.
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

    /// Those of `scope`, by id.
    pub(crate) fn in_scope(&self, scope: CacheSalt) -> Vec<DonorId> {
        let mut donors: Vec<_> = self.slots.iter().flatten().filter(|donor| donor.scope == scope).map(|donor| donor.id).collect();
        donors.sort_unstable();
        donors
    }

    pub(crate) fn least_recently_used(&self) -> Option<DonorId> {
        self.by_last_use.first_key_value().map(|(_, &slot)| self.at(slot).id)
    }

    /// Keeps a donor, whose id must be new, and returns its slot.
    pub(crate) fn insert(&mut self, new: NewDonor) -> u32 {
        let NewDonor { id, scope, tokens, segments, sketch } = new;
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 donors fit into memory")
        });
        self.num_tokens += tokens.len();
        self.num_uses += 1;
        self.slots[slot as usize] =
            Some(Donor { id, scope, num_posted: tokens.len() as u32, tokens, segments, sketch, last_use: self.num_uses });
        self.slot_of.insert(id, slot);
        self.by_last_use.insert(self.num_uses, slot);
        slot
    }

    pub(crate) fn remove(&mut self, id: DonorId) -> Option<(u32, Donor)> {
        let slot = self.slot_of.remove(&id)?;
        let donor = self.slots[slot as usize].take().expect("a donor with an id has its slot");
        self.by_last_use.remove(&donor.last_use);
        self.num_tokens -= donor.tokens.len();
        self.unused.push(slot);
        Some((slot, donor))
    }

    /// Makes `id` the most recently used; nothing if it is not kept.
    pub(crate) fn touch(&mut self, id: DonorId) {
        let Some(&slot) = self.slot_of.get(&id) else { return };
        self.num_uses += 1;
        let num_uses = self.num_uses;
        let before = std::mem::replace(&mut self.at_mut(slot).last_use, num_uses);
        self.by_last_use.remove(&before);
        self.by_last_use.insert(self.num_uses, slot);
    }
}
