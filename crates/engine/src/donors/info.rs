//! Metadata of a donor.

use tokens::{DonorId, Scope, SessionId, TenantId, Timestamp};

/// Metadata of a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DonorInfo {
    /// ID; a later donor has a larger one.
    pub id: DonorId,
    /// Tenant of its request.
    pub tenant: TenantId,
    /// Scope in which it is found.
    pub scope: Scope,
    /// Conversation it belongs to, if given.
    pub session: Option<SessionId>,
    /// Length, in whole blocks.
    pub num_tokens: u32,
    /// Leading tokens whose KV is still in the pool or the host tier.
    pub num_resident_tokens: u32,
    /// Number of requests that copied spans of it.
    pub hits: u64,
    /// Time at which it was computed.
    pub created: Timestamp,
    /// Time at which it was last recomputed or copied from.
    pub last_used: Timestamp,
}
