//! State that all request handlers share.

use std::sync::Arc;

use crate::access::Access;
use crate::body::BodyMemory;
use crate::config::{ServerConfig, ServerConfigError};
use crate::corpora::Corpora;
use crate::embedding::EmbeddingQueue;
use crate::engine_thread::EngineHandle;
use crate::heavy::Heavy;
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::valid::Limits;

/// Model, engine, access control and limits of the server.
pub struct AppState {
    pub(crate) model: ServedModel,
    pub(crate) engine: EngineHandle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: ServerConfig,
    pub(crate) access: Access,
    pub(crate) corpora: Corpora,
    pub(crate) embedding_lane: EmbeddingQueue,
    pub(crate) heavy: Arc<Heavy>,
    pub(crate) body_memory: BodyMemory,
    pub(crate) fingerprint: String,
}

impl AppState {
    /// Combines the started components. `metrics` are those given to the engine thread.
    ///
    /// # Errors
    /// If `config` is invalid.
    pub fn new(
        model: ServedModel,
        engine: EngineHandle,
        metrics: Arc<Metrics>,
        config: ServerConfig,
        access: Access,
    ) -> Result<Arc<Self>, ServerConfigError> {
        config.validate()?;
        let fingerprint = model.info.fingerprint();
        let (corpora, embedding_lane, heavy) = Default::default();
        let body_memory = BodyMemory::new(config.body_limit);
        Ok(Arc::new(Self { model, engine, metrics, config, access, corpora, embedding_lane, heavy, body_memory, fingerprint }))
    }

    /// Returns the access control, with the secret that separates tenants' KV.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    pub(crate) fn limits(&self) -> Limits<'_> {
        Limits { model: &self.model.info, config: &self.config, max_choices: self.engine.max_queue() }
    }
}
