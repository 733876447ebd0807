//! Where the content of a block is.

use tokens::{BlockId, HostBlockId};

/// A block of the device's pool, or a place of the host tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// It can be read as it is.
    Device(BlockId),
    /// It must be fetched before it is read.
    Host(HostBlockId),
}

impl Place {
    /// Whether it must be fetched before it is read.
    #[must_use]
    pub fn is_host(self) -> bool {
        matches!(self, Self::Host(_))
    }
}
