//! Errors of chat requests in the terms of `/v1/responses`.

use crate::error::ApiError;

/// Fields of a chat request, and those of a request for a response that became them.
const NAMES: [(&str, &str); 4] = [
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
];

/// Names the fields of the request that was sent in `error`, which names those of the chat request that it became.
pub(crate) fn in_terms_of_responses(error: ApiError) -> ApiError {
    match error {
        ApiError::Invalid { param, message } => {
            let renamed = |text: String, (chat, own): (&str, &str)| text.replace(&format!("`{chat}`"), &format!("`{own}`"));
            let own = param.as_deref().map(own_name);
            let message = match (&param, &own) {
                (Some(param), Some(own)) => renamed(message, (param, own)),
                _ => message,
            };
            ApiError::Invalid { param: own, message: NAMES.into_iter().fold(message, renamed) }
        }
        ApiError::Unsupported { param } => ApiError::Unsupported { param: own_name(&param) },
        ApiError::ContextLengthExceeded { max_model_len, prompt_tokens, max_tokens, is_counted, .. } => {
            ApiError::ContextLengthExceeded { param: "input", max_model_len, prompt_tokens, max_tokens, is_counted }
        }
        error => error,
    }
}

/// Returns the field that became `param`. Messages have no index here: several items may become one.
fn own_name(param: &str) -> String {
    let (first, _) = param.split_once(['[', '.']).unwrap_or((param, ""));
    NAMES.iter().find(|(chat, _)| *chat == first).map_or(param, |(_, own)| own).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: ApiError, param: &str, message: &str) {
        let error = in_terms_of_responses(error).body().error;
        assert_eq!((error.param.as_deref(), error.message.as_str()), (Some(param), message));
    }

    #[test]
    fn an_error_names_the_field_that_was_sent() {
        check(ApiError::param("messages[3].content", "must not be null"), "input", "`input`: must not be null");
        let (field, own) = ("the type of `response_format` must be known", "the type of `text.format` must be known");
        check(ApiError::param("response_format", field), "text.format", own);
        check(ApiError::param("max_completion_tokens", "at least 1"), "max_output_tokens", "`max_output_tokens`: at least 1");
        check(ApiError::Unsupported { param: "tools".into() }, "tools", "`tools` is not supported by this server");
        check(ApiError::param("temperature", "too high"), "temperature", "`temperature`: too high");
    }
}
