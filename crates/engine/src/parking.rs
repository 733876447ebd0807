//! Waiting requests that the scheduler skips until an event occurs.

use std::collections::{BTreeSet, HashMap};

use tokens::{BlockHash, RequestId, Timestamp};

use crate::arrival::ArrivalKey;

/// The event that ends a parked request's wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// This block is no longer being computed.
    Block(BlockHash),
    /// The prompt of this request is no longer being computed, or the time has come.
    Prompt(RequestId, Timestamp),
}

/// Parked requests, by the block or prompt that they wait for.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    by_block: HashMap<BlockHash, BTreeSet<ArrivalKey>>,
    by_prompt: HashMap<RequestId, BTreeSet<ArrivalKey>>,
    /// Deadlines of waits for prompts.
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

    /// Removes the requests that wait for the prompt of `owner`. Their deadlines stay in `by_time` until they expire.
    pub(crate) fn take_prompt(&mut self, owner: RequestId) -> BTreeSet<ArrivalKey> {
        self.by_prompt.remove(&owner).unwrap_or_default()
    }

    /// Removes one request whose wait for a prompt has expired; returns it with the event that it waited for.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Option<(ArrivalKey, Until)> {
        let &(end, key, owner) = self.by_time.first().filter(|&&(end, ..)| end <= now)?;
        let until = Until::Prompt(owner, end);
        self.remove(key, until);
        Some((key, until))
    }
}
