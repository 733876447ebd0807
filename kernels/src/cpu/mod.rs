//! Kernels for x86-64 with AVX-512 or AVX2, and a portable fallback.

mod aligned;
mod attention;
mod block;
mod drift;
mod ggml;
mod isa;
mod matmul;
mod matrix;
mod received;
mod rows;
mod sample;
mod simd;
#[cfg(test)]
pub(crate) mod testing;
mod threads;

pub use attention::{AttentionShape, QuerySequence, attention};
pub use block::{KvDtype, KvLayer, KvShape, SpanMove};
pub use drift::DriftSample;
pub use ggml::{GgmlType, UnsupportedType};
pub use isa::Isa;
pub use matmul::{Init, matmul};
pub use matrix::{Linear, Matrix};
pub use received::add_attention_received;
pub use rows::{Activation, Heads, RopeLayout, RopeTable, add_rms_norm, gated, rms_norm, rms_norm_heads, rope};
pub use sample::{Adjustment, Distribution, RankedLogProb, argmax, draw, log_probs, margin, mask};
pub use threads::Threads;
