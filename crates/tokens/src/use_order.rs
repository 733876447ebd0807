//! Order of last use.

use std::collections::BTreeSet;

/// Keys in the order of their last use, least recently used first; of keys used at the same time, the smaller first.
///
/// `T` is a time or a count of uses. The owner of a key remembers its last use, which finds it here. All operations are O(log n).
#[derive(Clone, Debug)]
pub struct UseOrder<K, T> {
    keys: BTreeSet<(T, K)>,
}

impl<K: Copy + Ord, T: Copy + Ord> UseOrder<K, T> {
    /// Returns the number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True if there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Adds `key`, last used at `last_use`.
    pub fn insert(&mut self, key: K, last_use: T) {
        self.keys.insert((last_use, key));
    }

    /// Removes `key`, last used at `last_use`. Returns true if it was there.
    pub fn remove(&mut self, key: K, last_use: T) -> bool {
        self.keys.remove(&(last_use, key))
    }

    /// Returns the least recently used key and its last use.
    #[must_use]
    pub fn oldest(&self) -> Option<(K, T)> {
        self.keys.first().map(|&(last_use, key)| (key, last_use))
    }
}

impl<K, T> Default for UseOrder<K, T> {
    fn default() -> Self {
        Self { keys: BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_comes_first_and_of_equals_the_smaller() {
        let mut order = UseOrder::default();
        for (key, last_use) in [('b', 3), ('a', 3), ('c', 1)] {
            order.insert(key, last_use);
        }
        let mut keys = Vec::new();
        while let Some((key, last_use)) = order.oldest() {
            assert!(order.remove(key, last_use) && !order.remove(key, last_use));
            keys.push((key, last_use));
        }
        assert_eq!(keys, [('c', 1), ('a', 3), ('b', 3)]);
        assert!(order.is_empty());
    }
}
