//! What every request handler shares.

use std::sync::Arc;

use crate::access::Access;
use crate::body::BodyMemory;
use crate::config::{ServerConfig, ServerConfigError};
use crate::corpora::Corpora;
use crate::embedding::Lane;
use crate::engine_thread::EngineHandle;
use crate::heavy::Heavy;
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::valid::Limits;

/// The model, the engine, and the limits between them and the world.
pub struct AppState {
    pub(crate) model: ServedModel,
    pub(crate) engine: EngineHandle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: ServerConfig,
    pub(crate) access: Access,
    pub(crate) corpora: Corpora,
    pub(crate) embedding_lane: Lane,
    pub(crate) heavy: Arc<Heavy>,
    pub(crate) body_memory: BodyMemory,
    pub(crate) fingerprint: String,
}

impl AppState {
    /// Puts together what has been started. `metrics` are those the engine thread was given.
    ///
    /// # Errors
    /// When `config` would refuse everything.
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

    /// Keys, and the secret that keeps the KV of tenants apart.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    pub(crate) fn limits(&self) -> Limits<'_> {
        Limits { model: &self.model.info, config: &self.config, max_choices: self.engine.max_queue() }
    }
}
