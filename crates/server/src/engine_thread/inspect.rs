//! Questions about what the engine holds, answered between two steps.

use std::sync::Arc;

use engine::{DonorInfo, EngineCore, Erase, ErasedCounts, Executor, TrafficClass, TrafficQuality};
use tokens::{DonorId, RequestId, TenantId};
use tokio::sync::oneshot;

/// A question, and where its answer goes. Nobody may be left to hear it.
pub(super) enum Inspection {
    /// A page of donors, by id.
    Donors { after: Option<DonorId>, limit: usize, reply: oneshot::Sender<Vec<DonorInfo>> },
    /// Classes of a tenant's traffic.
    Traffic { tenant: TenantId, reply: oneshot::Sender<Vec<(TrafficClass, TrafficQuality)>> },
    /// Forgets KV.
    Erase { what: Erase, reply: oneshot::Sender<ErasedCounts> },
    /// Notes what the prompt of a request means.
    Attach { request_id: RequestId, embedding: Arc<[f32]>, reply: oneshot::Sender<()> },
}

impl Inspection {
    /// Answers. What changes the engine's figures has them published before, so that the one who asked finds them changed.
    pub(super) fn answer<E: Executor>(self, engine: &mut EngineCore<E>, publish: impl FnOnce(&EngineCore<E>)) {
        // Whoever asked may have gone: then the answer is of no use, but what was to be erased is.
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
