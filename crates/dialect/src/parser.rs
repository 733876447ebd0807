//! Parser of one answer.

use crate::format::reader;
use crate::format::reading::Format;
use crate::reasoning::ReasoningReader;
use crate::{Dialect, OutputEvent, Thinking, ToolSpec};

/// Contents of an answer that are told apart.
#[derive(Clone, Debug, Default)]
pub struct ParserOptions {
    /// Dialect of calls, with the tools that may be called; `None` leaves calls in the text.
    pub calls: Option<(Dialect, Vec<ToolSpec>)>,
    /// Tags of reasoning; `None` leaves reasoning in the text.
    pub thinking: Option<Thinking>,
    /// True if the prompt ended with the opening tag of reasoning.
    pub is_thinking: bool,
    /// Most calls of an answer; further ones are left out.
    pub max_calls: Option<usize>,
}

/// Parser of an answer that arrives in pieces.
///
/// Text is held back only while it may be part of a marker or of a call, so the concatenated events do not depend on the pieces.
pub struct OutputParser {
    reasoning: Option<ReasoningReader>,
    calls: Option<Box<dyn Format>>,
    /// Text that is not yet understood.
    text: String,
    max_calls: usize,
    num_calls: usize,
    is_call_open: bool,
}

impl OutputParser {
    /// Creates the parser of one answer.
    #[must_use]
    pub fn new(options: &ParserOptions) -> Self {
        let reasoning = options.thinking.map(|tags| ReasoningReader::new(tags, options.is_thinking));
        let is_harmony = matches!(options.calls, Some((Dialect::Harmony, _)));
        Self {
            reasoning: reasoning.filter(|_| !is_harmony),
            calls: options.calls.as_ref().map(|(dialect, tools)| reader(*dialect, tools)),
            text: String::new(),
            max_calls: options.max_calls.unwrap_or(usize::MAX),
            num_calls: 0,
            is_call_open: false,
        }
    }

    /// True while the answer is inside its reasoning.
    #[must_use]
    pub fn is_reasoning(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningReader::is_inside)
    }

    /// True inside a call.
    #[must_use]
    pub fn is_call_open(&self) -> bool {
        self.is_call_open
    }

    /// Reads further text.
    #[must_use]
    pub fn push(&mut self, text: &str) -> Vec<OutputEvent> {
        self.text.push_str(text);
        self.read(false)
    }

    /// Returns what was held back, and ends a call that was cut. Nothing may be pushed after it.
    #[must_use]
    pub fn finish(&mut self) -> Vec<OutputEvent> {
        let mut events = self.read(true);
        if self.is_call_open {
            events.push(OutputEvent::CallEnds);
        }
        events
    }

    fn read(&mut self, is_last: bool) -> Vec<OutputEvent> {
        let mut events = Vec::new();
        if let Some(reasoning) = &mut self.reasoning
            && !reasoning.read(&mut self.text, is_last, &mut events)
        {
            return events;
        }
        match &mut self.calls {
            Some(calls) => calls.read(&mut self.text, is_last, &mut events),
            None if self.text.is_empty() => {}
            None => events.push(OutputEvent::Text(std::mem::take(&mut self.text))),
        }
        events.retain(|event| self.keeps(event));
        events
    }

    /// Counts calls. False for those that are too many.
    fn keeps(&mut self, event: &OutputEvent) -> bool {
        match event {
            OutputEvent::CallBegins(_) if self.num_calls == self.max_calls => {
                self.is_call_open = false;
                false
            }
            OutputEvent::CallBegins(_) => {
                self.num_calls += 1;
                self.is_call_open = true;
                true
            }
            OutputEvent::Arguments(_) => self.is_call_open,
            OutputEvent::CallEnds => std::mem::take(&mut self.is_call_open),
            OutputEvent::Reasoning(_) | OutputEvent::Text(_) => true,
        }
    }
}
