//! Texts that open calls in several files' forms.

/// Opening of Mistral's calls.
pub(crate) const MISTRAL_CALLS: &str = "[TOOL_CALLS]";
/// Opening of one of DeepSeek's calls.
pub(crate) const DEEPSEEK_CALL: &str = "<｜tool▁call▁begin｜>";
/// Text between parts of DeepSeek's calls.
pub(crate) const DEEPSEEK_SEPARATOR: &str = "<｜tool▁sep｜>";
