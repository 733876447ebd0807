//! Fields that clients know and this server cannot honour: refused by name, unless they ask for nothing.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// A field, and the values of it, as compact JSON, that ask for nothing. `null` always does.
type Field = (&'static str, &'static [&'static str]);

/// On both endpoints.
const EVERYWHERE: &[Field] = &[
    ("allowed_token_ids", &[]),
    ("bad_words", &["[]"]),
    ("guided_choice", &[]),
    ("guided_decoding_backend", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_whitespace_pattern", &[]),
    ("include_stop_str_in_output", &["false"]),
    ("kv_transfer_params", &[]),
    ("length_penalty", &["1", "1.0"]),
    ("logits_processors", &["[]"]),
    ("lora", &[]),
    ("mm_processor_kwargs", &[]),
    ("priority", &["0"]),
    ("prompt_embeds", &[]),
    ("prompt_logprobs", &[]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("service_tier", &["\"auto\"", "\"default\""]),
    ("skip_special_tokens", &["true"]),
    ("spaces_between_special_tokens", &["true"]),
    ("structured_outputs", &[]),
    ("truncate_prompt_tokens", &[]),
    ("use_beam_search", &["false"]),
];

/// Only in chat.
const IN_CHAT: &[Field] = &[
    ("add_generation_prompt", &["true"]),
    ("add_special_tokens", &["false"]),
    ("audio", &[]),
    ("best_of", &["1"]),
    ("chat_template", &[]),
    ("chat_template_kwargs", &["{}"]),
    ("continue_final_message", &["false"]),
    ("documents", &["[]"]),
    ("echo", &["false"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("modalities", &["[\"text\"]"]),
    ("parallel_tool_calls", &["true"]),
    ("prediction", &[]),
    ("reasoning_effort", &[]),
    ("store", &["false"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &["[]"]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", &[]),
];

/// Only in completions.
const IN_COMPLETIONS: &[Field] = &[("add_special_tokens", &["true"]), ("max_completion_tokens", &[]), ("suffix", &["\"\""])];

/// Refuses the first field of a chat request that asks for something unsupported.
pub(super) fn refuse_in_chat(fields: &Map<String, Value>) -> Result<(), ApiError> {
    refuse(fields, IN_CHAT)
}

/// Refuses the first field of a completion request that asks for something unsupported.
pub(super) fn refuse_in_completion(fields: &Map<String, Value>) -> Result<(), ApiError> {
    refuse(fields, IN_COMPLETIONS)
}

fn refuse(fields: &Map<String, Value>, more: &[Field]) -> Result<(), ApiError> {
    for (name, value) in fields {
        let known = EVERYWHERE.iter().chain(more).find(|(known, _)| known == name);
        if known.is_some_and(|(_, harmless)| !value.is_null() && !harmless.contains(&value.to_string().as_str())) {
            return Err(ApiError::Unsupported { param: name.clone() });
        }
    }
    Ok(())
}
