//! Channels of gpt-oss: analysis, commentary with calls, final.

use super::reading::{Format, push_text};
use crate::OutputEvent;
use crate::scan::{Found, find, take};

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
/// Ends of a message.
const ENDS: &[&str] = &["<|end|>", "<|call|>", "<|return|>", "<|start|>", CHANNEL];

/// Reader of messages, each with a header that names its channel and its recipient.
#[derive(Default)]
pub(crate) struct Harmony {
    state: State,
}

#[derive(Default)]
enum State {
    /// Before a header: text of a model that writes none.
    #[default]
    Start,
    Header,
    Message(Kind),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Text,
    Call { has_arguments: bool },
}

impl Harmony {
    fn read_message(&mut self, kind: Kind, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        let found = find(text, ENDS);
        let len = match &found {
            Found::Marker(_, bytes) => bytes.start,
            Found::Perhaps(at) if !is_last => *at,
            _ => text.len(),
        };
        let piece = take(text, len);
        let has_arguments = matches!(kind, Kind::Call { has_arguments: true }) || !piece.trim().is_empty();
        if !piece.is_empty() {
            events.push(match kind {
                Kind::Reasoning => OutputEvent::Reasoning(piece),
                Kind::Text => OutputEvent::Text(piece),
                Kind::Call { .. } => OutputEvent::Arguments(piece),
            });
        }
        if let Kind::Call { .. } = kind {
            self.state = State::Message(Kind::Call { has_arguments });
        }
        let Found::Marker(marker, bytes) = found else { return false };
        if let Kind::Call { .. } = kind {
            if !has_arguments {
                events.push(OutputEvent::Arguments("{}".to_owned()));
            }
            events.push(OutputEvent::CallEnds);
        }
        // The marker of a header is read there.
        if ENDS[marker] != CHANNEL {
            take(text, bytes.len());
        }
        self.state = State::Start;
        true
    }
}

impl Format for Harmony {
    fn read(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) {
        loop {
            let goes_on = match self.state {
                State::Start => match find(text, &[CHANNEL, "<|start|>assistant", "<|end|>", "<|return|>"]) {
                    Found::Marker(marker, bytes) => {
                        push_text(&take(text, bytes.start), events);
                        take(text, bytes.len());
                        if marker == 0 {
                            self.state = State::Header;
                        }
                        true
                    }
                    Found::Perhaps(at) if !is_last => {
                        push_text(&take(text, at), events);
                        false
                    }
                    _ => {
                        push_text(&take(text, text.len()), events);
                        false
                    }
                },
                State::Header => match text.find(MESSAGE) {
                    Some(at) => {
                        let header = take(text, at);
                        take(text, MESSAGE.len());
                        let recipient = header.split_once("to=").map(|(_, to)| to.split([' ', '<']).next().unwrap_or_default());
                        let kind = match recipient {
                            Some(recipient) => {
                                let name = recipient.strip_prefix("functions.").unwrap_or(recipient);
                                events.push(OutputEvent::CallBegins(name.to_owned()));
                                Kind::Call { has_arguments: false }
                            }
                            None if header.trim_start().starts_with("analysis") => Kind::Reasoning,
                            None => Kind::Text,
                        };
                        self.state = State::Message(kind);
                        true
                    }
                    None => false,
                },
                State::Message(kind) => self.read_message(kind, text, is_last, events),
            };
            if !goes_on {
                return;
            }
        }
    }
}
