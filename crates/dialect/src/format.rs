//! Readers of calls, one file for each form.

mod bare;
mod deepseek;
mod harmony;
mod json_call;
mod json_end;
mod mistral;
mod named;
mod tagged;

use crate::scan::{Found, find, take};
use crate::{Dialect, OutputEvent, ToolSpec};

/// Reader of the calls of one dialect in the text of an answer after its reasoning.
pub(crate) trait Format: Send {
    /// Takes from `text` what is understood and appends it to `events`. `is_last` if nothing follows: then it takes all of it.
    fn read(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>);
}

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

/// Hands on the text before the first of `markers`, without the blanks before it. Returns the index of the marker, which stays in `text`.
fn text_before(markers: &[&str], text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> Option<usize> {
    let (len, marker) = match find(text, markers) {
        Found::Marker(marker, bytes) => (bytes.start, Some(marker)),
        Found::Perhaps(at) if !is_last => (at, None),
        _ => (text.len(), None),
    };
    let kept = if is_last && marker.is_none() { len } else { text[..len].trim_end().len() };
    push_text(&take(text, kept), events);
    if marker.is_some() {
        take(text, len - kept);
    }
    marker
}

fn push_text(text: &str, events: &mut Vec<OutputEvent>) {
    if !text.is_empty() {
        events.push(OutputEvent::Text(text.to_owned()));
    }
}
