//! Tells reasoning, text and calls of tools apart in one answer.

use std::sync::Arc;

use dialect::{Dialect, OutputEvent, OutputParser, ParserOptions};
use tokenizer::Tokenizer;
use tokens::TokenId;

use super::delta::{CallDelta, CallHead, ChoiceDelta};
use crate::valid::{ValidOutput, ValidTools};

/// Options of parsing the answers of one request.
#[derive(Clone)]
pub(super) struct AnswerParserOptions {
    pub(super) options: ParserOptions,
    pub(super) tools: Option<ValidTools>,
    includes_reasoning: bool,
    /// Control tokens whose text the parser reads, though an answer does not show them.
    pub(super) markers: Arc<[TokenId]>,
}

/// Parser of one answer.
pub(super) struct AnswerParser {
    parser: OutputParser,
    includes_reasoning: bool,
    /// True if names of calls have nine characters, which Mistral's templates insist on.
    has_short_ids: bool,
    num_begun: u32,
}

impl AnswerParserOptions {
    /// Creates the options of the answers to a prompt that ends with `end`.
    pub(super) fn new(output: ValidOutput, end: &str, tokenizer: &Tokenizer) -> Self {
        let ValidOutput { tools, thinking, includes_reasoning } = output;
        let of_calls = tools.iter().flat_map(|tools| tools.dialect.markers());
        let of_reasoning = thinking.into_iter().flat_map(|tags| [tags.open, tags.close]);
        let texts = of_calls.copied().chain(of_reasoning);
        let markers = texts.filter_map(|text| tokenizer.token_id(text)).filter(|token| tokenizer.is_special(*token));
        let calls = tools.as_ref().map(|tools| (tools.dialect, tools.tools.clone()));
        let max_calls = tools.as_ref().filter(|tools| !tools.is_parallel).map(|_| 1);
        let is_thinking = thinking.is_some_and(|tags| tags.is_open(end));
        let markers = markers.collect();
        Self { options: ParserOptions { calls, thinking, is_thinking, max_calls }, tools, includes_reasoning, markers }
    }

    /// True if nothing but text can be in an answer.
    fn is_plain(&self) -> bool {
        self.options.calls.is_none() && self.options.thinking.is_none()
    }

    /// Creates the parser of an answer; `None` if all of it is text.
    pub(super) fn parser(&self) -> Option<AnswerParser> {
        if self.is_plain() {
            return None;
        }
        Some(AnswerParser {
            parser: OutputParser::new(&self.options),
            includes_reasoning: self.includes_reasoning,
            has_short_ids: matches!(self.options.calls, Some((Dialect::Mistral, _))),
            num_begun: 0,
        })
    }
}

impl AnswerParser {
    /// True while the answer is inside its reasoning.
    pub(super) fn is_reasoning(&self) -> bool {
        self.parser.is_reasoning()
    }

    /// True if the answer called tools, and the last call is complete.
    pub(super) fn has_complete_calls(&self) -> bool {
        self.num_begun > 0 && !self.parser.is_call_open()
    }

    /// Reads further text.
    pub(super) fn push(&mut self, text: &str) -> ChoiceDelta {
        let events = self.parser.push(text);
        self.delta_of(events)
    }

    /// Returns what was held back.
    pub(super) fn finish(&mut self) -> ChoiceDelta {
        let events = self.parser.finish();
        self.delta_of(events)
    }

    fn delta_of(&mut self, events: Vec<OutputEvent>) -> ChoiceDelta {
        let mut delta = ChoiceDelta::default();
        for event in events {
            match event {
                OutputEvent::Reasoning(text) if self.includes_reasoning => delta.reasoning.push_str(&text),
                OutputEvent::Reasoning(_) | OutputEvent::CallEnds => {}
                OutputEvent::Text(text) => delta.text.push_str(&text),
                OutputEvent::CallBegins(name) => {
                    let begins = Some(CallHead { id: self.new_id(), name });
                    delta.calls.push(CallDelta { index: self.num_begun, begins, arguments: String::new() });
                    self.num_begun += 1;
                }
                OutputEvent::Arguments(text) => match delta.calls.last_mut() {
                    Some(call) => call.arguments.push_str(&text),
                    None => {
                        let index = self.num_begun.saturating_sub(1);
                        delta.calls.push(CallDelta { index, begins: None, arguments: text });
                    }
                },
            }
        }
        delta
    }

    fn new_id(&self) -> String {
        let id = uuid::Uuid::new_v4().simple().to_string();
        if self.has_short_ids { id[..9].to_owned() } else { format!("call_{}", &id[..24]) }
    }
}
