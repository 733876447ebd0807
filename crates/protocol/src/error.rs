//! The shape of every error.

use serde::{Deserialize, Serialize};

/// Body of every unsuccessful response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorResponse {
    /// The error.
    pub error: ErrorBody,
}

/// Description of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Message for a human.
    pub message: String,
    /// Kind of error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Field of the request that caused it.
    pub param: Option<String>,
    /// Code for a program, such as `context_length_exceeded`.
    pub code: Option<String>,
}
