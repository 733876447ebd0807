//! Tracks the tokens and the references of each physical block, and selects the next block to evict.
//!
//! Here: [`CacheGroup`], which describes the layers that share a block table; [`BlockPool`], which counts references and lends blocks as [`BlockLease`]s, and [`PrefixIndex`], which finds blocks by their
//! tokens and by everything before them. Evicted blocks may stay findable in a host tier, a second set of [`Place`]s in the same forest:
//! read access, ownership and erasure of a block do not depend on its place.
//!
//! Read access: the **label** of a block is the scope it was computed in together with the scopes of all blocks before it on its path, and
//! a lookup follows a path only through the reader's own scope and the scopes it may read. That covers the whole causal past: exact KV is a
//! function of the tokens before it, a request stores only exact KV, and it stores all of it in its own scope, so everything after text
//! that is not public carries the label of the request that sent it. A scope that others may read must therefore be written only by
//! requests that read nothing else.
//!
//! Deliberately not here: tensors (the runner owns them), requests and policies (`engine`), donors (`semantic`), clocks.

#![forbid(unsafe_code)]

mod block_entry;
mod cache_group;
mod error;
mod free_queue;
mod host_tier;
mod lease;
mod name_hasher;
mod owner;
mod place;
mod pool;
mod prefix_index;
mod quotas;
mod rings;

pub use block_entry::BlockEntry;
pub use cache_group::{CacheGroup, CacheGroups, KvFormat, Retention};
pub use error::PoolError;
pub use host_tier::{BlockFetch, BlockOffload, HostStats, Transfers};
pub use lease::{Approximate, ApproximateBlock, BlockLease, Compacted, CompactedBlock, Exact, ExactBlock, LeasedBlock};
pub use owner::BlockOwner;
pub use place::Place;
pub use pool::{Allocation, BlockPool, OnDuplicate, PoolStats, SlotRequest, Slots};
pub use prefix_index::{HashedTokens, PartialMatch, PrefixIndex, PrefixMatch, ReadableScope};
