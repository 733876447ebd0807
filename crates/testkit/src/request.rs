//! Requests with everything by default.

use engine::{KvSharingMode, Request, SamplingParams};
use tokens::{Borders, RequestId, Scope, SessionId, TenantId, Timestamp, TokenId, TokenRange};

/// A request under construction: greedy, 4 tokens, prefix sharing, stored, in scope 0, arrived at time 0.
#[derive(Clone, Debug)]
pub struct RequestBuilder(Request);

impl RequestBuilder {
    /// Request `id` for `prompt`.
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
            sharing: KvSharingMode::Prefix,
            repair: engine::Repair::structural(),
            store: true,
            template: Vec::new(),
            borders: Borders::default(),
            embedding: None,
            arrival: Timestamp::default(),
        })
    }

    /// Tokens to generate.
    #[must_use]
    pub fn max_tokens(mut self, max_tokens: u32) -> Self {
        self.0.sampling.max_tokens = max_tokens;
        self
    }

    /// What it may reuse.
    #[must_use]
    pub fn sharing(mut self, sharing: KvSharingMode) -> Self {
        self.0.sharing = sharing;
        self
    }

    /// What it means.
    #[must_use]
    pub fn embedding(mut self, embedding: &[f32]) -> Self {
        self.0.embedding = Some(embedding.into());
        self
    }

    /// Its scope.
    #[must_use]
    pub fn scope(mut self, scope: u64) -> Self {
        self.0.scope = Scope(scope);
        self
    }

    /// Whose it is.
    #[must_use]
    pub fn tenant(mut self, tenant: u32) -> Self {
        self.0.tenant = TenantId(tenant);
        self
    }

    /// The conversation it belongs to.
    #[must_use]
    pub fn session(mut self, session: u64) -> Self {
        self.0.session = Some(SessionId(session));
        self
    }

    /// Further scopes it may read.
    #[must_use]
    pub fn readable(mut self, scopes: &[u64]) -> Self {
        self.0.readable = scopes.iter().copied().map(Scope).collect();
        self
    }

    /// Whether it leaves KV behind.
    #[must_use]
    pub fn store(mut self, store: bool) -> Self {
        self.0.store = store;
        self
    }

    /// Positions of template tokens.
    #[must_use]
    pub fn template(mut self, template: Vec<TokenRange>) -> Self {
        self.0.template = template;
        self
    }

    /// Where its segments begin.
    #[must_use]
    pub fn segments(mut self, segments: Vec<u32>) -> Self {
        self.0.borders = segments.into();
        self
    }

    /// When it arrived.
    #[must_use]
    pub fn arrival_micros(mut self, micros: u64) -> Self {
        self.0.arrival = Timestamp::from_micros(micros);
        self
    }

    /// Changes how it samples.
    #[must_use]
    pub fn sampling(mut self, change: impl FnOnce(&mut SamplingParams)) -> Self {
        change(&mut self.0.sampling);
        self
    }

    /// The request.
    #[must_use]
    pub fn build(self) -> Request {
        self.0
    }
}
