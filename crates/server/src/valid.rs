//! Validation of client requests, done once and only here.
//!
//! A validated request needs no further check except of the prompt's length, which only the tokenizer knows.

mod constraint;
mod embeddings;
mod fields;
mod limits;
mod messages;
mod model;
mod sampling;
mod sharing;
mod tools;

use dialect::Thinking;
use engine::SamplingParams;
use protocol::{ChatCompletionRequest, CompletionRequest, Prompt, SamplingFields};
use tokens::TokenId;

pub(crate) use constraint::ValidConstraint;
pub(crate) use embeddings::{EmbeddingInput, InputSource, ValidEmbeddings, ValidRerank, ValidScore};
pub(crate) use fields::{CHAT, COMPLETIONS, DETOKENIZE, TOKENIZE, judge};
pub(crate) use limits::Limits;
pub(crate) use messages::{Conversation, valid_conversation};
pub(crate) use model::{valid_model, valid_tokens};
pub(crate) use sampling::TextOptions;
pub(crate) use sharing::{ValidSharing, valid_session};
pub(crate) use tools::ValidTools;

use self::constraint::valid_constraint;
use self::sampling::{ValidSampling, count, valid_sampling};
use self::sharing::{SharingContext, valid_sharing};
use self::tools::valid_tools;
use crate::error::ApiError;
use crate::model::ModelInfo;

/// A validated request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidRequest {
    /// Model name as used by the client.
    pub(crate) model: String,
    /// Prompts, at least one.
    pub(crate) prompts: Vec<PromptSource>,
    /// Answers per prompt, at least 1.
    pub(crate) n: u32,
    /// Limit of generated tokens.
    pub(crate) max_tokens: MaxTokens,
    /// Sampling parameters except `max_tokens`, with the seed of the first answer.
    pub(crate) sampling: SamplingParams,
    /// Constraint of the answers' text.
    pub(crate) constraint: Option<ValidConstraint>,
    /// Contents of answers that are told apart; `None` leaves all of it text.
    pub(crate) output: Option<ValidOutput>,
    /// Options of detokenization.
    pub(crate) text: TextOptions,
    /// Streaming mode; `None` for a whole answer.
    pub(crate) stream: Option<StreamMode>,
    pub(crate) sharing: ValidSharing,
    pub(crate) cache_salt: Option<String>,
    /// True if answers start with their prompt.
    pub(crate) echo: bool,
}

/// Contents that are told apart in the answers to a conversation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ValidOutput {
    /// Tools that answers may call.
    pub(crate) tools: Option<ValidTools>,
    /// Tags of reasoning.
    pub(crate) thinking: Option<Thinking>,
    /// True if reasoning is part of the answers.
    pub(crate) includes_reasoning: bool,
}

/// A prompt before tokenization.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PromptSource {
    Text(String),
    Tokens(Vec<TokenId>),
    Chat(Conversation),
}

impl PromptSource {
    /// Returns the field of the request that it came from.
    pub(crate) fn param(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Tokens(_) => "prompt",
            Self::Chat(_) => "messages",
        }
    }
}

/// Limit of the number of generated tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaxTokens {
    /// The requested number, or an error.
    Exactly(u32),
    /// As many as fit, up to this number.
    AtMost(u32),
}

impl MaxTokens {
    /// Returns the tokens to generate after a prompt of `prompt_tokens`, which came from the field `param`.
    pub(crate) fn fit_context(self, prompt_tokens: usize, max_model_len: u32, param: &'static str) -> Result<u32, ApiError> {
        let max_model_len = max_model_len as usize;
        let room = max_model_len.saturating_sub(prompt_tokens);
        let (wanted, granted) = match self {
            Self::Exactly(num_tokens) => (num_tokens as usize, num_tokens as usize),
            Self::AtMost(num_tokens) => (1, room.min(num_tokens as usize)),
        };
        if prompt_tokens + wanted > max_model_len {
            return Err(ApiError::ContextLengthExceeded {
                param,
                max_model_len,
                prompt_tokens,
                max_tokens: wanted,
                is_counted: true,
            });
        }
        Ok(u32::try_from(granted).expect("a length within max_model_len is a u32"))
    }

