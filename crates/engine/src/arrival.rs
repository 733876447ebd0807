//! Order of arrival.

use tokens::Timestamp;

/// Order of a request among all: by arrival, ties by submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct ArrivalKey {
    pub(crate) arrival: Timestamp,
    pub(crate) ordinal: u64,
}
