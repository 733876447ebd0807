//! What can be erased, and who left it.

use tokens::{DonorId, SessionId, TenantId};

/// Whose donors and blocks are to be erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Erase {
    /// What the request left that became this donor.
    Donor(DonorId),
    /// What the requests of one conversation left.
    Session(TenantId, SessionId),
    /// What all requests of a tenant left.
    Tenant(TenantId),
    /// Everything.
    All,
}

/// How much was erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ErasedCounts {
    /// Donors.
    pub donors: usize,
    /// Blocks that could be found before.
    pub blocks: usize,
}
