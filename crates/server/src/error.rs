//! Request errors, and their mapping to OpenAI's error object.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::{ErrorBody, ErrorResponse};

use crate::connections::Overload;

/// Reason why a request is not answered, or not completely.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The body does not match the endpoint.
    #[error("{message}")]
    Invalid {
        /// Name of the invalid field, if there is one.
        param: Option<String>,
        /// Description of the fault.
        message: String,
    },
    /// A known field that this server does not support.
    #[error("`{param}` is not supported by this server")]
    Unsupported {
        /// Name of the field.
        param: String,
    },
    /// The prompt leaves no room for the answer.
    #[error(
        "This model's maximum context length is {max_model_len} tokens. However, you requested {}{} tokens \
         ({prompt_tokens} in the prompt, {max_tokens} in the completion). Please reduce the length of either.",
        if *is_counted { "" } else { "at least " },
        prompt_tokens + max_tokens
    )]
    ContextLengthExceeded {
        /// Field that holds the prompt.
        param: &'static str,
        /// Maximum tokens of prompt and answer together.
        max_model_len: usize,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Completion tokens requested.
        max_tokens: usize,
        /// True if all tokens of the prompt were counted: counting stops when there are clearly too many.
        is_counted: bool,
    },
    /// The request fits the model but not the KV pool.
    #[error("a request of {prompt_tokens} prompt tokens and {max_tokens} completion tokens does not fit the KV pool: {reason}")]
    PoolTooSmall {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Completion tokens requested.
        max_tokens: usize,
        /// Error of the engine.
        reason: String,
    },
    /// A key is required, and the one sent is unknown; or none was sent.
    #[error("{}", match is_missing {
        true => "You didn't provide an API key. Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
        false => "Incorrect API key provided.",
    })]
    Unauthorized {
        /// True if no key was sent.
        is_missing: bool,
    },
    /// The key does not permit this operation.
    #[error("this key may not {method} {path}: a key with `admin = true` may")]
    Forbidden {
        /// HTTP method.
        method: String,
        /// Path of the request.
        path: String,
    },
    /// The request was sent to a host name that does not belong to this daemon.
    #[error(
        "the host `{host}` is not allowed: a server without API keys answers to names of this machine only. Start it with \
         `--allowed-hosts {host}` to allow it"
    )]
    ForeignHost {
        /// Host name.
        host: String,
    },
    /// The request came from a web page that is not allowed.
    #[error(
        "pages of `{origin}` are not allowed: a server without API keys answers pages of this machine only. Start it with \
         `--allowed-origins {origin}` to allow them"
    )]
    ForeignOrigin {
        /// Origin of the page.
        origin: String,
    },
    /// The body is not sent as JSON.
    #[error("{}. Send JSON with the header `Content-Type: application/json`", match found {
        Some(found) => format!("a request body of type `{found}` is not read"),
        None => "the request has no `Content-Type`".to_owned(),
    })]
    MediaType {
        /// Content type that was sent.
        found: Option<String>,
    },
    /// The body is compressed.
    #[error("a request body with `Content-Encoding: {encoding}` is not read: send it as it is")]
    BodyEncoding {
        /// Content encoding of the body.
        encoding: String,
    },
    /// The object to inspect or to erase does not exist.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// Kind of object.
        what: &'static str,
        /// Name of the object.
        name: String,
    },
    /// The response to continue is not stored, or one before it.
    #[error("Previous response with id '{id}' not found.")]
    PreviousResponseNotFound {
        /// Id of the missing response.
        id: String,
    },
    /// Another model is served.
    #[error("The model `{model}` does not exist")]
    ModelNotFound {
        /// Model that was requested.
        model: String,
    },
    /// No model is served that embeds texts.
    #[error("this server embeds no texts: start it with `--embedding-model PATH`, the folder of a sentence encoder")]
    NoEmbeddingModel,
    /// Another model embeds texts.
    #[error("{message}")]
    NoSuchEmbedder {
        /// Names of both.
        message: String,
    },
    /// The path does not exist.
    #[error("Unknown request URL: {method} {path}")]
    RouteNotFound {
        /// HTTP method.
        method: String,
        /// Path of the request.
        path: String,
    },
    /// The path exists but not with this method.
    #[error("Not allowed to {method} on {path}")]
    MethodNotAllowed {
        /// HTTP method.
        method: String,
        /// Path of the request.
        path: String,
    },
    /// The body is too long.
    #[error("request body exceeds the limit of {limit} bytes")]
    BodyTooLarge {
        /// Maximum bytes.
        limit: usize,
    },
    /// The body did not arrive in time.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// The body was cut off, or does not match its headers.
    #[error("reading the request body: {reason}")]
    BodyBroken {
        /// Cause of the failure.
        reason: String,
    },
    /// The head of the request cannot be parsed.
    #[error("{}", match status {
        414 => "the URI of the request is too long",
        431 => "the head of the request has too many or too long fields",
        _ => "the request is not valid HTTP/1.1",
    })]
    BadHead {
        /// HTTP status: 400, 414 or 431.
        status: u16,
    },
    /// The path contains bytes that are not valid text.
    #[error("the path of the request is not valid: {reason}")]
    BadPath {
        /// Description of the fault.
        reason: String,
    },
    /// Large requests are already waiting for memory.
    #[error("too many large requests at once, try again later")]
    Busy,
    /// No more connections are accepted for now.
    #[error("{}", match overload {
        Overload::All => "too many connections",
        Overload::Peer => "too many connections from this address",
    })]
    TooManyConnections {
        /// Limit that was reached.
        overload: Overload,
    },
    /// No model is loaded yet.
    #[error("the model is loading")]
    Loading,
    /// The queue is full.
    #[error("the queue is full, try again in {retry_after_s} s")]
    QueueFull {
        /// Seconds until a retry.
        retry_after_s: u64,
    },
    /// The request reached the queue timeout.
    #[error("the request waited too long in the queue and was not begun, try again later")]
    QueueTimeout,
    /// The server is about to end and accepts no new requests.
    #[error("the server is shutting down")]
    Draining,
    /// The answer was cut because the server is ending.
    #[error("the server shut down before the answer was complete")]
    CutByShutdown,
    /// The answer was cut because its reader lagged too far.
    #[error("the answer was dropped because it was not read fast enough")]
    SlowReader,
    /// The engine has failed; the process is about to end.
    #[error("the engine has failed")]
    EngineFailed,
    /// The model's logits are not numbers: there is no next token.
    #[error("the model gave no valid probabilities for this request")]
    FaultyLogits,
    /// The mask of a token takes more work than the grammar's limits allow.
    #[error("the constraint of the answer takes more work for its next token than is allowed: simplify it")]
    CostlyGrammar,
    /// The engine has failed, as reported by a health check.
    #[error("the engine does not run")]
    Unavailable,
    /// A bug of the server.
    #[error("internal error")]
    Internal,
}

