//! Where each sampled shingle occurs, newest first.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

/// A sampled shingle in a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Posting {
    /// The donor's slot in the index.
    pub(crate) slot: u32,
    /// Of the shingle's first token.
    pub(crate) pos: u32,
}

/// Postings by key, at most `max_per_key` each.
pub(crate) struct Postings {
    lists: HashMap<u64, List, BuildHasherDefault<KeyHasher>>,
    max_per_key: usize,
}

/// Postings of one key, oldest first. Most shingles occur once, so that one needs no allocation.
enum List {
    One(Posting),
    /// Never empty.
    Many(Vec<Posting>),
}

impl Postings {
    pub(crate) fn new(max_per_key: usize) -> Self {
        Self { lists: HashMap::default(), max_per_key }
    }

    /// Postings of `key`, newest first.
    pub(crate) fn get(&self, key: u64) -> impl Iterator<Item = Posting> {
        self.lists.get(&key).map_or(&[][..], List::as_slice).iter().rev().copied()
    }

    /// Puts `posting` first under `key`; the oldest goes when there are too many.
    pub(crate) fn insert(&mut self, key: u64, posting: Posting) {
        match self.lists.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(List::One(posting));
            }
            Entry::Occupied(mut entry) => entry.get_mut().push(posting, self.max_per_key),
        }
    }

    /// Removes all postings of `slot` under `key`, if any.
    pub(crate) fn remove(&mut self, key: u64, slot: u32) {
        let Entry::Occupied(mut entry) = self.lists.entry(key) else { return };
        let is_empty = match entry.get_mut() {
            List::One(posting) => posting.slot == slot,
            List::Many(postings) => {
                postings.retain(|posting| posting.slot != slot);
                postings.is_empty()
            }
        };
        if is_empty {
            entry.remove();
        }
    }

    /// Whether nothing is posted.
    #[cfg(test)]
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

    fn push(&mut self, posting: Posting, max_len: usize) {
        match self {
            Self::One(only) => *self = Self::Many(vec![*only, posting]),
            Self::Many(postings) => postings.push(posting),
        }
        if let Self::Many(postings) = self
            && postings.len() > max_len
        {
            postings.remove(0);
        }
    }
}

/// Keys are hashes already.
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

    /// `ops`, left to right: `+3` inserts slot 3, `-3` removes it; all under one key that keeps three.
    #[track_caller]
    fn check(ops: &str, expected_slots: &[u32]) {
        let mut postings = Postings::new(3);
        for op in ops.split_whitespace() {
            let slot = op[1..].parse().unwrap();
            match &op[..1] {
                "+" => postings.insert(7, Posting { slot, pos: 0 }),
                _ => postings.remove(7, slot),
            }
        }
        let slots: Vec<_> = postings.get(7).map(|posting| posting.slot).collect();
        assert_eq!(slots, expected_slots);
        assert_eq!(postings.is_empty(), expected_slots.is_empty());
    }

    #[test]
    fn newest_comes_first_and_oldest_goes() {
        check("+1 +2 +3 +4", &[4, 3, 2]);
    }

    #[test]
    fn removal_takes_all_of_a_slot_and_no_other() {
        check("+1 +2 +1 -1", &[2]);
        check("+1 +2 +3 -2", &[3, 1]);
        check("+1 -5", &[1]);
    }

    #[test]
    fn a_list_may_empty_and_fill_again() {
        check("+1 +2 -1 -2", &[]);
        check("+1 +2 +3 -3 -1 +4 +5", &[5, 4, 2]);
    }
}
