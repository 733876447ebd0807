//! The two endpoints of Anthropic's API.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use protocol::{MessageTokensCount, MessagesRequest};
use tower_http::request_id::RequestId;

use super::completions::{begin, send_events};
use crate::answer::{AnswerHead, whole_chat};
use crate::body::Body;
use crate::encode::EncodeOptions;
use crate::error::ApiError;
use crate::messages::{MessageWriter, message, message_id, renamed, to_chat, to_counted_chat};
use crate::state::AppState;
use crate::tenants::Caller;
use crate::valid::ValidRequest;

/// `POST /v1/messages`.
pub(super) async fn messages(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    Extension(id): Extension<RequestId>,
    body: Body,
) -> Result<Response, ApiError> {
    let id = id.header_value().to_str().ok().map(str::to_owned);
    answer(&app, &caller, id, body).await.map_err(renamed)
}

async fn answer(app: &AppState, caller: &Caller, request_id: Option<String>, mut body: Body) -> Result<Response, ApiError> {
    let arrival = app.engine.now();
    let request = to_chat(body.parse::<MessagesRequest>().await?)?;
    let request = ValidRequest::from_chat(request, app.limits())?;
    let head = AnswerHead { id: message_id(), ..AnswerHead::new("msg", request.model.clone(), app.fingerprint.clone()) };
    let (stream, generation) = begin(app, caller, request, &head, arrival).await?;
    drop(body);
    match stream {
        Some(_) => send_events(app, Box::new(MessageWriter::new(head.id, head.model, request_id)), generation).await,
        None => Ok(Json(message(whole_chat(head, generation, &app.model.tokenizer).await?)).into_response()),
    }
}

/// `POST /v1/messages/count_tokens`: counts the tokens of the prompt that the message would have.
pub(super) async fn count_tokens(State(app): State<Arc<AppState>>, mut body: Body) -> Result<Json<MessageTokensCount>, ApiError> {
    let request = to_counted_chat(body.parse::<MessagesRequest>().await?)?;
    let request = ValidRequest::from_chat(request, app.limits()).map_err(renamed)?;
    let options =
        EncodeOptions { segments: request.sharing.segments, normalize: request.sharing.normalize, echo: false, embeds: false };
    let prompts = app.encoder().encode_all(request.prompts, options).await?;
    Ok(Json(MessageTokensCount { input_tokens: prompts.iter().map(|prompt| prompt.token_ids.len()).sum() }))
}
