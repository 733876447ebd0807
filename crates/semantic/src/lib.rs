//! Given a prompt, finds earlier prompts that share text with it, and says position by position what to copy and what to recompute.
//!
//! What is here: an index of exact token spans ([`SpanIndex`]), and the choice among its matches ([`plan_reuse`]).
//! Ids are compared, never texts and never hashes alone: tokens that differ are different content.
//! What is deliberately not here: KV blocks and whether they are still resident (`kv`, `engine`), and the copying itself.

#![forbid(unsafe_code)]

mod config;
mod cover;
mod donors;
mod drift;
mod guard;
mod index;
mod minimizer;
mod plan;
mod postings;
mod selection;
mod span;
#[cfg(test)]
mod testing;

pub use config::{SpanConfig, SpanConfigError, SpanIndexConfig};
pub use drift::{Drift, follow_drift};
pub use guard::{ClassQuality, GuardConfig, QualityGuard, Verdict};
pub use index::SpanIndex;
pub use plan::{MatchClass, RejectReason, ReusePlan, ReuseSpan, plan_reuse};
pub use selection::{
    DecodeRepair, Probe, Readers, Repair, RepairError, RepairPolicy, SelectedRows, TokenDeviation, UnknownPolicy, select_rows,
};
pub use span::SpanMatch;
