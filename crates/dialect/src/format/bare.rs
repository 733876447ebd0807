//! Calls without tags around them: the JSON of one or several (Llama 3, and small models of other dialects), or Python's syntax.

use serde_json::Value;

use super::json_call::{JsonCall, Reading};
use super::reading::Format;
use crate::scan::take;
use crate::{OutputEvent, ToolSpec, python};

/// Text that may stand before calls, and after one.
const FENCES: [&str; 6] = ["```json", "```python", "```xml", "```", "<tools>", "<function_call>"];
const ENDS: [&str; 9] = ["```", "</tools>", "</function_call>", "</tool_call>", "<|python_end|>", "<|eom_id|>", ";", ",", "]"];

/// Reader of an answer that is nothing but calls. It decides by the beginning of the answer, and by the name of the function, which must be
/// known: JSON that a user asked for stays text.
pub(crate) struct Bare {
    tools: Vec<ToolSpec>,
    /// Text that announces calls in this dialect.
    marker: &'static str,
    state: State,
    /// Text taken since the last call ended, in case that no further call begins in it.
    raw: String,
    num_calls: usize,
}

enum State {
    /// Before the first call or after one.
    Between,
    /// Inside an object; `is_open` if its client has seen a call begin.
    Json { call: JsonCall, held: Vec<OutputEvent>, is_open: bool },
    /// No call begins any more.
    Text,
}

impl Bare {
    pub(crate) fn new(tools: Vec<ToolSpec>, marker: &'static str) -> Self {
        Self { tools, marker, state: State::Between, raw: String::new(), num_calls: 0 }
    }

    /// True while the answer may turn out to be either.
    pub(crate) fn is_undecided(&self) -> bool {
        self.num_calls == 0 && !self.is_over()
    }

    /// True if the answer is a call.
    pub(crate) fn is_call(&self) -> bool {
        self.num_calls > 0
    }

    /// True if the rest is text.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Text)
    }

    /// Reads calls. On text, leaves it and all that was taken since the last call in `text`.
    pub(crate) fn read_calls(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) {
        loop {
            let goes_on = match self.state {
                State::Between => self.read_between(text, is_last, events),
                State::Json { .. } => self.read_json(text, is_last, events),
                State::Text => return,
            };
            if !goes_on {
                return;
            }
        }
    }

    fn read_between(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        self.keep(text, text.len() - text.trim_start().len());
        let skipped: Vec<&str> = match self.num_calls {
            0 => std::iter::once(self.marker).chain(FENCES).collect(),
            _ => std::iter::once(self.marker).chain(FENCES).chain(ENDS).collect(),
        };
        let may_go_on =
            text.is_empty() || skipped.iter().any(|skipped| skipped.len() > text.len() && skipped.starts_with(text.as_str()));
        if may_go_on && !is_last {
            return false;
        }
        if let Some(len) = skipped.iter().filter(|skipped| text.starts_with(**skipped)).map(|skipped| skipped.len()).max() {
            self.keep(text, len);
            return true;
        }
        let bracket = text.strip_prefix('[').map(str::trim_start);
        if text.starts_with('{') || bracket.is_some_and(|inner| inner.starts_with('{')) {
            let len = text.find('{').unwrap_or(0);
            self.keep(text, len);
            self.state = State::Json { call: JsonCall::default(), held: Vec::new(), is_open: false };
            return true;
        }
        if let Some((calls, len)) = python::calls(text).filter(|(calls, _)| calls.iter().all(|call| self.accepts(call))) {
            for (name, arguments) in calls {
                let arguments = Value::Object(arguments).to_string();
                events.extend([OutputEvent::CallBegins(name), OutputEvent::Arguments(arguments), OutputEvent::CallEnds]);
                self.num_calls += 1;
            }
            take(text, len);
            self.raw.clear();
            return true;
        }
        if !is_last && (bracket == Some("") || self.may_become_python(bracket.unwrap_or(text))) {
            return false;
        }
        self.give_up(text, is_last);
        false
    }

    /// True if `text` is the beginning of a call of a known function in Python's syntax.
    fn may_become_python(&self, text: &str) -> bool {
        self.tools.iter().any(|tool| match text.strip_prefix(tool.name.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with('('),
            None => tool.name.starts_with(text),
        })
    }

    /// True if a call names a known function, and if its arguments match where they must.
    fn accepts(&self, (name, arguments): &python::Call) -> bool {
        let tool = self.tools.iter().find(|tool| tool.name == *name);
        tool.is_some_and(|tool| tool.accepts(&Value::Object(arguments.clone()).to_string()))
    }

    fn read_json(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        let State::Json { call, held, is_open } = &mut self.state else { return false };
        let reading = call.push(text, held);
        let tool = call.name().map(|name| self.tools.iter().find(|tool| tool.name == name));
        let is_call = match (tool, reading) {
            // Not yet, or not one of the tools.
            (None, _) | (_, Reading::NotACall) => *is_open,
            (Some(None), _) => false,
            (Some(Some(tool)), Reading::Ended(_)) => *is_open || tool.accepts(&arguments_of(held)),
            // No grammar is in force outside of tags, so a strict call is shown only when it is known to match.
            (Some(Some(tool)), Reading::Unfinished) => call.has_begun() && !tool.is_strict,
        };
        if is_call {
            self.num_calls += usize::from(!std::mem::replace(is_open, true));
            events.append(held);
        }
        let may_become_call = reading == Reading::Unfinished && tool != Some(None);
        match reading {
            Reading::Ended(len) if is_call => {
                take(text, len);
                self.raw.clear();
                self.state = State::Between;
                return true;
            }
            // Its client has seen the call begin.
            Reading::NotACall if is_call => {
                events.push(OutputEvent::CallEnds);
                text.clear();
                self.state = State::Text;
            }
            _ if is_call => text.clear(),
            _ if may_become_call && !is_last => self.keep(text, text.len()),
            _ => self.give_up(text, is_last),
        }
        false
    }

    /// Takes `len` bytes that may still turn out to be text.
    fn keep(&mut self, text: &mut String, len: usize) {
        let piece = take(text, len);
        self.raw.push_str(&piece);
    }

    /// Reads no more calls: puts back what was taken since the last one. Blanks and closing texts after a call are not text, and neither is
    /// the beginning of a further call at the end of an answer.
    fn give_up(&mut self, text: &mut String, is_last: bool) {
        self.state = State::Text;
        text.insert_str(0, &std::mem::take(&mut self.raw));
        if self.num_calls == 0 {
            return;
        }
        let mut rest = text.trim_start();
        while let Some(end) = ENDS.iter().find(|end| rest.starts_with(**end)) {
            rest = rest[end.len()..].trim_start();
        }
        let begins = |marker: &str| rest.starts_with(marker) || marker.starts_with(rest);
        let is_cut = is_last && (begins(self.marker) || ENDS.into_iter().chain(["{", "["]).any(begins));
        *text = if is_cut { String::new() } else { rest.to_owned() };
    }
}

impl Format for Bare {
    fn read(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) {
        self.read_calls(text, is_last, events);
        if self.is_over() && !text.is_empty() {
            events.push(OutputEvent::Text(take(text, text.len())));
        }
    }
}

/// Returns the text of the arguments among `events`.
fn arguments_of(events: &[OutputEvent]) -> String {
    let text = |event: &OutputEvent| if let OutputEvent::Arguments(text) = event { text.clone() } else { String::new() };
    events.iter().map(text).collect()
}
