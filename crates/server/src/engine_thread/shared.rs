//! State that the engine thread and its handles share.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use engine::{EngineStats, SchedulerConfig};
use tokens::{TenantId, Timestamp};
use tokio::sync::{Semaphore, watch};

use super::config::EngineThreadConfig;
use super::slots::QueueSlots;

/// Phase of the daemon's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accepts requests.
    Running,
    /// Finishes running requests and accepts no new ones.
    Draining,
    /// Has cut the remaining requests.
    Stopped,
    /// The engine has failed.
    Failed,
}

/// State shared by the thread and all handles.
pub(super) struct Shared {
    pub(super) phase: watch::Sender<Phase>,
    pub(super) stats: watch::Sender<EngineStats>,
    pub(super) in_flight: watch::Sender<usize>,
    /// Queue slots of requests that wait for admission.
    pub(super) slots: Arc<QueueSlots>,
    /// One permit per inspection in progress.
    pub(super) inspections: Arc<Semaphore>,
    /// One permit per explanation in progress.
    pub(super) explanations: Arc<Semaphore>,
    /// One permit per tenant, which limits each to one explanation in progress.
    pub(super) explaining: Mutex<BTreeMap<TenantId, Arc<Semaphore>>>,
    pub(super) config: EngineThreadConfig,
    pub(super) scheduler: SchedulerConfig,
    pub(super) next_id: AtomicU64,
    pub(super) started: Instant,
}

impl Shared {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp(self.started.elapsed())
    }
}
