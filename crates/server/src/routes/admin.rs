//! Endpoints for administrators: listing and erasing the donors of all tenants, and public corpora.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use engine::{DonorInfo, Erase};
use protocol::{Corpus, CorpusList, CorpusRequest, Donor, DonorList, Erased, TemplateFields};
use serde::Deserialize;
use tokens::{DonorId, TenantId, Timestamp};

use super::kv::erase;
use super::path::PathText;
use super::query::QueryOf;
use crate::access::Admin;
use crate::answer::{fits, run_alone, submit_error};
use crate::body::{Body, shortened};
use crate::encode::{EncodeOptions, Encoded};
use crate::error::ApiError;
use crate::scope::{corpus_session, session_of};
use crate::state::AppState;
use crate::tenants::{PUBLIC, is_name};
use crate::valid::{PromptSource, valid_conversation};

/// Filter and page of a donor list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DonorQuery {
    /// Only donors of this tenant.
    tenant: Option<String>,
    /// Maximum number of donors.
    limit: Option<String>,
    /// Only donors with a higher id.
    after: Option<String>,
}

/// Default number of donors per page.
const DEFAULT_PAGE: usize = 100;
/// Maximum donors per page: each one's blocks are looked up between two steps. Chosen.
const MAX_PAGE: usize = 1000;

/// `GET /admin/donors`.
pub(super) async fn donors(
    State(app): State<Arc<AppState>>,
    _: Admin,
    QueryOf(query): QueryOf<DonorQuery>,
) -> Result<Json<DonorList>, ApiError> {
    let tenant = query.tenant.map(|name| find_tenant(&app, &name)).transpose()?;
    let limit = query.limit.map_or(Ok(DEFAULT_PAGE), |text| match text.parse() {
        Ok(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        _ => {
            Err(ApiError::param("limit", format!("`limit` must be an integer from 1 to {MAX_PAGE}, not `{}`", shortened(&text))))
        }
    })?;
    let after = query.after.map(|text| match text.parse() {
        Ok(id) => Ok(DonorId(id)),
        Err(_) => Err(ApiError::param("after", format!("`after` must be the id of a donor, not `{}`", shortened(&text)))),
    });
    let page = donor_page(&app, tenant, after.transpose()?, limit).await?;
    let now = app.engine.now();
    let data = page.found.iter().map(|donor| describe(&app, donor, now)).collect();
    Ok(Json(DonorList { object: "list".to_owned(), data, has_more: page.has_more }))
}

struct DonorPage {
    found: Vec<DonorInfo>,
    has_more: bool,
}

/// Returns the first `limit` donors of `tenant`, or of all, after `after`. The engine lists the donors of all tenants, a page at a time.
async fn donor_page(
    app: &AppState,
    tenant: Option<TenantId>,
    mut after: Option<DonorId>,
    limit: usize,
) -> Result<DonorPage, ApiError> {
    let mut found = Vec::new();
    // One extra donor shows if there are more; the share of one tenant in a page is unknown.
    let page_len = if tenant.is_none() { limit + 1 } else { MAX_PAGE };
    loop {
        let page = app.engine.donors(after, page_len).await.map_err(|error| submit_error(&app.engine, &app.metrics, error))?;
        let is_last = page.len() < page_len;
        after = page.last().map(|donor| donor.id);
        found.extend(page.into_iter().filter(|donor| tenant.is_none_or(|tenant| donor.tenant == tenant)));
        if is_last || found.len() > limit {
            let has_more = found.len() > limit;
            found.truncate(limit);
            return Ok(DonorPage { found, has_more });
        }
    }
}

fn describe(app: &AppState, donor: &DonorInfo, now: Timestamp) -> Donor {
    Donor {
        id: donor.id.0,
        object: "kv.donor".to_owned(),
        tenant: app.access.tenants().name(donor.tenant).map(str::to_owned),
        tokens: donor.num_tokens,
        resident_tokens: donor.num_resident_tokens,
        hits: donor.hits,
        age_seconds: now.since(donor.created).as_secs_f64(),
        idle_seconds: now.since(donor.last_used).as_secs_f64(),
    }
}

/// `DELETE /admin/donors/{id}`.
pub(super) async fn erase_donor(
    State(app): State<Arc<AppState>>,
    _: Admin,
    PathText(id): PathText,
) -> Result<Json<Erased>, ApiError> {
    let id = id.parse().map_err(|_| ApiError::param("id", "the id of a donor is a number"))?;
    let Json(erased) = erase(&app, Erase::Donor(DonorId(id))).await?;
    match erased.donors {
        0 => Err(ApiError::NotFound { what: "donor", name: id.to_string() }),
        _ => Ok(Json(erased)),
    }
}

/// `DELETE /admin/tenants/{name}/cache`.
pub(super) async fn erase_tenant(
    State(app): State<Arc<AppState>>,
    _: Admin,
    PathText(name): PathText,
) -> Result<Json<Erased>, ApiError> {
    let tenant = find_tenant(&app, &name)?;
    erase(&app, Erase::Tenant(tenant)).await
}

/// Tenant of a session.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SessionQuery {
    /// Name of the tenant; optional if there is only one tenant.
    tenant: Option<String>,
}

