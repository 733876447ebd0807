//! `<tool_call>` with a JSON object (Hermes, Qwen), with `<function=...>` (Qwen3-Coder) or with `<arg_key>` (GLM).

use serde_json::Value;

use super::bare::Bare;
use super::json_call::{JsonCall, Reading};
use super::reading::{Format, push_text, text_before};
use crate::scan::{Found, find, skip_blanks, take};
use crate::tool::typed_value;
use crate::{OutputEvent, ToolSpec};

const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const KEY: &str = "<arg_key>";
const KEY_END: &str = "</arg_key>";
const VALUE: &str = "<arg_value>";
const VALUE_END: &str = "</arg_value>";

/// Reader of calls between tags. Small models forget the tags, so an answer that is nothing but the JSON of a call is one too.
pub(crate) struct Tagged {
    tools: Vec<ToolSpec>,
    state: State,
    /// True after the first call.
    has_called: bool,
    /// Reader of an answer without tags; `None` once a tag or text was seen.
    bare: Option<Bare>,
}

enum State {
    Text,
    /// After an opening tag, which is text if no call begins.
    Opened {
        tag: &'static str,
    },
    Json {
        call: JsonCall,
        raw: String,
    },
    /// Inside a call written by elements.
    Elements {
        name: String,
        num_arguments: usize,
        style: Style,
    },
    /// After a call.
    Closed,
}

/// Elements of a call: their tags and the tag that ends the call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `<parameter=key>value</parameter>`
    Parameter,
    /// `<arg_key>key</arg_key><arg_value>value</arg_value>`
    KeyValue,
}

impl Tagged {
    pub(crate) fn new(tools: Vec<ToolSpec>) -> Self {
        let bare = Bare::new(tools.clone(), CALL);
        Self { tools, state: State::Text, has_called: false, bare: Some(bare) }
    }

    fn read_text(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        let Some(marker) = text_before(&[CALL, FUNCTION], text, is_last, events) else { return false };
        // The element of a call names its function, so it is read again.
        let tag = if marker == 0 { CALL } else { "" };
        take(text, tag.len());
        self.state = State::Opened { tag };
        true
    }

    fn read_opened(&mut self, tag: &'static str, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        let body = text.trim_start();
        if body.starts_with('{') {
            self.state = State::Json { call: JsonCall::default(), raw: String::new() };
            return true;
        }
        if let Some(rest) = body.strip_prefix(FUNCTION) {
            let Some((name, rest)) = rest.split_once('>') else { return self.give_up_at_end(tag, text, is_last, events) };
            let name = name.trim().trim_matches('"').to_owned();
            if is_name(&name) {
                *text = rest.to_owned();
                self.begin(name, Style::Parameter, events);
            } else {
                let len = text.len() - body.len() + FUNCTION.len();
                push_text(&format!("{tag}{}", take(text, len)), events);
                self.state = State::Text;
            }
            return true;
        }
        if body.is_empty() || FUNCTION.starts_with(body) {
            return self.give_up_at_end(tag, text, is_last, events);
        }
        // GLM writes the name before the first key, or before the end of a call without arguments.
        match find(body, &["\n", KEY, CALL_END]) {
            Found::Marker(_, bytes) if is_name(body[..bytes.start].trim()) => {
                let (name, rest) = (body[..bytes.start].trim().to_owned(), body[bytes.start..].to_owned());
                *text = rest;
                self.begin(name, Style::KeyValue, events);
                true
            }
            Found::Marker(..) => {
                push_text(tag, events);
                self.state = State::Text;
                true
            }
            _ => self.give_up_at_end(tag, text, is_last, events),
        }
    }

    /// Hands the rest on as text if nothing follows.
    fn give_up_at_end(&mut self, tag: &str, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        if is_last {
            let rest = format!("{tag}{}", take(text, text.len()));
            // The beginning of a further call is no text.
            push_text(if self.has_called { "" } else { &rest }, events);
            self.state = State::Text;
        }
        false
    }

    fn begin(&mut self, name: String, style: Style, events: &mut Vec<OutputEvent>) {
        events.push(OutputEvent::CallBegins(name.clone()));
        self.state = State::Elements { name, num_arguments: 0, style };
    }

    fn read_json(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        let State::Json { call, raw } = &mut self.state else { return false };
        let reading = call.push(text, events);
        match reading {
            Reading::Ended(len) => {
                take(text, len);
                (self.state, self.has_called) = (State::Closed, true);
                return true;
            }
            Reading::Unfinished => {
                let piece = take(text, text.len());
                if !call.has_begun() {
                    raw.push_str(&piece);
                    if is_last && !self.has_called {
                        push_text(&format!("{CALL}{raw}"), events);
                    }
                }
            }
            // Nothing is lost: text that is no call stays text, unless its client has already seen a call begin.
            Reading::NotACall if call.has_begun() => {
                events.push(OutputEvent::CallEnds);
                text.clear();
                (self.state, self.has_called) = (State::Closed, true);
            }
            Reading::NotACall => {
                push_text(&format!("{CALL}{raw}{}", take(text, text.len())), events);
                self.state = State::Text;
            }
        }
        false
    }

