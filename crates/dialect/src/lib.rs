//! Dialects: the forms in which models write reasoning and calls of tools.
//!
//! Each chat template teaches its model one [`Dialect`]. An [`OutputParser`] turns the text of an answer, as it arrives, into reasoning,
//! text and calls; [`Dialect::grammar`] is the grammar of an answer that must call. A whole answer is the concatenation of its stream, so
//! the two cannot differ. Deliberately excludes tokens, sampling and JSON of any API.

#![forbid(unsafe_code)]

mod dialect;
mod event;
mod format;
mod grammar;
mod markers;
mod parser;
mod prompt;
mod python;
mod reasoning;
mod scan;
mod tool;

pub use dialect::{Dialect, UnknownDialect};
pub use event::OutputEvent;
pub use grammar::GrammarOptions;
pub use parser::{OutputParser, ParserOptions};
pub use prompt::{calls_as_text, instructions, response_as_text};
pub use reasoning::{Thinking, UnknownThinking};
pub use tool::ToolSpec;
