//! Request bodies: read within limits of time and memory, and parsed with the invalid field named.

mod fault;
mod json;
mod memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRef, FromRequest, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use futures::future::poll_fn;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::{Instant as Deadline, timeout_at};

pub(crate) use self::fault::shortened;
use self::json::Refusal;
use self::memory::{BodyMemory, BodyPermit, SMALL_BYTES};
use crate::config::ServerConfig;
use crate::connections::Answering;
use crate::error::ApiError;
use crate::heavy::Heavy;
use crate::metrics::{Metrics, ShedReason};
use crate::model::ModelInfo;

/// A complete JSON body. It holds its share of the memory for bodies until it is dropped: keep it while its text is tokenized, drop it
/// before an answer is generated.
pub(crate) struct Body {
    bytes: Bytes,
    num_bytes: usize,
    max_values: usize,
    heavy: Arc<Heavy>,
    _held: Option<BodyPermit>,
}

/// Limits of bodies, and what reading one takes.
#[derive(Clone)]
pub(crate) struct BodyReader {
    limit: usize,
    read_timeout: Duration,
    max_values: usize,
    memory: Arc<BodyMemory>,
    heavy: Arc<Heavy>,
    metrics: Arc<Metrics>,
}

/// Interval at which a body that stalls is checked.
const LOOK_AT: Duration = Duration::from_millis(500);
/// Maximum values of a body, or twice the number of the model's positions: prompts of token ids have the most. Each takes some hundred
/// bytes while it is read.
const MAX_VALUES: usize = 1 << 17;

impl<S: Send + Sync> FromRequest<S> for Body
where
    BodyReader: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let reader = BodyReader::from_ref(state);
        check_media_type(request.headers())?;
        let answering = request.extensions().get::<Answering>().cloned();
        let read = reader.read(request.into_body()).await;
        if let Some(answering) = answering {
            answering.begin();
        }
        let (bytes, held) = read.inspect_err(|error| match error {
            ApiError::BodyTooLarge { .. } => reader.metrics.http.count_shed(ShedReason::BodyTooLarge),
            ApiError::BodyTimeout => reader.metrics.http.count_shed(ShedReason::BodyTimeout),
            ApiError::Busy => reader.metrics.http.count_shed(ShedReason::Busy),
            _ => {}
        })?;
        Ok(Self { num_bytes: bytes.len(), bytes, max_values: reader.max_values, heavy: reader.heavy, _held: held })
    }
}

impl BodyReader {
    /// Creates a reader with memory for bodies within the limit of `config`.
    pub(crate) fn new(config: &ServerConfig, model: &ModelInfo, heavy: Arc<Heavy>, metrics: Arc<Metrics>) -> Self {
        Self {
            limit: config.body_limit,
            read_timeout: config.body_read_timeout,
            max_values: MAX_VALUES.max(2 * model.max_model_len as usize),
            memory: Arc::new(BodyMemory::new(config.body_limit)),
            heavy,
            metrics,
        }
    }

    /// Reads a body to its end, with its share of the memory for bodies unless it is small.
    async fn read(&self, body: axum::body::Body) -> Result<(Bytes, Option<BodyPermit>), ApiError> {
        let limit = self.limit;
        let too_large = ApiError::BodyTooLarge { limit };
        let deadline = Deadline::now() + self.read_timeout;
        let announced = body.size_hint().exact().map(|len| usize::try_from(len).unwrap_or(usize::MAX));
        if announced.is_some_and(|len| len > limit) {
            return Err(too_large);
        }
        let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(SMALL_BYTES));
        let mut held = None;
        if announced.is_some_and(|len| len > SMALL_BYTES) {
            held = Some(self.hold(announced.unwrap_or(limit), deadline).await?);
            bytes.reserve_exact(announced.unwrap_or_default());
        }
        let mut incoming = Incoming { body, since: Instant::now(), num_bytes: 0 };
        while let Some(part) = incoming.next(&self.memory, deadline).await? {
            if bytes.len() + part.len() > limit {
                return Err(too_large);
            }
            if held.is_none() && bytes.len() + part.len() > SMALL_BYTES {
                // A body without a length may become as long as any.
                held = Some(self.hold(limit, deadline).await?);
                incoming.since = Instant::now();
            }
            bytes.extend_from_slice(&part);
        }
        Ok((bytes.into(), held))
    }

    async fn hold(&self, num_bytes: usize, deadline: Deadline) -> Result<BodyPermit, ApiError> {
        timeout_at(deadline, self.memory.hold(num_bytes)).await.map_err(|_| ApiError::Busy)
    }
}

/// A body being received.
struct Incoming {
    body: axum::body::Body,
    since: Instant,
    num_bytes: usize,
}

