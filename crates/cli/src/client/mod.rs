//! Client of the chat API, for `chat` and `bench serve`. Works with any server that implements it.
//!
//! It names only the fields in use and requires none, so that it reads other servers' answers as well.

mod sse;

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use futures::stream::BoxStream;
use protocol::KvSharingOptions;
use serde::{Deserialize, Serialize};

use crate::config::Secret;

/// Timeout to open a connection. The answer itself has no timeout. Chosen.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Client of one server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<Secret>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// `system`, `user` or `assistant`.
    pub(crate) role: String,
    /// Text of the message.
    pub(crate) content: String,
}

/// Request for a chat completion.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ChatRequest<'a> {
    /// Model name.
    pub(crate) model: &'a str,
    /// Messages so far.
    pub(crate) messages: &'a [Message],
    /// Maximum tokens to generate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<u32>,
    /// 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<f32>,
    /// KV that may be reused; the server's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kv_sharing: Option<KvSharingOptions>,
    /// Salt; only requests of equal salt share KV.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cache_salt: Option<&'a str>,
}

/// Piece of a streamed answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ChatEvent {
    /// Additional text; never empty.
    Text(String),
    /// Reason why the answer ended.
    Finished(String),
    /// Tokens consumed.
    Usage(Usage),
}

/// Tokens consumed by a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    /// Prompt tokens.
    pub(crate) prompt_tokens: u64,
    /// Answer tokens.
    pub(crate) completion_tokens: u64,
    /// Prompt tokens found as an exact prefix.
    pub(crate) prompt_tokens_details: PromptDetails,
    /// Sources of the prompt's KV.
    pub(crate) kv_sharing: SharingUsage,
}

/// Part of the prompt that was not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PromptDetails {
    /// Tokens found as an exact prefix.
    pub(crate) cached_tokens: u64,
}

/// Sources of the prompt's KV.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SharingUsage {
    /// Tokens reused as a prefix.
    pub(crate) prefix_tokens: u64,
    /// Tokens reused as spans of other prompts.
    pub(crate) span_tokens: u64,
    /// Tokens computed although a donor had them.
    pub(crate) recomputed_tokens: u64,
    /// Prompts that gave spans.
    pub(crate) donors: u64,
}

/// Answer that is still being streamed.
pub(crate) struct ChatStream {
    /// Data of the events that the server sends.
    data: BoxStream<'static, anyhow::Result<String>>,
    pending: VecDeque<ChatEvent>,
    done: bool,
}

#[derive(Serialize)]
struct StreamingBody<'a> {
    #[serde(flatten)]
    request: &'a ChatRequest<'a>,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ApiError,
}

#[derive(Deserialize)]
struct ApiError {
    message: String,
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<ModelEntry>,
}

#[derive(Deserialize)]
struct ModelEntry {
    id: String,
}

impl Client {
    /// Creates a client of the server at `url`, with or without `/v1` at its end.
    ///
    /// # Errors
    /// If the address is no plain HTTP address.
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        if !url.starts_with("http://") {
            bail!("`{url}` is no http:// address (this client speaks no TLS)");
        }
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        // A proxy of the environment would make measurements of a server on this machine meaningless.
        let http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy().build();
        Ok(Self { http: http.context("starting the HTTP client")?, base, key: None })
    }

    /// Returns the same client with a key.
    pub(crate) fn with_key(self, key: Option<Secret>) -> Self {
        Self { key, ..self }
    }

    /// Adds the key, if there is one.
    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key.reveal()),
            None => request,
        }
    }

    /// Returns the first model the server offers.
    ///
    /// # Errors
    /// If the server does not answer, or has none.
    pub(crate) async fn first_model(&self) -> anyhow::Result<String> {
        let url = format!("{}/v1/models", self.base);
        let response = self.authorized(self.http.get(&url)).send().await.map_err(|error| self.unreachable(&error))?;
        let list: ModelList = success(response).await?.json().await.with_context(|| format!("reading {url}"))?;
        list.data.into_iter().next().map(|model| model.id).context("the server offers no model")
    }

    /// Starts a streamed answer.
    ///
    /// # Errors
    /// If the server does not answer, or refuses; with its own message.
    pub(crate) async fn stream_chat(&self, request: &ChatRequest<'_>) -> anyhow::Result<ChatStream> {
        let body = StreamingBody { request, stream: true, stream_options: StreamOptions { include_usage: true } };
        let url = format!("{}/v1/chat/completions", self.base);
        let response = self.authorized(self.http.post(url)).json(&body).send().await.map_err(|error| self.unreachable(&error))?;
        let response = success(response).await?;
        Ok(ChatStream { data: sse::data_of(response.bytes_stream()).boxed(), pending: VecDeque::new(), done: false })
    }

    /// Formats `error` in one line: reqwest's own text hides the cause.
    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        anyhow::anyhow!("no answer from {}: {cause}", self.base)
    }
}

