//! Tokenizes prompts without delaying other requests.

use std::sync::Arc;

use tokenizer::{ChatError, EncodedPrompt, SegmentRule, TokenizerError};
use tokens::{Borders, TokenId, TokenRange};

use crate::echo::EchoedPrompt;
use crate::embedding::{Embedding, EmbeddingQueue};
use crate::error::ApiError;
use crate::heavy::Heavy;
use crate::model::ServedModel;
use crate::normalize::normalized;
use crate::valid::{Conversation, PromptSource};

/// A tokenized prompt.
pub(crate) struct Encoded {
    pub(crate) token_ids: Arc<[TokenId]>,
    /// Positions of the chat template's own tokens.
    pub(crate) template: Vec<TokenRange>,
    /// Starts of its segments, sentences and tables.
    pub(crate) borders: Borders,
    /// Its embedding, if a quick embedder provides one.
    pub(crate) embedding: Option<Embedding>,
    /// The part of it that answers echo, if requested.
    pub(crate) echo: Option<EchoedPrompt>,
    /// True if its whitespace was normalized.
    pub(crate) normalized: bool,
    /// Field of the request that it came from.
    pub(crate) param: &'static str,
}

impl Encoded {
    /// Embeds it with a slow embedder, and waits for it, unless a quick one did.
    pub(crate) async fn embed_slowly(&mut self, queue: &EmbeddingQueue) {
        if self.embedding.is_none() {
            self.embedding = queue.embed(Arc::clone(&self.token_ids)).await;
        }
    }
}

/// Maximum bytes that are tokenized inline. Chosen: at about 10 MB/s, the speed on text of rare words, this is below half a millisecond.
const INLINE_BYTES: usize = 4 << 10;
/// Approximate bytes whose tokenization takes as long as rendering a message.
const MESSAGE_BYTES: usize = 64;
/// Minimum of the tokens that `/tokenize` counts, whatever the model's length. Chosen: the answer has below a megabyte.
const MIN_COUNTED: usize = 1 << 17;

/// Options of tokenizing prompts.
#[derive(Clone, Debug)]
pub(crate) struct EncodeOptions {
    /// Rule for the starts of segments.
    pub(crate) segments: SegmentRule,
    /// True to normalize insignificant whitespace.
    pub(crate) normalize: bool,
    /// True if answers start with their prompts.
    pub(crate) echo: bool,
    /// True to run a quick embedder.
    pub(crate) embeds: bool,
}

/// Tokenizer of prompts, with the threads for long ones.
#[derive(Clone, Copy)]
pub(crate) struct Encoder<'a> {
    pub(crate) model: &'a ServedModel,
    pub(crate) heavy: &'a Heavy,
}

impl Encoder<'_> {
    /// Tokenizes `prompts`. One that cannot fit the model is refused as early as its length is known.
    pub(crate) async fn encode_all(self, prompts: Vec<PromptSource>, options: EncodeOptions) -> Result<Vec<Encoded>, ApiError> {
        let num_bytes: usize = prompts.iter().map(num_bytes).sum();
        let embeds = options.embeds && self.model.embedder.as_ref().is_some_and(|embedder| embedder.is_quick());
        // An embedder takes a millisecond for what is tokenized in half of one.
        let max_inline_bytes = if embeds { INLINE_BYTES / 4 } else { INLINE_BYTES };
        let model = self.model.clone();
        let encode = move || prompts.into_iter().map(|prompt| encode_one(&model, prompt, &options)).collect();
        self.heavy.run(num_bytes, max_inline_bytes, encode).await
    }

    /// Tokenizes a text, with or without the tokens that the model expects around it. It may be empty, and longer than the model's length.
    pub(crate) async fn encode_text(self, text: String, add_special_tokens: bool) -> Result<Vec<TokenId>, ApiError> {
        let model = self.model.clone();
        let max_tokens = max_counted(&model);
        let num_text_bytes = text.len();
        let encode = move || match model.tokenizer.encode_within(&text, add_special_tokens, max_tokens) {
            Ok(encoded) => Ok(encoded.token_ids),
            Err(TokenizerError::TooManyTokens { .. }) => {
                Err(ApiError::param("prompt", format!("the text has more than the {max_tokens} tokens that are counted")))
            }
            Err(error) => Err(tokenizer_error(&model, "prompt", &error)),
        };
        self.heavy.run(num_text_bytes, INLINE_BYTES, encode).await
    }
}