    fn read_elements(&mut self, text: &mut String, events: &mut Vec<OutputEvent>) -> bool {
        let State::Elements { name, num_arguments, style } = &mut self.state else { return false };
        let (open, end) = match style {
            Style::Parameter => (PARAMETER, FUNCTION_END),
            Style::KeyValue => (KEY, CALL_END),
        };
        let Found::Marker(marker, bytes) = find(text, &[open, end, CALL_END]) else { return false };
        if marker != 0 && *num_arguments == 0 && text.trim_start().starts_with('{') {
            // Llama 3 writes the arguments of `<function=` as JSON.
            let arguments = take(text, bytes.start).trim().to_owned();
            take(text, if marker == 1 { end.len() } else { 0 });
            events.extend([OutputEvent::Arguments(arguments), OutputEvent::CallEnds]);
            (self.state, self.has_called) = (State::Closed, true);
            return true;
        }
        if marker != 0 {
            // A closing tag of the call is left for the state after it.
            take(text, if marker == 1 && *style == Style::Parameter { bytes.end } else { bytes.start });
            let close = if *num_arguments == 0 { "{}" } else { "}" };
            events.extend([OutputEvent::Arguments(close.to_owned()), OutputEvent::CallEnds]);
            (self.state, self.has_called) = (State::Closed, true);
            return true;
        }
        let element = &text[bytes.end..];
        let parsed = match style {
            Style::Parameter => parameter(element),
            Style::KeyValue => key_value(element),
        };
        let Some((key, value, len)) = parsed else { return false };
        let schema = self.tools.iter().find(|tool| tool.name == *name).and_then(|tool| tool.parameter(&key));
        let value = typed_value(&value, schema);
        let separator = if *num_arguments == 0 { "{" } else { ", " };
        *num_arguments += 1;
        events.push(OutputEvent::Arguments(format!("{separator}{}: {value}", Value::String(key))));
        take(text, bytes.end + len);
        true
    }
}

impl Format for Tagged {
    fn read(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) {
        if let Some(bare) = &mut self.bare {
            bare.read_calls(text, is_last, events);
            if bare.is_undecided() || (bare.is_call() && !bare.is_over()) {
                return;
            }
            self.bare = None;
        }
        loop {
            let goes_on = match self.state {
                State::Text => self.read_text(text, is_last, events),
                State::Opened { tag } => self.read_opened(tag, text, is_last, events),
                State::Json { .. } => self.read_json(text, is_last, events),
                State::Elements { .. } => self.read_elements(text, events),
                State::Closed => {
                    skip_blanks(text);
                    match find(text, &[CALL_END, FUNCTION_END, CALL, FUNCTION]) {
                        Found::Marker(marker, bytes) if bytes.start == 0 && marker < 2 => {
                            take(text, bytes.end);
                            true
                        }
                        Found::Perhaps(0) => {
                            if is_last {
                                text.clear();
                            }
                            false
                        }
                        _ if text.is_empty() => false,
                        _ => {
                            self.state = State::Text;
                            true
                        }
                    }
                }
            };
            if !goes_on {
                return;
            }
        }
    }
}

/// Reads `key>value</parameter>`: key, value, and bytes read.
fn parameter(text: &str) -> Option<(String, String, usize)> {
    let (key, rest) = text.split_once('>')?;
    // A forgotten end is that of the next element.
    let Found::Marker(marker, bytes) = find(rest, &[PARAMETER_END, PARAMETER, FUNCTION_END]) else { return None };
    let value = &rest[..bytes.start];
    let value = value.strip_prefix('\n').unwrap_or(value);
    let value = value.strip_suffix('\n').unwrap_or(value);
    let read = text.len() - rest.len() + if marker == 0 { bytes.end } else { bytes.start };
    Some((key.trim().trim_matches('"').to_owned(), value.to_owned(), read))
}

/// Reads `key</arg_key> <arg_value>value</arg_value>`: key, value, and bytes read.
fn key_value(text: &str) -> Option<(String, String, usize)> {
    let (key, rest) = text.split_once(KEY_END)?;
    let (_, rest) = rest.split_once(VALUE)?;
    let (value, after) = rest.split_once(VALUE_END)?;
    Some((key.trim().to_owned(), value.to_owned(), text.len() - after.len()))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
}
