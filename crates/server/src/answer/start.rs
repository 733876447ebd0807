//! Tokenizes the prompts of a valid request and submits them to the engine.

use std::sync::Arc;

use engine::{Request, SamplingParams};
use futures::future::select_all;
use tokens::SharingMode;
use tokens::Timestamp;

use super::choice::{Choice, ChoiceOptions, Echo};
use super::parse::AnswerParserOptions;
use crate::embedding::EmbeddingQueue;
use crate::encode::{EncodeOptions, Encoded, Encoder};
use crate::engine_thread::{EngineHandle, Phase, PromptGroup, SubmitError};
use crate::error::ApiError;
use crate::grammars::{Demand, Grammars};
use crate::metrics::{Metrics, ShedReason};
use crate::requests::RequestBuilder;
use crate::tenants::Caller;
use crate::valid::{ValidOutput, ValidRequest};

/// Tokens at the end of a prompt among which the opening tag of reasoning is looked for.
const END_TOKENS: usize = 16;

/// Parts of the server that start answers.
#[derive(Clone, Copy)]
pub(crate) struct Generator<'a> {
    pub(crate) encoder: Encoder<'a>,
    pub(crate) requests: RequestBuilder<'a>,
    pub(crate) embeddings: &'a EmbeddingQueue,
    pub(crate) engine: &'a EngineHandle,
    pub(crate) metrics: &'a Metrics,
    pub(crate) grammars: &'a Grammars,
}

/// Answers in progress in the engine. Dropping it aborts them.
pub(crate) struct Generation {
    /// Answers by prompt, `n` for each.
    pub(super) choices: Vec<Choice>,
    pub(super) n: u32,
    /// Tokens of all prompts, each counted once.
    pub(super) prompt_tokens: u32,
    pub(super) sharing: SharingMode,
    /// True if whitespace of its prompts was normalized.
    pub(super) normalized: bool,
    pub(super) wants_logprobs: bool,
}

impl Generation {
    /// Waits until the engine admits one of the answers.
    ///
    /// # Errors
    /// If one is refused before: nothing has been sent, so the refusal can have its status.
    pub(crate) async fn admitted(&mut self) -> Result<(), ApiError> {
        let begun = self.choices.iter_mut().map(|choice| Box::pin(choice.admitted()));
        select_all(begun).await.0
    }
}