/// Returns the maximum number of tokens to count or to decode without generation.
pub(crate) fn max_counted(model: &ServedModel) -> usize {
    MIN_COUNTED.max(model.info.max_model_len as usize)
}

fn num_bytes(prompt: &PromptSource) -> usize {
    match prompt {
        PromptSource::Text(text) => text.len(),
        PromptSource::Chat(Conversation { messages, options, .. }) => {
            let template = options.template.as_ref().map_or(0, String::len);
            template
                + options.num_variable_bytes()
                + messages.iter().map(|message| message.content.len() + MESSAGE_BYTES).sum::<usize>()
        }
        PromptSource::Tokens(ids) => ids.len(),
    }
}

fn encode_one(model: &ServedModel, prompt: PromptSource, options: &EncodeOptions) -> Result<Encoded, ApiError> {
    let tokenizer = &*model.tokenizer;
    let (param, max_model_len) = (prompt.param(), model.info.max_model_len as usize);
    let (prompt, normalized) = if options.normalize { with_normal_blanks(prompt) } else { (prompt, false) };
    let (prompt, text) = match prompt {
        PromptSource::Text(text) => {
            let encoded = tokenizer.encode_within(&text, true, max_model_len);
            (encoded.map_err(|error| tokenizer_error(model, param, &error))?, Some(text))
        }
        PromptSource::Tokens(token_ids) => (EncodedPrompt { token_ids, ..EncodedPrompt::default() }, None),
        PromptSource::Chat(Conversation { messages, options, .. }) => {
            let encoded = tokenizer.encode_chat_within(&messages, &options, max_model_len);
            (encoded.map_err(|error| chat_error(model, &error))?, None)
        }
    };
    if prompt.token_ids.is_empty() {
        return Err(ApiError::param(param, "a prompt must not be empty"));
    }
    let borders = tokenizer.borders(&prompt, &options.segments);
    let echo = options.echo.then(|| match text {
        Some(text) => EchoedPrompt::of_text(&model.tokenizer, text, &prompt),
        None => EchoedPrompt::of_tokens(&model.tokenizer, &prompt.token_ids),
    });
    let EncodedPrompt { token_ids, template, .. } = prompt;
    let embedder = model.embedder.as_ref().filter(|embedder| options.embeds && embedder.is_quick());
    let embedding = embedder.and_then(|embedder| embedder.embed(&token_ids));
    Ok(Encoded { token_ids: token_ids.into(), template, borders, embedding, echo, normalized, param })
}

/// Normalizes the whitespace of the prompt; returns true if that changed it.
fn with_normal_blanks(prompt: PromptSource) -> (PromptSource, bool) {
    match prompt {
        PromptSource::Text(text) => match normalized(&text) {
            Some(text) => (PromptSource::Text(text), true),
            None => (PromptSource::Text(text), false),
        },
        PromptSource::Chat(mut conversation) => {
            let mut is_changed = false;
            for message in &mut conversation.messages {
                if let Some(text) = normalized(&message.content) {
                    message.content = text;
                    is_changed = true;
                }
            }
            (PromptSource::Chat(conversation), is_changed)
        }
        tokens @ PromptSource::Tokens(_) => (tokens, false),
    }
}

fn tokenizer_error(model: &ServedModel, param: &'static str, error: &TokenizerError) -> ApiError {
    match error {
        TokenizerError::TooManyTokens { at_least } => ApiError::ContextLengthExceeded {
            param,
            max_model_len: model.info.max_model_len as usize,
            prompt_tokens: *at_least,
            max_tokens: 1,
            is_counted: false,
        },
        error => ApiError::param(param, error.to_string()),
    }
}

fn chat_error(model: &ServedModel, error: &ChatError) -> ApiError {
    match error {
        ChatError::NoTemplate | ChatError::Render { .. } => ApiError::param("messages", error.to_string()),
        ChatError::Encode(error) => tokenizer_error(model, "messages", error),
        // The model's own template was compiled at the start.
        ChatError::Syntax { .. } => ApiError::param("chat_template", error.to_string()),
    }
}
