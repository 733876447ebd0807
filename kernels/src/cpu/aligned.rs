//! A fixed-size buffer that starts on a cache line, so that vector loads never straddle two.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use memmap2::MmapMut;

const CACHE_LINE: usize = 64;

/// `len` elements, zero at first. Pages that are never touched are never made resident.
///
/// One cache line more is allocated with the allocator's default alignment, and the buffer starts at the first whole line: for a larger
/// alignment, the system's allocator would zero, and so touch, every page.
pub(crate) struct AlignedBuffer<T: Plain> {
    memory: Memory,
    ptr: NonNull<T>,
    len: usize,
}

/// Memory of a buffer.
enum Memory {
    /// None: the buffer is empty.
    None,
    /// Memory of the allocator.
    Allocated(NonNull<u8>),
    /// Pages from a memory map.
    Mapped { _pages: MmapMut },
}

/// Types for which all bits zero is a valid value.
///
/// # Safety
/// Implement it only for such types, without `Drop`.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: plain numbers.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}

impl<T: Plain> AlignedBuffer<T> {
    /// Allocates zeroed elements.
    pub(crate) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { memory: Memory::None, ptr: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: the offset is below the spare cache line.
        let ptr = unsafe { base.add(base.align_offset(CACHE_LINE)) };
        Self { memory: Memory::Allocated(base), ptr: ptr.cast(), len }
    }

    /// Allocates zeroed elements in pages of their own. An allocator that has freed large buffers takes further ones from its heap, and
    /// zeroes, and so touches, pages that may never be written.
    pub(crate) fn mapped(len: usize) -> Self {
        let layout = Self::layout(len);
        if len == 0 {
            return Self { memory: Memory::None, ptr: NonNull::dangling(), len };
        }
        let Ok(mut pages) = MmapMut::map_anon(layout.size()) else { crate::memory::out_of_memory(layout.size()) };
        // A page starts on a cache line, and a map is not empty.
        let ptr = NonNull::from(&mut pages[..]).cast();
        Self { memory: Memory::Mapped { _pages: pages }, ptr, len }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(CACHE_LINE));
        let layout = bytes.and_then(|bytes| Layout::from_size_align(bytes, align_of::<u64>()).ok());
        layout.expect("a buffer fits the address space")
    }
}

impl<T: Plain> Deref for AlignedBuffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `ptr` owns `len` initialised elements (or is dangling with `len` 0).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for AlignedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for AlignedBuffer<T> {
    fn drop(&mut self) {
        if let Memory::Allocated(base) = self.memory {
            // SAFETY: allocated in `zeroed` with the same layout; elements need no drop.
            unsafe { dealloc(base.as_ptr(), Self::layout(self.len)) }
        }
    }
}

// SAFETY: the buffer owns its elements, which may move between threads.
unsafe impl<T: Plain> Send for AlignedBuffer<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain> Sync for AlignedBuffer<T> {}

impl<T: Plain> FromIterator<T> for AlignedBuffer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(iter: I) -> Self {
        let items: Vec<T> = iter.into_iter().collect();
        let mut buffer = Self::zeroed(items.len());
        buffer.copy_from_slice(&items);
        buffer
    }
}
