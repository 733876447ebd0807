//! The paged KV pool in the device's memory.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use half::bf16;

use super::device::{Device, DeviceError};
use super::paged::check_head_dim;

/// Slots per block.
pub(super) const BLOCK: usize = 32;

/// Sizes of a [`Pool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Number of layers of the model.
    pub num_layers: usize,
    /// Number of blocks in each layer.
    pub num_blocks: usize,
    /// Number of key and value heads.
    pub num_kv_heads: usize,
    /// Elements per head: 64 or 128.
    pub head_dim: usize,
}

impl PoolShape {
    /// Returns the elements of one token's keys (or values) in one layer.
    #[must_use]
    pub fn width(self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Returns the number of slots in each layer.
    #[must_use]
    pub fn num_slots(self) -> usize {
        self.num_blocks * BLOCK
    }

    /// Returns the number of elements of all keys (or values).
    #[must_use]
    pub fn num_elements(self) -> usize {
        self.num_layers * self.num_slots() * self.width()
    }
}

/// Keys, rotated to their positions, and values, each `[num_layers][num_blocks][num_kv_heads][32][head_dim]`.
///
/// Zero at first, and always finite: a mask may multiply what it hides by 0.
pub struct Pool {
    /// All keys, followed by all values, so that one command can copy both.
    numbers: CudaSlice<bf16>,
    shape: PoolShape,
}

impl Pool {
    /// Creates an empty pool.
    ///
    /// # Errors
    /// If memory does not suffice.
    ///
    /// # Panics
    /// If head_dim is not 64, 128 or 256.
    pub fn new(device: &Arc<Device>, shape: PoolShape) -> Result<Self, DeviceError> {
        check_head_dim(shape.head_dim);
        assert!(u32::try_from(shape.num_slots()).is_ok_and(|slots| slots < NO_ROW), "a slot is 32 bits, and none of them NO_ROW");
        Ok(Self { numbers: device.zeros(2 * shape.num_elements())?, shape })
    }

    /// Returns the sizes.
    #[must_use]
    pub fn shape(&self) -> PoolShape {
        self.shape
    }

    /// Returns all keys.
    #[must_use]
    pub fn keys(&self) -> CudaView<'_, bf16> {
        self.numbers.slice(..self.shape.num_elements())
    }

    /// Returns all values.
    #[must_use]
    pub fn values(&self) -> CudaView<'_, bf16> {
        let len = self.shape.num_elements();
        self.numbers.slice(len..2 * len)
    }

    /// Returns all keys and all values, mutable.
    #[must_use]
    pub fn parts_mut(&mut self) -> (CudaViewMut<'_, bf16>, CudaViewMut<'_, bf16>) {
        self.numbers.split_at_mut(self.shape.num_elements())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Copies of a host pool may be running on other streams than the one that memory is freed on. If waiting for them fails, so has the
        // device, and the next call reports it.
        let context = self.numbers.context();
        context.record_err(context.synchronize());
    }
}

/// Slot of a row that only pads a CUDA graph, or the index of no row.
pub const NO_ROW: u32 = u32::MAX;
