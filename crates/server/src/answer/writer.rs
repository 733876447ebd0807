//! Writers of streamed answers, one for each response shape. One value is rewritten for each chunk, so that a token costs no copy of the shared fields.

use std::sync::Arc;

use engine::LogProb;
use protocol::{
    ChatChunkChoice, ChatCompletionChunk, ChatLogProb, ChatLogProbs, CompletionChoice, CompletionLogProbs, CompletionResponse,
    Delta, FunctionDelta, ToolCallDelta, TopLogProb, Usage,
};
use serde::Serialize;
use tokenizer::Tokenizer;

use super::delta::{CallDelta, ChoiceDelta};
use super::scores::ScoredToken;
use crate::error::ApiError;
use crate::valid::StreamMode;

/// Fields that all parts of an answer share.
#[derive(Clone, Debug)]
pub(crate) struct AnswerHead {
    pub(crate) id: String,
    /// Creation time in seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

impl AnswerHead {
    /// Creates the head of an answer with an id prefix `prefix`, for a request that called the model `model`.
    pub(crate) fn new(prefix: &str, model: String, fingerprint: String) -> Self {
        let created = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        Self { id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()), created, model, fingerprint }
    }
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnswerEvent {
    /// Name of its type, for endpoints whose events have one.
    pub(crate) name: Option<&'static str>,
    pub(crate) data: String,
}

impl AnswerEvent {
    /// Creates an event without a name from `value`.
    pub(crate) fn unnamed<T: Serialize>(value: &T) -> Self {
        Self { name: None, data: to_json(value) }
    }

    /// Creates an event with a name.
    pub(crate) fn named<T: Serialize>(name: &'static str, value: &T) -> Self {
        Self { name: Some(name), data: to_json(value) }
    }
}

/// Writer of a streamed answer in the shape of one endpoint.
pub(crate) trait AnswerWriter: Send {
    /// Writes the events before the first delta of answer `index`.
    fn opening(&mut self, index: u32) -> Vec<AnswerEvent>;

    /// Writes the events of `delta` of answer `index`. `usage` computes the usage so far of all answers.
    fn delta(&mut self, index: u32, delta: ChoiceDelta, usage: &dyn Fn() -> Usage) -> Vec<AnswerEvent>;

    /// Writes the events after the last delta of all answers, whose usage is `usage`.
    fn end(&mut self, usage: Usage) -> Vec<AnswerEvent>;

    /// Event that shows that the server lives while nothing is generated; a comment without one.
    fn keep_alive(&self) -> Option<AnswerEvent> {
        None
    }

    /// Writes the event of a failure, the last of its stream.
    fn error(&mut self, error: &ApiError) -> AnswerEvent {
        AnswerEvent::unnamed(&error.body())
    }
}

/// Usage in the chunks of a stream: absent, null until the last chunk, or the usage so far in each.
fn chunk_usage(mode: StreamMode, usage: &dyn Fn() -> Usage) -> Option<Option<Usage>> {
    mode.include_usage.then(|| mode.continuous_usage.then(usage))
}

/// Last events of OpenAI's streams: the usage if requested, and the end marker.
fn done(usage: Option<AnswerEvent>) -> Vec<AnswerEvent> {
    usage.into_iter().chain([AnswerEvent { name: None, data: "[DONE]".to_owned() }]).collect()
}

/// Writer of chat chunks.
pub(crate) struct ChatWriter {
    chunk: ChatCompletionChunk,
    tokenizer: Arc<Tokenizer>,
    mode: StreamMode,
}

impl ChatWriter {
    pub(crate) fn new(head: AnswerHead, tokenizer: Arc<Tokenizer>, mode: StreamMode) -> Self {
        let chunk = ChatCompletionChunk {
            id: head.id,
            object: "chat.completion.chunk".to_owned(),
            created: head.created,
            model: head.model,
            system_fingerprint: head.fingerprint,
            choices: vec![],
            usage: mode.include_usage.then_some(None),
        };
        Self { chunk, tokenizer, mode }
    }

    fn write(&mut self, choice: ChatChunkChoice) -> AnswerEvent {
        self.chunk.choices.clear();
        self.chunk.choices.push(choice);
        AnswerEvent::unnamed(&self.chunk)
    }
}

impl AnswerWriter for ChatWriter {
    fn opening(&mut self, index: u32) -> Vec<AnswerEvent> {
        let delta = Delta { role: Some("assistant".to_owned()), content: Some(String::new()), ..Delta::default() };
        vec![self.write(ChatChunkChoice { index, delta, logprobs: None, finish_reason: None })]
    }

