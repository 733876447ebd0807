//! Reasoning before an answer, between tags.

use std::str::FromStr;

use crate::OutputEvent;
use crate::scan::{Found, find, skip_blanks, take};

/// Tags around reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thinking {
    /// Text before reasoning, often at the end of the prompt.
    pub open: &'static str,
    /// Text after it.
    pub close: &'static str,
}

/// A name that no form of reasoning has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown reasoning parser `{0}`: one of auto, none, think or mistral")]
pub struct UnknownThinking(pub String);

const THINK: Thinking = Thinking { open: "<think>", close: "</think>" };
const MISTRAL: Thinking = Thinking { open: "[THINK]", close: "[/THINK]" };

impl Thinking {
    /// Returns the tags that the source of a chat template mentions.
    #[must_use]
    pub fn of_template(source: &str) -> Option<Self> {
        [THINK, MISTRAL].into_iter().find(|tags| source.contains(tags.open) || source.contains(tags.close))
    }

    /// True if a rendered prompt ends inside reasoning, so that the answer begins with it.
    #[must_use]
    pub fn is_open(self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }
}

impl FromStr for Thinking {
    type Err = UnknownThinking;

    /// Reads a name; vLLM's names of parsers too.
    fn from_str(name: &str) -> Result<Self, UnknownThinking> {
        match name {
            "think" | "qwen3" | "deepseek_r1" | "deepseek_v3" | "glm45" => Ok(THINK),
            "mistral" => Ok(MISTRAL),
            _ => Err(UnknownThinking(name.to_owned())),
        }
    }
}

/// Reader of the reasoning of one answer.
#[derive(Clone, Debug)]
pub(crate) struct ReasoningReader {
    tags: Thinking,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first character that is not blank.
    Start,
    Inside,
    /// After the closing tag, before the first character that is not blank.
    AfterClose,
    Outside,
}

impl ReasoningReader {
    /// Creates the reader; `is_open` if the prompt ended with the opening tag.
    pub(crate) fn new(tags: Thinking, is_open: bool) -> Self {
        Self { tags, state: if is_open { State::Inside } else { State::Start } }
    }

    /// True while the answer is inside its reasoning.
    pub(crate) fn is_inside(&self) -> bool {
        self.state == State::Inside
    }

    /// Takes reasoning from `text`. Returns true if the rest is the answer.
    pub(crate) fn read(&mut self, text: &mut String, is_last: bool, events: &mut Vec<OutputEvent>) -> bool {
        if self.state == State::Start {
            let begins = text.trim_start();
            if begins.starts_with(self.tags.open) {
                skip_blanks(text);
                take(text, self.tags.open.len());
                self.state = State::Inside;
            } else if begins.is_empty() || self.tags.open.starts_with(begins) {
                return is_last;
            } else {
                self.state = State::Outside;
            }
        }
        if self.state == State::Inside {
            let found = find(text, &[self.tags.close]);
            let len = match &found {
                Found::Marker(_, bytes) => bytes.start,
                Found::Perhaps(at) if !is_last => *at,
                _ => text.len(),
            };
            let reasoning = take(text, len);
            if !reasoning.is_empty() {
                events.push(OutputEvent::Reasoning(reasoning));
            }
            let Found::Marker(_, bytes) = found else { return false };
            take(text, bytes.len());
            self.state = State::AfterClose;
        }
        if self.state == State::AfterClose {
            skip_blanks(text);
            if text.is_empty() {
                return false;
            }
            self.state = State::Outside;
        }
        true
    }
}
