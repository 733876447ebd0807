//! Places in main memory for exact blocks that the device's pool evicts, least recently evicted first.
//!
//! A block is in one place only: a fetched block leaves the tier. A place is written whole or not at all, so no earlier content is left.
//! Places are taken and left while a step is scheduled, and written and read when it runs; so the blocks that a step fetches keep their
//! places until the next one is scheduled.
//!
//! Not here: the content of a place and its lookup (`prefix_index.rs`), and the choice of blocks to evict or fetch (`pool.rs`).

use std::collections::BTreeMap;

use tokens::{BlockId, HostBlockId, TenantId, Timestamp};

use crate::BlockOwner;
use crate::free_queue::FreeBlockQueue;
use crate::quotas::Quotas;

/// Places of the host tier and their owners.
#[derive(Debug)]
pub(crate) struct HostTier {
    /// Empty and findable places; only a place with a pending fetch is in neither.
    queue: FreeBlockQueue,
    quotas: Quotas,
    /// Last owner of each place.
    owners: Vec<Option<BlockOwner>>,
    /// Time of the last use of its content on the device.
    last_used: Vec<Timestamp>,
    /// Offloads not yet reported, by place.
    offloads: BTreeMap<HostBlockId, BlockId>,
    /// Fetches not yet reported, by block.
    fetches: BTreeMap<BlockId, HostBlockId>,
    /// Least number of preceding blocks on its path that makes a block worth its transfer.
    min_depth: u32,
    /// Number of filled places, without those with a pending fetch.
    num_used: usize,
    num_offloads: u64,
    num_fetches: u64,
}

/// Copy of a whole block from the device to the host, all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockOffload {
    /// Source.
    pub src: BlockId,
    /// Destination.
    pub dst: HostBlockId,
}

/// Copy of a whole block from the host to the device, all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFetch {
    /// Source.
    pub src: HostBlockId,
    /// Destination.
    pub dst: BlockId,
}

/// Copies between device and host, each list by ascending destination.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Transfers {
    /// Copies to make before anything is written on the device.
    pub offloads: Vec<BlockOffload>,
    /// Copies to make after `offloads` and before anything is read.
    pub fetches: Vec<BlockFetch>,
}

/// Use of the host tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HostStats {
    /// Places with findable content.
    pub used: usize,
    /// All places.
    pub total: usize,
    /// Number of blocks copied from the device to the host so far.
    pub offloads: u64,
    /// Number of blocks copied back so far.
    pub fetches: u64,
}

impl HostTier {
    /// Creates `num_blocks` empty places and limits those of each tenant of `limits`.
    pub(crate) fn new(num_blocks: u32, limits: &BTreeMap<TenantId, usize>) -> Self {
        Self {
            queue: FreeBlockQueue::new(num_blocks),
            quotas: Quotas::new(num_blocks, limits),
            owners: vec![None; num_blocks as usize],
            last_used: vec![Timestamp::default(); num_blocks as usize],
            offloads: BTreeMap::new(),
            fetches: BTreeMap::new(),
            min_depth: 0,
            num_used: 0,
            num_offloads: 0,
            num_fetches: 0,
        }
    }

    /// True if there is no place at all.
    pub(crate) fn is_absent(&self) -> bool {
        self.owners.is_empty()
    }

    /// Sets the least number of preceding blocks that makes a block worth a place.
    pub(crate) fn set_min_depth(&mut self, min_depth: u32) {
        self.min_depth = min_depth;
    }

    /// True if a block with `depth` preceding blocks is worth a place.
    pub(crate) fn keeps(&self, depth: u32) -> bool {
        depth >= self.min_depth
    }

    /// Returns the last owner of `slot`.
    pub(crate) fn owner(&self, slot: HostBlockId) -> Option<BlockOwner> {
        self.owners[slot.0 as usize]
    }

    /// Returns the time of the last use of the content of `slot`.
    pub(crate) fn last_used(&self, slot: HostBlockId) -> Timestamp {
        self.last_used[slot.0 as usize]
    }

    /// Returns all places.
    pub(crate) fn slots(&self) -> impl Iterator<Item = HostBlockId> + use<> {
        (0..self.owners.len() as u32).map(HostBlockId)
    }

    /// Returns the next place to evict.
    pub(crate) fn oldest(&self) -> Option<HostBlockId> {
        self.queue.oldest_cached().map(slot)
    }

