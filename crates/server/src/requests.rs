//! Conversion of a valid request and its tokens into engine requests.

use std::sync::Arc;

use engine::{Repair, Request, SamplingParams};
use tokens::{Scope, SharingMode, Timestamp};

use crate::corpora::Corpora;
use crate::encode::Encoded;
use crate::engine_thread::EngineHandle;
use crate::error::ApiError;
use crate::model::ModelInfo;
use crate::scope::{Owner, ScopeInputs, ScopeSecret, corpus_session, scope_of, session_of};
use crate::tenants::{Caller, PUBLIC};
use crate::valid::ValidRequest;

/// Builder of engine requests.
#[derive(Clone, Copy)]
pub(crate) struct RequestBuilder<'a> {
    pub(crate) model: &'a ModelInfo,
    pub(crate) engine: &'a EngineHandle,
    pub(crate) secret: &'a ScopeSecret,
    pub(crate) corpora: &'a Corpora,
    /// Hash of everything that determines the KV of a prompt.
    pub(crate) fingerprint: &'a str,
}

impl RequestBuilder<'_> {
    /// Builds the engine request of `caller` for one of its prompts and the first of its answers.
    pub(crate) fn of_caller(
        self,
        caller: &Caller,
        request: &ValidRequest,
        prompt: &Encoded,
        arrival: Timestamp,
    ) -> Result<Request, ApiError> {
        let (prompt_tokens, max_model_len) = (prompt.token_ids.len(), self.model.max_model_len);
        let max_tokens = request.max_tokens.fit_context(prompt_tokens, max_model_len, prompt.param)?;
        let max_tokens =
            request.max_tokens.clamp_to_pool(max_tokens, self.engine.most_tokens(caller.tenant).saturating_sub(prompt_tokens));
        let sharing = &request.sharing;
        Ok(Request {
            request_id: self.engine.next_request_id(),
            prompt_token_ids: Arc::clone(&prompt.token_ids),
            sampling: SamplingParams {
                max_tokens,
                min_tokens: request.sampling.min_tokens.min(max_tokens),
                ..request.sampling.clone()
            },
            tenant: caller.tenant,
            scope: self.scope(Owner::Tenant(&caller.name), request.cache_salt.as_deref()),
            session: sharing.session.as_ref().map(|session| session_of(self.secret, &caller.name, session)),
            readable: self.readable_scopes(caller),
            sharing: sharing.mode,
            repair: sharing.bounded_repair(),
            store: sharing.store,
            template: prompt.template.clone(),
            borders: prompt.borders.clone(),
            embedding: prompt.embedding.clone(),
            arrival,
        })
    }

    /// Builds the clean-room computation of a public text: it reads no cached KV, and its KV belongs to the corpus.
    pub(crate) fn of_corpus(self, corpus: &str, prompt: &Encoded, arrival: Timestamp) -> Result<Request, ApiError> {
        let num_tokens = prompt.token_ids.len();
        if num_tokens >= self.model.max_model_len as usize {
            let max_model_len = self.model.max_model_len as usize;
            return Err(ApiError::ContextLengthExceeded {
                param: prompt.param,
                max_model_len,
                prompt_tokens: num_tokens,
                max_tokens: 1,
                is_counted: true,
            });
        }
        Ok(Request {
            request_id: self.engine.next_request_id(),
            prompt_token_ids: Arc::clone(&prompt.token_ids),
            sampling: SamplingParams::greedy(1),
            tenant: PUBLIC,
            scope: self.scope(Owner::Corpus(corpus), None),
            session: Some(corpus_session(self.secret, corpus)),
            readable: Vec::new(),
            sharing: SharingMode::Off,
            repair: Repair::structural(),
            store: true,
            template: prompt.template.clone(),
            borders: prompt.borders.clone(),
            embedding: prompt.embedding.clone(),
            arrival,
        })
    }

    /// Returns the scopes of the public corpora that `caller` may read.
    fn readable_scopes(self, caller: &Caller) -> Vec<Scope> {
        let names = self.corpora.readable(&caller.reads);
        names.iter().map(|name| self.scope(Owner::Corpus(name), None)).collect()
    }

    fn scope(self, owner: Owner<'_>, cache_salt: Option<&str>) -> Scope {
        scope_of(self.secret, ScopeInputs { owner, epoch: self.fingerprint, cache_salt })
    }
}
