//! State that all request handlers share.

use std::sync::Arc;

use axum::extract::FromRef;

use crate::access::Access;
use crate::answer::Generator;
use crate::body::BodyReader;
use crate::config::{ServerConfig, ServerConfigError};
use crate::corpora::Corpora;
use crate::embedding::EmbeddingQueue;
use crate::encode::Encoder;
use crate::engine_thread::EngineHandle;
use crate::grammars::Grammars;
use crate::heavy::Heavy;
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::requests::RequestBuilder;
use crate::responses::ResponseStore;
use crate::text_embedding::{EmbeddingLane, TextEmbeddings};
use crate::valid::Limits;

/// Model, engine, access control and limits of the server.
pub struct AppState {
    pub(crate) model: ServedModel,
    pub(crate) engine: EngineHandle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: ServerConfig,
    pub(crate) access: Arc<Access>,
    pub(crate) corpora: Corpora,
    pub(crate) embeddings: EmbeddingQueue,
    pub(crate) texts: Option<Arc<EmbeddingLane>>,
    pub(crate) heavy: Arc<Heavy>,
    pub(crate) grammars: Grammars,
    pub(crate) bodies: BodyReader,
    pub(crate) responses: Arc<ResponseStore>,
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
        let (corpora, heavy): (_, Arc<Heavy>) = Default::default();
        let embeddings = EmbeddingQueue::new(model.embedder.clone());
        let texts = model.texts.clone().map(|embedder| EmbeddingLane::new(embedder, engine.max_queue()));
        let bodies = BodyReader::new(&config, &model.info, Arc::clone(&heavy), Arc::clone(&metrics));
        let (access, grammars) = (Arc::new(access), Grammars::new(&model.tokenizer));
        let responses = Arc::new(ResponseStore::new(config.max_responses, config.max_response_bytes));
        Ok(Arc::new(Self {
            model,
            engine,
            metrics,
            config,
            access,
            corpora,
            embeddings,
            texts,
            heavy,
            grammars,
            bodies,
            responses,
            fingerprint,
        }))
    }

    /// Returns the access control, with the secret that separates tenants' KV.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.access
    }

    pub(crate) fn limits(&self) -> Limits<'_> {
        Limits { model: &self.model.info, config: &self.config, max_choices: self.engine.max_queue() }
    }

    pub(crate) fn encoder(&self) -> Encoder<'_> {
        Encoder { model: &self.model, heavy: &self.heavy }
    }

    pub(crate) fn requests(&self) -> RequestBuilder<'_> {
        RequestBuilder {
            model: &self.model.info,
            engine: &self.engine,
            secret: &self.access.secret,
            corpora: &self.corpora,
            fingerprint: &self.fingerprint,
        }
    }

    pub(crate) fn text_embeddings(&self) -> TextEmbeddings<'_> {
        TextEmbeddings { lane: self.texts.as_ref(), engine: &self.engine, heavy: &self.heavy, metrics: &self.metrics }
    }

    pub(crate) fn generator(&self) -> Generator<'_> {
        Generator {
            encoder: self.encoder(),
            requests: self.requests(),
            embeddings: &self.embeddings,
            engine: &self.engine,
            metrics: &self.metrics,
            grammars: &self.grammars,
        }
    }
}

impl FromRef<Arc<AppState>> for BodyReader {
    fn from_ref(app: &Arc<AppState>) -> Self {
        app.bodies.clone()
    }
}