    /// Returns the place that `tenant` fills next, emptied by the caller: one of its own if its quota is full, else an empty one, else the
    /// oldest of all; `None` if there is none.
    pub(crate) fn next_slot(&self, tenant: TenantId) -> Option<HostBlockId> {
        if self.quotas.short_by(tenant, 0, 1).is_some() {
            return None;
        }
        self.quotas.victim(tenant).or_else(|| self.queue.front()).map(slot)
    }

    /// Fills the empty place `to` with the KV that `owner` computed in `block`.
    pub(crate) fn store(&mut self, block: BlockId, to: HostBlockId, owner: BlockOwner, last_used: Timestamp) {
        self.queue.remove(ring(to));
        self.queue.push_cached(ring(to));
        self.quotas.charge(owner.tenant);
        self.quotas.insert_idle(owner.tenant, ring(to));
        self.owners[to.0 as usize] = Some(owner);
        self.last_used[to.0 as usize] = last_used;
        self.offloads.insert(to, block);
        self.num_used += 1;
        self.num_offloads += 1;
    }

    /// Marks the content of `slot` as unfindable.
    pub(crate) fn release(&mut self, slot: HostBlockId) {
        if !self.queue.contains(ring(slot)) {
            return; // A fetch is pending.
        }
        let tenant = self.tenant_of(slot);
        self.queue.remove(ring(slot));
        self.queue.push_empty(ring(slot));
        self.quotas.remove_idle(tenant, ring(slot));
        self.quotas.discharge(tenant);
        self.offloads.remove(&slot);
        self.num_used -= 1;
    }

    /// Protects `slot` from eviction before its fetch. Idempotent.
    pub(crate) fn reserve(&mut self, slot: HostBlockId) {
        if self.queue.contains(ring(slot)) {
            self.queue.remove(ring(slot));
            self.quotas.remove_idle(self.tenant_of(slot), ring(slot));
            self.num_used -= 1;
        }
    }

    /// Moves the content of the reserved `slot` to `block`.
    pub(crate) fn fetch(&mut self, slot: HostBlockId, block: BlockId) {
        self.quotas.discharge(self.tenant_of(slot));
        self.fetches.insert(block, slot);
        self.num_fetches += 1;
    }

    /// Returns the copies since the last call. The places of fetched blocks are empty from now on.
    pub(crate) fn take_transfers(&mut self) -> Transfers {
        let offloads = std::mem::take(&mut self.offloads);
        let fetches = std::mem::take(&mut self.fetches);
        fetches.values().for_each(|&slot| self.queue.push_empty(ring(slot)));
        Transfers {
            offloads: offloads.into_iter().map(|(dst, src)| BlockOffload { src, dst }).collect(),
            fetches: fetches.into_iter().map(|(dst, src)| BlockFetch { src, dst }).collect(),
        }
    }

    pub(crate) fn stats(&self) -> HostStats {
        let Self { num_used, num_offloads, num_fetches, .. } = *self;
        HostStats { used: num_used, total: self.owners.len(), offloads: num_offloads, fetches: num_fetches }
    }

    /// Panics with a message unless the places add up and exactly those that satisfy `is_found` are filled.
    pub(crate) fn check_invariants(&self, is_found: impl Fn(HostBlockId) -> bool) {
        let num_leaving = self.fetches.len();
        assert_eq!(self.queue.len() + num_leaving, self.owners.len(), "places of the host were lost");
        assert_eq!(self.queue.iter().count(), self.queue.len(), "the host's queue has lost places");
        let filled = self.queue.iter_cached().filter(|&block| is_found(slot(block))).count();
        assert_eq!(filled, self.slots().filter(|&slot| is_found(slot)).count(), "what is found in the host is not in its queue");
        assert_eq!(filled, self.queue.iter_cached().count(), "a place of the host is filled and not found");
        assert_eq!(filled, self.num_used, "filled places of the host were miscounted");
        self.quotas.check_invariants(|tenant| {
            let is_own = |slot: &HostBlockId| is_found(*slot) && self.owner(*slot).is_some_and(|owner| owner.tenant == tenant);
            let num_own = self.slots().filter(is_own).count();
            (num_own, num_own)
        });
    }

    fn tenant_of(&self, slot: HostBlockId) -> TenantId {
        self.owner(slot).expect("what is found was filled by somebody").tenant
    }
}

/// Converts a place of the host to the block id that queue and quotas count.
fn ring(slot: HostBlockId) -> BlockId {
    BlockId(slot.0)
}

fn slot(ring: BlockId) -> HostBlockId {
    HostBlockId(ring.0)
}
