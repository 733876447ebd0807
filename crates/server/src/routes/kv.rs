//! Endpoints for a tenant's own KV.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use engine::Erase;
use protocol::{Erased, Explanation, TrafficClassList};
use serde::Deserialize;

use super::query::QueryOf;
use crate::answer::{fits, submit_error};
use crate::body::Body;
use crate::encode::EncodeOptions;
use crate::error::ApiError;
use crate::explain::{explanation, traffic_class};
use crate::scope::session_of;
use crate::state::AppState;
use crate::tenants::Caller;
use crate::valid::{ValidRequest, valid_session};

/// `POST /v1/kv/explain`: predicts the reuse of a chat or completion request without running it.
pub(super) async fn explain(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    mut body: Body,
) -> Result<Json<Explanation>, ApiError> {
    let arrival = app.engine.now();
    let mut request = match body.parse_either("messages").await? {
        Ok(chat) => ValidRequest::from_chat(chat, app.limits())?,
        Err(completion) => ValidRequest::from_completion(completion, app.limits())?,
    };
    if request.prompts.len() > 1 {
        return Err(ApiError::param("prompt", "only one prompt can be explained at a time"));
    }
    let embeds = request.sharing.mode == tokens::SharingMode::Semantic;
    let options =
        EncodeOptions { segments: request.sharing.segments.clone(), normalize: request.sharing.normalize, echo: false, embeds };
    let mut prompts = app.encoder().encode_all(std::mem::take(&mut request.prompts), options).await?;
    drop(body);
    let prompt = prompts.first_mut().expect("a valid request has a prompt");
    if embeds {
        prompt.embed_slowly(&app.embeddings).await;
    }
    let prompt = &*prompt;
    let wanted = app.requests().of_caller(&caller, &request, prompt, arrival)?;
    fits(&app.engine, &wanted)?;
    let found = app.engine.explain(wanted).await.map_err(|error| submit_error(&app.engine, &app.metrics, error))?;
    app.metrics.kv.count_explanation(&found);
    Ok(Json(explanation(request, prompt, found)))
}

/// `GET /v1/kv/classes`: lists the classes of the caller's traffic in mode `auto`.
pub(super) async fn classes(State(app): State<Arc<AppState>>, caller: Caller) -> Result<Json<TrafficClassList>, ApiError> {
    let found = app.engine.traffic(caller.tenant).await.map_err(|error| submit_error(&app.engine, &app.metrics, error))?;
    let data = found.iter().map(|(class, quality)| traffic_class(class, quality)).collect();
    Ok(Json(TrafficClassList { object: "list".to_owned(), data }))
}

/// Part of the caller's cache to erase.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OwnCache {
    /// Only the KV that requests of this session stored.
    session: Option<String>,
}

/// `DELETE /v1/kv/cache`: erases the KV that the caller's requests stored.
pub(super) async fn erase_own(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    QueryOf(OwnCache { session }): QueryOf<OwnCache>,
) -> Result<Json<Erased>, ApiError> {
    let what = match valid_session("session", session)? {
        Some(session) => Erase::Session(caller.tenant, session_of(&app.access.secret, &caller.name, &session)),
        None => Erase::Tenant(caller.tenant),
    };
    erase(&app, what).await
}

/// Erases `what` in the engine, and the stored responses that belong to it.
pub(super) async fn erase(app: &AppState, what: Erase) -> Result<Json<Erased>, ApiError> {
    app.responses.erase(what);
    let counts = app.engine.erase(what).await.map_err(|error| submit_error(&app.engine, &app.metrics, error))?;
    app.metrics.kv.count_erased(what, counts);
    tracing::info!(kind = crate::metrics::erased_kind(what), num_donors = counts.donors, num_blocks = counts.blocks, "erased");
    Ok(Json(Erased { donors: counts.donors, blocks: counts.blocks }))
}
