//! Constraint of a request, as clients write it.

use serde_json::Value;

/// Text that an answer may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// Text that matches a regular expression as a whole, in the syntax of Rust's `regex`.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in Lark's syntax, as llguidance extends it.
    Lark(String),
}

impl Constraint {
    /// Returns the name of its kind, for errors.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::JsonObject => "JSON object",
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "choice",
            Self::Lark(_) => "Lark grammar",
        }
    }
}
