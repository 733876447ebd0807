//! Masks of constrained rows, computed on host threads beside the device.

use std::num::NonZero;
use std::sync::{Arc, OnceLock};

use grammar::{Matcher, TokenMask};
use tokens::{RequestId, TokenId};
use tracing::warn;

/// Place of the mask of a row, filled before the step is finished. It stays empty if the grammar fails.
pub type MaskSlot = Arc<OnceLock<TokenMask>>;

/// A mask to compute.
pub(crate) struct MaskJob<'a> {
    pub(crate) request_id: RequestId,
    pub(crate) matcher: &'a mut Matcher,
    /// Tokens that may not follow yet, as long as another one may.
    pub(crate) premature: &'a [TokenId],
    pub(crate) slot: MaskSlot,
}

impl MaskJob<'_> {
    fn run(self) {
        match self.matcher.mask() {
            Ok(mut mask) => {
                mask.forbid_unless_last(self.premature);
                self.slot.set(mask).expect("a row has one mask");
            }
            Err(error) => warn!(request_id = %self.request_id, %error, "a grammar fails"),
        }
    }
}

/// Computes masks on threads of their own while `work` runs on this one. Returns when both are done.
pub(crate) fn compute_beside<R>(mut jobs: Vec<MaskJob<'_>>, work: impl FnOnce() -> R) -> R {
    if jobs.is_empty() {
        return work();
    }
    // The device has its own threads, so half of the cores are enough.
    let num_threads = std::thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2);
    let jobs_per_thread = jobs.len().div_ceil(num_threads);
    std::thread::scope(|scope| {
        while !jobs.is_empty() {
            let part = jobs.split_off(jobs.len().saturating_sub(jobs_per_thread));
            scope.spawn(|| part.into_iter().for_each(MaskJob::run));
        }
        work()
    })
}
