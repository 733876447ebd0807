//! Request bodies: read within limits, parsed with the field at fault named.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::metrics::ShedReason;
use crate::state::AppState;

/// A whole body, whatever its content type says: clients often get that wrong.
pub(crate) struct Body(Bytes);

impl FromRequest<Arc<AppState>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<AppState>) -> Result<Self, ApiError> {
        let shed = |reason, error| {
            app.metrics.http.count_shed(reason);
            Err(error)
        };
        let limit = app.config.body_limit;
        match tokio::time::timeout(app.config.body_read_timeout, Bytes::from_request(request, app)).await {
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                shed(ShedReason::BodyTooLarge, ApiError::BodyTooLarge { limit })
            }
            Ok(Err(rejection)) => Err(ApiError::BodyRead { reason: rejection.body_text() }),
            Err(_) => shed(ShedReason::BodyTimeout, ApiError::BodyRead { reason: "took too long".to_owned() }),
        }
    }
}

/// A query string that does not say what it should.
pub(crate) fn bad_query(rejection: &QueryRejection) -> ApiError {
    ApiError::Invalid { param: None, message: rejection.body_text() }
}

impl Body {
    /// Whether it is an object with this field, whatever its value.
    pub(crate) fn has_field(&self, name: &str) -> bool {
        serde_json::from_slice::<Map<String, Value>>(&self.0).is_ok_and(|fields| fields.contains_key(name))
    }

    /// The body as `T`.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.0).map_err(|error| self.explain::<T>(&error))
    }

    /// Finds the field at fault by trying each one alone: serde does not tell. Only reached when parsing has failed.
    fn explain<T: DeserializeOwned>(&self, error: &serde_json::Error) -> ApiError {
        let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(&self.0) else {
            let message = format!("We could not parse the JSON body of your request as an object: {error}");
            return ApiError::Invalid { param: None, message };
        };
        for (name, value) in fields {
            let alone = Value::Object(Map::from_iter([(name.clone(), value)]));
            if let Err(error) = serde_json::from_value::<T>(alone) {
                return ApiError::param(&name, format!("Invalid value for `{name}`: {error}"));
            }
        }
        ApiError::Invalid { param: None, message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use protocol::ChatCompletionRequest;

    use super::*;

    #[track_caller]
    fn check(body: &'static str, param: Option<&str>) {
        let error = Body(Bytes::from_static(body.as_bytes())).parse::<ChatCompletionRequest>().unwrap_err();
        assert_eq!(error.body().error.param.as_deref(), param, "{error}");
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        check(r#"{"model": "m", "temperature": "hot"}"#, Some("temperature"));
        check(r#"{"model": 3}"#, Some("model"));
        check(r#"{"messages": [{"role": "user", "content": 3}]}"#, Some("messages"));
        check(r#"{"kv_sharing": {"mode": "everything"}}"#, Some("kv_sharing"));
    }

    #[test]
    fn what_is_not_an_object_names_none() {
        check("{\"model\": ", None);
        check("[]", None);
        check("", None);
        check("{\"model\": \"a\", \"model\": \"b\"}", None);
    }
}
