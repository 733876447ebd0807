//! Why a template cannot be parsed or rendered.

/// One line, in Jinja's words where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The source is no template.
    #[error("{reason} (line {line} of the template)")]
    Syntax {
        /// The fault in the syntax.
        reason: String,
        /// Where, from 1.
        line: u32,
    },
    /// The template called `raise_exception`.
    #[error("{message}")]
    Raised {
        /// Its own words.
        message: String,
    },
    /// The template does what Jinja refuses.
    #[error("{reason} (line {line} of the template)")]
    Render {
        /// The forbidden or impossible act.
        reason: String,
        /// Where, from 1; 0 until the statement is known.
        line: u32,
    },
    /// The template took more steps than it may.
    #[error("the template ran out of fuel: it takes too many steps")]
    OutOfFuel,
    /// The template wrote more text than it may.
    #[error("the template writes too much text")]
    TooMuchText,
}

/// A result of this crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure whose line is added by the statement it happens in.
    pub(crate) fn render(reason: impl Into<String>) -> Self {
        Self::Render { reason: reason.into(), line: 0 }
    }

    /// The same with its line, if it has none yet.
    pub(crate) fn at(self, line: u32) -> Self {
        match self {
            Self::Render { reason, line: 0 } => Self::Render { reason, line },
            other => other,
        }
    }
}
