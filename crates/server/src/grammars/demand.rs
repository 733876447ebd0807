//! Constraint of the answers of one request.

use dialect::Thinking;

use crate::valid::{ValidConstraint, ValidTools};

/// Constraint of the answers of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demand {
    /// Constraint of their text.
    pub(crate) text: Option<ValidConstraint>,
    /// Tools that they may call.
    pub(crate) tools: Option<ValidTools>,
    /// Tags of the reasoning that they begin with, because their prompt ends inside it.
    pub(crate) thinking: Option<Thinking>,
}
