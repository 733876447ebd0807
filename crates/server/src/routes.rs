//! The routes and their common middleware.

mod admin;
mod completions;
mod embeddings;
mod info;
mod kv;
mod messages;
mod path;
mod query;
mod responses;
mod tokenize;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, Method, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};

use crate::access::{KeyCheck, check_key};
use crate::error::ApiError;
use crate::messages::{in_its_shape, is_messages_path};
use crate::metrics::Metrics;
use crate::state::AppState;
use crate::web::{PageCheck, check_page, cors};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Builds the router of all endpoints.
pub fn router(app: Arc<AppState>) -> Router {
    let (access, metrics, web) = (&app.access, &app.metrics, Arc::new(app.config.web.clone()));
    let pages = PageCheck { access: Arc::clone(access), web: Arc::clone(&web), metrics: Arc::clone(metrics) };
    let keys = KeyCheck { access: Arc::clone(access), metrics: Arc::clone(metrics) };
    let layers = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(from_fn(shape_messages))
        .layer(from_fn_with_state(Arc::clone(metrics), count_response))
        .layer(CatchPanicLayer::custom(answer_panic))
        .layer(from_fn_with_state(pages, check_page))
        .layer(cors(web, REQUEST_ID))
        .layer(from_fn_with_state(keys, check_key))
        .layer(DefaultBodyLimit::max(app.config.body_limit));
    Router::new()
        .route("/v1/chat/completions", post(completions::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/messages", post(messages::messages))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::retrieve).delete(responses::delete))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{*id}", get(info::model))
        .route("/v1/kv/explain", post(kv::explain))
        .route("/v1/kv/classes", get(kv::classes))
        .route("/v1/kv/cache", delete(kv::erase_own))
        .route("/admin/donors", get(admin::donors))
        .route("/admin/donors/{id}", delete(admin::erase_donor))
        .route("/admin/tenants/{name}/cache", delete(admin::erase_tenant))
        .route("/admin/sessions/{id}/cache", delete(admin::erase_session))
        .route("/admin/corpora", get(admin::corpora).post(admin::add_corpus))
        .route("/admin/corpora/{name}", delete(admin::erase_corpus))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/embeddings", post(embeddings::embeddings))
        .route("/v1/rerank", post(embeddings::rerank))
        .route("/rerank", post(embeddings::rerank))
        .route("/v2/rerank", post(embeddings::rerank))
        .route("/v1/score", post(embeddings::score))
        .route("/score", post(embeddings::score))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(info::ready))
        .route("/health/live", get(info::live))
        .route("/health/ready", get(info::ready))
        .route("/metrics", get(info::metrics))
        .route("/version", get(info::version))
        .route("/load", get(info::load))
        .route("/openapi.json", get(info::openapi))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(layers)
        .with_state(app)
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    ApiError::RouteNotFound { method: method.to_string(), path: uri.path().to_owned() }
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed { method: method.to_string(), path: uri.path().to_owned() }
}

async fn count_response(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    metrics.http.count_response(route.as_ref().map(MatchedPath::as_str), response.status().as_u16());
    response
}

/// Gives answers of Anthropic's endpoints the shape of its errors and the name of its header.
async fn shape_messages(request: Request, next: Next) -> Response {
    if !is_messages_path(request.uri().path()) {
        return next.run(request).await;
    }
    let id = request.headers().get(REQUEST_ID).cloned();
    in_its_shape(next.run(request).await, id)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that tower-http asks for")]
fn answer_panic(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic.downcast_ref::<&str>().map_or("no message", |text| text);
    tracing::error!(message, "a request handler panicked");
    ApiError::Internal.into_response()
}
