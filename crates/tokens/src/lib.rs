//! Types shared by all layers: token ids, ranges of positions, tenant scopes, sharing modes, and the hash chain of full blocks.
//!
//! Contains newtypes that keep ids of different kinds apart, and one pure function, [`hash_full_blocks`].
//! Deliberately excludes any other crate of ours, serde, time, and everything that can fail.

#![forbid(unsafe_code)]

mod borders;
mod hash;
mod ids;
mod range;
mod sharing_mode;
mod splitmix;
mod use_order;

pub use borders::{Borders, TableRows};
pub use hash::{BlockHash, ContentHashes, hash_full_blocks, hash_next_block};
pub use ids::{BlockId, BlockSize, DonorId, HostBlockId, RequestId, Scope, SessionId, TenantId, Timestamp, TokenId};
pub use range::{TokenRange, complement};
pub use sharing_mode::{SharingMode, UnknownSharingMode};
pub use splitmix::{SPLITMIX64_STEP, splitmix64};
pub use use_order::UseOrder;
