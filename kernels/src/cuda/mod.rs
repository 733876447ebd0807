//! Kernels for NVIDIA GPUs, each beside its CPU twin in [`super::cpu`].
//!
//! Sources are in `kernels/cuda`; the build embeds machine code and PTX of each file. Numbers are bf16 in weights, activations and the
//! KV pool, f32 in sums and in the residual stream. A launch returns at once; faults of the device surface at the next
//! synchronisation.

mod attention_hopper;
mod device;
mod norm;
#[cfg(test)]
mod testing;
mod tiles;

pub use attention_hopper::{AttentionHopper, PrefillAttention};
pub use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
pub use device::{Device, DeviceError};
pub use half::bf16;
pub use norm::Norm;
pub use tiles::{Tile, TileSequence, tiles};