impl Incoming {
    /// Returns the next bytes; `None` at the end.
    async fn next(&mut self, memory: &BodyMemory, deadline: Deadline) -> Result<Option<Bytes>, ApiError> {
        loop {
            let look_again = deadline.min(Deadline::now() + LOOK_AT);
            let frame = poll_fn(|cx| std::pin::Pin::new(&mut self.body).poll_frame(cx));
            match timeout_at(look_again, frame).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    // Trailers are ignored.
                    let Ok(part) = frame.into_data() else { continue };
                    self.num_bytes += part.len();
                    return Ok(Some(part));
                }
                Ok(Some(Err(error))) => return Err(ApiError::BodyBroken { reason: innermost(&error) }),
                Err(_) if Deadline::now() >= deadline => return Err(ApiError::BodyTimeout),
                Err(_) if memory.gives_way(self.num_bytes, self.since.elapsed()) => return Err(ApiError::BodyTimeout),
                Err(_) => {}
            }
        }
    }
}

/// Returns the innermost cause: the outer ones name parts of the server.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Refuses a body that is not sent as JSON. A web page may send any other type to any address without a preflight, so the check also keeps
/// such pages out.
fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    match headers.get(CONTENT_TYPE) {
        Some(found) if found.to_str().is_ok_and(is_json) => {}
        found => return Err(ApiError::MediaType { found: found.map(text) }),
    }
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(ApiError::BodyEncoding { encoding: text(encoding) })
        }
        _ => Ok(()),
    }
}

/// True if a content type is `application/json` or another JSON type (RFC 6839), with any parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

impl Body {
    /// Returns the length of the body.
    pub(crate) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// Parses the body as `T`.
    pub(crate) async fn parse<T: DeserializeOwned + Send + 'static>(&mut self) -> Result<T, ApiError> {
        let (bytes, max_values) = (std::mem::take(&mut self.bytes), self.max_values);
        self.heavy.run(self.num_bytes, SMALL_BYTES, move || parse(&bytes, max_values)).await
    }

    /// Parses the body as `A` if it is an object with the field `name`, whatever its value, else as `B`.
    pub(crate) async fn parse_either<A, B>(&mut self, name: &'static str) -> Result<Result<A, B>, ApiError>
    where
        A: DeserializeOwned + Send + 'static,
        B: DeserializeOwned + Send + 'static,
    {
        let (bytes, max_values) = (std::mem::take(&mut self.bytes), self.max_values);
        let parse = move || match read_fields(&bytes, max_values)?.contains_key(name) {
            true => parse(&bytes, max_values).map(Ok),
            false => parse(&bytes, max_values).map(Err),
        };
        self.heavy.run(self.num_bytes, SMALL_BYTES, parse).await
    }
}

fn read_fields(bytes: &[u8], max_values: usize) -> Result<Map<String, Value>, ApiError> {
    json::read_object(bytes, max_values)
        .map_err(|Refusal { path, message }| ApiError::Invalid { param: Some(path).filter(|path| !path.is_empty()), message })
}

fn parse<T: DeserializeOwned>(bytes: &[u8], max_values: usize) -> Result<T, ApiError> {
    let fields = read_fields(bytes, max_values)?;
    let error = match serde_json::from_value::<T>(Value::Object(fields)) {
        Ok(body) => return Ok(body),
        Err(error) => error,
    };
    let check = |value| serde_json::from_value::<T>(value).err().map(|error| error.to_string());
    match fault::find_fault(Value::Object(read_fields(bytes, max_values)?), &check) {
        Some(fault) => Err(ApiError::Invalid { param: Some(fault.path).filter(|path| !path.is_empty()), message: fault.message }),
        None => Err(ApiError::Invalid { param: None, message: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use protocol::ChatCompletionRequest;

    use super::*;

    #[track_caller]
    fn check(body: &'static str, param: Option<&str>) {
        let error = parse::<ChatCompletionRequest>(body.as_bytes(), MAX_VALUES).unwrap_err();
        assert_eq!(error.body().error.param.as_deref(), param, "{error}");
    }

    #[test]
    fn json_has_several_types() {
        for content_type in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json ;v=1"] {
            assert!(is_json(content_type), "{content_type}");
        }
        let others = [
            "text/plain",
            "application/x-www-form-urlencoded",
            "text/json",
            "application/jsonx",
            "",
            "multipart/form-data; x=application/json",
        ];
        for content_type in others {
            assert!(!is_json(content_type), "{content_type}");
        }
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        check(r#"{"model": "m", "temperature": "hot"}"#, Some("temperature"));
        check(r#"{"model": 3}"#, Some("model"));
        check(r#"{"messages": [{"role": "user", "content": 3}]}"#, Some("messages[0].content"));
        check(r#"{"kv_sharing": {"mode": "everything"}}"#, Some("kv_sharing.mode"));
        check("{\"model\": \"a\", \"model\": \"b\"}", Some("model"));
    }

    #[test]
    fn what_is_not_an_object_names_none() {
        check("{\"model\": ", None);
        check("[]", None);
        check("", None);
    }
}
