//! Places in main memory for exact blocks that the device's pool gives up, least recently given up first.
//!
//! A block is in one place only: what is fetched leaves the tier. A place is written whole or not at all, so nothing of what was in
//! it before is left. Places are taken and left while a step is chosen, and written and read when it runs; what is fetched by a step
//! therefore keeps its place until the next one is chosen.
//!
//! Not here: what is in a place and how it is found (`prefix_index.rs`), and what is given up or fetched (`pool.rs`).

use std::collections::BTreeMap;

use tokens::{BlockId, HostBlockId, TenantId, Timestamp};

use crate::BlockOwner;
use crate::free_queue::FreeBlockQueue;
use crate::quotas::Quotas;

/// The places of the host tier and who filled them.
#[derive(Debug)]
pub(crate) struct HostTier {
    /// Empty places and those that can be found; only a place that is being fetched from is in neither.
    queue: FreeBlockQueue,
    quotas: Quotas,
    /// Who filled each place last.
    owners: Vec<Option<BlockOwner>>,
    /// When its content was last used on the device.
    last_used: Vec<Timestamp>,
    /// Not yet reported, by place.
    offloads: BTreeMap<HostBlockId, BlockId>,
    /// Not yet reported, by block.
    fetches: BTreeMap<BlockId, HostBlockId>,
    /// Blocks before which nothing is worth its transfer, on each path.
    min_depth: u32,
    /// Filled places, without those that are being fetched from.
    num_used: usize,
    num_offloads: u64,
    num_fetches: u64,
}

/// Copy a whole block from the device to the host, all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockOffload {
    /// From.
    pub src: BlockId,
    /// To.
    pub dst: HostBlockId,
}

/// Copy a whole block from the host to the device, all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFetch {
    /// From.
    pub src: HostBlockId,
    /// To.
    pub dst: BlockId,
}

/// Copies between device and host, each list by ascending destination.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Transfers {
    /// To be made before anything is written on the device.
    pub offloads: Vec<BlockOffload>,
    /// To be made behind `offloads` and before anything is read.
    pub fetches: Vec<BlockFetch>,
}

/// How full the host tier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HostStats {
    /// Places whose content can be found.
    pub used: usize,
    /// All places.
    pub total: usize,
    /// Blocks that went from the device to the host so far.
    pub offloads: u64,
    /// Blocks that came back so far.
    pub fetches: u64,
}

impl HostTier {
    /// `num_blocks` empty places, of which each tenant of `limits` has at most so many.
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

    /// Whether there is no place at all.
    pub(crate) fn is_absent(&self) -> bool {
        self.owners.is_empty()
    }

    /// Only blocks with at least so many before them are worth a place.
    pub(crate) fn set_min_depth(&mut self, min_depth: u32) {
        self.min_depth = min_depth;
    }

    /// Whether a block with so many before it is worth a place.
    pub(crate) fn keeps(&self, depth: u32) -> bool {
        depth >= self.min_depth
    }

    /// Who filled `slot` last.
    pub(crate) fn owner(&self, slot: HostBlockId) -> Option<BlockOwner> {
        self.owners[slot.0 as usize]
    }

    /// When the content of `slot` was last used.
    pub(crate) fn last_used(&self, slot: HostBlockId) -> Timestamp {
        self.last_used[slot.0 as usize]
    }

    /// All places.
    pub(crate) fn slots(&self) -> impl Iterator<Item = HostBlockId> + use<> {
        (0..self.owners.len() as u32).map(HostBlockId)
    }

    /// The place that is given up next.
    pub(crate) fn oldest(&self) -> Option<HostBlockId> {
        self.queue.oldest_cached().map(slot)
    }

    /// The place that `tenant` fills next, emptied by the caller: one of its own if its quota is full, else an empty one, else the
    /// oldest of all; `None` if there is none.
    pub(crate) fn next_slot(&self, tenant: TenantId) -> Option<HostBlockId> {
        if self.quotas.short_by(tenant, 0, 1).is_some() {
            return None;
        }
        self.quotas.victim(tenant).or_else(|| self.queue.front()).map(slot)
    }

    /// Fills the empty place `to` with what `owner` had computed in `block`.
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

    /// The content of `slot` is found no more.
    pub(crate) fn release(&mut self, slot: HostBlockId) {
        if !self.queue.contains(ring(slot)) {
            return; // Somebody is about to fetch it all the same.
        }
        let tenant = self.tenant_of(slot);
        self.queue.remove(ring(slot));
        self.queue.push_empty(ring(slot));
        self.quotas.remove_idle(tenant, ring(slot));
        self.quotas.discharge(tenant);
        self.offloads.remove(&slot);
        self.num_used -= 1;
    }

    /// Keeps `slot` from being given up, because it is fetched from next. Doing so twice is doing so once.
    pub(crate) fn reserve(&mut self, slot: HostBlockId) {
        if self.queue.contains(ring(slot)) {
            self.queue.remove(ring(slot));
            self.quotas.remove_idle(self.tenant_of(slot), ring(slot));
            self.num_used -= 1;
        }
    }

    /// The content of the reserved `slot` goes to `block`.
    pub(crate) fn fetch(&mut self, slot: HostBlockId, block: BlockId) {
        self.quotas.discharge(self.tenant_of(slot));
        self.fetches.insert(block, slot);
        self.num_fetches += 1;
    }

    /// Copies since the last call. The places that are fetched from are empty from now on.
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

    /// Panics with a sentence unless the places add up and those that `is_found` names are the filled ones.
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

/// Queue and quotas count blocks; here these are places of the host.
fn ring(slot: HostBlockId) -> BlockId {
    BlockId(slot.0)
}

fn slot(ring: BlockId) -> HostBlockId {
    HostBlockId(ring.0)
}
