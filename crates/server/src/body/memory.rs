//! Memory of request bodies: a body that is not small waits until its bytes fit in the shared budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Number of bodies of the largest size that are held at once. Chosen: as many as the processor has work for in a second.
const MAX_LARGEST: usize = 8;
/// Bytes per permit.
const UNIT: usize = 1024;
/// Maximum bytes of a small body, which needs no permit. All connections together hold 64 MiB of them.
pub(super) const SMALL_BYTES: usize = 16 << 10;
/// Time for which a body may be arbitrarily slow, even while others wait for memory.
const GRACE: Duration = Duration::from_secs(2);
/// Minimum average bytes per second after that; a slower body is dropped in favour of waiting ones. Chosen: any client that works.
const MIN_BYTES_PER_SECOND: u64 = 32 << 10;

/// Memory that bodies share.
pub(crate) struct BodyMemory {
    units: Arc<Semaphore>,
    num_waiting: AtomicUsize,
}

/// Memory held by a body until it is dropped.
pub(crate) struct BodyPermit {
    _permit: OwnedSemaphorePermit,
}

/// Counter of a waiting body, for as long as it exists.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl BodyMemory {
    /// Creates memory for bodies of at most `body_limit` bytes.
    pub(crate) fn new(body_limit: usize) -> Self {
        let units = (MAX_LARGEST * units_of(body_limit)).min(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)), num_waiting: AtomicUsize::new(0) }
    }

    /// Waits for memory for `num_bytes`, which are within the limit. Bodies are served in order of arrival.
    pub(super) async fn hold(&self, num_bytes: usize) -> BodyPermit {
        let wanted = u32::try_from(units_of(num_bytes)).expect("the limit of a body is below 4 TiB");
        let permit = match Arc::clone(&self.units).try_acquire_many_owned(wanted) {
            Ok(permit) => permit,
            Err(_) => {
                self.num_waiting.fetch_add(1, Ordering::Relaxed);
                let _waiting = Waiting(&self.num_waiting);
                Arc::clone(&self.units).acquire_many_owned(wanted).await.expect("the semaphore is never closed")
            }
        };
        BodyPermit { _permit: permit }
    }

    /// True if a body that received `num_bytes` in `elapsed` must yield its memory.
    pub(super) fn gives_way(&self, num_bytes: usize, elapsed: Duration) -> bool {
        let is_slow = elapsed > GRACE && (num_bytes as u64) < MIN_BYTES_PER_SECOND * elapsed.as_secs();
        is_slow && self.num_waiting.load(Ordering::Relaxed) > 0
    }
}

fn units_of(num_bytes: usize) -> usize {
    num_bytes.div_ceil(UNIT).max(1)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn memory_is_given_in_order_and_given_back() {
        let memory = BodyMemory::new(4 * UNIT);
        let mut held: Vec<_> = futures::future::join_all((0..MAX_LARGEST).map(|_| memory.hold(4 * UNIT))).await;
        let mut next = Box::pin(memory.hold(4 * UNIT));
        let mut small = Box::pin(memory.hold(1));
        assert!((&mut next).now_or_never().is_none() && (&mut small).now_or_never().is_none());
        held.pop();
        assert!((&mut small).now_or_never().is_none(), "the larger one was first");
        assert!((&mut next).now_or_never().is_some());
    }

    #[tokio::test]
    async fn only_slow_bodies_give_way_and_only_to_others() {
        let memory = BodyMemory::new(UNIT);
        let held: Vec<_> = futures::future::join_all((0..MAX_LARGEST).map(|_| memory.hold(UNIT))).await;
        let slow = Duration::from_secs(10);
        assert!(!memory.gives_way(0, slow), "nobody waits");
        let mut waiting = Box::pin(memory.hold(UNIT));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(memory.gives_way(1000, slow) && !memory.gives_way(1 << 20, slow) && !memory.gives_way(0, GRACE));
        drop(waiting);
        assert!(!memory.gives_way(0, slow), "nobody waits any more");
        drop(held);
    }
}
