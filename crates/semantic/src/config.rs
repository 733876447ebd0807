//! Settings of span reuse, and their consistency checks.

use crate::EditPolicy;

/// Tokens of a shingle: shorter ones occur by chance, longer ones miss short spans. Chosen.
const SHINGLE_TOKENS: u32 = 16;
/// Shingles of a sampling window. With 16-token shingles, every 63 consecutive tokens hold a sampled one.
const WINDOW_SHINGLES: u32 = 48;

/// Limits of the spans to copy, and of their tokens that are computed all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanConfig {
    /// Least equal tokens of a span: in one run, or in runs that follow each other closely. Below some 64 tokens, copying and checking cost
    /// more than computing.
    pub min_span_tokens: u32,
    /// Tokens always recomputed at the start of a run: their KV depends most on the left context. Twice as many after an edit.
    pub head_tokens: u32,
    /// Tokens always recomputed at the end of the prompt. At least 1: the last one yields the first logits.
    pub tail_tokens: u32,
    /// Shorter prompts are computed in full.
    pub min_prompt_tokens: u32,
    /// Least contiguous tokens of a span, without all mandatory rows, that are copied.
    pub min_piece_tokens: u32,
    /// Policy for equal tokens after an edit in their own segment.
    pub edits: EditPolicy,
}

impl Default for SpanConfig {
    fn default() -> Self {
        Self {
            min_span_tokens: 64,
            head_tokens: 8,
            tail_tokens: 16,
            min_prompt_tokens: 128,
            min_piece_tokens: 16,
            edits: EditPolicy::default(),
        }
    }
}

impl SpanConfig {
    /// Returns the configuration, if consistent.
    ///
    /// # Errors
    /// If a value is zero that must not be, or if no span of `min_span_tokens` could ever be copied.
    pub fn validated(self) -> Result<Self, SpanConfigError> {
        at_least("tail_tokens", self.tail_tokens, 1)?;
        at_least("min_piece_tokens", self.min_piece_tokens, 1)?;
        at_least("min_span_tokens", self.min_span_tokens, SHINGLE_TOKENS)?;
        at_least("min_span_tokens", self.min_span_tokens, self.head_tokens.saturating_add(self.min_piece_tokens))?;
        Ok(self)
    }
}

/// Density of the samples, and limits of the kept prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanIndexConfig {
    /// Consecutive tokens that are looked up as one.
    pub shingle_tokens: u32,
    /// One of this many consecutive shingles is sampled.
    pub window_shingles: u32,
    /// Least length of a returned match, except matches of a shingle's length or more that hold a whole segment, or that closely follow
    /// others with as many tokens in all. At least `shingle_tokens + window_shingles - 1`, so that none is missed.
    pub min_span_tokens: u32,
    /// Most runs found at one place of a target, those of the newest donors first; and most places kept of one shingle in one donor.
    ///
    /// Bounds the work for text that many donors have, and for text that repeats itself.
    pub max_postings: u32,
    /// Most donors kept.
    pub max_donors: usize,
    /// Most tokens of all donors together. Memory is 4 bytes a token and about as much again for postings.
    pub max_tokens: usize,
}

impl Default for SpanIndexConfig {
    fn default() -> Self {
        Self {
            shingle_tokens: SHINGLE_TOKENS,
            window_shingles: WINDOW_SHINGLES,
            min_span_tokens: 64,
            max_postings: 8,
            max_donors: 10_000,
            max_tokens: 16 << 20,
        }
    }
}

impl SpanIndexConfig {
    /// Returns the default, sampled as densely as the spans of `config` need.
    #[must_use]
    pub fn for_spans(config: &SpanConfig) -> Self {
        let min_span_tokens = config.min_span_tokens.max(SHINGLE_TOKENS);
        let window_shingles = WINDOW_SHINGLES.min(min_span_tokens - SHINGLE_TOKENS + 1);
        Self { min_span_tokens, window_shingles, ..Self::default() }
    }

    /// Returns the configuration, if consistent.
    ///
    /// # Errors
    /// If a value is zero that must not be, or if a span of `min_span_tokens` could be missed.
    pub fn validated(self) -> Result<Self, SpanConfigError> {
        at_least("shingle_tokens", self.shingle_tokens, 1)?;
        at_least("window_shingles", self.window_shingles, 1)?;
        at_least("max_postings", self.max_postings, 1)?;
        let sampled = self.shingle_tokens.saturating_add(self.window_shingles) - 1;
        at_least("min_span_tokens", self.min_span_tokens, sampled)?;
        Ok(self)
    }
}

/// A setting that is too small.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, but must be at least {min}")]
pub struct SpanConfigError {
    /// Name of the setting.
    pub field: &'static str,
    /// Value of the setting.
    pub value: u32,
    /// Smallest value that is consistent with the other settings.
    pub min: u32,
}

fn at_least(field: &'static str, value: u32, min: u32) -> Result<(), SpanConfigError> {
    if value < min { Err(SpanConfigError { field, value, min }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(config: SpanConfig, expected: Result<(), &str>) {
        assert_eq!(config.validated().map(|_| ()).map_err(|error| error.to_string()), expected.map_err(String::from));
    }

    #[test]
    fn defaults_are_consistent() {
        check(SpanConfig::default(), Ok(()));
        assert!(SpanIndexConfig::default().validated().is_ok());
    }

    #[test]
    fn the_last_token_cannot_be_reused() {
        check(SpanConfig { tail_tokens: 0, ..SpanConfig::default() }, Err("tail_tokens is 0, but must be at least 1"));
    }

    #[test]
    fn a_head_may_not_eat_the_shortest_span() {
        check(SpanConfig { head_tokens: 60, ..SpanConfig::default() }, Err("min_span_tokens is 64, but must be at least 76"));
    }

    #[test]
    fn a_window_may_not_be_longer_than_the_shortest_span() {
        let config = SpanIndexConfig { min_span_tokens: 62, ..SpanIndexConfig::default() };
        assert_eq!(config.validated(), Err(SpanConfigError { field: "min_span_tokens", value: 62, min: 63 }));
    }

    #[test]
    fn an_index_for_short_spans_samples_more_densely() {
        for min_span_tokens in [16, 32, 62, 63, 64, 500] {
            let config = SpanIndexConfig::for_spans(&SpanConfig { min_span_tokens, ..SpanConfig::default() });
            assert_eq!(config.clone().validated(), Ok(config));
        }
    }
}
