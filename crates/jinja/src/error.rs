//! Errors of parsing and rendering templates.

/// A one-line error, in Jinja's words where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The source is not a valid template.
    #[error("{reason} (line {line} of the template)")]
    Syntax {
        /// Description of the syntax error.
        reason: String,
        /// Line number, from 1.
        line: u32,
    },
    /// The template called `raise_exception`.
    #[error("{message}")]
    Raised {
        /// Message of the template.
        message: String,
    },
    /// The template does something that Jinja refuses.
    #[error("{reason} (line {line} of the template)")]
    Render {
        /// Description of the failed operation.
        reason: String,
        /// Line number, from 1; 0 until the statement is known.
        line: u32,
    },
    /// The template exceeded its step limit.
    #[error("the template ran out of fuel: it takes too many steps")]
    OutOfFuel,
    /// The template exceeded its text limit.
    #[error("the template writes too much text")]
    TooMuchText,
}

/// Result type of this crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Creates a failure; the enclosing statement adds the line.
    pub(crate) fn render(reason: impl Into<String>) -> Self {
        Self::Render { reason: reason.into(), line: 0 }
    }

    /// Sets the line, if none is set yet.
    pub(crate) fn at(self, line: u32) -> Self {
        match self {
            Self::Render { reason, line: 0 } => Self::Render { reason, line },
            other => other,
        }
    }
}
