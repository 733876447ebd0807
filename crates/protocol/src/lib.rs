//! What OpenAI clients send and receive, and nothing else.
//!
//! What is here: the bodies of the HTTP API as serde types, in the shapes that OpenAI's clients (and, for `/tokenize` and the
//! sampling extras, vLLM's) already speak. Request fields are all optional here, so that a missing or malformed one can be
//! reported by name; what is required and which ranges are allowed is decided by the server, once.
//! What is deliberately not here: HTTP, validation, and any other crate of ours.

#![forbid(unsafe_code)]

mod admin;
mod chat;
mod common;
mod completion;
mod error;
mod explain;
mod logprobs;
mod models;
mod object;
mod sharing;
mod tokenize;
mod traffic;
mod usage;

pub use admin::{Corpus, CorpusList, CorpusRequest, Donor, DonorList, Erased};
pub use chat::{
    AssistantMessage, ChatChoice, ChatChunkChoice, ChatCompletionChunk, ChatCompletionRequest, ChatCompletionResponse,
    ChatMessage, ContentPart, Delta, MessageContent,
};
pub use common::{FinishReason, SamplingFields, Stop, StreamOptions, TemplateFields};
pub use completion::{CompletionChoice, CompletionRequest, CompletionResponse, Prompt};
pub use error::{ErrorBody, ErrorResponse};
pub use explain::{CostEstimate, DonorSource, ExplainedSpan, Explanation};
pub use logprobs::{ChatLogProb, ChatLogProbs, CompletionLogProbs, NamedLogProbs, TopLogProb};
pub use models::{ModelCard, ModelList};
pub use sharing::{DeviationBound, EditMode, KvSharingOptions, SegmentMark, SharingMode};
pub use tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
pub use traffic::{TrafficClass, TrafficClassList, TrafficState};
pub use usage::{CompletionTokensDetails, KvSharingUsage, MatchClass, PromptTokensDetails, ReuseReason, Usage};
