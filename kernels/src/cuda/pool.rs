//! The paged KV pool in the device's memory.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use half::bf16;

use super::device::{Device, DeviceError};

/// Slots of a block.
pub(super) const BLOCK: usize = 32;

/// Sizes of a [`Pool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Layers of the model.
    pub num_layers: usize,
    /// Blocks in each layer.
    pub num_blocks: usize,
    /// Heads of keys and values.
    pub num_kv_heads: usize,
    /// Numbers in one head: 64 or 128.
    pub head_dim: usize,
}

impl PoolShape {
    /// Numbers of one token's keys (or values) in one layer.
    #[must_use]
    pub fn width(self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Slots in each layer.
    #[must_use]
    pub fn num_slots(self) -> usize {
        self.num_blocks * BLOCK
    }

    /// Numbers of all keys (or values).
    #[must_use]
    pub fn num_elements(self) -> usize {
        self.num_layers * self.num_slots() * self.width()
    }
}

/// Keys, rotated to their positions, and values, each `[num_layers][num_blocks][num_kv_heads][32][head_dim]`.
///
/// Zeros at first, and only ever finite numbers after that: a mask may multiply what it hides by 0.
pub struct Pool {
    /// All keys, and behind them all values, so that both can be copied by one command.
    numbers: CudaSlice<bf16>,
    shape: PoolShape,
}

impl Pool {
    /// An empty pool.
    ///
    /// # Errors
    /// If memory does not suffice.
    ///
    /// # Panics
    /// If heads are neither of 64 nor of 128 numbers.
    pub fn new(device: &Arc<Device>, shape: PoolShape) -> Result<Self, DeviceError> {
        assert!(matches!(shape.head_dim, 64 | 128), "kernels are compiled for heads of 64 and 128");
        assert!(u32::try_from(shape.num_slots()).is_ok_and(|slots| slots < NO_ROW), "a slot is 32 bits, and none of them NO_ROW");
        Ok(Self { numbers: device.zeros(2 * shape.num_elements())?, shape })
    }

    /// Its sizes.
    #[must_use]
    pub fn shape(&self) -> PoolShape {
        self.shape
    }

    /// All keys.
    #[must_use]
    pub fn keys(&self) -> CudaView<'_, bf16> {
        self.numbers.slice(..self.shape.num_elements())
    }

    /// All values.
    #[must_use]
    pub fn values(&self) -> CudaView<'_, bf16> {
        let len = self.shape.num_elements();
        self.numbers.slice(len..2 * len)
    }

    /// All keys and all values, to be written.
    #[must_use]
    pub fn parts_mut(&mut self) -> (CudaViewMut<'_, bf16>, CudaViewMut<'_, bf16>) {
        self.numbers.split_at_mut(self.shape.num_elements())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Copies of a host pool may be at work on other streams than the one that memory is freed on. If waiting for them fails, so has
        // the device, and who asks next is told.
        let context = self.numbers.context();
        context.record_err(context.synchronize());
    }
}

/// The slot of a row that only fills up a CUDA graph, or the index of no row.
pub const NO_ROW: u32 = u32::MAX;
