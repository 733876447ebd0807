//! Cosines and sines on the device.

use std::sync::Arc;

use cudarc::driver::CudaSlice;

use super::device::{Device, DeviceError};
use crate::cpu::RopeLayout;

/// Cosines and sines of all positions of one model, the same values as in [`crate::cpu::RopeTable`].
pub struct RopeTable {
    layout: RopeLayout,
    inv_freq: Vec<f64>,
    /// `[num_positions][inv_freq.len()]` of `[cos, sin]`
    cos_sin: CudaSlice<[f32; 2]>,
    num_positions: usize,
}

impl RopeTable {
    /// Computes the angles `position * inv_freq[i]` in f64, for positions below `num_positions`. All `2 * inv_freq.len()` elements of a
    /// head rotate.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn new(device: &Arc<Device>, layout: RopeLayout, inv_freq: Vec<f64>, num_positions: usize) -> Result<Self, DeviceError> {
        let table: Vec<[f32; 2]> = (0..num_positions).flat_map(|position| angles(&inv_freq, position as f64)).collect();
        let cos_sin = device.upload(&table)?;
        Ok(Self { layout, inv_freq, cos_sin, num_positions })
    }

    /// Returns the number of positions covered.
    #[must_use]
    pub fn num_positions(&self) -> usize {
        self.num_positions
    }

    /// Returns the layout of pairs in a head.
    #[must_use]
    pub fn layout(&self) -> RopeLayout {
        self.layout
    }

    /// Returns `[cos, sin]` of the rotation from one position to another `delta` further on, by frequency.
    pub fn rotation(&self, delta: i64) -> impl Iterator<Item = [f32; 2]> {
        angles(&self.inv_freq, delta as f64)
    }

    /// Returns the kernel arguments: the table, and 1 if pairs are interleaved.
    pub(super) fn parts(&self, head_dim: usize) -> (&CudaSlice<[f32; 2]>, i32) {
        assert_eq!(2 * self.inv_freq.len(), head_dim, "all of a head rotates");
        (&self.cos_sin, interleaved(self.layout))
    }
}

pub(super) fn interleaved(layout: RopeLayout) -> i32 {
    i32::from(layout == RopeLayout::Interleaved)
}

fn angles(inv_freq: &[f64], delta: f64) -> impl Iterator<Item = [f32; 2]> {
    inv_freq.iter().map(move |f| (delta * f).sin_cos()).map(|(sin, cos)| [cos as f32, sin as f32])
}
