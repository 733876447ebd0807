//! Newtypes of ids that must not be mistaken for one another.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

/// Token of the served model's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct TokenId(pub u32);

/// Request id, unique as long as the process lives. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// Physical block of the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BlockId(pub u32);

/// Place in main memory for the content of one block, outside a device's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct HostBlockId(pub u32);

/// Earlier prompt whose KV may be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DonorId(pub u64);

impl fmt::Display for DonorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}

/// Scope inside which KV may be shared: derived from tenant, `cache_salt` and model, never taken unchanged from a request.
///
/// Every lookup takes one and finds nothing outside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Scope(pub u64);

/// Tenant that pays for a request and owns its stored KV: derived from its key, never taken from its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TenantId(pub u32);

/// Conversation of a tenant, so that its stored KV can be erased: derived from a name the caller chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Tokens held by one block of the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(NonZeroU32);

impl BlockSize {
    /// Block size of the daemon: 32 tokens, the smallest page that paged attention kernels on Hopper accept.
    pub const DEFAULT: BlockSize = BlockSize(NonZeroU32::new(32).expect("32 is not zero"));

    /// Creates a size; `None` for zero.
    #[must_use]
    pub const fn new(tokens: u32) -> Option<Self> {
        match NonZeroU32::new(tokens) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// Returns the tokens per block.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Returns the tokens per block, as an index.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0.get() as usize
    }

    /// Counts blocks needed to hold `num_tokens`.
    #[must_use]
    pub const fn blocks_for(self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.as_usize())
    }

    /// Counts blocks that `num_tokens` fill completely.
    #[must_use]
    pub const fn full_blocks(self, num_tokens: usize) -> usize {
        num_tokens / self.as_usize()
    }
}

/// Time since the engine started, passed in by the caller: the deciding crates read no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub Duration);

impl Timestamp {
    /// Creates the time `micros` after the start.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(Duration::from_micros(micros))
    }

    /// Returns the time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
