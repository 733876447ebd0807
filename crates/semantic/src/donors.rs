//! Kept prompts in slots: a slot is a dense index that postings hold.

use std::collections::HashMap;

use tokens::DonorId;

use crate::donor::Donor;

/// Donors by slot and by ID.
#[derive(Default)]
pub(crate) struct Donors {
    slots: Vec<Option<Donor>>,
    unused: Vec<u32>,
    slot_of: HashMap<DonorId, u32>,
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

    pub(crate) fn slot(&self, id: DonorId) -> Option<u32> {
        self.slot_of.get(&id).copied()
    }

    pub(crate) fn get(&self, id: DonorId) -> Option<&Donor> {
        self.slot(id).map(|slot| self.at(slot))
    }

    pub(crate) fn at_mut(&mut self, slot: u32) -> &mut Donor {
        self.slots[slot as usize].as_mut().expect("postings of a removed donor are removed with it")
    }

    pub(crate) fn get_mut(&mut self, id: DonorId) -> Option<&mut Donor> {
        self.slot(id).map(|slot| self.at_mut(slot))
    }

    /// Keeps a donor, whose ID must be new, and returns its slot.
    pub(crate) fn insert(&mut self, donor: Donor) -> u32 {
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 donors fit into memory")
        });
        self.num_tokens += donor.tokens.len();
        self.slot_of.insert(donor.id, slot);
        self.slots[slot as usize] = Some(donor);
        slot
    }

    pub(crate) fn remove(&mut self, id: DonorId) -> Option<(u32, Donor)> {
        let slot = self.slot_of.remove(&id)?;
        let donor = self.slots[slot as usize].take().expect("a donor with an ID has its slot");
        self.num_tokens -= donor.tokens.len();
        self.unused.push(slot);
        Some((slot, donor))
    }
}

#[cfg(test)]
impl Donors {
    /// Returns all donors, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Donor> {
        self.slots.iter().flatten()
    }
}
