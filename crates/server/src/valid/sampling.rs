//! Ranges of all sampling parameters.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use engine::SamplingParams;
use protocol::{SamplingFields, Stop};
use tokens::TokenId;

use super::limits::Limits;
use super::model::valid_tokens;
use crate::error::ApiError;

/// Sampling of the first answer, except for `max_tokens` and log probabilities.
pub(super) struct ValidSampling {
    pub(super) n: u32,
    pub(super) sampling: SamplingParams,
    pub(super) text: TextOptions,
}

/// Options of turning tokens into the text of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TextOptions {
    /// Stop strings.
    pub(crate) stop: Vec<String>,
    /// True if special tokens are omitted.
    pub(crate) skips_special: bool,
    /// True if the text includes the stop string or token that ends it.
    pub(crate) includes_stop: bool,
    /// Number of tokens before which no stop string ends the answer.
    pub(crate) min_tokens: u32,
}

/// Maximum stop strings of a request. Each one is searched for in every answer.
const MAX_STOP_STRINGS: usize = 16;
/// Maximum bytes of a stop string. An answer is held back by up to this much.
const MAX_STOP_BYTES: usize = 1024;
/// Maximum stop tokens, and entries of `logit_bias`, of a request. They are scanned for every token.
const MAX_TOKEN_ENTRIES: usize = 1024;

/// Checks all ranges.
pub(super) fn valid_sampling(fields: &SamplingFields, limits: Limits<'_>) -> Result<ValidSampling, ApiError> {
    let n = count("n", fields.n.unwrap_or(1), 1..=limits.config.max_n)?;
    let top_p = number("top_p", fields.top_p, 1.0, 0.0..=1.0)?;
    if top_p == 0.0 {
        return Err(ApiError::param("top_p", "must be above 0"));
    }
    let sampling = SamplingParams {
        temperature: number("temperature", fields.temperature, 1.0, SamplingParams::TEMPERATURE)?,
        top_p,
        top_k: match fields.top_k {
            None | Some(-1) => 0,
            Some(top_k) => count("top_k", top_k, 0..=u32::MAX)?,
        },
        min_p: number("min_p", fields.min_p, 0.0, 0.0..=1.0)?,
        // Any negative seed is valid.
        seed: fields.seed.map_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0, i64::cast_unsigned),
        frequency_penalty: number("frequency_penalty", fields.frequency_penalty, 0.0, SamplingParams::ADDITIVE_PENALTY)?,
        presence_penalty: number("presence_penalty", fields.presence_penalty, 0.0, SamplingParams::ADDITIVE_PENALTY)?,
        repetition_penalty: number("repetition_penalty", fields.repetition_penalty, 1.0, SamplingParams::REPETITION_PENALTY)?,
        logit_bias: logit_bias(fields, limits)?,
        min_tokens: count("min_tokens", fields.min_tokens.unwrap_or(0), 0..=limits.model.max_model_len)?,
        stop_token_ids: stop_token_ids(fields, limits)?,
        ..SamplingParams::greedy(0)
    };
    if sampling.min_tokens > 0 && allows_nothing(&sampling.stop_token_ids, limits) {
        return Err(ApiError::param("stop_token_ids", "some token must be left before `min_tokens`"));
    }
    let text = TextOptions {
        stop: stop_strings(fields.stop.as_ref())?,
        skips_special: fields.skip_special_tokens.unwrap_or(true),
        includes_stop: fields.include_stop_str_in_output.unwrap_or(false),
        min_tokens: sampling.min_tokens,
    };
    Ok(ValidSampling { n, sampling, text })
}

/// True if `masked` covers the whole vocabulary.
fn allows_nothing(masked: &[TokenId], limits: Limits<'_>) -> bool {
    masked.len() >= limits.model.vocab_size as usize
        && masked.iter().collect::<BTreeSet<_>>().len() == limits.model.vocab_size as usize
}

