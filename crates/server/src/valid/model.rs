//! The model's name and its tokens.

use tokens::TokenId;

use crate::error::ApiError;
use crate::model::ModelInfo;

/// Validates the model name. Without one it is the only served model, as in vLLM and llama.cpp.
pub(crate) fn valid_model(name: Option<String>, model: &ModelInfo) -> Result<String, ApiError> {
    match name {
        Some(name) if model.is_called(&name) => Ok(name),
        Some(name) => Err(ApiError::ModelNotFound { model: name }),
        None => Ok(model.id.clone()),
    }
}

/// Checks that all `ids` are in the vocabulary.
pub(crate) fn valid_tokens(param: &str, ids: Vec<u32>, model: &ModelInfo) -> Result<Vec<TokenId>, ApiError> {
    let check = |id: u32| {
        let is_known = id < model.vocab_size;
        is_known.then_some(TokenId(id)).ok_or_else(|| {
            ApiError::param(param, format!("token id {id} is not in the vocabulary of {} tokens", model.vocab_size))
        })
    };
    ids.into_iter().map(check).collect()
}
