//! Inner loops of the model runner.
//!
//! Contains CPU kernels selected by the features of the machine at run time (`cpu`), and the allocator (`memory`). Deliberately not here:
//! tensors of any framework, models, and every other crate of this project. This is the only crate with `unsafe` code: each block states
//! why it is sound, and each safe wrapper checks shapes first.
//!
//! Every matrix and attention kernel here is *batch invariant*: the bits of an output row depend only on that row's own inputs, never on
//! the number of other rows computed with it. Therefore a cache hit can be compared with a miss bit by bit.

#![expect(clippy::needless_range_loop, reason = "tiles of registers are indexed by row and vector, as in the formulas")]

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod memory;
