//! OpenAI's `/v1/responses`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use protocol::{DeletedResponse, InputItem, InputItemList, ResponseRequest};
use serde::Deserialize;

use super::completions::{begin, send_events};
use super::path::PathText;
use super::query::QueryOf;
use crate::answer::{AnswerHead, whole_chat};
use crate::body::{Body, shortened};
use crate::error::ApiError;
use crate::responses::{
    Origin, References, ResponseOwner, ResponseWriter, Translated, Turn, in_terms_of_responses, translate, whole_response,
};
use crate::scope::session_of;
use crate::state::AppState;
use crate::tenants::Caller;
use crate::valid::ValidRequest;

/// Maximum bytes of a conversation that is translated in place.
const MAX_INLINE_BYTES: usize = 16 << 10;
/// Default and maximum items of a page, as in OpenAI's API.
const DEFAULT_PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// `POST /v1/responses`.
pub(super) async fn create(State(app): State<Arc<AppState>>, caller: Caller, mut body: Body) -> Result<Response, ApiError> {
    let arrival = app.engine.now();
    let request = body.parse::<ResponseRequest>().await?;
    let mut head = AnswerHead::new("resp", String::new(), app.fingerprint.clone());
    head.id = head.id.replacen('-', "_", 1);
    let Translated { chat, mut object, input } = translated(&app, &caller, request, &head, body.num_bytes()).await?;
    let request = ValidRequest::from_chat(chat, app.limits()).map_err(in_terms_of_responses)?;
    object.model.clone_from(&request.model);
    head.model.clone_from(&request.model);
    let session = request.sharing.session.as_deref().map(|name| session_of(&app.access.secret, &caller.name, name));
    let (stream, generation) = begin(&app, &caller, request, &head, arrival).await.map_err(in_terms_of_responses)?;
    drop(body);
    let owner = ResponseOwner { tenant: caller.tenant, session };
    let previous = object.previous_response_id.as_deref();
    let pending = object.store.then(|| app.responses.begin(&object.id, owner, previous, &input));
    drop(input);
    let tokenizer = Arc::clone(&app.model.tokenizer);
    if stream.is_some() {
        return send_events(&app, Box::new(ResponseWriter::new(object, tokenizer, pending)), generation).await;
    }
    let object = whole_response(object, whole_chat(head, generation, &tokenizer).await?);
    if let Some(pending) = pending {
        pending.keep(&object);
    }
    Ok(Json(object).into_response())
}

