//! Forms in which the served model writes calls of tools and reasoning.

use dialect::{Dialect, Thinking};

/// Forms of a chat template, or those that the operator chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnswerForms {
    /// True if the template writes tools, calls and their results; otherwise they become text of messages in the Hermes dialect.
    pub knows_tools: bool,
    /// Dialect of calls; `None` leaves calls in the text of answers.
    pub dialect: Option<Dialect>,
    /// Tags of reasoning; `None` leaves reasoning in the text of answers.
    pub thinking: Option<Thinking>,
}

impl AnswerForms {
    /// Returns the forms that the source of a chat template shows.
    #[must_use]
    pub fn of_template(source: &str) -> Self {
        let knows_tools = Dialect::knows_tools(source);
        let dialect = if knows_tools { Dialect::of_template(source) } else { Dialect::Hermes };
        Self { knows_tools, dialect: Some(dialect), thinking: Thinking::of_template(source) }
    }
}
