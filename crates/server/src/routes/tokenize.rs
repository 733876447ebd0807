//! Tokenization and detokenization endpoints.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use protocol::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use tokenizer::SegmentRule;

use crate::body::Body;
use crate::encode::{EncodeOptions, max_counted};
use crate::error::ApiError;
use crate::state::AppState;
use crate::valid::{DETOKENIZE, PromptSource, TOKENIZE, judge, valid_conversation, valid_model, valid_tokens};

/// Maximum tokens that are decoded inline. Chosen: that takes below a tenth of a millisecond.
const INLINE_TOKENS: usize = 4096;

/// `POST /tokenize`.
pub(super) async fn tokenize(State(app): State<Arc<AppState>>, mut body: Body) -> Result<Json<TokenizeResponse>, ApiError> {
    let request: TokenizeRequest = judge(body.parse().await?, TOKENIZE)?;
    check_model(&app, request.model)?;
    let token_ids = match (request.prompt, request.messages) {
        (Some(text), None) => app.encoder().encode_text(text, request.add_special_tokens.unwrap_or(true)).await?,
        (None, Some(_)) if request.add_special_tokens == Some(true) => {
            return Err(ApiError::param("add_special_tokens", "the chat template writes the special tokens of a conversation"));
        }
        (None, Some(messages)) => {
            let prompt = PromptSource::Chat(valid_conversation(Some(messages), request.template, app.model.info.forms)?);
            let options = EncodeOptions { segments: SegmentRule::Text, normalize: false, echo: false, embeds: false };
            let encoded = app.encoder().encode_all(vec![prompt], options).await?;
            encoded.iter().flat_map(|prompt| prompt.token_ids.iter().copied()).collect()
        }
        _ => return Err(ApiError::param("prompt", "you must provide either `prompt` or `messages`")),
    };
    let tokenizer = &app.model.tokenizer;
    let token_strs =
        request.return_token_strs.unwrap_or(false).then(|| token_ids.iter().map(|&token| tokenizer.token_str(token)).collect());
    Ok(Json(TokenizeResponse {
        count: token_ids.len(),
        max_model_len: app.model.info.max_model_len,
        tokens: token_ids.iter().map(|token| token.0).collect(),
        token_strs,
    }))
}

/// `POST /detokenize`.
pub(super) async fn detokenize(State(app): State<Arc<AppState>>, mut body: Body) -> Result<Json<DetokenizeResponse>, ApiError> {
    let request: DetokenizeRequest = judge(body.parse().await?, DETOKENIZE)?;
    check_model(&app, request.model)?;
    let ids = request.tokens.ok_or_else(|| ApiError::param("tokens", "you must provide tokens"))?;
    let max_tokens = max_counted(&app.model);
    if ids.len() > max_tokens {
        return Err(ApiError::param("tokens", format!("`tokens` has more than {max_tokens} elements")));
    }
    let token_ids = valid_tokens("tokens", ids, &app.model.info)?;
    let skip_special = request.skip_special_tokens.unwrap_or(false);
    let num_tokens = token_ids.len();
    let (tokenizer, limit) = (Arc::clone(&app.model.tokenizer), app.config.body_limit);
    let decode = move || {
        let num_bytes: usize = token_ids.iter().map(|&token| tokenizer.token_bytes(token).len()).sum();
        match num_bytes <= limit {
            true => Ok(tokenizer.decode(&token_ids, skip_special)),
            false => Err(ApiError::param(
                "tokens",
                format!("the text of the tokens has {num_bytes} bytes, at most {limit} are returned"),
            )),
        }
    };
    let prompt = app.heavy.run(num_tokens, INLINE_TOKENS, decode).await?;
    Ok(Json(DetokenizeResponse { prompt }))
}

/// Checks the model name, which is optional here, unlike for generation: there is only one model.
fn check_model(app: &AppState, name: Option<String>) -> Result<(), ApiError> {
    match name {
        Some(name) => valid_model(Some(name), &app.model.info).map(drop),
        None => Ok(()),
    }
}