/// Translates `request`, a body of `num_bytes`, with the conversation that it continues.
async fn translated(
    app: &AppState,
    caller: &Caller,
    request: ResponseRequest,
    head: &AnswerHead,
    num_bytes: usize,
) -> Result<Translated, ApiError> {
    let (store, tenant, limit) = (Arc::clone(&app.responses), caller.tenant, app.config.body_limit);
    let turns = match &request.previous_response_id {
        Some(id) => store.conversation(tenant, id).map_err(|id| ApiError::PreviousResponseNotFound { id: shortened(&id) })?,
        None => vec![],
    };
    let turn_bytes = turns.iter().map(Turn::num_bytes).sum::<usize>();
    if turn_bytes > limit {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let origin = Origin { id: head.id.clone(), created_at: head.created, defaults: app.config.sampling };
    let work = move || {
        let references = References::new(&store, tenant, limit);
        let earlier = turns.iter().flat_map(Turn::items).collect();
        translate(request, earlier, &|id| references.find(id), origin)
    };
    app.heavy.run(num_bytes + turn_bytes, MAX_INLINE_BYTES, work).await
}

/// Parameters of a retrieval. Others are ignored.
#[derive(Deserialize)]
pub(super) struct RetrieveQuery {
    /// True to have the events of the response again.
    stream: Option<String>,
}

/// `GET /v1/responses/{id}`.
pub(super) async fn retrieve(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    PathText(id): PathText,
    QueryOf(RetrieveQuery { stream }): QueryOf<RetrieveQuery>,
) -> Result<Response, ApiError> {
    if stream.as_deref() == Some("true") {
        return Err(ApiError::Unsupported { param: "stream".to_owned() });
    }
    let turn = find(&app, &caller, &id)?;
    Ok(([(CONTENT_TYPE, "application/json")], turn.response.to_string()).into_response())
}

/// `DELETE /v1/responses/{id}`.
pub(super) async fn delete(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<Json<DeletedResponse>, ApiError> {
    match app.responses.delete(caller.tenant, &id) {
        true => Ok(Json(DeletedResponse { id, object: "response".to_owned(), deleted: true })),
        false => Err(not_found(&id)),
    }
}

/// Page of a list of items. Other parameters are ignored.
#[derive(Deserialize)]
pub(super) struct ItemQuery {
    /// Maximum number of items.
    limit: Option<String>,
    /// `asc` or `desc`: the latest item first, when absent too.
    order: Option<String>,
    /// Only items after this one.
    after: Option<String>,
}

/// `GET /v1/responses/{id}/input_items`.
pub(super) async fn input_items(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    PathText(id): PathText,
    QueryOf(query): QueryOf<ItemQuery>,
) -> Result<Json<InputItemList>, ApiError> {
    let turn = find(&app, &caller, &id)?;
    let num_bytes = turn.input.len();
    let items = app.heavy.run(num_bytes, MAX_INLINE_BYTES, move || turn.input_items()).await;
    Ok(Json(page_of(items, query)?))
}

fn page_of(mut items: Vec<InputItem>, query: ItemQuery) -> Result<InputItemList, ApiError> {
    let limit = query.limit.map_or(Ok(DEFAULT_PAGE), |text| match text.parse() {
        Ok(limit) if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
        _ => Err(ApiError::param("limit", format!("must be an integer from 1 to {MAX_PAGE}, not `{}`", shortened(&text)))),
    })?;
    match query.order.as_deref() {
        Some("asc") => {}
        None | Some("desc") => items.reverse(),
        Some(order) => {
            return Err(ApiError::param("order", format!("must be `asc` or `desc`, not `{}`", shortened(order))));
        }
    }
    let start = match query.after {
        Some(after) => match items.iter().position(|item| item.id.as_ref() == Some(&after)) {
            Some(idx) => idx + 1,
            None => return Err(ApiError::param("after", format!("there is no item `{}`", shortened(&after)))),
        },
        None => 0,
    };
    let has_more = items.len() > start + limit;
    let data: Vec<_> = items.into_iter().skip(start).take(limit).collect();
    let id_of = |item: Option<&InputItem>| item.and_then(|item| item.id.clone());
    Ok(InputItemList { object: "list".to_owned(), first_id: id_of(data.first()), last_id: id_of(data.last()), data, has_more })
}

/// `POST /v1/responses/{id}/cancel`: no response runs in the background.
pub(super) async fn cancel(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<Response, ApiError> {
    find(&app, &caller, &id)?;
    Err(ApiError::param("id", "only a response in the background can be cancelled: to end another one, close its connection"))
}

fn find(app: &AppState, caller: &Caller, id: &str) -> Result<Turn, ApiError> {
    app.responses.get(caller.tenant, id).ok_or_else(|| not_found(id))
}

fn not_found(id: &str) -> ApiError {
    ApiError::NotFound { what: "response", name: shortened(id) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(limit: Option<&str>, order: Option<&str>, after: Option<&str>) -> Result<(Vec<String>, bool), ApiError> {
        let items = ["a", "b", "c"].map(|id| serde_json::from_value(json!({"id": id, "role": "user"})).unwrap());
        let [limit, order, after] = [limit, order, after].map(|text| text.map(str::to_owned));
        let page = page_of(items.into(), ItemQuery { limit, order, after })?;
        let ids: Vec<_> = page.data.into_iter().map(|item| item.id.unwrap()).collect();
        assert_eq!((page.first_id.as_ref(), page.last_id.as_ref()), (ids.first(), ids.last()));
        Ok((ids, page.has_more))
    }

    #[track_caller]
    fn check(limit: Option<&str>, order: Option<&str>, after: Option<&str>, ids: &[&str], has_more: bool) {
        assert_eq!(page(limit, order, after), Ok((ids.iter().map(|id| (*id).to_owned()).collect(), has_more)));
    }

    #[test]
    fn items_are_listed_in_pages() {
        check(None, None, None, &["c", "b", "a"], false);
        check(None, Some("asc"), None, &["a", "b", "c"], false);
        check(Some("2"), Some("asc"), None, &["a", "b"], true);
        check(Some("2"), Some("asc"), Some("b"), &["c"], false);
        check(Some("1"), Some("desc"), Some("c"), &["b"], true);
        check(None, None, Some("a"), &[], false);
        for refused in [(Some("0"), None, None), (Some("101"), None, None), (None, Some("up"), None), (None, None, Some("x"))] {
            assert!(page(refused.0, refused.1, refused.2).is_err(), "{refused:?}");
        }
    }
}
