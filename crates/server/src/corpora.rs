//! Public corpora: texts that every authorized tenant may reuse, because they were computed with no private context.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use protocol::{Corpus, CorpusList};

use crate::error::ApiError;
use crate::tenants::PublicReads;

/// Registered corpora. The engine holds the KV itself.
#[derive(Default)]
pub(crate) struct Corpora {
    /// Counts by name. Locked for a look-up or an addition, never across an `await`.
    counts: Mutex<BTreeMap<String, Counts>>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    texts: u64,
    tokens: u64,
}

/// Maximum corpora: each one that a request may read costs it one more look-up. Chosen.
const MAX_CORPORA: usize = 64;

impl Corpora {
    /// Checks that `name` may be registered.
    pub(crate) fn has_room_for(&self, name: &str) -> Result<(), ApiError> {
        let counts = self.lock();
        match counts.contains_key(name) || counts.len() < MAX_CORPORA {
            true => Ok(()),
            false => {
                Err(ApiError::param("name", format!("there are {MAX_CORPORA} corpora already, which is as many as there can be")))
            }
        }
    }

    /// Counts one more text of `num_tokens` tokens.
    pub(crate) fn add(&self, name: &str, num_tokens: usize) -> Corpus {
        let mut all = self.lock();
        let counts = all.entry(name.to_owned()).or_default();
        counts.texts += 1;
        counts.tokens += num_tokens as u64;
        describe(name, *counts)
    }

    /// Removes a corpus. Returns false if it did not exist.
    pub(crate) fn remove(&self, name: &str) -> bool {
        self.lock().remove(name).is_some()
    }

    /// Returns the names of readable corpora, in order.
    pub(crate) fn readable(&self, reads: &PublicReads) -> Vec<String> {
        let is_readable = |name: &&String| match reads {
            PublicReads::All => true,
            PublicReads::Named(names) => names.contains(*name),
        };
        self.lock().keys().filter(is_readable).cloned().collect()
    }

    pub(crate) fn list(&self) -> CorpusList {
        let data = self.lock().iter().map(|(name, &counts)| describe(name, counts)).collect();
        CorpusList { object: "list".to_owned(), data }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Counts>> {
        // Counts are changed in one piece, so a panic elsewhere leaves nothing half done.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe(name: &str, counts: Counts) -> Corpus {
    Corpus { name: name.to_owned(), object: "kv.corpus".to_owned(), texts: counts.texts, tokens: counts.tokens }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reads: &PublicReads, expected: &[&str]) {
        let corpora = Corpora::default();
        for (name, num_tokens) in [("b", 1), ("a", 2), ("b", 3)] {
            corpora.add(name, num_tokens);
        }
        assert_eq!(corpora.readable(reads), expected);
    }

    #[test]
    fn what_is_there_and_allowed_can_be_read() {
        check(&PublicReads::All, &["a", "b"]);
        check(&PublicReads::Named(["b".to_owned(), "c".to_owned()].into()), &["b"]);
        check(&PublicReads::Named([].into()), &[]);
    }

    #[test]
    fn texts_of_one_name_add_up_and_go_together() {
        let corpora = Corpora::default();
        corpora.add("a", 2);
        let both = corpora.add("a", 3);
        assert_eq!((both.texts, both.tokens), (2, 5));
        assert!(corpora.remove("a") && !corpora.remove("a"));
        assert_eq!(corpora.len(), 0);
    }

    #[test]
    fn there_is_a_bound() {
        let corpora = Corpora::default();
        for i in 0..MAX_CORPORA {
            corpora.has_room_for(&i.to_string()).unwrap();
            corpora.add(&i.to_string(), 1);
        }
        assert!(corpora.has_room_for("one more").is_err() && corpora.has_room_for("0").is_ok());
    }
}
