//! The threads that share the work of one kernel.
//!
//! A decode step starts some two hundred kernels of tens of microseconds, so starting one must cost about one: the calling thread works
//! too, workers spin for a while before they sleep, and the caller does not wait for workers that have not begun. A general pool (rayon was
//! tried) spends a third of such a step on handing over work.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::{hint, io};

use super::Isa;

/// A pool of threads and their instruction set.
pub struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job is open; a second caller does its work alone.
    dispatch: Mutex<()>,
    isa: Isa,
}

/// Number of times a worker checks for work before it sleeps. Chosen: some 50 microseconds, longer than the gaps inside a step.
const SPINS: usize = 4096;

/// A closure and the number of calls, as workers see it.
#[derive(Clone, Copy)]
struct Job {
    /// Closure; alive while the job is open or any worker is active.
    f: *const (dyn Fn(usize) + Sync),
    n: usize,
}

struct Shared {
    /// Number of jobs so far, so that a worker recognises a new one.
    epoch: AtomicUsize,
    /// True if workers may still begin with the job.
    open: AtomicBool,
    /// Number of workers that may be reading the job.
    active: AtomicUsize,
    /// Next index that no thread has taken.
    next: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// Payload of a panic in a worker's part of the job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    asleep: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while no worker is active and the job is closed, and read only by active workers while it is open;
// the closure it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Threads {
    /// Starts `num_threads` threads, including the caller's own (0: one per core), with the best instruction set.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn new(num_threads: usize) -> io::Result<Self> {
        Self::with_isa(num_threads, Isa::detect())
    }

    /// Starts threads as [`Threads::new`], with an instruction set from [`Isa::available`].
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn with_isa(num_threads: usize, isa: Isa) -> io::Result<Self> {
        let num_threads = if num_threads == 0 { thread::available_parallelism()?.get() } else { num_threads };
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let mut threads = Self { shared, workers: Vec::new(), dispatch: Mutex::new(()), isa };
        for i in 1..num_threads {
            let shared = Arc::clone(&threads.shared);
            threads.workers.push(thread::Builder::new().name(format!("kernel-{i}")).spawn(move || shared.work())?);
        }
        Ok(threads)
    }

    /// Returns the number of threads.
    #[must_use]
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Returns the instruction set.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `f` on every item, distributed over the threads.
    ///
    /// # Panics
    /// If `f` does.
    pub fn for_each_mut<T: Send>(&self, items: &mut [T], f: impl Fn(&mut T) + Sync) {
        let (len, items) = (items.len(), SharedMut::new(items));
        // SAFETY: each index is taken once, so each item is one thread's alone.
        self.for_each(len, |i| f(unsafe { &mut *items.at(i) }));
    }

    /// Calls `f(i)` for every `i < n`, distributed over the threads, low indices first.
    ///
    /// # Panics
    /// If `f` does.
    pub(crate) fn for_each(&self, n: usize, f: impl Fn(usize) + Sync) {
        let dispatch = if n <= 1 || self.workers.is_empty() { None } else { self.try_dispatch() };
        if dispatch.is_none() {
            return (0..n).for_each(f);
        }
        let f: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: only the lifetime changes. `Closing` waits, also when `f` panics here, until no worker can see the closure any more.
        let f = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(f) };
        let closing = Closing(&self.shared);
        self.shared.publish(Job { f, n });
        self.shared.take_indices(Job { f, n });
        drop(closing);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Acquires the right to open a job, unless another caller has it. A panic in an earlier job does no harm: the job was closed
    /// regardless.
    fn try_dispatch(&self) -> Option<MutexGuard<'_, ()>> {
        match self.dispatch.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        for worker in self.workers.drain(..) {
            // Workers catch the panics of their jobs, so the result of joining one carries no information.
            let _ = worker.join();
        }
    }
}

