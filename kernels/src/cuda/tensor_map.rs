//! Tensor maps with which Hopper's copy engine reads the inputs of attention.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
    CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
    cuTensorMapEncodeTiled,
};
use cudarc::driver::{CudaStream, CudaView, DevicePtr, DeviceRepr};
use half::bf16;

use super::device::DeviceError;
use super::paged::{BLOCK, PagedQueries};

/// Elements in 128 bytes, the longest row that the copy engine swizzles.
const COLUMNS: usize = 64;

/// Description of a bf16 tensor for the copy engine.
#[repr(transparent)]
pub(super) struct TensorMap(CUtensorMap);

// SAFETY: 128 bytes that only the device interprets.
unsafe impl DeviceRepr for TensorMap {}

impl TensorMap {
    /// Describes the queries of a batch of `num_rows`: a copy takes the heads of a group of `num_tokens` rows, one half or all of their
    /// columns.
    pub(super) fn of_queries(
        paged: &PagedQueries<'_>,
        num_rows: usize,
        num_tokens: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<Self, DeviceError> {
        let address = address(paged.queries, stream);
        let lens = [paged.head_dim, paged.num_heads, num_rows];
        Self::new(address, lens, [paged.head_dim, paged.row_stride], [COLUMNS, paged.group(), num_tokens])
    }

    /// Describes keys or values of the pool: a copy takes one head of a block, one half or all of its columns.
    pub(super) fn of_pool(
        paged: &PagedQueries<'_>,
        pool: &CudaView<'_, bf16>,
        stream: &Arc<CudaStream>,
    ) -> Result<Self, DeviceError> {
        let num_slots = pool.len() / paged.head_dim;
        assert!(num_slots <= i32::MAX as usize, "the copy engine counts rows in 31 bits");
        Self::new(address(pool, stream), [paged.head_dim, num_slots], [paged.head_dim], [COLUMNS, BLOCK])
    }

    /// Describes a tensor of `lens`, innermost first, at `address`, with `strides` in elements for the outer dimensions; a copy takes
    /// `copied` of each and swizzles rows of 128 bytes.
    fn new<const RANK: usize, const OUTER: usize>(
        address: u64,
        lens: [usize; RANK],
        strides: [usize; OUTER],
        copied: [usize; RANK],
    ) -> Result<Self, DeviceError> {
        const { assert!(OUTER + 1 == RANK, "one stride less than dimensions") };
        let mut map = Self(CUtensorMap { opaque: [0; 16] });
        let (lens, bytes) = (lens.map(|len| len as u64), strides.map(|stride| (stride * size_of::<bf16>()) as u64));
        let (copied, steps) = (copied.map(|len| len as u32), [1u32; RANK]);
        // SAFETY: all pointers are valid for `RANK` elements, the map for a write; the address is not read here.
        unsafe {
            cuTensorMapEncodeTiled(
                &raw mut map.0,
                CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                RANK as u32,
                address as *mut c_void,
                lens.as_ptr(),
                bytes.as_ptr(),
                copied.as_ptr(),
                steps.as_ptr(),
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()?;
        Ok(map)
    }
}

/// Returns the device address of a buffer.
pub(super) fn address<T>(slice: &impl DevicePtr<T>, stream: &Arc<CudaStream>) -> u64 {
    slice.device_ptr(stream).0
}
