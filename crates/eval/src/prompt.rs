//! Prompt of a request in the engine's form.

use tokenizer::{ChatError, ChatMessage, ChatOptions, SegmentRule, Tokenizer};
use tokens::{Borders, TokenId, TokenRange};

use super::workload::{Message, Record};

/// Prompt as the server encodes a request's messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Tokens of the whole prompt.
    pub token_ids: Vec<TokenId>,
    /// Ranges of chat template tokens.
    pub template: Vec<TokenRange>,
    /// Starts of its segments.
    pub borders: Borders,
}

impl Prompt {
    /// Encodes the messages of `record` as the server does.
    ///
    /// # Errors
    /// If the model has no chat template, or it refuses the conversation.
    pub fn encode(tokenizer: &Tokenizer, record: &Record) -> Result<Self, ChatError> {
        let message = |message: &Message| ChatMessage::new(message.role.as_str(), message.content.as_str());
        let messages: Vec<_> = record.messages.iter().map(message).collect();
        let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
        let prompt = tokenizer.encode_chat(&messages, &options)?;
        let borders = tokenizer.borders(&prompt, &SegmentRule::Text);
        Ok(Self { token_ids: prompt.token_ids, template: prompt.template, borders })
    }

    /// Makes a prompt without template and borders.
    pub fn plain(token_ids: Vec<TokenId>) -> Self {
        Self { token_ids, ..Self::default() }
    }
}
