//! Tokenizes the prompts of a valid request and hands them to the engine.

use std::sync::Arc;

use engine::{KvSharingMode, Request, SamplingParams};
use tokens::{CacheSalt, Timestamp};

use super::choice::{Choice, ChoiceOptions, Echo};
use crate::encode::{Encoded, encode_all};
use crate::engine_thread::{Phase, PromptGroup, SubmitError};
use crate::error::ApiError;
use crate::metrics::ShedReason;
use crate::scope::{DEFAULT_TENANT, ScopeInputs, scope_of};
use crate::state::AppState;
use crate::valid::ValidRequest;

/// Answers that the engine is working on. Dropping it takes them back.
pub(crate) struct Generation {
    /// Prompt by prompt, `n` for each.
    pub(super) choices: Vec<Choice>,
    pub(super) n: u32,
    /// Of all prompts, each counted once.
    pub(super) prompt_tokens: u32,
    pub(super) sharing: KvSharingMode,
    pub(super) wants_logprobs: bool,
}

/// Starts all answers of `request`, which came at `arrival`, or none of them.
pub(crate) async fn start(app: &AppState, mut request: ValidRequest, arrival: Timestamp) -> Result<Generation, ApiError> {
    refuse_early(app)?;
    let prompts = encode_all(&app.model, std::mem::take(&mut request.prompts), request.echo).await?;
    let prompt_tokens = prompts.iter().map(|prompt| prompt.token_ids.len()).sum::<usize>();
    let groups = prompts.iter().map(|prompt| group_of(app, &request, prompt, arrival)).collect::<Result<Vec<_>, _>>()?;
    for group in &groups {
        fits(app, group)?;
    }
    let streams = app.engine.submit(groups).map_err(|error| submit_error(app, error))?;
    let options = ChoiceOptions {
        tokenizer: Arc::clone(&app.model.tokenizer),
        stop: request.stop,
        stop_token_ids: request.sampling.stop_token_ids.into(),
        wants_logprobs: request.sampling.logprobs.is_some(),
    };
    let n = request.n as usize;
    let to_choice = |(index, events): (usize, _)| {
        let prompt = &prompts[index / n];
        let echo = prompt.echo.as_ref().map(|text| Echo { text: text.clone(), token_ids: Arc::clone(&prompt.token_ids) });
        Choice::new(u32::try_from(index).expect("the queue is shorter than that"), events, echo, &options)
    };
    Ok(Generation {
        choices: streams.into_iter().enumerate().map(to_choice).collect(),
        n: request.n,
        prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
        sharing: request.sharing,
        wants_logprobs: options.wants_logprobs,
    })
}

/// Saves the work of tokenizing for a server that is about to end.
fn refuse_early(app: &AppState) -> Result<(), ApiError> {
    match app.engine.phase() {
        Phase::Running => Ok(()),
        phase => Err(submit_error(app, SubmitError::NotRunning(phase))),
    }
}

/// The `n` answers of one prompt.
fn group_of(app: &AppState, request: &ValidRequest, prompt: &Encoded, arrival: Timestamp) -> Result<PromptGroup, ApiError> {
    let max_model_len = app.model.info.max_model_len;
    let max_tokens = request.max_tokens.after(prompt.token_ids.len(), max_model_len, prompt.param)?;
    let salt = scope(app, request);
    let answer = |i: u32| Request {
        request_id: app.engine.next_request_id(),
        prompt_token_ids: Arc::clone(&prompt.token_ids),
        sampling: SamplingParams {
            max_tokens,
            min_tokens: request.sampling.min_tokens.min(max_tokens),
            seed: request.sampling.seed.wrapping_add(u64::from(i)),
            ..request.sampling.clone()
        },
        tenant: tokens::TenantId::default(),
        cache_salt: salt,
        sharing: request.sharing,
        repair: engine::Repair::structural(),
        store: request.store,
        template: prompt.template.clone(),
        segments: Vec::new(),
        session: None,
        readable: Vec::new(),
        arrival,
    };
    Ok((0..request.n).map(answer).collect())
}

fn scope(app: &AppState, request: &ValidRequest) -> CacheSalt {
    let inputs = ScopeInputs { tenant: DEFAULT_TENANT, model: &app.model.info.id, cache_salt: request.cache_salt.as_deref() };
    scope_of(&app.secret, inputs)
}

/// Refuses what the pool could never hold. The answers of a group are equally long.
fn fits(app: &AppState, group: &PromptGroup) -> Result<(), ApiError> {
    let Some(request) = group.first() else { return Ok(()) };
    app.engine.fits(request).map_err(|reason| ApiError::PoolTooSmall {
        prompt_tokens: request.prompt_token_ids.len(),
        max_tokens: request.sampling.max_tokens as usize,
        reason: reason.to_string(),
    })
}

fn submit_error(app: &AppState, error: SubmitError) -> ApiError {
    match error {
        SubmitError::QueueFull => {
            app.metrics.http.count_shed(ShedReason::QueueFull);
            // As long as the oldest has waited is the best guess of how long one waits.
            let oldest = app.engine.stats().oldest_waiting_arrival.map(|arrival| app.engine.now().since(arrival));
            ApiError::QueueFull { retry_after_s: oldest.unwrap_or_default().as_secs().clamp(1, 30) }
        }
        SubmitError::NotRunning(Phase::Failed) => ApiError::EngineFailed,
        SubmitError::NotRunning(_) => {
            app.metrics.http.count_shed(ShedReason::Draining);
            ApiError::Draining
        }
    }
}
