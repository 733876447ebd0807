//! Increments of an answer.

/// An increment of a parsed answer. Texts of the same kind concatenate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputEvent {
    /// Further reasoning.
    Reasoning(String),
    /// Further text for the user.
    Text(String),
    /// A call of the function with this name begins.
    CallBegins(String),
    /// Further text of the arguments of the call, which are a JSON object.
    Arguments(String),
    /// The call is complete.
    CallEnds,
}