impl ApiError {
    /// Creates an error about the field `param`. Adds its name to `message` if that lacks it.
    pub(crate) fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        let (param, message) = (param.into(), message.into());
        let is_named = message.contains(&format!("`{param}`"));
        let message = if is_named { message } else { format!("`{param}`: {message}") };
        Self::Invalid { param: Some(param), message }
    }

    /// Returns the HTTP status, for errors before anything has been sent.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. }
            | Self::Unsupported { .. }
            | Self::ContextLengthExceeded { .. }
            | Self::PoolTooSmall { .. }
            | Self::BodyBroken { .. }
            | Self::BadPath { .. }
            | Self::PreviousResponseNotFound { .. }
            | Self::CostlyGrammar => StatusCode::BAD_REQUEST,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } | Self::ForeignHost { .. } | Self::ForeignOrigin { .. } => StatusCode::FORBIDDEN,
            Self::MediaType { .. } | Self::BodyEncoding { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::ModelNotFound { .. }
            | Self::NoSuchEmbedder { .. }
            | Self::NoEmbeddingModel
            | Self::RouteNotFound { .. }
            | Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BadHead { status } => StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_REQUEST),
            Self::QueueFull { .. } | Self::TooManyConnections { overload: Overload::Peer } => StatusCode::TOO_MANY_REQUESTS,
            Self::Draining | Self::CutByShutdown | Self::Unavailable | Self::Busy | Self::Loading | Self::QueueTimeout => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::TooManyConnections { overload: Overload::All } => StatusCode::SERVICE_UNAVAILABLE,
            Self::SlowReader | Self::EngineFailed | Self::FaultyLogits | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns OpenAI's error object.
    pub(crate) fn body(&self) -> ErrorResponse {
        let kind = match self.status() {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            StatusCode::INTERNAL_SERVER_ERROR => "server_error",
            StatusCode::FORBIDDEN => "permission_error",
            _ => "invalid_request_error",
        };
        let param = match self {
            Self::Invalid { param, .. } => param.clone(),
            Self::Unsupported { param } => Some(param.clone()),
            Self::ContextLengthExceeded { param, .. } => Some((*param).to_owned()),
            Self::ModelNotFound { .. } | Self::NoSuchEmbedder { .. } => Some("model".to_owned()),
            Self::PreviousResponseNotFound { .. } => Some("previous_response_id".to_owned()),
            _ => None,
        };
        let error = ErrorBody { message: self.to_string(), kind: kind.to_owned(), param, code: self.code().map(str::to_owned) };
        ErrorResponse { error }
    }

    fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::Invalid { .. } => return None,
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::ContextLengthExceeded { .. } => "context_length_exceeded",
            Self::PoolTooSmall { .. } => "kv_pool_exceeded",
            Self::Unauthorized { .. } => "invalid_api_key",
            Self::Forbidden { .. } => "insufficient_permissions",
            Self::ForeignHost { .. } => "host_not_allowed",
            Self::ForeignOrigin { .. } => "origin_not_allowed",
            Self::MediaType { .. } => "unsupported_media_type",
            Self::BodyEncoding { .. } => "unsupported_content_encoding",
            Self::NotFound { .. } => "not_found",
            Self::ModelNotFound { .. } | Self::NoSuchEmbedder { .. } => "model_not_found",
            Self::NoEmbeddingModel => "no_embedding_model",
            Self::PreviousResponseNotFound { .. } => "previous_response_not_found",
            Self::RouteNotFound { .. } => "unknown_url",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyTimeout | Self::BodyBroken { .. } => "body_not_received",
            Self::BadHead { status: 414 } => "uri_too_long",
            Self::BadHead { status: 431 } => "header_fields_too_large",
            Self::BadHead { .. } => "malformed_request",
            Self::BadPath { .. } => "malformed_path",
            Self::Busy => "busy",
            Self::TooManyConnections { .. } => "too_many_connections",
            Self::Loading => "loading",
            Self::QueueFull { .. } => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Draining | Self::CutByShutdown => "shutting_down",
            Self::SlowReader => "slow_reader",
            Self::FaultyLogits => "faulty_logits",
            Self::CostlyGrammar => "costly_grammar",
            Self::Unavailable | Self::EngineFailed | Self::Internal => "internal_error",
        })
    }

    fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after_s } => Some(*retry_after_s),
            // Another replica is the better address; until one is found, a second is enough.
            Self::QueueTimeout | Self::Draining | Self::Loading | Self::Busy | Self::TooManyConnections { .. } => Some(1),
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // Endpoints of another API write it in another shape.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: &ApiError, status: u16, kind: &str, param: Option<&str>, code: Option<&str>) {
        let body = error.body().error;
        assert_eq!(
            (error.status().as_u16(), body.kind.as_str(), body.param.as_deref(), body.code.as_deref()),
            (status, kind, param, code)
        );
    }

    #[test]
    fn a_bad_field_is_named() {
        check(&ApiError::param("n", "must be positive"), 400, "invalid_request_error", Some("n"), None);
    }

    #[test]
    fn an_overlong_prompt_is_told_both_counts() {
        let error = ApiError::ContextLengthExceeded {
            param: "messages",
            max_model_len: 100,
            prompt_tokens: 90,
            max_tokens: 20,
            is_counted: true,
        };
        check(&error, 400, "invalid_request_error", Some("messages"), Some("context_length_exceeded"));
        let message = error.to_string();
        assert!(
            message.contains("100 tokens") && message.contains("110 tokens") && message.contains("90 in the prompt"),
            "{message}"
        );
    }

    #[test]
    fn a_refused_key_says_what_is_wrong_and_what_is_needed() {
        for is_missing in [true, false] {
            let error = ApiError::Unauthorized { is_missing };
            check(&error, 401, "invalid_request_error", None, Some("invalid_api_key"));
            assert_eq!(error.to_string().contains("didn't provide"), is_missing);
            assert_eq!(error.into_response().headers()[header::WWW_AUTHENTICATE], "Bearer");
        }
        let error = ApiError::Forbidden { method: "GET".to_owned(), path: "/admin/donors".to_owned() };
        check(&error, 403, "permission_error", None, Some("insufficient_permissions"));
    }

    #[test]
    fn overload_says_when_to_come_back() {
        for error in [ApiError::QueueFull { retry_after_s: 7 }, ApiError::QueueTimeout, ApiError::Draining] {
            assert!(error.clone().into_response().headers().contains_key(header::RETRY_AFTER), "{error}");
        }
        check(&ApiError::QueueFull { retry_after_s: 7 }, 429, "rate_limit_error", None, Some("queue_full"));
        check(&ApiError::QueueTimeout, 503, "service_unavailable_error", None, Some("queue_timeout"));
        check(&ApiError::Draining, 503, "service_unavailable_error", None, Some("shutting_down"));
    }
}