/// Closes the open job and waits for the workers in it.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        // Either a worker sees the job closed, or this sees the worker active: both sides write before they read.
        self.0.open.store(false, Ordering::SeqCst);
        let mut spins = 0;
        while self.0.active.load(Ordering::SeqCst) > 0 {
            spins += 1;
            if spins < SPINS { hint::spin_loop() } else { thread::yield_now() }
        }
        // The caller's own panic propagates; a worker's panic beside it must not end a later job.
        if thread::panicking() {
            *self.0.panic.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

impl Shared {
    fn publish(&self, job: Job) {
        // SAFETY: the last job is closed and no worker is active, or `Closing` would still wait.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        self.open.store(true, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_all();
        }
    }

    fn wake_all(&self) {
        // Taking the lock ensures that no worker is between reading the epoch and going to sleep.
        drop(self.asleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }

    fn take_indices(&self, job: Job) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= job.n {
                return;
            }
            // SAFETY: the closure is alive: this is the publishing thread, or an active worker of an open job.
            unsafe { (*job.f)(i) }
        }
    }

    /// Runs a worker until the pool ends.
    fn work(&self) {
        let mut seen = 0;
        while let Some(epoch) = self.next_epoch(seen) {
            seen = epoch;
            self.active.fetch_add(1, Ordering::SeqCst);
            if self.open.load(Ordering::SeqCst) {
                // SAFETY: the job is open and this worker active, so no thread writes it and its closure is alive.
                let job = unsafe { *self.job.get() }.expect("an open job has been published");
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_indices(job))) {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
            }
            self.active.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits for a job after `seen`; returns `None` when the worker must end.
    fn next_epoch(&self, seen: usize) -> Option<usize> {
        let news = || {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let stop = self.stop.load(Ordering::SeqCst);
            (stop || epoch != seen).then_some((!stop).then_some(epoch))
        };
        for _ in 0..SPINS {
            if let Some(news) = news() {
                return news;
            }
            hint::spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        let news = loop {
            if let Some(news) = news() {
                break news;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        news
    }
}

/// A pointer that several threads may write through, each to elements of its own.
pub(crate) struct SharedMut<T>(*mut T);

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

// SAFETY: the pointer is only written through under the promise of `SharedMut::at`: no two threads touch one element.
unsafe impl<T: Send> Sync for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// Returns the element at `offset`.
    ///
    /// # Safety
    /// `offset` must lie within the slice, and no other thread may touch the elements reached through it.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: within the slice by the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(threads: &Threads, n: usize) -> Vec<usize> {
        let mut out: Vec<usize> = (0..n).collect();
        threads.for_each_mut(&mut out, |x| *x *= *x);
        out
    }

    #[test]
    fn every_index_is_taken_once() {
        for count in [1, 2, 5] {
            let threads = Threads::new(count).unwrap();
            assert_eq!(threads.count(), count);
            for n in [0, 1, 2, 3, 100] {
                // Often enough to hit workers that are spinning, asleep and late.
                for round in 0..300 {
                    if round % 100 == 99 {
                        thread::sleep(std::time::Duration::from_millis(1));
                    }
                    assert_eq!(squares(&threads, n), (0..n).map(|i| i * i).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn several_callers_do_not_mix_their_work() {
        let threads = Threads::new(3).unwrap();
        thread::scope(|scope| {
            for n in [10, 50, 90] {
                let threads = &threads;
                scope.spawn(move || {
                    (0..500).for_each(|_| assert_eq!(squares(threads, n), (0..n).map(|i| i * i).collect::<Vec<_>>()))
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_go_on() {
        let threads = Threads::new(2).unwrap();
        for bad in [0, 40, 99] {
            let run = || threads.for_each(100, |i| assert_ne!(i, bad, "index {i}"));
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            assert_eq!(squares(&threads, 50)[49], 49 * 49);
            assert!(threads.try_dispatch().is_some(), "the next job is shared again");
        }
    }
}
