//! A name and the JSON of the arguments after it (DeepSeek, Mistral).

use super::json_end::JsonEnd;
use crate::OutputEvent;
use crate::scan::take;

/// Reader of one call whose name stands before its arguments.
pub(crate) struct NamedJson {
    /// Finds the function's name in the text before the arguments.
    name_of: fn(&str) -> &str,
    /// Texts after the arguments that belong to the call.
    ends: &'static [&'static str],
    state: State,
}

enum State {
    Name,
    Arguments(JsonEnd),
    End,
}

impl NamedJson {
    pub(crate) fn new(name_of: fn(&str) -> &str, ends: &'static [&'static str]) -> Self {
        Self { name_of, ends, state: State::Name }
    }

    /// Reads the call. Returns true after its end.
    pub(crate) fn read(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        if matches!(self.state, State::Name) {
            let Some(at) = text.find('{') else {
                if is_last && !text.is_empty() {
                    events.push(OutputEvent::Text(take(text, text.len())));
                }
                return false;
            };
            let before = take(text, at);
            events.push(OutputEvent::CallBegins((self.name_of)(&before).to_owned()));
            self.state = State::Arguments(JsonEnd::default());
        }
        if let State::Arguments(end) = &mut self.state {
            let len = end.push(text);
            let piece = take(text, len.unwrap_or(text.len()));
            if !piece.is_empty() {
                events.push(OutputEvent::Arguments(piece));
            }
            if len.is_none() {
                return false;
            }
            events.push(OutputEvent::CallEnds);
            self.state = State::End;
        }
        self.skip_ends(text, is_last)
    }

    fn skip_ends(&self, text: &mut String, is_last: bool) -> bool {
        loop {
            let blanks = text.len() - text.trim_start().len();
            take(text, blanks);
            match self.ends.iter().find(|end| text.starts_with(**end)) {
                Some(end) => take(text, end.len()),
                None => return is_last || !self.ends.iter().any(|end| end.starts_with(text.as_str())),
            };
        }
    }
}
