//! Waiting requests that need not be looked at before something has happened.

use std::collections::{BTreeSet, HashMap};

use tokens::{BlockHash, RequestId, Timestamp};

use crate::queue::{ArrivalKey, Until};

/// Requests that wait, by the block or prompt they wait for.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    by_block: HashMap<BlockHash, BTreeSet<ArrivalKey>>,
    by_prompt: HashMap<RequestId, BTreeSet<ArrivalKey>>,
    /// Ends of waits for prompts.
    by_time: BTreeSet<(Timestamp, ArrivalKey, RequestId)>,
}

impl Parking {
    pub(crate) fn insert(&mut self, key: ArrivalKey, until: Until) {
        match until {
            Until::Block(hash) => drop(self.by_block.entry(hash).or_default().insert(key)),
            Until::Prompt(owner, end) => {
                self.by_prompt.entry(owner).or_default().insert(key);
                self.by_time.insert((end, key, owner));
            }
        }
    }

    pub(crate) fn remove(&mut self, key: ArrivalKey, until: Until) {
        match until {
            Until::Block(hash) => {
                let is_last = self.by_block.get_mut(&hash).is_some_and(|keys| keys.remove(&key) && keys.is_empty());
                if is_last {
                    self.by_block.remove(&hash);
                }
            }
            Until::Prompt(owner, end) => {
                self.by_time.remove(&(end, key, owner));
                let is_last = self.by_prompt.get_mut(&owner).is_some_and(|keys| keys.remove(&key) && keys.is_empty());
                if is_last {
                    self.by_prompt.remove(&owner);
                }
            }
        }
    }

    pub(crate) fn take_block(&mut self, hash: BlockHash) -> BTreeSet<ArrivalKey> {
        self.by_block.remove(&hash).unwrap_or_default()
    }

    /// The ends of their waits are forgotten when they come.
    pub(crate) fn take_prompt(&mut self, owner: RequestId) -> BTreeSet<ArrivalKey> {
        self.by_prompt.remove(&owner).unwrap_or_default()
    }

    /// One that has waited for a prompt as long as it would, and what it waited for.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Option<(ArrivalKey, Until)> {
        let &(end, key, owner) = self.by_time.first().filter(|&&(end, ..)| end <= now)?;
        let until = Until::Prompt(owner, end);
        self.remove(key, until);
        Some((key, until))
    }
}
