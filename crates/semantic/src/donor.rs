//! A kept prompt, and one to keep.

use std::sync::Arc;

use tokens::{DonorId, Scope, TenantId, Timestamp, TokenId};

use crate::fair_lru::LruEntry;
use crate::{Segments, Sketch};

/// A kept prompt.
pub struct Donor {
    pub(crate) id: DonorId,
    /// Scope in which it is found.
    pub scope: Scope,
    /// Its prompt.
    pub tokens: Arc<[TokenId]>,
    /// Time at which it was inserted.
    pub created: Timestamp,
    /// Time at which it was inserted or last touched.
    pub last_used: Timestamp,
    /// Its segments and sampled shingles.
    pub(crate) sketch: Sketch,
    /// Leading tokens whose shingles are posted.
    pub(crate) num_posted: u32,
    pub(crate) lru_entry: LruEntry,
}

/// A prompt to keep.
#[derive(Clone, Debug)]
pub struct NewDonor {
    /// Tenant whose share of the store it takes.
    pub tenant: TenantId,
    /// ID; a later donor should have a larger one.
    pub id: DonorId,
    /// Scope in which it is found.
    pub scope: Scope,
    /// Its prompt.
    pub tokens: Arc<[TokenId]>,
    /// Segments of the prompt; none if they are unknown.
    pub segments: Segments,
}

impl NewDonor {
    /// Creates a donor of the default tenant, with unknown segments.
    #[must_use]
    pub fn new(id: DonorId, scope: Scope, tokens: impl Into<Arc<[TokenId]>>) -> Self {
        Self { tenant: TenantId::default(), id, scope, tokens: tokens.into(), segments: Segments::default() }
    }
}
