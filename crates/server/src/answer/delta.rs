//! Increments of an answer.

use super::scores::ScoredToken;

/// An increment of an answer. The last one has only a finish reason.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ChoiceDelta {
    /// Reasoning, which comes before text and calls.
    pub(crate) reasoning: String,
    pub(crate) text: String,
    /// Calls of tools, which come after the text.
    pub(crate) calls: Vec<CallDelta>,
    /// Scores of the tokens that ended with this delta; empty unless requested.
    pub(crate) scores: Vec<ScoredToken>,
    pub(crate) finish_reason: Option<protocol::FinishReason>,
    /// Stop string that ended the answer, set with the finish reason.
    pub(crate) stop: Option<String>,
}

/// An increment of a call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CallDelta {
    /// Index of the call within its answer.
    pub(crate) index: u32,
    /// Set in the first increment.
    pub(crate) begins: Option<CallHead>,
    /// Further text of the arguments, a JSON object.
    pub(crate) arguments: String,
}

/// Beginning of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CallHead {
    pub(crate) id: String,
    pub(crate) name: String,
}
