//! Prompts to tokens, without holding up other requests when it takes long.

use std::sync::Arc;

use tokenizer::{ChatError, ChatOptions, EncodedPrompt, SegmentRule, TokenizerError};
use tokens::{TokenId, TokenRange};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use crate::embedding::Embedding;
use crate::error::ApiError;
use crate::model::ServedModel;
use crate::valid::PromptSource;

/// A tokenized prompt.
pub(crate) struct Encoded {
    pub(crate) token_ids: Arc<[TokenId]>,
    /// Positions of the chat template's own tokens.
    pub(crate) template: Vec<TokenRange>,
    /// Positions at which its segments begin.
    pub(crate) segments: Vec<u32>,
    /// What it means, as far as a quick embedder says.
    pub(crate) embedding: Option<Embedding>,
    /// Its text, if it is to be echoed.
    pub(crate) echo: Option<String>,
    /// The request's field it came from.
    pub(crate) param: &'static str,
}

/// Bytes that are tokenized without a word to the other tasks. Chosen: at about 10 MB/s, which text of rare words takes, this is below
/// half a millisecond, which costs them less than to move.
const INLINE_BYTES: usize = 4 << 10;

/// How prompts are tokenized.
#[derive(Clone, Debug)]
pub(crate) struct EncodeOptions {
    /// Where segments begin.
    pub(crate) segments: SegmentRule,
    /// Whether the texts are needed too.
    pub(crate) echo: bool,
    /// Whether a quick embedder is asked.
    pub(crate) embeds: bool,
}

/// Tokenizes `prompts`.
pub(crate) fn encode_all(
    model: &ServedModel,
    prompts: Vec<PromptSource>,
    options: &EncodeOptions,
) -> Result<Vec<Encoded>, ApiError> {
    let num_bytes: usize = prompts.iter().map(num_bytes).sum();
    let embeds = options.embeds && model.embedder.as_ref().is_some_and(|embedder| embedder.is_quick());
    let encode = || prompts.into_iter().map(|prompt| encode_one(model, prompt, options)).collect();
    // An embedder takes a millisecond for what is tokenized in half of one.
    let max_inline_bytes = if embeds { INLINE_BYTES / 4 } else { INLINE_BYTES };
    in_place(num_bytes <= max_inline_bytes, encode)
}

/// Tokenizes a text, with or without the tokens that the model expects around it. It may be empty.
pub(crate) fn encode_text(model: &ServedModel, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, ApiError> {
    in_place(text.len() <= INLINE_BYTES, || {
        let encoded = model.tokenizer.encode(text, add_special_tokens).map_err(|error| tokenizer_error("prompt", &error))?;
        Ok(encoded.token_ids)
    })
}

/// Runs `encode` in this task. When it takes long, the other tasks of its worker go on in another thread meanwhile: that costs this one
/// less than to be sent to another thread and back.
fn in_place<T>(is_short: bool, encode: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread if !is_short => block_in_place(encode),
        _ => encode(),
    }
}

fn num_bytes(prompt: &PromptSource) -> usize {
    match prompt {
        PromptSource::Text(text) => text.len(),
        PromptSource::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
        PromptSource::Tokens(_) => 0,
    }
}

fn encode_one(model: &ServedModel, prompt: PromptSource, options: &EncodeOptions) -> Result<Encoded, ApiError> {
    let tokenizer = &*model.tokenizer;
    let param = prompt.param();
    let (prompt, text) = match prompt {
        PromptSource::Text(text) => (tokenizer.encode(&text, true).map_err(|error| tokenizer_error(param, &error))?, Some(text)),
        PromptSource::Tokens(token_ids) => (EncodedPrompt { token_ids, ..EncodedPrompt::default() }, None),
        PromptSource::Chat(messages) => {
            let chat = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
            (tokenizer.encode_chat(&messages, &chat).map_err(|error| chat_error(&error))?, None)
        }
    };
    if prompt.token_ids.is_empty() {
        return Err(ApiError::param(param, "a prompt must not be empty"));
    }
    let segments = tokenizer.segment_starts(&prompt, &options.segments);
    let EncodedPrompt { token_ids, template, .. } = prompt;
    let echo = options.echo.then(|| text.unwrap_or_else(|| tokenizer.decode(&token_ids, true)));
    let embedder = model.embedder.as_ref().filter(|embedder| options.embeds && embedder.is_quick());
    let embedding = embedder.and_then(|embedder| embedder.embed(&token_ids));
    Ok(Encoded { token_ids: token_ids.into(), template, segments, embedding, echo, param })
}

fn tokenizer_error(param: &str, error: &TokenizerError) -> ApiError {
    ApiError::param(param, error.to_string())
}

fn chat_error(error: &ChatError) -> ApiError {
    match error {
        ChatError::NoTemplate | ChatError::Render { .. } => ApiError::param("messages", error.to_string()),
        ChatError::Encode(error) => tokenizer_error("messages", error),
        ChatError::Syntax { .. } => {
            tracing::error!(%error, "chat template");
            ApiError::Internal
        }
    }
}
