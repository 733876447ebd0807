//! The end of memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;

/// The system's allocator, which ends the process with one line when there is no more memory. Rust's own end is an abort, which
/// leaves a core and looks like a crash.
pub struct ExitingAllocator;

// SAFETY: every call goes to `System` as it came, whose contract is that of the trait; what it refuses never returns.
unsafe impl GlobalAlloc for ExitingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what `System` asks for.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what `System` asks for.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises what `System` asks for: `ptr` came from it, because everything here does.
        given(unsafe { System.realloc(ptr, layout, new_size) }, new_size)
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller promises what `System` asks for: `ptr` came from it, because everything here does.
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn given(ptr: *mut u8, num_bytes: usize) -> *mut u8 {
    if ptr.is_null() { out_of_memory(num_bytes) } else { ptr }
}

/// Says it without allocating anything, and ends.
#[cold]
pub(crate) fn out_of_memory(num_bytes: usize) -> ! {
    // Nobody is left to be told when the line cannot be written.
    let _unwritten = writeln!(std::io::stderr(), "error: out of memory: {num_bytes} bytes could not be allocated");
    std::process::exit(1)
}
