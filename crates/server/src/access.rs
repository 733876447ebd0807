//! The door: which requests need a key, whose they are, and what only an administrator may ask.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::scope::ScopeSecret;
use crate::state::AppState;
use crate::tenants::{Caller, KeyError, Tenants};

/// Who may ask, and what keeps their KV apart.
pub struct Access {
    /// The keys.
    pub tenants: Tenants,
    /// The key of all scopes.
    pub secret: ScopeSecret,
}

impl Access {
    /// Nobody needs a key, and the secret is this process's own.
    #[must_use]
    pub fn open() -> Self {
        Self { tenants: Tenants::open(), secret: ScopeSecret::random() }
    }
}

/// Paths that need no key: what load balancers and Prometheus look at. Everything else does, also what is not routed.
const OPEN_PATHS: [&str; 4] = ["/health", "/health/live", "/health/ready", "/metrics"];

/// Lets a request through that needs no key or has a good one, with its [`Caller`].
pub(crate) async fn check_key(State(app): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    if OPEN_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match app.access.tenants.authenticate(bearer(&request)) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => {
            app.metrics.http.count_refused_key(error);
            ApiError::Unauthorized { is_missing: error == KeyError::Missing }.into_response()
        }
    }
}

/// The key of a request. The scheme's name has no case (RFC 9110, section 11.1).
fn bearer(request: &Request) -> Option<&str> {
    let (scheme, key) = request.headers().get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

impl FromRequestParts<Arc<AppState>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<AppState>) -> Result<Self, ApiError> {
        Ok(parts.extensions.get::<Self>().expect("every path but the open ones has passed the door").clone())
    }
}

/// Proof that the caller's key has `admin = true`.
pub(crate) struct Admin;

impl FromRequestParts<Arc<AppState>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<AppState>) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        match caller.is_admin {
            true => Ok(Self),
            false => Err(ApiError::Forbidden { method: parts.method.to_string(), path: parts.uri.path().to_owned() }),
        }
    }
}
