//! `/v1/models`.

use serde::{Deserialize, Serialize};

/// The served models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// One entry for each name.
    pub data: Vec<ModelCard>,
}

/// One served model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Name to send as `model`.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Owner of the model.
    pub owned_by: String,
    /// Model that this name refers to, when it is an alias.
    pub root: String,
    /// Maximum number of tokens of prompt and answer together.
    pub max_model_len: u32,
}
