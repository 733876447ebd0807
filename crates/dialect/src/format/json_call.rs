//! A call as a JSON object with a name and arguments, read as it arrives.

use serde_json::Value;

use super::json_end::{JsonEnd, Step};
use crate::OutputEvent;

/// Keys of the function's name, and of its arguments, in the dialects of JSON.
const NAME_KEYS: [&str; 3] = ["name", "function", "tool_name"];
const ARGUMENT_KEYS: [&str; 4] = ["arguments", "parameters", "args", "tool_input"];

/// Outcome of reading further text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The call goes on after the text.
    Unfinished,
    /// The call ended after this many bytes of the text.
    Ended(usize),
    /// The text is not a call.
    NotACall,
}

/// Reader of one JSON object. Arguments are handed on as they arrive once the name is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct JsonCall {
    place: Place,
    /// Text of the key or of the value that is being read.
    token: String,
    key: String,
    /// End of that key or value.
    end: JsonEnd,
    /// True if the name was handed on.
    has_begun: bool,
    name: Option<String>,
    /// Arguments that wait for the name.
    arguments: Option<String>,
    /// True if arguments were handed on.
    has_arguments: bool,
}

/// Place within the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Start,
    BeforeKey,
    Key,
    AfterKey,
    BeforeValue,
    Value,
    AfterValue,
}

impl JsonCall {
    /// True once the function's name was handed on.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Returns the function's name, once it was read.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Reads `text` and appends what it adds to the call to `events`.
    pub(crate) fn push(&mut self, text: &str, events: &mut Vec<OutputEvent>) -> Reading {
        for (at, c) in text.char_indices() {
            match self.step(c, events) {
                Some(true) => return Reading::Ended(at + c.len_utf8()),
                Some(false) => {}
                None => return Reading::NotACall,
            }
        }
        self.hand_on(events);
        Reading::Unfinished
    }

    /// Reads one character. Returns true after the last one, and `None` if it may not follow.
    fn step(&mut self, c: char, events: &mut Vec<OutputEvent>) -> Option<bool> {
        match self.place {
            Place::Value => return self.step_value(c, events),
            Place::Key => {
                self.token.push(c);
                if self.end.step(c) == Step::Last {
                    self.key = serde_json::from_str(&self.token).ok()?;
                    self.place = Place::AfterKey;
                }
            }
            _ if c.is_whitespace() => {}
            Place::Start if c == '{' => self.place = Place::BeforeKey,
            Place::BeforeKey if c == '"' => self.begin(Place::Key, c),
            Place::AfterKey if c == ':' => self.place = Place::BeforeValue,
            Place::BeforeValue if !matches!(c, ',' | '}' | ']' | ':') => self.begin(Place::Value, c),
            Place::AfterValue if c == ',' => self.place = Place::BeforeKey,
            Place::BeforeKey | Place::AfterValue if c == '}' => return self.end(events).then_some(true),
            _ => return None,
        }
        Some(false)
    }

    fn begin(&mut self, place: Place, c: char) {
        self.place = place;
        self.token = c.to_string();
        self.end = JsonEnd::default();
        self.end.step(c);
    }

    fn step_value(&mut self, c: char, events: &mut Vec<OutputEvent>) -> Option<bool> {
        match self.end.step(c) {
            Step::Inside => self.token.push(c),
            Step::Last => {
                self.token.push(c);
                self.take_value(events).then_some(())?;
            }
            Step::After => {
                self.take_value(events).then_some(())?;
                return self.step(c, events);
            }
        }
        Some(false)
    }

    /// Ends the value of a key. False if the object is not a call.
    fn take_value(&mut self, events: &mut Vec<OutputEvent>) -> bool {
        self.place = Place::AfterValue;
        if self.is_argument() {
            self.hand_on(events);
            let rest = std::mem::take(&mut self.token);
            if !self.has_arguments {
                // Text of an object, as in OpenAI's own messages, is that object.
                let text = serde_json::from_str::<String>(&rest).unwrap_or(rest);
                self.arguments = Some(if text == "null" { "{}".to_owned() } else { text });
            }
        } else if NAME_KEYS.contains(&self.key.as_str()) {
            let Ok(value) = serde_json::from_str::<Value>(&self.token) else { return false };
            match value {
                Value::String(name) if !name.is_empty() => self.name = Some(name),
                // The shape of OpenAI's messages: the call is within.
                Value::Object(inner) => {
                    self.name = inner.get("name").and_then(Value::as_str).map(str::to_owned);
                    self.arguments = ARGUMENT_KEYS.iter().find_map(|key| inner.get(*key)).map(|value| match value {
                        Value::String(text) => text.clone(),
                        value => value.to_string(),
                    });
                }
                _ => return false,
            }
        }
        true
    }

