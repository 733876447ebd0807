//! Location of the content of a block.

use tokens::{BlockId, HostBlockId};

/// A block of the device's pool, or a slot of the host tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Readable as it is.
    Device(BlockId),
    /// Must be fetched before it is read.
    Host(HostBlockId),
}

impl Place {
    /// True if it must be fetched before it is read.
    #[must_use]
    pub fn is_host(self) -> bool {
        matches!(self, Self::Host(_))
    }
}