impl Generator<'_> {
    /// Starts all answers of `request`, sent by `caller` and received at `arrival`, or none of them.
    pub(crate) async fn start(
        self,
        caller: &Caller,
        mut request: ValidRequest,
        arrival: Timestamp,
    ) -> Result<Generation, ApiError> {
        self.refuse_early()?;
        let embeds = request.sharing.store || request.sharing.mode == SharingMode::Semantic;
        let options = EncodeOptions {
            segments: request.sharing.segments.clone(),
            normalize: request.sharing.normalize,
            echo: request.echo,
            embeds,
        };
        let prompts = self.encoder.encode_all(std::mem::take(&mut request.prompts), options).await?;
        let parser = request.output.take().map(|output| self.parser_options(output, &prompts));
        let thinking = parser.as_ref().filter(|parser| parser.options.is_thinking).and_then(|parser| parser.options.thinking);
        let tools = parser.as_ref().and_then(|parser| parser.tools.clone());
        let demand = Demand { text: request.constraint.take(), tools, thinking };
        request.sampling.grammar = self.grammars.compile(&caller.name, demand, self.encoder.heavy).await?;
        let prompt_tokens = prompts.iter().map(|prompt| prompt.token_ids.len()).sum::<usize>();
        let groups =
            prompts.iter().map(|prompt| self.group_of(caller, &request, prompt, arrival)).collect::<Result<Vec<_>, _>>()?;
        for group in &groups {
            group.first().map_or(Ok(()), |request| fits(self.engine, request))?;
        }
        // All requests of a group have the same prompt, and one prompt is one donor.
        let firsts = groups.iter().filter_map(|group| group.first());
        let firsts: Vec<_> = firsts.map(|first| (first.request_id, Arc::clone(&first.prompt_token_ids))).collect();
        let streams = self.engine.submit(groups).map_err(|error| submit_error(self.engine, self.metrics, error))?;
        if embeds {
            self.embeddings.embed_later(self.engine, firsts.into_iter());
        }
        let options = ChoiceOptions {
            tokenizer: Arc::clone(&self.encoder.model.tokenizer),
            text: request.text,
            stop_token_ids: request.sampling.stop_token_ids.into(),
            wants_logprobs: request.sampling.logprobs.is_some(),
            is_constrained: request.sampling.grammar.is_some(),
            parser,
        };
        let n = request.n as usize;
        let to_choice = |(index, events): (usize, _)| {
            let prompt = &prompts[index / n];
            let echo = prompt.echo.clone().map(|prompt| Echo { prompt, token_ids: Arc::clone(&prompts[index / n].token_ids) });
            Choice::new(u32::try_from(index).expect("the queue is shorter than that"), events, echo, &options)
        };
        Ok(Generation {
            choices: streams.into_iter().enumerate().map(to_choice).collect(),
            n: request.n,
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            sharing: request.sharing.mode,
            normalized: prompts.iter().any(|prompt| prompt.normalized),
            wants_logprobs: options.wants_logprobs,
        })
    }

    /// Returns the options of parsing the answers to `prompts`, of which a conversation has one.
    fn parser_options(self, output: ValidOutput, prompts: &[Encoded]) -> AnswerParserOptions {
        let tokenizer = &self.encoder.model.tokenizer;
        let prompt = prompts.first().map_or(&[][..], |prompt| &prompt.token_ids);
        let end = tokenizer.decode(&prompt[prompt.len().saturating_sub(END_TOKENS)..], false);
        AnswerParserOptions::new(output, &end, tokenizer)
    }

    /// Refuses requests before tokenization when the server is about to end.
    fn refuse_early(self) -> Result<(), ApiError> {
        match self.engine.phase() {
            Phase::Running => Ok(()),
            phase => Err(submit_error(self.engine, self.metrics, SubmitError::NotRunning(phase))),
        }
    }

    /// Creates the `n` requests of one prompt, with successive seeds.
    fn group_of(
        self,
        caller: &Caller,
        request: &ValidRequest,
        prompt: &Encoded,
        arrival: Timestamp,
    ) -> Result<PromptGroup, ApiError> {
        let first = self.requests.of_caller(caller, request, prompt, arrival)?;
        let another = |i: u32| Request {
            request_id: self.engine.next_request_id(),
            sampling: SamplingParams { seed: first.sampling.seed.wrapping_add(u64::from(i)), ..first.sampling.clone() },
            ..first.clone()
        };
        let others: Vec<_> = (1..request.n).map(another).collect();
        Ok(std::iter::once(first).chain(others).collect())
    }
}

/// Refuses requests that the pool could never hold. The requests of a group are equally long.
pub(crate) fn fits(engine: &EngineHandle, request: &Request) -> Result<(), ApiError> {
    engine.fits(request).map_err(|reason| ApiError::PoolTooSmall {
        prompt_tokens: request.prompt_token_ids.len(),
        max_tokens: request.sampling.max_tokens as usize,
        reason: reason.to_string(),
    })
}

pub(crate) fn submit_error(engine: &EngineHandle, metrics: &Metrics, error: SubmitError) -> ApiError {
    match error {
        SubmitError::QueueFull => {
            metrics.http.count_shed(ShedReason::QueueFull);
            // The wait of the oldest request is the best estimate of the waiting time.
            let oldest = engine.stats().oldest_waiting_arrival.map(|arrival| engine.now().since(arrival));
            ApiError::QueueFull { retry_after_s: oldest.unwrap_or_default().as_secs().clamp(1, 30) }
        }
        SubmitError::NotRunning(Phase::Failed) => ApiError::EngineFailed,
        SubmitError::NotRunning(_) => {
            metrics.http.count_shed(ShedReason::Draining);
            ApiError::Draining
        }
    }
}
