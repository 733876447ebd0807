//! Says which physical block holds which tokens, who holds it, and which block is given up next.
//!
//! What is here: [`BlockPool`], which counts references and lends blocks as [`BlockLease`]s, and [`PrefixIndex`], which finds
//! blocks by the tokens they hold and by everything before them. What the pool gives up may go on being found in a host tier, a second
//! set of [`Place`]s in the same forest: who may find it, whose it is and how it is erased do not depend on where it lies.
//!
//! Who may read a block: its **label** is the scope it was computed in together with the scopes of all blocks before it on its path,
//! and a lookup follows a path only through the reader's own scope and the scopes it may read. That covers the whole causal past:
//! exact KV is a function of the tokens before it, a request stores only exact KV, and it stores all of it in its own scope, so
//! whatever stood behind text that is not public carries the label of the request that sent it. A scope that others may read is
//! therefore to be written only by requests that read nothing but it.
//!
//! What is deliberately not here: tensors (the runner owns them), requests and policies (`engine`), donors (`semantic`), clocks.

#![forbid(unsafe_code)]

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

pub use host_tier::{BlockFetch, BlockOffload, HostStats, Transfers};
pub use lease::{ApproximateBlock, BlockLease, ExactBlock};
pub use owner::BlockOwner;
pub use place::Place;
pub use pool::{Allocation, BlockPool, OnDuplicate, PoolError, PoolStats, SlotRequest, Slots};
pub use prefix_index::{HashedTokens, PartialMatch, PrefixIndex, PrefixMatch, ReadableScope};
