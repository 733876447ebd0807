//! Owner of a block's content.

use tokens::{RequestId, SessionId, TenantId};

/// Request that computed the content of a block: determines which tenant is charged for it, and its erasure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockOwner {
    /// Tenant charged for it.
    pub tenant: TenantId,
    /// Conversation it belongs to, if named.
    pub session: Option<SessionId>,
    /// Request that computed it.
    pub request: RequestId,
}
