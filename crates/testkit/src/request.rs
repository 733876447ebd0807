//! Builder of requests with defaults.

use engine::{Request, SamplingParams};
use tokens::{Borders, RequestId, Scope, SessionId, SharingMode, TenantId, Timestamp, TokenId, TokenRange};

/// Request under construction: greedy, 4 tokens, prefix sharing, stored, in scope 0, arrived at time 0.
#[derive(Clone, Debug)]
pub struct RequestBuilder(Request);

impl RequestBuilder {
    /// Starts request `id` for `prompt`.
    #[must_use]
    pub fn new(id: u64, prompt: &[TokenId]) -> Self {
        Self(Request {
            request_id: RequestId(id),
            prompt_token_ids: prompt.into(),
            sampling: SamplingParams::greedy(4),
            tenant: tokens::TenantId::default(),
            session: None,
            scope: Scope(0),
            readable: Vec::new(),
            sharing: SharingMode::Prefix,
            repair: engine::Repair::structural(),
            store: true,
            template: Vec::new(),
            borders: Borders::default(),
            embedding: None,
            arrival: Timestamp::default(),
        })
    }

    /// Sets the number of tokens to generate.
    #[must_use]
    pub fn max_tokens(mut self, max_tokens: u32) -> Self {
        self.0.sampling.max_tokens = max_tokens;
        self
    }

    /// Sets the sharing mode.
    #[must_use]
    pub fn sharing(mut self, sharing: SharingMode) -> Self {
        self.0.sharing = sharing;
        self
    }

    /// Sets the prompt's embedding.
    #[must_use]
    pub fn embedding(mut self, embedding: &[f32]) -> Self {
        self.0.embedding = Some(embedding.into());
        self
    }

    /// Sets the scope.
    #[must_use]
    pub fn scope(mut self, scope: u64) -> Self {
        self.0.scope = Scope(scope);
        self
    }

    /// Sets the tenant.
    #[must_use]
    pub fn tenant(mut self, tenant: u32) -> Self {
        self.0.tenant = TenantId(tenant);
        self
    }

    /// Sets the session.
    #[must_use]
    pub fn session(mut self, session: u64) -> Self {
        self.0.session = Some(SessionId(session));
        self
    }

    /// Sets further scopes it may read.
    #[must_use]
    pub fn readable(mut self, scopes: &[u64]) -> Self {
        self.0.readable = scopes.iter().copied().map(Scope).collect();
        self
    }

    /// Sets storage of its KV for later requests.
    #[must_use]
    pub fn store(mut self, store: bool) -> Self {
        self.0.store = store;
        self
    }

    /// Sets the positions of template tokens.
    #[must_use]
    pub fn template(mut self, template: Vec<TokenRange>) -> Self {
        self.0.template = template;
        self
    }

    /// Sets the starts of its segments.
    #[must_use]
    pub fn segments(mut self, segments: Vec<u32>) -> Self {
        self.0.borders = segments.into();
        self
    }

    /// Sets the arrival time.
    #[must_use]
    pub fn arrival_micros(mut self, micros: u64) -> Self {
        self.0.arrival = Timestamp::from_micros(micros);
        self
    }

    /// Changes its sampling parameters.
    #[must_use]
    pub fn sampling(mut self, change: impl FnOnce(&mut SamplingParams)) -> Self {
        change(&mut self.0.sampling);
        self
    }

    /// Returns the request.
    #[must_use]
    pub fn build(self) -> Request {
        self.0
    }
}
