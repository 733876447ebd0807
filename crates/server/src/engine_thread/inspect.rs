//! Inspections of the engine's state, answered between two steps.

use std::sync::Arc;

use engine::{DonorInfo, EngineCore, Erase, ErasedCounts, Executor, TrafficClass, TrafficQuality};
use tokens::{DonorId, RequestId, TenantId};
use tokio::sync::oneshot;

/// An inspection with its reply channel, whose receiver may be gone.
pub(super) enum Inspection {
    /// A page of donors, by id.
    Donors { after: Option<DonorId>, limit: usize, reply: oneshot::Sender<Vec<DonorInfo>> },
    /// Classes of a tenant's traffic.
    Traffic { tenant: TenantId, reply: oneshot::Sender<Vec<(TrafficClass, TrafficQuality)>> },
    /// Erases KV.
    Erase { what: Erase, reply: oneshot::Sender<ErasedCounts> },
    /// Attaches the embedding of a request's prompt.
    Attach { request_id: RequestId, embedding: Arc<[f32]>, reply: oneshot::Sender<()> },
}

impl Inspection {
    /// Answers the inspection. Changed figures are published before the reply, so that the caller observes the change.
    pub(super) fn answer<E: Executor>(self, engine: &mut EngineCore<E>, publish: impl FnOnce(&EngineCore<E>)) {
        // The caller may be gone: then the answer is useless, but the erasure still takes effect.
        match self {
            Self::Donors { after, limit, reply } => drop(reply.send(engine.donors(after, limit))),
            Self::Traffic { tenant, reply } => drop(reply.send(engine.traffic(Some(tenant)))),
            Self::Erase { what, reply } => {
                let counts = engine.erase(what);
                publish(engine);
                let _ = reply.send(counts);
            }
            Self::Attach { request_id, embedding, reply } => {
                engine.attach_embedding(request_id, &embedding);
                let _ = reply.send(());
            }
        }
    }
}
