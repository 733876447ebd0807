//! The two generation endpoints.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use protocol::{ChatCompletionRequest, CompletionRequest};
use tokens::Timestamp;

use crate::answer::{
    AnswerHead, AnswerWriter, ChatWriter, CompletionWriter, Generation, event_stream, whole_chat, whole_completion,
};
use crate::body::Body;
use crate::error::ApiError;
use crate::state::AppState;
use crate::tenants::Caller;
use crate::valid::{StreamMode, ValidRequest};

/// `POST /v1/chat/completions`.
pub(super) async fn chat(State(app): State<Arc<AppState>>, caller: Caller, mut body: Body) -> Result<Response, ApiError> {
    let arrival = app.engine.now();
    let request = ValidRequest::from_chat(body.parse::<ChatCompletionRequest>().await?, app.limits())?;
    let head = AnswerHead::new("chatcmpl", request.model.clone(), app.fingerprint.clone());
    let (stream, generation) = begin(&app, &caller, request, &head, arrival).await?;
    drop(body);
    let tokenizer = Arc::clone(&app.model.tokenizer);
    match stream {
        Some(mode) => send_events(&app, Box::new(ChatWriter::new(head, tokenizer, mode)), generation).await,
        None => Ok(Json(whole_chat(head, generation, &tokenizer).await?).into_response()),
    }
}

/// `POST /v1/completions`.
pub(super) async fn completions(State(app): State<Arc<AppState>>, caller: Caller, mut body: Body) -> Result<Response, ApiError> {
    let arrival = app.engine.now();
    let request = ValidRequest::from_completion(body.parse::<CompletionRequest>().await?, app.limits())?;
    let head = AnswerHead::new("cmpl", request.model.clone(), app.fingerprint.clone());
    let (stream, generation) = begin(&app, &caller, request, &head, arrival).await?;
    drop(body);
    let tokenizer = Arc::clone(&app.model.tokenizer);
    match stream {
        Some(mode) => send_events(&app, Box::new(CompletionWriter::new(head, tokenizer, mode)), generation).await,
        None => Ok(Json(whole_completion(head, generation, &tokenizer).await?).into_response()),
    }
}

/// Starts the answers of `request`, which was received at `arrival`. Returns their streaming mode too.
pub(super) async fn begin(
    app: &AppState,
    caller: &Caller,
    request: ValidRequest,
    head: &AnswerHead,
    arrival: Timestamp,
) -> Result<(Option<StreamMode>, Generation), ApiError> {
    let stream = request.stream;
    let (num_prompts, n) = (request.prompts.len(), request.n);
    let generation = app.generator().start(caller, request, arrival).await?;
    tracing::debug!(answer = head.id, num_prompts, n, is_stream = stream.is_some(), "started");
    Ok((stream, generation))
}

/// Starts a stream; if waiting is bounded, only after the admission, so that a refusal has its status and `Retry-After`.
pub(super) async fn send_events(
    app: &AppState,
    writer: Box<dyn AnswerWriter>,
    mut generation: Generation,
) -> Result<Response, ApiError> {
    if app.engine.bounds_waiting() {
        generation.admitted().await?;
    }
    let keep_alive = KeepAlive::new().interval(app.config.keep_alive);
    let keep_alive = match writer.keep_alive() {
        Some(event) => keep_alive.event(event.into()),
        None => keep_alive,
    };
    let events = event_stream(writer, generation);
    // Prevents proxies from buffering tokens.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(([unbuffered], Sse::new(events).keep_alive(keep_alive)).into_response())
}
