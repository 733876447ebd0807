//! Positions of each sampled shingle, oldest first.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

/// A sampled shingle in a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Posting {
    /// Slot of the donor in the index.
    pub(crate) slot: u32,
    /// Position of the shingle's first token.
    pub(crate) pos: u32,
}

/// Postings of one scope by key. Popular keys have many: all are kept, and a search examines some of them.
///
/// Their total is at most the number of samples of all donors.
#[derive(Default)]
pub(crate) struct Postings {
    lists: HashMap<u64, List, BuildHasherDefault<KeyHasher>>,
}

/// Postings of one key, oldest first. Most shingles occur once, so a single posting needs no allocation.
enum List {
    One(Posting),
    /// Never empty.
    Many(Vec<Posting>),
}

impl Postings {
    /// Returns the postings of `key`, oldest first.
    pub(crate) fn get(&self, key: u64) -> &[Posting] {
        self.lists.get(&key).map_or(&[], List::as_slice)
    }

    /// Adds `posting` as the newest under `key`, unless its slot already has `max_per_slot` postings there: repetitive text need not be
    /// posted everywhere. The postings of one slot must be inserted consecutively.
    pub(crate) fn insert(&mut self, key: u64, posting: Posting, max_per_slot: usize) {
        match self.lists.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(List::One(posting));
            }
            Entry::Occupied(mut entry) => entry.get_mut().push(posting, max_per_slot),
        }
    }

    /// Removes the postings of `slot` under `key` at `from_pos` or later, if any.
    pub(crate) fn remove(&mut self, key: u64, slot: u32, from_pos: u32) {
        let Entry::Occupied(mut entry) = self.lists.entry(key) else { return };
        let goes = |posting: &Posting| posting.slot == slot && posting.pos >= from_pos;
        let is_empty = match entry.get_mut() {
            List::One(posting) => goes(posting),
            List::Many(postings) => {
                postings.retain(|posting| !goes(posting));
                postings.is_empty()
            }
        };
        if is_empty {
            entry.remove();
        }
    }

    /// True if there is no posting.
    pub(crate) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }
}

impl List {
    fn as_slice(&self) -> &[Posting] {
        match self {
            Self::One(posting) => std::slice::from_ref(posting),
            Self::Many(postings) => postings,
        }
    }

    fn push(&mut self, posting: Posting, max_per_slot: usize) {
        let of_slot = self.as_slice().iter().rev().take_while(|other| other.slot == posting.slot);
        if of_slot.take(max_per_slot).count() == max_per_slot {
            return;
        }
        match self {
            Self::One(only) => *self = Self::Many(vec![*only, posting]),
            Self::Many(postings) => postings.push(posting),
        }
    }
}

/// Passes keys through: they are hashes already.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies `ops` from left to right: `+3` inserts slot 3, `-3` removes it; all under one key that keeps two of each slot.
    #[track_caller]
    fn check(ops: &str, expected_slots: &[u32]) {
        let mut postings = Postings::default();
        for op in ops.split_whitespace() {
            let slot = op[1..].parse().unwrap();
            match &op[..1] {
                "+" => postings.insert(7, Posting { slot, pos: 0 }, 2),
                _ => postings.remove(7, slot, 0),
            }
        }
        let slots: Vec<_> = postings.get(7).iter().map(|posting| posting.slot).collect();
        assert_eq!(slots, expected_slots);
        assert_eq!(postings.is_empty(), expected_slots.is_empty());
    }

    #[test]
    fn many_slots_are_kept_and_few_places_of_each() {
        check("+1 +2 +3 +4 +5 +6", &[1, 2, 3, 4, 5, 6]);
        check("+1 +2 +2 +2 +3", &[1, 2, 2, 3]);
    }

    #[test]
    fn removal_takes_all_of_a_slot_and_no_other() {
        check("+1 +1 +2 -1", &[2]);
        check("+1 +2 +3 -2", &[1, 3]);
        check("+1 -5", &[1]);
    }

    #[test]
    fn a_list_may_empty_and_fill_again() {
        check("+1 +2 -1 -2", &[]);
        check("+1 +2 +3 -3 -1 +4 +5", &[2, 4, 5]);
    }

    #[test]
    fn a_tail_is_removed_and_the_beginning_stays() {
        let mut postings = Postings::default();
        [3, 9].into_iter().for_each(|pos| postings.insert(7, Posting { slot: 1, pos }, 2));
        postings.remove(7, 1, 9);
        assert_eq!(postings.get(7), [Posting { slot: 1, pos: 3 }]);
    }
}
