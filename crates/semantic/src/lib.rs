//! Finds earlier prompts that share text with a prompt, and plans for each position if it is copied or recomputed.
//!
//! Here: the store of earlier prompts ([`DonorStore`]), which finds exact token spans, and by embeddings proposes donors; the choice
//! among matches ([`plan_reuse`]), which leaves out tokens after an edit in their own segment ([`EditPolicy`]); the check that the plan
//! saves enough time ([`Gate`]); scripts of edits for explanations ([`align()`]); policies of repair, and guards of its quality. Ids are
//! compared, never texts and never hashes alone: tokens that differ are different content. Deliberately not here: KV blocks and their
//! residency (`kv`, `engine`), and the copying itself.

#![forbid(unsafe_code)]

mod align;
mod config;
mod cover;
mod deep;
mod deviation;
mod donor;
mod donor_prompts;
mod donor_store;
mod donors;
mod drift;
mod edits;
mod embedding;
mod estimate;
mod evidence;
mod fair_lru;
mod gate;
mod guard;
#[cfg(any(test, feature = "invariants"))]
pub mod invariants;
mod minimizer;
mod plan;
mod policy;
mod postings;
mod prompt;
mod quantised;
mod repair;
mod reuse;
mod runs;
mod sample;
mod scope_versions;
mod search;
mod segments;
mod selection;
mod similarity;
mod span;
mod span_index;
mod steps;
#[cfg(test)]
mod testing;
mod token_embedding;
mod traffic;
mod vector_rows;

pub use align::{EditKind, EditOp, EditScript, align};
pub use config::{SpanConfig, SpanConfigError, SpanIndexConfig};
pub use deep::deep_deviation;
pub use deviation::TokenDeviation;
pub use donor::{Donor, NewDonor};
pub use donor_prompts::DonorPrompts;
pub use donor_store::DonorStore;
pub use drift::{Drift, follow_drift};
pub use edits::EditPolicy;
pub use embedding::EmbeddingIndexConfig;
pub use estimate::Estimate;
pub use gate::Gate;
pub use guard::{ClassQuality, Fault, GuardConfig, QualityGuard, Verdict};
pub use minimizer::Sketch;
pub use plan::{plan_counted, plan_reuse};
pub use policy::{Depth, Probe, Readers, RepairPolicy, UnknownPolicy};
pub use prompt::{PlanTarget, PromptView};
pub use repair::{DecodeRepair, Repair, RepairError};
pub use reuse::{MatchClass, RejectReason, ReusePlan, ReuseSpan};
pub use sample::{sampled_positions, spread};
pub use search::{Search, SpanQuery};
pub use segments::Segments;
pub use selection::{SelectedRows, select_rows};
pub use similarity::{ByLeftContext, left_context_similarity};
pub use span::SpanMatch;
pub use steps::Steps;
pub use token_embedding::{TokenEmbedder, TokenVectors, unit};
pub use traffic::{ProofConfig, TrafficChange, TrafficClass, TrafficCounts, TrafficFormat, TrafficGuard, TrafficQuality};
