//! Targets of an erasure, and its counts.

use tokens::{DonorId, SessionId, TenantId};

/// Selection of the donors and blocks to erase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Erase {
    /// Donors and blocks of the request that became this donor.
    Donor(DonorId),
    /// Donors and blocks of the requests of one conversation.
    Session(TenantId, SessionId),
    /// Donors and blocks of all requests of a tenant.
    Tenant(TenantId),
    /// Everything.
    All,
}

/// Numbers of erased donors and blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ErasedCounts {
    /// Erased donors.
    pub donors: usize,
    /// Erased blocks that lookups could find before.
    pub blocks: usize,
}
