//! Handling of exhausted memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;

/// The system's allocator, which ends the process with one error line when memory is exhausted. Rust's default is an abort, which leaves a
/// core dump and looks like a crash.
pub struct ExitingAllocator;

// SAFETY: every call is forwarded to `System` unchanged, whose contract is that of the trait; a failed allocation never returns.
unsafe impl GlobalAlloc for ExitingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what `System` requires.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what `System` requires.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises what `System` requires: `ptr` came from it, because everything here does.
        given(unsafe { System.realloc(ptr, layout, new_size) }, new_size)
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller promises what `System` requires: `ptr` came from it, because everything here does.
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn given(ptr: *mut u8, num_bytes: usize) -> *mut u8 {
    if ptr.is_null() { out_of_memory(num_bytes) } else { ptr }
}

/// Prints the error without allocating, and ends the process.
#[cold]
pub(crate) fn out_of_memory(num_bytes: usize) -> ! {
    // There is no way to report that the line cannot be written.
    let _unwritten = writeln!(std::io::stderr(), "error: out of memory: {num_bytes} bytes could not be allocated");
    std::process::exit(1)
}