/// `DELETE /admin/sessions/{id}/cache`.
pub(super) async fn erase_session(
    State(app): State<Arc<AppState>>,
    _: Admin,
    PathText(session): PathText,
    QueryOf(SessionQuery { tenant }): QueryOf<SessionQuery>,
) -> Result<Json<Erased>, ApiError> {
    let tenants = app.access.tenants();
    let name = match (tenant, tenants.only()) {
        (Some(name), _) => name,
        (None, Some(only)) => only.to_owned(),
        (None, None) => return Err(ApiError::param("tenant", "sessions are named by their tenants: say whose it is")),
    };
    let tenant = find_tenant(&app, &name)?;
    erase(&app, Erase::Session(tenant, session_of(&app.access.secret, &name, &session))).await
}

fn find_tenant(app: &AppState, name: &str) -> Result<TenantId, ApiError> {
    app.access.tenants().find(name).ok_or_else(|| ApiError::NotFound { what: "tenant", name: name.to_owned() })
}

/// `GET /admin/corpora`.
pub(super) async fn corpora(State(app): State<Arc<AppState>>, _: Admin) -> Json<CorpusList> {
    Json(app.corpora.list())
}

/// `POST /admin/corpora`: computes a public text without preceding context. Responds when it can be reused.
pub(super) async fn add_corpus(State(app): State<Arc<AppState>>, _: Admin, mut body: Body) -> Result<Json<Corpus>, ApiError> {
    let arrival = app.engine.now();
    let CorpusRequest { name, text, messages } = body.parse().await?;
    let name = name.ok_or_else(|| ApiError::param("name", "you must provide a name"))?;
    if !is_name(&name) {
        return Err(ApiError::param("name", "a name has 1 to 64 letters, digits, `-`, `_` or `.`"));
    }
    app.corpora.has_room_for(&name)?;
    let source = match (text, messages) {
        (Some(text), None) => PromptSource::Text(text),
        (None, Some(messages)) => {
            PromptSource::Chat(valid_conversation(Some(messages), TemplateFields::default(), app.model.info.forms)?)
        }
        _ => return Err(ApiError::param("text", "you must provide either `text` or `messages`")),
    };
    let prompt = encode_corpus(&app, source).await?;
    drop(body);
    let request = app.requests().of_corpus(&name, &prompt, arrival)?;
    fits(&app.engine, &request)?;
    run_alone(&app.engine, &app.metrics, request).await?;
    let corpus = app.corpora.add(&name, prompt.token_ids.len());
    app.metrics.kv.set_corpora(app.corpora.len());
    tracing::info!(corpus = name, num_tokens = prompt.token_ids.len(), "registered");
    Ok(Json(corpus))
}

async fn encode_corpus(app: &AppState, source: PromptSource) -> Result<Encoded, ApiError> {
    let options = EncodeOptions { segments: tokenizer::SegmentRule::Text, normalize: false, echo: false, embeds: true };
    let mut prompts = app.encoder().encode_all(vec![source], options).await?;
    let mut prompt = prompts.pop().expect("one prompt was given");
    prompt.embed_slowly(&app.embeddings).await;
    Ok(prompt)
}

/// `DELETE /admin/corpora/{name}`.
pub(super) async fn erase_corpus(
    State(app): State<Arc<AppState>>,
    _: Admin,
    PathText(name): PathText,
) -> Result<Json<Erased>, ApiError> {
    if !app.corpora.remove(&name) {
        return Err(ApiError::NotFound { what: "corpus", name });
    }
    app.metrics.kv.set_corpora(app.corpora.len());
    erase(&app, Erase::Session(PUBLIC, corpus_session(&app.access.secret, &name))).await
}
