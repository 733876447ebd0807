//! Small arrays that the host writes for a step, uploaded to the device by one copy.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaView, PinnedHostSlice};

use super::device::{Device, DeviceError};

/// Alignment of arrays in words, so that vectors may be loaded.
const ALIGNMENT: usize = 4;

/// Types that words can be read as.
///
/// # Safety
/// Any `COUNT` words are a value, of the same layout on host and device.
pub unsafe trait Words: Copy {
    /// Number of words of a value.
    const COUNT: usize;
}

// SAFETY: one word.
unsafe impl Words for i32 {
    const COUNT: usize = 1;
}

// SAFETY: one word.
unsafe impl Words for f32 {
    const COUNT: usize = 1;
}

// SAFETY: as many words.
unsafe impl<const N: usize> Words for [u32; N] {
    const COUNT: usize = N;
}

// SAFETY: as many words.
unsafe impl<const N: usize> Words for [f32; N] {
    const COUNT: usize = N;
}

/// A buffer of words on the host that the device can read, and its copy on the device.
///
/// The arrays that are staged first are always at the same addresses, so a captured graph finds the arrays of the next step where those of the
/// last one were.
pub struct Upload {
    device: Arc<Device>,
    host: PinnedHostSlice<u32>,
    copy: CudaSlice<u32>,
    /// Number of leading words that may be in transfer.
    in_flight: usize,
}

impl Upload {
    /// Allocates room for `capacity` words.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn new(device: &Arc<Device>, capacity: usize) -> Result<Self, DeviceError> {
        let capacity = capacity.next_multiple_of(ALIGNMENT);
        // SAFETY: `stage` writes words before they are read.
        let host = unsafe { device.context().alloc_pinned_with_flags(capacity.max(1), 0) }?;
        Ok(Self { device: Arc::clone(device), host, copy: device.zeros(capacity)?, in_flight: 0 })
    }

    /// Returns the ranges of arrays of these lengths, and the words they take together.
    #[must_use]
    pub fn layout<const N: usize>(lengths: [usize; N]) -> ([Range<usize>; N], usize) {
        let mut next = 0;
        let ranges = lengths.map(|len| {
            let start = next;
            next = (start + len).next_multiple_of(ALIGNMENT);
            start..start + len
        });
        (ranges, next)
    }

    /// Lets `write` fill arrays of the given lengths and copies them to the device, after those that may be in transfer; if there is no
    /// room after them, waits for them. Returns the ranges of the arrays. Kernels that read earlier arrays must be launched before.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there is no room.
    pub fn stage<const N: usize>(
        &mut self,
        lengths: [usize; N],
        write: impl FnOnce([&mut [u32]; N]),
    ) -> Result<[Range<usize>; N], DeviceError> {
        let (ranges, total) = Self::layout(lengths);
        assert!(total <= self.copy.len(), "{total} words fit {}", self.copy.len());
        if self.in_flight + total > self.copy.len() {
            self.device.synchronize()?;
            self.in_flight = 0;
        }
        let first = self.in_flight;
        let words = &mut self.host.as_mut_slice()?[first..first + total];
        let mut rest = words;
        let mut taken = 0;
        let parts = ranges.clone().map(|range| {
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(range.start - taken);
            let (part, tail) = tail.split_at_mut(range.len());
            (rest, taken) = (tail, range.end);
            part
        });
        write(parts);
        let words = &self.host.as_slice()?[first..first + total];
        self.device.stream().memcpy_htod(words, &mut self.copy.slice_mut(first..first + total))?;
        self.in_flight = first + total;
        Ok(ranges.map(|range| first + range.start..first + range.end))
    }

    /// Runs [`Self::stage`] at the beginning, where a recorded graph reads arrays of these lengths. Waits for pending transfers.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If there is no room.
    pub fn stage_first<const N: usize>(
        &mut self,
        lengths: [usize; N],
        write: impl FnOnce([&mut [u32]; N]),
    ) -> Result<[Range<usize>; N], DeviceError> {
        if self.in_flight > 0 {
            self.device.synchronize()?;
            self.in_flight = 0;
        }
        self.stage(lengths, write)
    }

    /// Records that the device was waited for since the last [`Self::stage`].
    pub fn arrived(&mut self) {
        self.in_flight = 0;
    }

    /// Returns words on the device.
    #[must_use]
    pub fn words(&self, range: Range<usize>) -> CudaView<'_, u32> {
        self.copy.slice(range)
    }

    /// Returns words on the device, read as `T`.
    ///
    /// # Panics
    /// If the length of the range is not a multiple of `T`'s words.
    #[must_use]
    pub fn view<T: Words>(&self, range: Range<usize>) -> CudaView<'_, T> {
        assert!(range.len().is_multiple_of(T::COUNT), "{} words are whole values of {}", range.len(), T::COUNT);
        let len = range.len() / T::COUNT;
        // SAFETY: any words are a value, laid out as on the host, as `Words` promises.
        unsafe { self.copy.slice(range).transmute(len) }.expect("the lengths agree")
    }

    /// Returns the capacity, in words.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.copy.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::device;

    #[test]
    fn arrays_lie_apart_and_aligned() {
        let (ranges, total) = Upload::layout([3, 0, 5, 4]);
        assert_eq!((ranges, total), ([0..3, 4..4, 4..9, 12..16], 16));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_uploads_arrive() {
        let device = device();
        let mut upload = Upload::new(&device, 64).unwrap();
        for round in 0..3u32 {
            let [a, b] = upload
                .stage([3, 5], |[a, b]| {
                    a.fill(round);
                    b.copy_from_slice(&[7, 8, 9, 10, round]);
                })
                .unwrap();
            let read = |range: Range<usize>| device.stream().clone_dtoh(&upload.words(range)).unwrap();
            let (a, b) = (read(a), read(b));
            device.synchronize().unwrap();
            assert_eq!((a, b), (vec![round; 3], vec![7, 8, 9, 10, round]));
        }
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_arrays_on_their_way_are_not_overwritten() {
        let device = device();
        let mut upload = Upload::new(&device, 16).unwrap();
        let stage = |upload: &mut Upload, x: u32| upload.stage([6], |[array]| array.fill(x)).unwrap()[0].clone();
        assert_eq!([stage(&mut upload, 1), stage(&mut upload, 2)], [0..6, 8..14]);
        assert_eq!(device.stream().clone_dtoh(&upload.words(0..14)).unwrap()[..6], [1; 6]);
        // There is no room after them.
        assert_eq!(stage(&mut upload, 3), 0..6);
        assert_eq!(upload.stage_first([2], |[array]| array.fill(4)).unwrap()[0], 0..2);
        upload.arrived();
        assert_eq!(stage(&mut upload, 5), 0..6);
        device.synchronize().unwrap();
    }
}
