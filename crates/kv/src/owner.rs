//! Who computed a block.

use tokens::{RequestId, SessionId, TenantId};

/// Whose request computed what a block holds: who is charged for it, and with whom it is erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockOwner {
    /// Charged for it.
    pub tenant: TenantId,
    /// The conversation it belongs to, if it was named.
    pub session: Option<SessionId>,
    /// The request itself.
    pub request: RequestId,
}
