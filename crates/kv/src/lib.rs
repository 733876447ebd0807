//! Says which physical block holds which tokens, who holds it, and which block is given up next.
//!
//! What is here: [`BlockPool`], which counts references and lends blocks as [`BlockLease`]s, and [`PrefixIndex`], which finds
//! blocks by the tokens they hold and by everything before them.
//! What is deliberately not here: tensors (the runner owns them), requests and policies (`engine`), donors (`semantic`), clocks.

#![forbid(unsafe_code)]

mod free_queue;
mod lease;
mod pool;
mod prefix_index;

pub use lease::{ApproximateBlock, BlockLease, ExactBlock};
pub use pool::{Allocation, BlockPool, OnDuplicate, PoolError, PoolStats};
pub use prefix_index::{HashedTokens, PartialMatch, PrefixIndex, PrefixMatch};
