//! Selects, each step, which tokens of which requests run, given free blocks and expected KV hits.
//!
//! The crate holds the values that travel to the device and back ([`SchedulerOutput`], [`ModelRunnerOutput`]), the [`Scheduler`]
//! that makes the one and consumes the other, and [`EngineCore`], which joins it to an [`Executor`]. It deliberately holds no
//! tensors, text, HTTP, threads, randomness or clocks. Time is an argument; the same calls give the same steps.

#![forbid(unsafe_code)]

mod ageing;
mod arrival;
mod config;
mod continuations;
mod core;
mod cost;
mod divergence;
mod donors;
mod erase;
mod event;
mod executor;
mod explain;
mod host;
mod in_flight;
mod output;
mod parking;
mod queue;
mod recent;
mod request;
mod scheduler;
mod sequence;
mod stats;
mod verifier;

pub use self::core::EngineCore;
pub use config::{ConfigError, RequestError, SchedulePolicy, SchedulerConfig, VerificationConfig};
pub use divergence::kl_divergence;
pub use donors::DonorInfo;
pub use erase::{Erase, ErasedCounts};
pub use event::{EngineEvent, FinishReason, KvUsage};
pub use executor::{Executor, ExecutorError, ExecutorLimits, OverlappingExecutor};
pub use explain::Explanation;
pub use host::HostConfig;
pub use kv::{BlockEntry, BlockFetch, BlockOffload, CacheGroup, CacheGroups, HostStats, KvFormat, PoolStats, Retention};
pub use output::{
    BlockCopy, LogProb, ModelRunnerOutput, NewRequest, ProbedSequence, ProbedSpans, RejectedSpan, Row, SampledToken,
    ScheduledSequence, SchedulerOutput, SpanCopy, TokenLogProbs, Transfer, WatchedSpans,
};
pub use request::{Request, SamplingParams};
pub use scheduler::{PlanningWork, Scheduler};
pub use semantic::{
    ClassQuality, DecodeRepair, Depth, Drift, EmbeddingIndexConfig, Fault, Gate, GuardConfig, MatchClass, Probe, Readers,
    RejectReason, Repair, RepairError, RepairPolicy, ReusePlan, ReuseSpan, SpanConfig, SpanMatch, Steps, TokenDeviation,
    TrafficClass, TrafficQuality,
};
pub use stats::{EngineStats, FoundDonors, SpanLookups, SpanOutcome, VerificationStats};
