//! Executes a `SchedulerOutput` on a device and owns all tensors.
//!
//! Contains: reading checkpoints ([`load()`]), the decoder over a paged KV pool, span copies with their layer-0 check, sampling. Deliberately
//! not here: scheduling (`engine`), text (`tokenizer`), HTTP (`server`), and vector code (`kernels`).
//!
//! [`Device`] separates device-specific code from the rest. [`ModelRunner`] turns a step of the scheduler into a [`DeviceStep`] and a
//! [`DeviceOutput`] into the scheduler's; `backend::cpu` is the device of machines without an accelerator.

#![forbid(unsafe_code)]

pub mod backend;
mod batch;
mod checkpoint;
mod device;
mod device_step;
mod embedding_table;
mod error;
mod load;
mod masks;
mod model_runner;
mod options;
mod placed;
mod sampler;
mod sizing;
mod spec;
pub mod testing;
mod timings;

pub use batch::{InputBatch, InputSequence};
pub use checkpoint::{GgufVocabulary, SamplingKeys, SpecialTokens};
pub use device::{Device, DeviceFault};
pub use device_step::{DeviceOutput, DeviceStep};
pub use embedding_table::EmbeddingTable;
pub use error::LoadError;
pub use kernels::cpu::{Activation, Adjustment, Distribution, KvDtype, RopeLayout};
pub use kernels::memory::ExitingAllocator;
pub use load::{LoadedModel, check_checkpoint, has_cuda_device, load, read_vocabulary};
pub use masks::MaskSlot;
pub use model_runner::ModelRunner;
pub use options::{CpuOptions, DeviceOptions, GpuOptions, LoadOptions, WeightFiles};
pub use sampler::{SampleRow, Sampled, ScoreRow};
pub use spec::{Architecture, LayerSpec, Mask, ModelSpec, RopeScaling, RopeSpec};
pub use timings::StepTimings;