    /// Limits `granted` to `room`, the tokens that fit the KV pool or the tenant's share of it after the prompt, unless the request set
    /// the number. At least one token remains, so that a prompt without any room is refused for its length.
    pub(crate) fn clamp_to_pool(self, granted: u32, room: usize) -> u32 {
        match self {
            Self::Exactly(_) => granted,
            Self::AtMost(_) => granted.min(u32::try_from(room.max(1)).unwrap_or(u32::MAX)),
        }
    }
}

/// Options at the end of a streamed answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamMode {
    pub(crate) include_usage: bool,
    /// True if each chunk carries the usage so far.
    pub(crate) continuous_usage: bool,
}

/// Default tokens of a completion, as in OpenAI's API.
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Maximum likeliest tokens reported per position, as in OpenAI's chat API.
const MAX_TOP_LOGPROBS: u32 = 20;

impl ValidRequest {
    /// Validates a chat request.
    pub(crate) fn from_chat(request: ChatCompletionRequest, limits: Limits<'_>) -> Result<Self, ApiError> {
        let request = judge(request, CHAT)?;
        let model = valid_model(request.model, limits.model)?;
        let forms = limits.model.forms;
        let tools = valid_tools(request.template.tools.as_deref().unwrap_or_default(), request.tools.clone(), forms.dialect)?;
        let thinking = forms.thinking.filter(|_| request.tools.separate_reasoning.unwrap_or(true));
        let includes_reasoning = request.tools.include_reasoning.unwrap_or(true);
        let output = ValidOutput { tools, thinking, includes_reasoning };
        let conversation = valid_conversation(request.messages, request.template, forms)?;
        let logprobs = chat_logprobs(request.logprobs, request.top_logprobs)?;
        let (field, max_tokens) = match request.max_completion_tokens {
            Some(max_tokens) => ("max_completion_tokens", Some(max_tokens)),
            None => ("max_tokens", request.sampling.max_tokens),
        };
        let max_tokens = match max_tokens {
            Some(max_tokens) => MaxTokens::Exactly(count(field, max_tokens, 1..=u32::MAX)?),
            None => MaxTokens::AtMost(limits.config.sampling.max_tokens.unwrap_or(u32::MAX)),
        };
        let endpoint = EndpointFields {
            prompts: vec![PromptSource::Chat(conversation)],
            max_tokens,
            logprobs,
            prompt_logprobs: None,
            echo: false,
            constraint: valid_constraint(request.constraint)?,
            output: Some(output),
        };
        Self::build(model, endpoint, request.sampling, limits)
    }

    /// Validates a completion request.
    pub(crate) fn from_completion(request: CompletionRequest, limits: Limits<'_>) -> Result<Self, ApiError> {
        let request = judge(request, COMPLETIONS)?;
        let model = valid_model(request.model, limits.model)?;
        let prompts = valid_prompts(request.prompt, limits.model)?;
        if request.best_of.is_some_and(|best_of| best_of != request.sampling.n.unwrap_or(1)) {
            return Err(ApiError::param("best_of", "`best_of` must equal `n`: answers are not ranked"));
        }
        let echo = request.echo.unwrap_or(false);
        let logprobs = request.logprobs.map(|top| count("logprobs", top, 0..=MAX_TOP_LOGPROBS)).transpose()?;
        let max_tokens = match request.sampling.max_tokens {
            Some(max_tokens) => MaxTokens::Exactly(count("max_tokens", max_tokens, u32::from(!echo)..=u32::MAX)?),
            None => MaxTokens::AtMost(DEFAULT_COMPLETION_TOKENS),
        };
        // The engine can score a prompt without generating, even if no scores are requested.
        let only_echoes = max_tokens == MaxTokens::Exactly(0);
        let prompt_logprobs = if echo && (logprobs.is_some() || only_echoes) { logprobs.or(Some(0)) } else { None };
        let constraint = valid_constraint(request.constraint)?;
        let endpoint = EndpointFields { prompts, max_tokens, logprobs, prompt_logprobs, echo, constraint, output: None };
        Self::build(model, endpoint, request.sampling, limits)
    }

