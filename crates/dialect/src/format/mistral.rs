//! `[TOOL_CALLS]` with a list of JSON objects, or with a name and `[ARGS]` before JSON (Mistral).

use super::bare::Bare;
use super::named::NamedJson;
use super::reading::{Format, text_before};
use crate::markers::MISTRAL_CALLS as CALLS;
use crate::scan::take;
use crate::{OutputEvent, ToolSpec};

/// Reader of Mistral's calls.
pub(crate) struct Mistral {
    tools: Vec<ToolSpec>,
    state: State,
}

enum State {
    Text,
    /// After the marker.
    Opened,
    List(Box<Bare>),
    Named(NamedJson),
}

impl Mistral {
    pub(crate) fn new(tools: Vec<ToolSpec>) -> Self {
        Self { tools, state: State::Text }
    }

    fn read_text(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        if text_before(&[CALLS], text, is_last, events).is_none() {
            return false;
        }
        take(text, CALLS.len());
        self.state = State::Opened;
        true
    }
}

impl Format for Mistral {
    fn read(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) {
        loop {
            let goes_on = match &mut self.state {
                State::Text => self.read_text(text, is_last, events),
                State::Opened if text.trim_start().is_empty() => false,
                State::Opened => {
                    self.state = match text.trim_start().starts_with(['[', '{']) {
                        true => State::List(Box::new(Bare::new(self.tools.clone(), CALLS))),
                        false => State::Named(NamedJson::new(name_of, &[])),
                    };
                    true
                }
                State::List(list) => {
                    list.read(text, is_last, events);
                    false
                }
                State::Named(call) => {
                    let is_over = call.read(text, is_last, events);
                    if is_over {
                        self.state = State::Text;
                    }
                    is_over
                }
            };
            if !goes_on {
                return;
            }
        }
    }
}

/// The name stands before `[CALL_ID]` and `[ARGS]`.
fn name_of(before: &str) -> &str {
    before.split("[CALL_ID]").next().and_then(|name| name.split("[ARGS]").next()).unwrap_or_default().trim()
}