/// Turns an error status into an error with the server's message.
async fn success(response: reqwest::Response) -> anyhow::Result<reqwest::Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.text().await.unwrap_or_default();
    let message = serde_json::from_str::<ErrorBody>(&body).map_or(body, |body| body.error.message);
    bail!("the server answered {status}: {message}")
}

impl ChatStream {
    /// Returns the next piece, or `None` at the end.
    ///
    /// # Errors
    /// If the connection breaks, or the server reports an error, or the stream ends without its end mark.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<ChatEvent>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            if self.done {
                return Ok(None);
            }
            let data = self.data.next().await.context("the answer broke off")??;
            self.take(&data)?;
        }
    }

    fn take(&mut self, data: &str) -> anyhow::Result<()> {
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        self.pending.extend(events_of(data)?);
        Ok(())
    }
}

/// Parses the data of one server-sent event.
fn events_of(data: &str) -> anyhow::Result<Vec<ChatEvent>> {
    let chunk: Chunk = serde_json::from_str(data).with_context(|| format!("the server sent no chunk: {data}"))?;
    if let Some(error) = chunk.error {
        bail!("the server broke off: {}", error.message);
    }
    let mut events = Vec::new();
    for choice in chunk.choices {
        events.extend(choice.delta.content.filter(|text| !text.is_empty()).map(ChatEvent::Text));
        events.extend(choice.finish_reason.map(ChatEvent::Finished));
    }
    events.extend(chunk.usage.map(ChatEvent::Usage));
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(data: &str, expected: &[ChatEvent]) {
        assert_eq!(events_of(data).unwrap(), expected);
    }

    #[test]
    fn roles_and_empty_deltas_say_nothing() {
        check(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#, &[]);
    }

    #[test]
    fn text_comes_before_the_reason_it_ends() {
        let expected = [ChatEvent::Text("hi".to_owned()), ChatEvent::Finished("stop".to_owned())];
        check(r#"{"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}"#, &expected);
    }

    #[test]
    fn usage_of_a_server_without_kv_sharing_is_read() {
        let usage = Usage { prompt_tokens: 5, completion_tokens: 2, ..Usage::default() };
        check(r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}"#, &[ChatEvent::Usage(usage)]);
    }

    #[test]
    fn usage_says_where_the_kv_came_from() {
        let data = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":3},
                      "kv_sharing":{"mode":"span","prefix_tokens":3,"span_tokens":4,"recomputed_tokens":1,"donors":2}}}"#;
        let events = events_of(data).unwrap();
        let [ChatEvent::Usage(usage)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((usage.prompt_tokens_details.cached_tokens, usage.kv_sharing.span_tokens, usage.kv_sharing.donors), (3, 4, 2));
    }

    #[test]
    fn an_error_inside_a_stream_is_an_error() {
        let error = events_of(r#"{"error":{"message":"engine stopped","type":"server_error"}}"#).unwrap_err();
        assert_eq!(error.to_string(), "the server broke off: engine stopped");
    }

    #[test]
    fn addresses_lose_their_version_and_must_be_plain_http() {
        assert_eq!(Client::new("http://h:1/v1/").unwrap().base, "http://h:1");
        assert!(Client::new("https://h").is_err());
    }

    #[test]
    fn a_key_is_sent_but_not_printed() {
        let client = Client::new("http://h").unwrap().with_key(Some("k3y".to_owned().into()));
        let request = client.authorized(client.http.get("http://h/")).build().unwrap();
        assert_eq!(request.headers()["authorization"], "Bearer k3y");
        assert!(request.headers()["authorization"].is_sensitive() && !format!("{client:?}").contains("k3y"));
    }

    #[test]
    fn absent_choices_are_not_sent() {
        let messages = [Message { role: "user".to_owned(), content: "x".to_owned() }];
        let request = ChatRequest {
            model: "m",
            messages: &messages,
            max_tokens: None,
            temperature: None,
            kv_sharing: None,
            cache_salt: None,
        };
        let body = StreamingBody { request: &request, stream: true, stream_options: StreamOptions { include_usage: true } };
        let expected =
            r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"stream_options":{"include_usage":true}}"#;
        assert_eq!(serde_json::to_string(&body).unwrap(), expected);
    }
}
