//! Kernels for NVIDIA GPUs, each beside its CPU twin in [`super::cpu`].
//!
//! Sources are in `kernels/cuda`; the build embeds machine code and PTX of each file. Numbers are bf16 in weights, activations and the
//! KV pool, f32 in sums and in the residual stream. A launch returns at once; faults of the device surface at the next
//! synchronisation.

mod attention;
mod decode_attention;
mod decode_parts;
mod device;
mod norm;
mod paged;
mod received;
mod splits;
#[cfg(test)]
mod testing;
mod tiles;

pub use attention::{Attention, TileList};
pub use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
pub use decode_attention::{DecodeAttention, PartList};
pub use decode_parts::{DecodePart, NO_SEQUENCE, decode_parts};
pub use device::{Device, DeviceError};
pub use half::bf16;
pub use norm::Norm;
pub use paged::PagedQueries;
pub use received::{AttentionReceived, GivingRows};
pub use splits::{Partials, num_splits};
pub use tiles::{Tile, TileSequence, tiles};
