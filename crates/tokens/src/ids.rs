//! Ids that must not be mistaken for one another.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

/// A token of the served model's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct TokenId(pub u32);

/// One request for as long as the process lives. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// A physical block of the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BlockId(pub u32);

/// A place for the content of one block in main memory, beside a device's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct HostBlockId(pub u32);

/// An earlier prompt whose KV may be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DonorId(pub u64);

impl fmt::Display for DonorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}

/// The scope inside which KV may be shared: derived from tenant, `cache_salt` and model, never taken from a request as it is.
///
/// Every lookup takes one and finds nothing outside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Scope(pub u64);

/// Who pays for a request and owns what it leaves behind: derived from its key, never taken from its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TenantId(pub u32);

/// One conversation of a tenant, so that what it left behind can be erased: derived from a name the caller chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Tokens held by one block of the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(NonZeroU32);

impl BlockSize {
    /// The daemon's block: 32 tokens, the smallest page that paged attention kernels on Hopper accept.
    pub const DEFAULT: BlockSize = BlockSize(NonZeroU32::new(32).expect("32 is not zero"));

    /// `None` for zero.
    #[must_use]
    pub const fn new(tokens: u32) -> Option<Self> {
        match NonZeroU32::new(tokens) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// Tokens in a block.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Tokens in a block, as an index.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0.get() as usize
    }

    /// Blocks needed to hold `num_tokens`.
    #[must_use]
    pub const fn blocks_for(self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.as_usize())
    }

    /// Blocks that `num_tokens` fill completely.
    #[must_use]
    pub const fn full_blocks(self, num_tokens: usize) -> usize {
        num_tokens / self.as_usize()
    }
}

/// Time since the engine started, handed in from outside: the deciding crates read no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub Duration);

impl Timestamp {
    /// `micros` after the start.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(Duration::from_micros(micros))
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
