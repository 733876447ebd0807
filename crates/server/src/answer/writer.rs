//! Writers of both response shapes. One value is rewritten for each chunk, so that a token costs no copy of the shared fields.

use std::sync::Arc;

use engine::LogProb;
use protocol::{
    ChatChunkChoice, ChatCompletionChunk, ChatLogProb, ChatLogProbs, CompletionChoice, CompletionLogProbs, CompletionResponse,
    Delta, TopLogProb, Usage,
};
use tokenizer::Tokenizer;

use super::choice::ChoiceDelta;
use super::scores::ScoredToken;

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

/// Writer of chunks in the shape of one endpoint.
pub(crate) enum Writer {
    Chat { chunk: ChatCompletionChunk, tokenizer: Arc<Tokenizer> },
    Completion { chunk: CompletionResponse, tokenizer: Arc<Tokenizer> },
}

impl Writer {
    /// Creates a writer of chat chunks.
    pub(crate) fn chat(head: AnswerHead, tokenizer: Arc<Tokenizer>) -> Self {
        let chunk = ChatCompletionChunk {
            id: head.id,
            object: "chat.completion.chunk".to_owned(),
            created: head.created,
            model: head.model,
            system_fingerprint: head.fingerprint,
            choices: vec![],
            usage: None,
        };
        Self::Chat { chunk, tokenizer }
    }

    /// Creates a writer of completion events.
    pub(crate) fn completion(head: AnswerHead, tokenizer: Arc<Tokenizer>) -> Self {
        Self::Completion { chunk: completion_response(head, vec![], None), tokenizer }
    }

    /// Writes the chunk that opens answer `index`, if there is one: a chat answer starts with its role.
    pub(super) fn opening(&mut self, index: u32) -> Option<String> {
        match self {
            Self::Chat { chunk, .. } => {
                let delta = Delta { role: Some("assistant".to_owned()), content: Some(String::new()) };
                chunk.choices = vec![ChatChunkChoice { index, delta, logprobs: None, finish_reason: None }];
                Some(to_json(chunk))
            }
            Self::Completion { .. } => None,
        }
    }

    /// Writes the chunk that carries `delta` of answer `index`.
    pub(super) fn delta(&mut self, index: u32, delta: ChoiceDelta) -> String {
        let finish_reason = delta.finish_reason;
        match self {
            Self::Chat { chunk, tokenizer } => {
                let logprobs = (!delta.scores.is_empty()).then(|| chat_logprobs(tokenizer, &delta.scores));
                let content = finish_reason.is_none().then_some(delta.text);
                let delta = Delta { role: None, content };
                chunk.choices.clear();
                chunk.choices.push(ChatChunkChoice { index, delta, logprobs, finish_reason });
                to_json(chunk)
            }
            Self::Completion { chunk, tokenizer } => {
                let logprobs = (!delta.scores.is_empty()).then(|| completion_logprobs(tokenizer, &delta.scores));
                chunk.choices.clear();
                chunk.choices.push(CompletionChoice { index, text: delta.text, logprobs, finish_reason });
                to_json(chunk)
            }
        }
    }

    /// Sets what the next chunks say of the usage: nothing, null, or the usage so far.
    pub(super) fn set_usage(&mut self, usage: Option<Option<Usage>>) {
        match self {
            Self::Chat { chunk, .. } => chunk.usage = usage,
            Self::Completion { chunk, .. } => chunk.usage = usage,
        }
    }

    /// Writes the chunk that carries only the usage.
    pub(super) fn usage(&mut self, usage: Usage) -> String {
        self.set_usage(Some(Some(usage)));
        match self {
            Self::Chat { chunk, .. } => {
                chunk.choices.clear();
                to_json(chunk)
            }
            Self::Completion { chunk, .. } => {
                chunk.choices.clear();
                to_json(chunk)
            }
        }
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> String {
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
pub(super) fn chat_logprobs(tokenizer: &Tokenizer, scores: &[ScoredToken]) -> ChatLogProbs {
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
