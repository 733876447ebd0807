//! Anthropic's Messages as a translation: of requests into chat requests, and of chat answers, streams and errors back.
//!
//! Validation, prompts and generation are those of the chat endpoint.

mod error;
mod history;
mod message;
mod request;
mod tools;
mod writer;

pub(crate) use error::{in_its_shape, is_messages_path, renamed};
pub(crate) use message::{message, message_id};
pub(crate) use request::{to_chat, to_counted_chat};
pub(crate) use writer::MessageWriter;

#[cfg(test)]
mod tests {
    use protocol::{CompletionTokensDetails, KvSharingUsage, PromptTokensDetails, Usage};
    use tokens::SharingMode;

    /// Returns the usage of a prompt of 100 tokens, of which 32 were cached, and an answer of 7.
    pub(super) fn usage() -> Usage {
        Usage {
            prompt_tokens: 100,
            completion_tokens: 7,
            total_tokens: 107,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: 32 },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: 0 },
            kv_sharing: KvSharingUsage {
                mode: SharingMode::Prefix,
                prefix_tokens: 32,
                continued_tokens: 0,
                span_tokens: 0,
                recomputed_tokens: 0,
                donors: 0,
                class: None,
                deviation: None,
                normalized: false,
                reason: None,
            },
        }
    }
}