    fn is_argument(&self) -> bool {
        ARGUMENT_KEYS.contains(&self.key.as_str())
    }

    /// Hands on arguments that have arrived, if they are an object of a known function.
    fn hand_on(&mut self, events: &mut Vec<OutputEvent>) {
        let is_object = self.token.starts_with('{') || self.has_arguments;
        if !(self.is_argument() && matches!(self.place, Place::Value | Place::AfterValue) && is_object) || self.token.is_empty() {
            return;
        }
        let Some(name) = self.name.clone() else { return };
        self.announce(name, events);
        self.has_arguments = true;
        events.push(OutputEvent::Arguments(std::mem::take(&mut self.token)));
    }

    fn announce(&mut self, name: String, events: &mut Vec<OutputEvent>) {
        if !std::mem::replace(&mut self.has_begun, true) {
            events.push(OutputEvent::CallBegins(name));
        }
    }

    /// Ends the object. False if it has no name.
    fn end(&mut self, events: &mut Vec<OutputEvent>) -> bool {
        let Some(name) = self.name.clone() else { return false };
        self.announce(name, events);
        if !self.has_arguments {
            let arguments = self.arguments.take().filter(|text| !text.trim().is_empty());
            events.push(OutputEvent::Arguments(arguments.unwrap_or_else(|| "{}".to_owned())));
        }
        events.push(OutputEvent::CallEnds);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, step: usize) -> (Vec<OutputEvent>, Reading) {
        let (mut call, mut events) = (JsonCall::default(), Vec::new());
        let chars: Vec<char> = text.chars().collect();
        let mut last = Reading::Unfinished;
        for piece in chars.chunks(step) {
            last = call.push(&piece.iter().collect::<String>(), &mut events);
            if last != Reading::Unfinished {
                break;
            }
        }
        (events, last)
    }

    #[track_caller]
    fn check(text: &str, name: &str, arguments: &str) {
        for step in [1, 2, 3, 7, text.len()] {
            let (events, last) = read(text, step);
            assert!(matches!(last, Reading::Ended(_)), "{text} by {step}: {last:?}");
            assert_eq!(events.first(), Some(&OutputEvent::CallBegins(name.to_owned())));
            assert_eq!(events.last(), Some(&OutputEvent::CallEnds));
            let text: String =
                events.iter().map(|event| if let OutputEvent::Arguments(text) = event { text.as_str() } else { "" }).collect();
            assert_eq!(text, arguments);
        }
    }

    #[test]
    fn name_and_arguments_are_found_in_any_order_and_shape() {
        check(r#"{"name": "f", "arguments": {"a": "}\"{", "b": [1, {}]}}"#, "f", r#"{"a": "}\"{", "b": [1, {}]}"#);
        check(r#" {"arguments": {"a": 1}, "name": "f"}"#, "f", r#"{"a": 1}"#);
        check(r#"{"name":"f","parameters":{}}"#, "f", "{}");
        check(r#"{"name": "f"}"#, "f", "{}");
        check(r#"{"name": "f", "arguments": null}"#, "f", "{}");
        check(r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, "f", r#"{"a": 1}"#);
        check(r#"{"id": 7, "name": "f", "arguments": {"a": 1}, "x": true }"#, "f", r#"{"a": 1}"#);
        check(r#"{"type": "function", "function": {"name": "f", "arguments": {"a":1}}}"#, "f", r#"{"a":1}"#);
        check(r#"{"name": "é\u0041", "arguments": {"ü": "\\"}}"#, "éA", r#"{"ü": "\\"}"#);
    }

    #[test]
    fn arguments_arrive_before_their_end() {
        let (mut call, mut events) = (JsonCall::default(), Vec::new());
        call.push(r#"{"name": "f", "arguments": {"text": "long"#, &mut events);
        assert_eq!(events.len(), 2, "{events:?}");
        assert!(call.has_begun());
    }

    #[test]
    fn other_text_is_not_a_call() {
        for text in ["x", "{x", r#"{"a" 1}"#, r#"{"a": 1}"#, r#"{"name": 1}"#, "{}", "[]", r#"{"a": ]"#] {
            assert_eq!(read(text, 1).1, Reading::NotACall, "{text}");
        }
    }
}
