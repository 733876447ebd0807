//! Endpoints about the daemon itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use protocol::{ModelCard, ModelList};
use serde_json::{Value, json};

use super::path::PathText;
use crate::engine_thread::Phase;
use crate::error::ApiError;
use crate::model::ModelInfo;
use crate::openapi;
use crate::state::AppState;

/// `GET /v1/models`.
pub(super) async fn models(State(app): State<Arc<AppState>>) -> Json<ModelList> {
    let info = &app.model.info;
    let data = info.names().map(|name| card(name, info)).chain(embedder_card(&app)).collect();
    Json(ModelList { object: "list".to_owned(), data })
}

/// `GET /v1/models/{id}`. Names may contain slashes.
pub(super) async fn model(State(app): State<Arc<AppState>>, PathText(name): PathText) -> Result<Json<ModelCard>, ApiError> {
    let info = &app.model.info;
    if info.is_called(&name) {
        return Ok(Json(card(&name, info)));
    }
    match embedder_card(&app).filter(|card| card.id == name) {
        Some(card) => Ok(Json(card)),
        None => Err(ApiError::ModelNotFound { model: name }),
    }
}

/// Describes the model that embeds texts, unless it has a name of the one that generates.
fn embedder_card(app: &AppState) -> Option<ModelCard> {
    let (info, embedder) = (&app.model.info, app.model.texts.as_ref()?);
    let max_model_len = u32::try_from(embedder.max_tokens()).unwrap_or(u32::MAX);
    let id = embedder.id().to_owned();
    (!info.is_called(&id)).then(|| ModelCard { root: id.clone(), max_model_len, ..card(&id, info) })
}

fn card(name: &str, info: &ModelInfo) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model".to_owned(),
        created: info.created,
        owned_by: "kvshare".to_owned(),
        root: info.id.clone(),
        max_model_len: info.max_model_len,
    }
}

/// `GET /health` and `GET /health/ready`: succeeds while requests are accepted.
pub(super) async fn ready(State(app): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    match app.engine.phase() {
        Phase::Running => Ok(Json(json!({"status": "ok"}))),
        Phase::Draining | Phase::Stopped => Err(ApiError::Draining),
        Phase::Failed => Err(ApiError::Unavailable),
    }
}

/// `GET /health/live`: fails if a restart would help.
pub(super) async fn live(State(app): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    match app.engine.phase() {
        Phase::Running | Phase::Draining | Phase::Stopped => Ok(Json(json!({"status": "ok"}))),
        Phase::Failed => Err(ApiError::Unavailable),
    }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<AppState>>) -> Response {
    let is_ready = app.engine.phase() == Phase::Running;
    let text = app.metrics.render(&app.engine.stats(), is_ready, app.engine.now());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// `GET /version`.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /load`.
pub(super) async fn load(State(app): State<Arc<AppState>>) -> Json<Value> {
    let stats = app.engine.stats();
    Json(json!({
        "server_load": app.engine.num_in_flight(),
        "num_requests_running": stats.num_running - stats.num_comparing,
        "num_requests_waiting": stats.num_waiting,
    }))
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Json<Value> {
    Json(openapi::document())
}
