//! Inner loops: everything the model runner would otherwise do in too many steps.
//!
//! Here: CPU kernels chosen by the features of the machine at run time (`cpu`), and the allocator (`memory`).
//! What is deliberately not here: tensors of any framework, models, and every crate of ours. This is the one crate with `unsafe`
//! code: each block states why it is sound, and each safe wrapper checks shapes first.
//!
//! Every matrix and attention kernel here is *batch invariant*: the bits of an output row depend only on that row's own inputs,
//! never on how many other rows are computed beside it. That is what lets a cache hit be compared with a miss bit by bit.

#![expect(clippy::needless_range_loop, reason = "tiles of registers are indexed by row and vector, as in the formulas")]

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod memory;