/// Checks that a whole number is within `range`.
pub(super) fn count(param: &str, value: i64, range: RangeInclusive<u32>) -> Result<u32, ApiError> {
    let in_range = u32::try_from(value).ok().filter(|value| range.contains(value));
    in_range.ok_or_else(|| {
        let wanted = match (range.start(), range.end()) {
            (low, &u32::MAX) => format!("at least {low}"),
            (low, high) => format!("between {low} and {high}"),
        };
        ApiError::param(param, format!("`{param}` must be {wanted}, is {value}"))
    })
}

fn number(param: &str, value: Option<f64>, default: f32, range: RangeInclusive<f32>) -> Result<f32, ApiError> {
    let Some(value) = value else { return Ok(default) };
    if let Some(number) = within(value, &range) {
        return Ok(number);
    }
    let wanted = match (range.start(), range.end()) {
        (low, &f32::MAX) => format!("at least {low}"),
        (low, high) => format!("between {low} and {high}"),
    };
    Err(ApiError::param(param, format!("`{param}` must be {wanted}, is {}", shown(value))))
}

/// Converts `value` to the engine's precision. Rounding preserves order, so the result is within `range` too.
fn within(value: f64, range: &RangeInclusive<f32>) -> Option<f32> {
    (f64::from(*range.start())..=f64::from(*range.end())).contains(&value).then_some(value as f32)
}

/// Formats `value` in few characters, however large or small it is.
fn shown(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e16 { format!("{value}") } else { format!("{value:?}") }
}

fn logit_bias(fields: &SamplingFields, limits: Limits<'_>) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let entries = fields.logit_bias.iter().flatten();
    if entries.clone().count() > MAX_TOKEN_ENTRIES {
        return Err(ApiError::param("logit_bias", format!("at most {MAX_TOKEN_ENTRIES} entries")));
    }
    let check = |(id, &bias): (&String, &f64)| {
        // Each id has one spelling, so that no token has two biases.
        let is_plain = |number: &u32| number.to_string() == *id && *number < limits.model.vocab_size;
        let token = id.parse().ok().filter(is_plain).map(TokenId);
        let token = token.ok_or_else(|| ApiError::param("logit_bias", format!("`{id}` is not a token id of this model")))?;
        let message = || format!("a bias must be between -100 and 100, that of {id} is {}", shown(bias));
        let bias = within(bias, &SamplingParams::LOGIT_BIAS).ok_or_else(|| ApiError::param("logit_bias", message()))?;
        Ok((token, bias))
    };
    entries.map(check).collect()
}

fn stop_token_ids(fields: &SamplingFields, limits: Limits<'_>) -> Result<Vec<TokenId>, ApiError> {
    let asked = fields.stop_token_ids.clone().unwrap_or_default();
    if asked.len() > MAX_TOKEN_ENTRIES {
        return Err(ApiError::param("stop_token_ids", format!("at most {MAX_TOKEN_ENTRIES} entries")));
    }
    let mut ids = valid_tokens("stop_token_ids", asked, limits.model)?;
    if !fields.ignore_eos.unwrap_or(false) {
        ids.extend_from_slice(&limits.model.eos_token_ids);
    }
    Ok(ids)
}

fn stop_strings(stop: Option<&Stop>) -> Result<Vec<String>, ApiError> {
    let strings = match stop {
        None => vec![],
        Some(Stop::One(string)) => vec![string.clone()],
        Some(Stop::Many(strings)) => strings.clone(),
    };
    if strings.len() > MAX_STOP_STRINGS {
        return Err(ApiError::param("stop", format!("at most {MAX_STOP_STRINGS} strings")));
    }
    if strings.iter().any(|string| string.is_empty() || string.len() > MAX_STOP_BYTES) {
        return Err(ApiError::param("stop", format!("a stop string has between 1 and {MAX_STOP_BYTES} bytes")));
    }
    Ok(strings)
}
