//! Measures what KV reuse costs and saves: workloads under a list of policies on one model, in process.
//!
//! Contains the protocol ([`Evaluator`]), the metrics ([`rouge`], BLEU, task scores, computed work), their summary over requests with
//! intervals ([`EvalReport`]), its charts ([`write_charts`]), and what other measurements share with them: [`stats`], [`table`] and
//! [`workload`]. Deliberately excludes the selection of tokens to recompute (`semantic`), loading a model, and load: one request runs at a
//! time.

#![forbid(unsafe_code)]

mod bleu;
mod bootstrap;
mod chart;
mod cover;
mod evaluate;
mod forced;
mod format;
mod measured;
mod plan;
mod plots;
mod policy;
mod prompt;
mod rank;
mod report;
pub mod rouge;
mod single_request;
pub mod stats;
mod summary;
pub mod table;
mod task;
mod work;
pub mod workload;

pub use evaluate::{Evaluator, Settings};
pub use measured::{AnswerScores, Measured};
pub use plan::{Group, Limits, Plan, Prompted, Recipient, Shard};
pub use plots::write as write_charts;
pub use policy::{Policy, PolicyError};
pub use prompt::Prompt;
pub use report::{EvalReport, Setup};
pub use summary::{ClassCount, Difference, Intervals, Level, Misses, ResultRow, TtftOfMedians};
pub use work::Layers;
