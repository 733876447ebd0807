//! Runs CPU-bound work away from the tasks that do I/O.
//!
//! Parsing and tokenizing megabytes would delay health checks and streams noticeably. Such work runs on other threads, a few pieces at a
//! time, so that any number of large requests takes the memory of a few.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Executor of CPU-bound work. Short work runs inline. Large pieces do not delay those of medium size.
pub(crate) struct Heavy {
    medium: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// Minimum bytes of large work. Chosen: a book chapter is below.
const LARGE_BYTES: usize = 256 << 10;
/// Maximum concurrent pieces of medium size. Chosen: the engine's threads need the processor too.
const MAX_MEDIUM: usize = 8;

impl Default for Heavy {
    fn default() -> Self {
        let num_cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let medium = num_cores.div_ceil(2).min(MAX_MEDIUM);
        Self { medium: Arc::new(Semaphore::new(medium)), large: Arc::new(Semaphore::new(medium.div_ceil(4))) }
    }
}

impl Heavy {
    /// Runs `work` on `num_bytes`: inline if they are at most `max_inline_bytes`, else on another thread in its turn.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        num_bytes: usize,
        max_inline_bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if num_bytes <= max_inline_bytes {
            return work();
        }
        let lane = if num_bytes < LARGE_BYTES { &self.medium } else { &self.large };
        let turn = Arc::clone(lane).acquire_owned().await.expect("the semaphore is never closed");
        let done = spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        });
        // Only a panic ends it early; it is resumed in the request.
        done.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn few_large_pieces_are_worked_on_at_once_and_short_ones_in_place() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let heavy = Heavy::default();
        let here = std::thread::current().id();
        let work = move || {
            MOST.fetch_max(1 + RUNNING.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(2));
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            std::thread::current().id() == here
        };
        let were_here = join_all((0..32).map(|_| heavy.run(LARGE_BYTES, 10, work))).await;
        assert!(were_here.iter().all(|was_here| !was_here));
        assert!(MOST.load(Ordering::SeqCst) <= MAX_MEDIUM.div_ceil(4), "{MOST:?} at once");
        assert!(heavy.run(10, 10, work).await);
    }

    #[tokio::test]
    #[should_panic(expected = "a defect")]
    async fn a_panic_is_that_of_the_request() {
        Heavy::default().run(LARGE_BYTES, 0, || panic!("a defect")).await
    }
}
