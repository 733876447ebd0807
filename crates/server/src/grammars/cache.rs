//! Compiled grammars of recent requests.

use std::collections::HashMap;

use grammar::Grammar;

use super::demand::Demand;

/// Most grammars kept. Chosen: an agent has a few sets of tools, and a grammar takes up to some megabytes.
const MAX_GRAMMARS: usize = 64;

/// Hash of a constraint and of the tenant that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct GrammarKey(blake3::Hash);

impl GrammarKey {
    pub(super) fn new(scope: &str, demand: &Demand) -> Self {
        Self(blake3::hash(format!("{}\0{scope}{demand:?}", scope.len()).as_bytes()))
    }
}

/// Grammars by key; the one used least recently goes first.
#[derive(Debug, Default)]
pub(super) struct GrammarCache {
    grammars: HashMap<GrammarKey, (Option<Grammar>, u64)>,
    now: u64,
}

impl GrammarCache {
    pub(super) fn get(&mut self, key: &GrammarKey) -> Option<Option<Grammar>> {
        self.now += 1;
        let (grammar, used) = self.grammars.get_mut(key)?;
        *used = self.now;
        Some(grammar.clone())
    }

    pub(super) fn insert(&mut self, key: GrammarKey, grammar: Option<Grammar>) {
        if self.grammars.len() >= MAX_GRAMMARS && !self.grammars.contains_key(&key) {
            let oldest = self.grammars.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            oldest.and_then(|key| self.grammars.remove(&key));
        }
        self.now += 1;
        self.grammars.insert(key, (grammar, self.now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_used_least_recently_goes_first() {
        let key = |i: usize| GrammarKey::new(&i.to_string(), &Demand::default());
        let mut cache = GrammarCache::default();
        for i in 0..MAX_GRAMMARS {
            cache.insert(key(i), None);
        }
        assert!(cache.get(&key(0)).is_some());
        cache.insert(key(MAX_GRAMMARS), None);
        assert!(cache.get(&key(0)).is_some() && cache.get(&key(1)).is_none());
        assert_ne!(GrammarKey::new("a", &Demand::default()), GrammarKey::new("b", &Demand::default()));
    }
}
