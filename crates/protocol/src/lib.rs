//! Request and response bodies of OpenAI's API, and of Anthropic's Messages.
//!
//! Contains the bodies of the HTTP API as serde types, in the shapes that OpenAI's clients (and, for `/tokenize` and the sampling extras,
//! vLLM's, for `/rerank` Cohere's) already use. All request fields are optional here, so that a missing or malformed one can be reported by name; the server
//! decides once which are required and which ranges are allowed.
//! Deliberately excludes HTTP, validation, and of other crates of ours all but `tokens`.

#![forbid(unsafe_code)]

mod admin;
mod chat;
mod common;
mod completion;
mod embeddings;
mod error;
mod explain;
mod logprobs;
mod messages;
mod models;
mod object;
mod rerank;
mod responses;
mod sharing;
pub mod sharing_mode;
mod tokenize;
mod tools;
mod traffic;
mod usage;

pub use admin::{Corpus, CorpusList, CorpusRequest, Donor, DonorList, Erased};
pub use chat::{
    AssistantMessage, ChatChoice, ChatChunkChoice, ChatCompletionChunk, ChatCompletionRequest, ChatCompletionResponse,
    ChatMessage, ContentPart, Delta, MessageContent,
};
pub use common::{ConstraintFields, FinishReason, SamplingFields, Stop, StreamOptions, TemplateFields};
pub use completion::{CompletionChoice, CompletionRequest, CompletionResponse, Prompt};
pub use embeddings::{EmbeddingObject, EmbeddingUsage, EmbeddingValue, EmbeddingsRequest, EmbeddingsResponse, EncodingFormat};
pub use error::{ErrorBody, ErrorResponse};
pub use explain::{CostEstimate, DonorSource, ExplainedSpan, Explanation};
pub use logprobs::{ChatLogProb, ChatLogProbs, CompletionLogProbs, NamedLogProbs, TopLogProb};
pub use messages::{
    BlockContent, BlockDelta, InputBlock, InputMessage, InputTool, InputToolChoice, Message, MessageDelta, MessageError,
    MessageErrorResponse, MessageEvent, MessageMetadata, MessageTokensCount, MessageUsage, MessagesRequest, OutputBlock,
    OutputConfig, OutputFormat, StopReason, ThinkingConfig,
};
pub use models::{ModelCard, ModelList};
pub use rerank::{
    DocumentText, RerankDocument, RerankRequest, RerankResponse, RerankResult, ScoreObject, ScoreRequest, ScoreResponse, Texts,
};
pub use responses::{
    DeletedResponse, IncompleteDetails, InputItem, InputItemList, InputTokensDetails, ItemContent, ItemPart, OutputItem,
    OutputPart, OutputTokensDetails, ResponseError, ResponseEvent, ResponseEventKind, ResponseInput, ResponseObject,
    ResponseReasoning, ResponseRequest, ResponseStatus, ResponseText, ResponseUsage,
};
pub use sharing::{DeviationBound, EditMode, KvSharingOptions, SegmentMark};
pub use tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
pub use tokens::SharingMode;
pub use tools::{FunctionCall, FunctionDelta, Tool, ToolCall, ToolCallDelta, ToolFields};
pub use traffic::{TrafficClass, TrafficClassList, TrafficState};
pub use usage::{CompletionTokensDetails, KvSharingUsage, MatchClass, PromptTokensDetails, ReuseReason, Usage};
