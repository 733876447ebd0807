//! Compiled constraint.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher as Parser, ParserFactory};
use serde_json::{Value, json};
use tokens::TokenId;

use crate::{Constraint, Matcher};

/// A constraint that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind}: {message}")]
pub struct GrammarError {
    kind: &'static str,
    message: String,
}

/// Blanks between tokens of JSON. Chosen: an indent of two for ten levels.
const BLANKS: &str = r"\n?[ ]{0,20}";

/// A compiled constraint. Clones share it; each answer has its own [`Matcher`].
#[derive(Clone)]
pub struct Grammar {
    start: Arc<Parser>,
    /// Token after which the constraint begins; `None` if the whole answer is constrained.
    trigger: Option<TokenId>,
}

impl Grammar {
    pub(crate) fn compile(factory: &ParserFactory, constraint: &Constraint) -> Result<Self, GrammarError> {
        let invalid = |message: String| GrammarError { kind: constraint.kind(), message };
        let source = match constraint {
            Constraint::JsonObject => TopLevelGrammar::from_json_schema(with_bounded_blanks(json!({"type": "object"}))),
            Constraint::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_bounded_blanks(schema.clone())),
            Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Constraint::Choice(texts) if texts.is_empty() => return Err(invalid("there is nothing to choose from".to_owned())),
            Constraint::Choice(texts) => TopLevelGrammar::from_lark(choice(texts)),
            Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        let mut start = Parser::new(factory.create_parser(source));
        // A grammar without any sentence is found here rather than at the first token.
        let first = start.compute_mask();
        match (start.get_error(), first) {
            (Some(error), _) => Err(invalid(one_line(&error))),
            (None, Err(error)) => Err(invalid(one_line(&error.to_string()))),
            (None, Ok(_)) => Ok(Self { start: Arc::new(start), trigger: None }),
        }
    }

    /// Constrains only what follows the first `trigger` of an answer, which is free before it and without it.
    #[must_use]
    pub fn after(self, trigger: TokenId) -> Self {
        Self { trigger: Some(trigger), ..self }
    }

    /// Returns the token after which the constraint begins; `None` if the whole answer is constrained.
    #[must_use]
    pub fn trigger(&self) -> Option<TokenId> {
        self.trigger
    }

    /// Returns a matcher at the beginning of what is constrained.
    #[must_use]
    pub fn matcher(&self) -> Matcher {
        Matcher::new(self.start.deep_clone())
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

/// Compares identity: clones are equal.
impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.start, &other.start) && self.trigger == other.trigger
    }
}

/// Returns a rule item of Lark for JSON that `schema` describes, with the bounds of [`Constraint::JsonSchema`]. `is_lenient` leaves out keywords that
/// cannot be enforced, which are errors otherwise.
#[must_use]
pub fn schema_item(schema: &Value, is_lenient: bool) -> String {
    let mut schema = with_bounded_blanks(schema.clone());
    if is_lenient && let Value::Object(fields) = &mut schema {
        fields["x-guidance"]["lenient"] = json!(true);
    }
    format!("%json {schema}")
}

/// Returns `schema` with a bound on the blanks between its tokens, unless it says otherwise: a line break and an indent, so that an answer may be
/// printed prettily, and a small model does not spend all its tokens on blanks.
fn with_bounded_blanks(mut schema: Value) -> Value {
    if let Value::Object(fields) = &mut schema {
        let options = fields.entry("x-guidance").or_insert_with(|| json!({}));
        if let Value::Object(options) = options {
            options.entry("whitespace_pattern").or_insert_with(|| json!(BLANKS));
        }
    }
    schema
}

/// Returns a Lark grammar of some texts. JSON's escapes are a subset of Lark's.
fn choice(texts: &[String]) -> String {
    let quoted: Vec<_> = texts.iter().map(|text| serde_json::Value::from(text.as_str()).to_string()).collect();
    format!("start: {}", quoted.join(" | "))
}

/// Returns an error's text on one line, without the parser's dump of the grammar.
fn one_line(error: &str) -> String {
    let lines = error.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}
