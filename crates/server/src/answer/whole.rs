//! Answers that are sent in one piece.

use futures::future::try_join_all;
use protocol::{
    AssistantMessage, ChatChoice, ChatCompletionResponse, ChatLogProbs, CompletionChoice, CompletionLogProbs, CompletionResponse,
    FinishReason, ToolCall, Usage,
};
use tokenizer::Tokenizer;

use super::choice::Choice;
use super::delta::CallHead;
use super::scores::ScoredToken;
use super::start::Generation;
use super::usage::{ChoiceUsage, UsageSum};
use super::writer::{AnswerHead, chat_logprobs, completion_logprobs, completion_response};
use crate::error::ApiError;

/// A complete answer.
struct WholeChoice {
    index: u32,
    reasoning: String,
    text: String,
    calls: Vec<ToolCall>,
    scores: Vec<ScoredToken>,
    finish_reason: FinishReason,
    stop: Option<String>,
    usage: ChoiceUsage,
}

/// Runs a chat request to its end.
pub(crate) async fn whole_chat(
    head: AnswerHead,
    generation: Generation,
    tokenizer: &Tokenizer,
) -> Result<ChatCompletionResponse, ApiError> {
    let wants_logprobs = generation.wants_logprobs;
    let (choices, usage) = run_all(generation).await?;
    let to_choice = |mut choice: WholeChoice| ChatChoice {
        index: choice.index,
        message: message_of(&mut choice),
        logprobs: wants_logprobs.then(|| -> ChatLogProbs { chat_logprobs(tokenizer, &choice.scores) }),
        finish_reason: choice.finish_reason,
        matched_stop: choice.stop,
    };
    Ok(ChatCompletionResponse {
        id: head.id,
        object: "chat.completion".to_owned(),
        created: head.created,
        model: head.model,
        system_fingerprint: head.fingerprint,
        choices: choices.into_iter().map(to_choice).collect(),
        usage,
    })
}

/// Runs a completion request to its end.
pub(crate) async fn whole_completion(
    head: AnswerHead,
    generation: Generation,
    tokenizer: &Tokenizer,
) -> Result<CompletionResponse, ApiError> {
    let wants_logprobs = generation.wants_logprobs;
    let (choices, usage) = run_all(generation).await?;
    let to_choice = |choice: WholeChoice| CompletionChoice {
        index: choice.index,
        text: choice.text,
        logprobs: wants_logprobs.then(|| -> CompletionLogProbs { completion_logprobs(tokenizer, &choice.scores) }),
        finish_reason: Some(choice.finish_reason),
    };
    Ok(completion_response(head, choices.into_iter().map(to_choice).collect(), Some(usage)))
}

async fn run_all(generation: Generation) -> Result<(Vec<WholeChoice>, Usage), ApiError> {
    let mut sum = UsageSum::new(generation.sharing, generation.n, generation.prompt_tokens).normalized(generation.normalized);
    let choices = try_join_all(generation.choices.into_iter().map(run_one)).await?;
    for choice in &choices {
        sum.add(choice.index, choice.usage);
    }
    Ok((choices, sum.total()))
}

async fn run_one(mut choice: Choice) -> Result<WholeChoice, ApiError> {
    let (mut text, mut reasoning, mut scores) = (String::new(), String::new(), Vec::new());
    let mut calls: Vec<(CallHead, String)> = Vec::new();
    loop {
        let delta = choice.next().await?;
        text.push_str(&delta.text);
        reasoning.push_str(&delta.reasoning);
        scores.extend(delta.scores);
        for call in delta.calls {
            calls.extend(call.begins.map(|head| (head, String::new())));
            if let Some((_, arguments)) = calls.last_mut() {
                arguments.push_str(&call.arguments);
            }
        }
        if let Some(finish_reason) = delta.finish_reason {
            let calls = calls.into_iter().map(|(head, arguments)| ToolCall::new(head.id, head.name, arguments)).collect();
            return Ok(WholeChoice {
                index: choice.index(),
                reasoning,
                text,
                calls,
                scores,
                finish_reason,
                stop: delta.stop,
                usage: choice.usage(),
            });
        }
    }
}

/// Returns the message of a choice. One that only calls tools has no text.
fn message_of(choice: &mut WholeChoice) -> AssistantMessage {
    let text = std::mem::take(&mut choice.text);
    let reasoning = std::mem::take(&mut choice.reasoning);
    let tool_calls = std::mem::take(&mut choice.calls);
    AssistantMessage {
        role: "assistant".to_owned(),
        content: (!text.is_empty() || tool_calls.is_empty()).then_some(text),
        refusal: None,
        reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
        tool_calls,
    }
}