    fn build(model: String, endpoint: EndpointFields, fields: SamplingFields, limits: Limits<'_>) -> Result<Self, ApiError> {
        let EndpointFields { prompts, max_tokens, logprobs, prompt_logprobs, echo, constraint, output } = endpoint;
        let fields = limits.config.sampling.fill(fields);
        let ValidSampling { n, sampling, text } = valid_sampling(&fields, limits)?;
        if let MaxTokens::Exactly(max_tokens) = max_tokens
            && sampling.min_tokens > max_tokens
        {
            return Err(ApiError::param("min_tokens", format!("must be at most `max_tokens`, which is {max_tokens}")));
        }
        let (num_messages, num_inserted) = match &prompts[..] {
            [PromptSource::Chat(Conversation { messages, num_inserted, .. })] => {
                (Some(messages.len() - num_inserted), *num_inserted)
            }
            _ => (None, 0),
        };
        let num_choices = prompts.len() * n as usize;
        if num_choices > limits.max_choices {
            let message = format!("{num_choices} answers asked for, at most {} are possible", limits.max_choices);
            return Err(ApiError::param(if n > 1 { "n" } else { "prompt" }, message));
        }
        // A scored prompt is computed as a whole, and `cache_prompt: false` asks for that.
        let computes_all = prompt_logprobs.is_some() || fields.cache_prompt == Some(false);
        let context = SharingContext { num_messages, has_seed: fields.seed.is_some(), computes_all };
        let mut sharing =
            valid_sharing(fields.kv_sharing.clone(), fields.cache_segments.clone(), context, &limits.config.sharing)?;
        sharing.segments = sharing.segments.after_messages(num_inserted);
        Ok(Self {
            model,
            prompts,
            n,
            max_tokens,
            sampling: SamplingParams { logprobs, prompt_logprobs, ..sampling },
            text,
            stream: valid_stream(&fields)?,
            constraint,
            sharing,
            output,
            cache_salt: valid_cache_salt(fields.cache_salt)?,
            echo,
        })
    }
}

/// Fields that the two endpoints express differently.
struct EndpointFields {
    prompts: Vec<PromptSource>,
    max_tokens: MaxTokens,
    logprobs: Option<u32>,
    prompt_logprobs: Option<u32>,
    echo: bool,
    constraint: Option<ValidConstraint>,
    output: Option<ValidOutput>,
}

fn valid_prompts(prompt: Option<Prompt>, model: &ModelInfo) -> Result<Vec<PromptSource>, ApiError> {
    let tokens = |ids| valid_tokens("prompt", ids, model).map(PromptSource::Tokens);
    let prompts = match prompt {
        Some(Prompt::Text(text)) => vec![PromptSource::Text(text)],
        Some(Prompt::Texts(texts)) => texts.into_iter().map(PromptSource::Text).collect(),
        Some(Prompt::Tokens(ids)) => vec![tokens(ids)?],
        Some(Prompt::TokenLists(lists)) => lists.into_iter().map(tokens).collect::<Result<_, _>>()?,
        None => return Err(ApiError::param("prompt", "you must provide a prompt")),
    };
    let is_empty = |prompt: &PromptSource| match prompt {
        PromptSource::Text(text) => text.is_empty(),
        PromptSource::Tokens(ids) => ids.is_empty(),
        PromptSource::Chat(conversation) => conversation.messages.is_empty(),
    };
    if prompts.is_empty() || prompts.iter().any(is_empty) {
        return Err(ApiError::param("prompt", "a prompt must not be empty"));
    }
    Ok(prompts)
}

fn chat_logprobs(logprobs: Option<bool>, top_logprobs: Option<i64>) -> Result<Option<u32>, ApiError> {
    let top = top_logprobs.map(|top| count("top_logprobs", top, 0..=MAX_TOP_LOGPROBS)).transpose()?;
    match (logprobs.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::param("top_logprobs", "`logprobs` must be true when `top_logprobs` is used")),
    }
}

fn valid_stream(fields: &SamplingFields) -> Result<Option<StreamMode>, ApiError> {
    let options = fields.stream_options.unwrap_or_default();
    match (fields.stream.unwrap_or(false), fields.stream_options) {
        (true, _) => {
            let include_usage = options.include_usage.unwrap_or(false);
            // As in vLLM, it means nothing alone.
            let continuous_usage = include_usage && options.continuous_usage_stats.unwrap_or(false);
            Ok(Some(StreamMode { include_usage, continuous_usage }))
        }
        (false, None) => Ok(None),
        (false, Some(_)) => Err(ApiError::param("stream_options", "only allowed when `stream` is true")),
    }
}

fn valid_cache_salt(salt: Option<String>) -> Result<Option<String>, ApiError> {
    match salt {
        Some(salt) if salt.is_empty() => Err(ApiError::param("cache_salt", "must not be empty")),
        salt => Ok(salt),
    }
}

#[cfg(test)]
mod tests;
