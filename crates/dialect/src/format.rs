//! Readers of calls, one file for each form.

mod bare;
mod deepseek;
mod harmony;
mod json_call;
mod json_end;
mod mistral;
mod named;
pub(crate) mod reading;
mod tagged;

use self::reading::Format;
use crate::{Dialect, ToolSpec};

/// Creates the reader of `dialect` for calls of `tools`.
pub(crate) fn reader(dialect: Dialect, tools: &[ToolSpec]) -> Box<dyn Format> {
    let tools = tools.to_vec();
    match dialect {
        Dialect::Hermes | Dialect::Qwen3Coder | Dialect::Glm => Box::new(tagged::Tagged::new(tools)),
        Dialect::Json => Box::new(bare::Bare::new(tools, "<|python_tag|>")),
        Dialect::Pythonic => Box::new(bare::Bare::new(tools, "<|python_start|>")),
        Dialect::Mistral => Box::new(mistral::Mistral::new(tools)),
        Dialect::DeepSeek => Box::new(deepseek::DeepSeek::default()),
        Dialect::Harmony => Box::new(harmony::Harmony::default()),
    }
}
