//! Kernels for NVIDIA GPUs, each beside its CPU twin in [`super::cpu`].
//!
//! Sources are in `kernels/cuda`; the build embeds machine code and PTX of each file. Numbers are bf16 in weights, activations and the
//! KV pool, f32 in sums and in the residual stream. A launch returns at once; faults of the device surface at the next
//! synchronisation.

mod device;
mod norm;
mod sample;
#[cfg(test)]
mod testing;

pub use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
pub use device::{Device, DeviceError};
pub use half::bf16;
pub use norm::Norm;
pub use sample::{Choice, MAX_TOP, SampleChain, SampleSpec, Sampler};
