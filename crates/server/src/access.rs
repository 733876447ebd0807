//! Access control: requests that need a key, their tenants, and the routes reserved for administrators.

use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, HeaderName};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::paths::{HEALTH_PATHS, METRICS_PATH};
use crate::scope::ScopeSecret;
use crate::tenants::{Caller, KeyError, Tenants};

/// Header in which clients of Anthropic's API send their key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Access control of requests, and the secret that separates tenants' KV.
pub struct Access {
    /// Replaced as a whole when keys are reloaded. Locked for a clone, never across an `await`.
    tenants: RwLock<Arc<Tenants>>,
    /// Key of all scope hashes.
    pub(crate) secret: ScopeSecret,
}

/// Result of reloading keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// Number of keys accepted from now on.
    pub num_keys: usize,
    /// Tenants whose quota differs from the one that the engine was started with: it changes at the next start.
    pub other_quotas: Vec<String>,
}

/// Reason why keys are not replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// The server was started without keys.
    #[error("the daemon was started without a file of keys")]
    NoKeys,
}

impl Access {
    /// Creates access without keys, with a secret of this process.
    #[must_use]
    pub fn open() -> Self {
        Self::new(Tenants::open(), ScopeSecret::random())
    }

    /// Creates access for `tenants`.
    #[must_use]
    pub fn new(tenants: Tenants, secret: ScopeSecret) -> Self {
        Self { tenants: RwLock::new(Arc::new(tenants)), secret }
    }

    /// Returns the current tenants.
    #[must_use]
    pub fn tenants(&self) -> Arc<Tenants> {
        Arc::clone(&self.tenants.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the accepted keys by those of `next`. Running requests continue.
    ///
    /// # Errors
    /// If no keys were needed so far: then all cached KV belongs to every client.
    pub fn replace(&self, next: Tenants) -> Result<Reload, ReloadError> {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if tenants.is_open() || next.is_open() {
            return Err(ReloadError::NoKeys);
        }
        let next = tenants.with_keys_of(next);
        let reload = Reload { num_keys: next.num_keys(), other_quotas: next.other_quotas() };
        *tenants = Arc::new(next);
        Ok(reload)
    }

    /// True if requests need no key.
    pub(crate) fn is_open(&self) -> bool {
        self.tenants().is_open()
    }
}

/// True if `path` needs no key. All paths but health checks and metrics need one, including paths without a route.
fn is_open_path(path: &str) -> bool {
    HEALTH_PATHS.contains(&path) || path == METRICS_PATH
}

/// Check of the keys of requests.
#[derive(Clone)]
pub(crate) struct KeyCheck {
    pub(crate) access: Arc<Access>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Passes a request on, with its [`Caller`], if it needs no key or has a valid one.
pub(crate) async fn check_key(State(check): State<KeyCheck>, mut request: Request, next: Next) -> Response {
    if is_open_path(request.uri().path()) {
        return next.run(request).await;
    }
    match check.access.tenants().authenticate(key_of(&request)) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => {
            check.metrics.http.count_refused_key(error);
            ApiError::Unauthorized { is_missing: error == KeyError::Missing }.into_response()
        }
    }
}

/// Returns the key of a request. `Authorization` wins over `x-api-key`.
fn key_of(request: &Request) -> Option<&str> {
    bearer(request).or_else(|| request.headers().get(API_KEY)?.to_str().ok().map(str::trim))
}

/// Returns the key in `Authorization`. The scheme's name is case-insensitive (RFC 9110, section 11.1).
fn bearer(request: &Request) -> Option<&str> {
    let (scheme, key) = request.headers().get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(parts.extensions.get::<Self>().expect("every path but the open ones has passed the door").clone())
    }
}

/// Proof that the caller's key has `admin = true`.
pub(crate) struct Admin;

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        match caller.is_admin {
            true => Ok(Self),
            false => Err(ApiError::Forbidden { method: parts.method.to_string(), path: parts.uri.path().to_owned() }),
        }
    }
}
