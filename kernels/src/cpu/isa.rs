//! Which instruction set runs, and on how many threads.

use rayon::ThreadPool;

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F and BW.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the compiler makes of plain loops.
    Portable,
}

impl Isa {
    /// The best this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// All this machine has, best first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            if avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                all.push(Self::Avx512);
            }
            if avx2 {
                all.push(Self::Avx2);
            }
        }
        all.push(Self::Portable);
        all
    }
}

/// The threads that share the work of one kernel, and their instruction set.
pub struct Threads {
    pool: ThreadPool,
    isa: Isa,
}

impl Threads {
    /// `num_threads` threads (0: one for each core) with the best instruction set.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn new(num_threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        Self::with_isa(num_threads, Isa::detect())
    }

    /// As [`Threads::new`], with an instruction set from [`Isa::available`].
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn with_isa(num_threads: usize, isa: Isa) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).thread_name(|i| format!("kernel-{i}")).build()?;
        Ok(Self { pool, isa })
    }

    /// Number of threads.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `f` on every item, spread over the threads.
    pub fn for_each_mut<T: Send>(&self, items: &mut [T], f: impl Fn(&mut T) + Sync) {
        use rayon::prelude::*;
        self.pool.install(|| items.par_iter_mut().for_each(&f));
    }

    /// Calls `f(i)` for every `i < n`, spread over the threads.
    pub(crate) fn for_each(&self, n: usize, f: impl Fn(usize) + Sync) {
        use rayon::prelude::*;
        if n <= 1 || self.count() == 1 {
            (0..n).for_each(f);
        } else {
            self.pool.install(|| (0..n).into_par_iter().with_max_len(1).for_each(&f));
        }
    }
}

/// A pointer that several threads may write through, each to places of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T);

// SAFETY: the pointer is only written through under the promise of `SharedMut::at`: no two threads touch one element.
unsafe impl<T: Send> Sync for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// The element at `offset`.
    ///
    /// # Safety
    /// `offset` must lie within the slice, and no other thread may touch the elements reached through it.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: within the slice by the caller's promise.
        unsafe { self.0.add(offset) }
    }
}
