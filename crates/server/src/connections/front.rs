//! Handler in front of the router: it checks if the model is loaded and if there are too many connections.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Method, Request, Response, Version, header};
use axum::response::IntoResponse;
use hyper::body::{Frame, Incoming, SizeHint};
use serde_json::json;
use tower::ServiceExt;

use super::slots::{Answering, Overload};
use crate::error::ApiError;
use crate::messages::{in_its_shape, is_messages_path};
use crate::metrics::ShedReason;
use crate::paths::HEALTH_PATHS;
use crate::routes::router;
use crate::state::AppState;

/// Handler of the requests of all connections. Clones share their state.
#[derive(Clone, Default)]
pub(super) struct Front {
    opened: Arc<OnceLock<Opened>>,
}

struct Opened {
    app: Arc<AppState>,
    router: Router,
}

impl Front {
    /// Starts serving with the loaded model.
    pub(super) fn open(&self, app: &Arc<AppState>) {
        // A second call would be a bug; the first model stays in service.
        let _ = self.opened.set(Opened { app: Arc::clone(app), router: router(Arc::clone(app)) });
    }

    /// Answers one request of a connection that was accepted with `overload`.
    pub(super) async fn answer(
        self,
        request: Request<Incoming>,
        overload: Option<Overload>,
        answering: Answering,
    ) -> Result<Response<Body>, Infallible> {
        if request.body().is_end_stream() {
            answering.begin();
        }
        let is_of_messages = is_messages_path(request.uri().path());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(answering.clone());
        let response = match (overload, self.opened.get()) {
            _ if has_ambiguous_host(&request) => no_host(),
            (Some(overload), opened) if !is_health_check(&request) => too_many(overload, opened),
            (_, Some(opened)) => match opened.router.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            (_, None) => loading(&request),
        };
        answering.begin();
        let response = if is_of_messages { in_its_shape(response, None) } else { response };
        Ok(response.map(|body| Body::new(Watched { body, answering })))
    }
}

/// True if a request does not specify its host exactly once, as HTTP/1.1 requires (RFC 9112, section 3.2).
fn has_ambiguous_host(request: &Request<Body>) -> bool {
    request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1
}

fn no_host() -> Response<Body> {
    closing(ApiError::Invalid { param: None, message: "an HTTP/1.1 request has one `Host` header".to_owned() })
}

/// Builds the answer after which the connection closes.
fn closing(error: ApiError) -> Response<Body> {
    let mut response = error.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn is_health_check(request: &Request<Body>) -> bool {
    HEALTH_PATHS.contains(&request.uri().path())
}

/// Builds the answer while no model is loaded: the process is alive but accepts no requests.
fn loading(request: &Request<Body>) -> Response<Body> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/health/live" if is_read => axum::Json(json!({"status": "ok"})).into_response(),
        _ => ApiError::Loading.into_response(),
    }
}

fn too_many(overload: Overload, opened: Option<&Opened>) -> Response<Body> {
    if let Some(opened) = opened {
        opened.app.metrics.http.count_shed(ShedReason::Connections);
    }
    closing(ApiError::TooManyConnections { overload })
}

/// Body of an answer. Dropping it, sent or not, marks its connection as waiting for its client again.
struct Watched {
    body: Body,
    answering: Answering,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.answering.end();
    }
}