    fn delta(&mut self, index: u32, delta: ChoiceDelta, usage: &dyn Fn() -> Usage) -> Vec<AnswerEvent> {
        self.chunk.usage = chunk_usage(self.mode, usage);
        let finish_reason = delta.finish_reason;
        let logprobs = (!delta.scores.is_empty()).then(|| chat_logprobs(&self.tokenizer, &delta.scores));
        let is_text = finish_reason.is_none() && delta.calls.is_empty() && delta.reasoning.is_empty();
        let delta = Delta {
            role: None,
            content: (is_text || !delta.text.is_empty()).then_some(delta.text),
            reasoning_content: (!delta.reasoning.is_empty()).then_some(delta.reasoning),
            tool_calls: delta.calls.into_iter().map(ToolCallDelta::from).collect(),
        };
        vec![self.write(ChatChunkChoice { index, delta, logprobs, finish_reason })]
    }

    fn end(&mut self, usage: Usage) -> Vec<AnswerEvent> {
        self.chunk.choices.clear();
        self.chunk.usage = Some(Some(usage));
        done(self.mode.include_usage.then(|| AnswerEvent::unnamed(&self.chunk)))
    }
}

impl From<CallDelta> for ToolCallDelta {
    fn from(delta: CallDelta) -> Self {
        let (id, name) = delta.begins.map(|call| (call.id, call.name)).unzip();
        let function = FunctionDelta { name, arguments: Some(delta.arguments) };
        Self { index: delta.index, kind: id.is_some().then(|| "function".to_owned()), id, function }
    }
}

/// Writer of completion chunks.
pub(crate) struct CompletionWriter {
    chunk: CompletionResponse,
    tokenizer: Arc<Tokenizer>,
    mode: StreamMode,
}

impl CompletionWriter {
    pub(crate) fn new(head: AnswerHead, tokenizer: Arc<Tokenizer>, mode: StreamMode) -> Self {
        let mut chunk = completion_response(head, vec![], None);
        chunk.usage = mode.include_usage.then_some(None);
        Self { chunk, tokenizer, mode }
    }
}

impl AnswerWriter for CompletionWriter {
    fn opening(&mut self, _index: u32) -> Vec<AnswerEvent> {
        vec![]
    }

    fn delta(&mut self, index: u32, delta: ChoiceDelta, usage: &dyn Fn() -> Usage) -> Vec<AnswerEvent> {
        self.chunk.usage = chunk_usage(self.mode, usage);
        let logprobs = (!delta.scores.is_empty()).then(|| completion_logprobs(&self.tokenizer, &delta.scores));
        self.chunk.choices.clear();
        self.chunk.choices.push(CompletionChoice { index, text: delta.text, logprobs, finish_reason: delta.finish_reason });
        vec![AnswerEvent::unnamed(&self.chunk)]
    }

    fn end(&mut self, usage: Usage) -> Vec<AnswerEvent> {
        self.chunk.choices.clear();
        self.chunk.usage = Some(Some(usage));
        done(self.mode.include_usage.then(|| AnswerEvent::unnamed(&self.chunk)))
    }
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("answers have string keys only")
}

/// Builds a whole completion.
pub(super) fn completion_response(head: AnswerHead, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> CompletionResponse {
    CompletionResponse {
        id: head.id,
        object: "text_completion".to_owned(),
        created: head.created,
        model: head.model,
        system_fingerprint: head.fingerprint,
        choices,
        usage: usage.map(Some),
    }
}

/// Converts scores to the shape of the chat endpoint.
pub(crate) fn chat_logprobs(tokenizer: &Tokenizer, scores: &[ScoredToken]) -> ChatLogProbs {
    let top = |entry: &LogProb| {
        let bytes = tokenizer.token_bytes(entry.token).to_vec();
        TopLogProb { token: tokenizer.token_str(entry.token), logprob: entry.logprob, bytes }
    };
    let content = scores.iter().map(|score| ChatLogProb {
        token: tokenizer.token_str(score.token),
        // Chat answers have no unscored token: only echoed prompts do.
        logprob: score.logprob.unwrap_or(0.0),
        bytes: tokenizer.token_bytes(score.token).to_vec(),
        top_logprobs: score.top.iter().map(top).collect(),
    });
    ChatLogProbs { content: content.collect() }
}

/// Converts scores to the shape of the completions endpoint.
pub(super) fn completion_logprobs(tokenizer: &Tokenizer, scores: &[ScoredToken]) -> CompletionLogProbs {
    CompletionLogProbs {
        tokens: scores.iter().map(|score| score.name(tokenizer)).collect(),
        token_logprobs: scores.iter().map(|score| score.logprob).collect(),
        top_logprobs: scores.iter().map(|score| score.named_top(tokenizer)).collect(),
        text_offset: scores.iter().map(|score| score.text_offset).collect(),
    }
}
