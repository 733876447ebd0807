//! Errors in the shape of Anthropic's API.

use axum::Json;
use axum::http::header::{CONTENT_LENGTH, HeaderName};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use protocol::{MessageError, MessageErrorResponse};

use crate::error::ApiError;

/// Header in which Anthropic's clients look for the id of their request.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Fields of chat requests, and the fields of messages requests that became them.
const RENAMED: [(&str, &str); 2] = [("stop", "stop_sequences"), ("response_format", "output_config.format")];
/// Parts of names of tools' fields, likewise.
const RENAMED_IN_TOOLS: [(&str, &str); 2] = [(".function.parameters", ".input_schema"), (".function", "")];

/// True if clients of Anthropic's API use `path`.
pub(crate) fn is_messages_path(path: &str) -> bool {
    path.strip_prefix("/v1/messages").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Rewrites the error of `response`, if it is one, and names the request's id as Anthropic's clients expect.
pub(crate) fn in_its_shape(response: Response, id: Option<HeaderValue>) -> Response {
    let (mut parts, body) = response.into_parts();
    let error = parts.extensions.remove::<ApiError>();
    let object = error.map(|error| error_object(&error, id.as_ref().and_then(|id| id.to_str().ok())));
    if let Some(id) = id {
        parts.headers.insert(REQUEST_ID, id);
    }
    match object {
        Some(object) => {
            parts.headers.remove(CONTENT_LENGTH);
            (parts, Json(object)).into_response()
        }
        None => Response::from_parts(parts, body),
    }
}

/// Returns Anthropic's error object.
pub(super) fn error_object(error: &ApiError, id: Option<&str>) -> MessageErrorResponse {
    let status = error.status();
    let kind = match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        _ if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    let error = MessageError { kind: kind.to_owned(), message: error.to_string() };
    MessageErrorResponse { kind: "error".to_owned(), error, request_id: id.map(str::to_owned) }
}

/// Names the field of an error as the request named it.
pub(crate) fn renamed(error: ApiError) -> ApiError {
    let ApiError::Invalid { param: Some(param), message } = error else { return error };
    let own = own_name(&param);
    let message = message.replace(&format!("`{param}`"), &format!("`{own}`"));
    ApiError::Invalid { param: Some(own), message }
}

/// Returns the name in a messages request of the field `param` of a chat request.
fn own_name(param: &str) -> String {
    if param.starts_with("tools[") {
        return RENAMED_IN_TOOLS.iter().fold(param.to_owned(), |name, (chat, own)| name.replace(chat, own));
    }
    let own = RENAMED.iter().find(|(chat, _)| *chat == param);
    own.map_or(param, |(_, own)| own).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: &ApiError, kind: &str) {
        let object = error_object(error, Some("r"));
        assert_eq!((object.error.kind.as_str(), object.request_id.as_deref()), (kind, Some("r")), "{error}");
        assert_eq!(object.error.message, error.to_string());
    }

    #[test]
    fn a_status_has_its_type() {
        check(&ApiError::param("n", "bad"), "invalid_request_error");
        check(&ApiError::MediaType { found: None }, "invalid_request_error");
        check(&ApiError::Unauthorized { is_missing: true }, "authentication_error");
        check(&ApiError::Forbidden { method: String::new(), path: String::new() }, "permission_error");
        check(&ApiError::ModelNotFound { model: String::new() }, "not_found_error");
        check(&ApiError::BodyTooLarge { limit: 1 }, "request_too_large");
        check(&ApiError::QueueFull { retry_after_s: 1 }, "rate_limit_error");
        check(&ApiError::Draining, "overloaded_error");
        check(&ApiError::Internal, "api_error");
    }

    #[test]
    fn only_anthropics_paths_have_its_shape() {
        let paths = ["/v1/messages", "/v1/messages/", "/v1/messages/count_tokens", "/v1/messages/batches"];
        assert!(paths.iter().all(|path| is_messages_path(path)));
        assert!(!["/v1/messagesx", "/v1/models", "/", "/v1/chat/completions"].iter().any(|path| is_messages_path(path)));
    }

    #[test]
    fn an_error_names_the_fields_of_the_request() {
        let error = renamed(ApiError::param("stop", "at most 16 strings"));
        assert_eq!(error, ApiError::param("stop_sequences", "at most 16 strings"));
        assert_eq!(renamed(ApiError::param("tools[1].function.name", "taken")), ApiError::param("tools[1].name", "taken"));
        let schema = "tools[1].function.parameters.type";
        assert_eq!(renamed(ApiError::param(schema, "x")), ApiError::param("tools[1].input_schema.type", "x"));
        let other = ApiError::param("top_p", "must be above 0");
        assert_eq!(renamed(other.clone()), other);
    }
}
