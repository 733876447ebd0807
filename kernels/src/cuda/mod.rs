//! Kernels for NVIDIA GPUs, each beside its CPU counterpart in [`super::cpu`].
//!
//! Sources are in `kernels/cuda`; the build embeds machine code and PTX of each file. Elements are bf16 in weights, activations and the KV
//! pool, f32 in sums and in the residual stream. Launches are asynchronous; device faults surface at the next synchronisation.

mod attention;
mod attention_hopper;
mod decode_attention;
mod decode_parts;
mod deviation;
mod device;
mod drift;
mod fill;
mod gated;
mod graph;
mod host_pool;
mod matmul;
mod norm;
mod paged;
mod pool;
mod qkv;
mod query_rows;
mod received;
mod received_hopper;
mod rope;
mod sample;
mod spans;
mod splits;
mod tensor_map;
#[cfg(test)]
mod testing;
mod tiles;
mod timer;
mod upload;

pub use attention::{Attention, TileList};
pub use attention_hopper::AttentionHopper;
pub use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
pub use decode_attention::{DecodeAttention, PartList};
pub use decode_parts::{DecodePart, NO_SEQUENCE, decode_parts};
pub use deviation::{Deviation, FreshRows};
pub use device::{Device, DeviceError};
pub use drift::{Drift, DriftTargets, DriftTile, drift_tiles};
pub use fill::Fill;
pub use gated::Gated;
pub use graph::Graph;
pub use half::bf16;
pub use host_pool::HostPool;
pub use matmul::{Matmul, Output};
pub use norm::Norm;
pub use paged::PagedQueries;
pub use pool::{NO_ROW, Pool, PoolShape};
pub use qkv::{Differences, Qkv, QkvShape, QkvWeights, Scatter};
pub use query_rows::QueryRows;
pub use received::AttentionReceived;
pub use rope::RopeTable;
pub use sample::{Choice, MAX_TOP, SampleChain, SampleSpec, Sampler, ScoreSpec};
pub use spans::{MovedTokens, Spans};
pub use splits::{Partials, num_splits};
pub use tiles::{Tile, TileSequence, tiles};
pub use timer::Timer;
pub use upload::{Upload, Words};
