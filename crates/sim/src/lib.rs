//! Executes a `SchedulerOutput` with a cost model and a virtual clock, to test and compare policies.
//!
//! Contains traces of requests ([`Trace`]), the cost of a step ([`CostModel`]), an [`engine::Executor`] that computes nothing
//! ([`SimExecutor`]), and the replay of a trace through the real [`engine::EngineCore`] ([`replay()`], [`simulate()`]).
//! Deliberately excludes any decision. Hits, evictions and the order of requests are the engine's own.

#![forbid(unsafe_code)]

mod clock;
mod cost;
mod executor;
mod ideal;
mod options;
mod prompt;
mod replay;
mod report;
mod simulate;
#[cfg(test)]
mod testing;
mod trace;

pub use clock::VirtualClock;
pub use cost::{CostModel, StepWork};
pub use executor::SimExecutor;
pub use ideal::{BlockHits, ideal_hits};
pub use options::{PoolSize, SimOptions, UnknownPoolSize};
pub use replay::{ReplayConfig, SimError, replay};
pub use report::{RunReport, SimReport, TraceReport, TtftReport};
pub use simulate::simulate;
pub use trace::{BLOCK_TOKENS, Trace, TraceError, TraceRequest};
