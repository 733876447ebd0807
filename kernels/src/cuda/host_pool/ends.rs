//! Positions of blocks at both ends of the link, and the commands that copy them.

use std::ops::Range;

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{self, CUmemorytype};
use half::bf16;

use crate::cuda::device::DeviceError;
use crate::cuda::pool::{BLOCK, PoolShape};

/// A block of the pool and its place in main memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockMove {
    pub(super) block: u32,
    pub(super) place: u32,
}

/// Direction of copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    ToHost,
    ToDevice,
}

/// A pool on the device and its places in main memory. At both ends, values follow keys at a distance of all layers.
pub(super) struct LinkAddresses {
    /// Address of the first place.
    pub(super) host: *mut bf16,
    /// Address of the pool's keys.
    pub(super) device: sys::CUdeviceptr,
    pub(super) shape: PoolShape,
    /// Maximum pitch in bytes of a strided copy: rows farther apart are copied one by one.
    pub(super) max_pitch: usize,
}

/// Rows of some layers, of keys alone or of values too: contiguous in main memory, `pitch` bytes apart on the device.
struct Rows {
    host: *mut bf16,
    device: sys::CUdeviceptr,
    pitch: usize,
    row_bytes: usize,
    num_layers: usize,
    num_parts: usize,
    /// Layers from keys to values.
    part_layers: usize,
}

impl LinkAddresses {
    /// Issues copies of some layers of a block's keys and values, by one command if their pitch is allowed.
    ///
    /// # Safety
    /// Both blocks of `pair` and the layers lie within the buffers. These are not freed, and the host does not touch its own, before
    /// `stream` is done.
    pub(super) unsafe fn copy(
        &self,
        stream: &CudaStream,
        direction: Direction,
        pair: BlockMove,
        layers: Range<usize>,
    ) -> Result<(), DeviceError> {
        if self.pitch() <= self.max_pitch {
            // SAFETY: the caller's promise.
            return unsafe { self.rows(0..2, pair, layers).copy(stream, direction) };
        }
        for (part, layer) in (0..2).flat_map(|part| layers.clone().map(move |layer| (part, layer))) {
            // SAFETY: the caller's promise.
            unsafe { self.rows(part..part + 1, pair, layer..layer + 1).copy(stream, direction) }?;
        }
        Ok(())
    }

    /// Returns the bytes from a block of a layer to the same one of the next.
    fn pitch(&self) -> usize {
        self.shape.num_blocks * self.row_bytes()
    }

    fn row_bytes(&self) -> usize {
        BLOCK * self.shape.width() * size_of::<bf16>()
    }

    /// Returns rows of a block's keys (part 0) or values (part 1), or both.
    fn rows(&self, parts: Range<usize>, pair: BlockMove, layers: Range<usize>) -> Rows {
        let (row_bytes, pitch, part_layers) = (self.row_bytes(), self.pitch(), self.shape.num_layers);
        let layer = parts.start * part_layers + layers.start;
        Rows {
            host: self.host.wrapping_byte_add((2 * pair.place as usize * part_layers + layer) * row_bytes),
            device: self.device + (layer * pitch + pair.block as usize * row_bytes) as u64,
            // A single row has no pitch that needs to be allowed.
            pitch: if parts.len() * layers.len() == 1 { row_bytes } else { pitch },
            row_bytes,
            num_layers: layers.len(),
            num_parts: parts.len(),
            part_layers,
        }
    }
}

impl Rows {
    /// Issues one command.
    ///
    /// # Safety
    /// As [`LinkAddresses::copy`].
    unsafe fn copy(&self, stream: &CudaStream, direction: Direction) -> Result<(), DeviceError> {
        let (host, device) =
            ((CUmemorytype::CU_MEMORYTYPE_HOST, self.row_bytes), (CUmemorytype::CU_MEMORYTYPE_DEVICE, self.pitch));
        let [(src_type, src_pitch), (dst_type, dst_pitch)] = match direction {
            Direction::ToHost => [device, host],
            Direction::ToDevice => [host, device],
        };
        let copy = sys::CUDA_MEMCPY3D {
            srcXInBytes: 0,
            srcY: 0,
            srcZ: 0,
            srcLOD: 0,
            srcMemoryType: src_type,
            srcHost: self.host.cast_const().cast(),
            srcDevice: self.device,
            srcArray: std::ptr::null_mut(),
            reserved0: std::ptr::null_mut(),
            srcPitch: src_pitch,
            srcHeight: self.part_layers,
            dstXInBytes: 0,
            dstY: 0,
            dstZ: 0,
            dstLOD: 0,
            dstMemoryType: dst_type,
            dstHost: self.host.cast(),
            dstDevice: self.device,
            dstArray: std::ptr::null_mut(),
            reserved1: std::ptr::null_mut(),
            dstPitch: dst_pitch,
            dstHeight: self.part_layers,
            WidthInBytes: self.row_bytes,
            Height: self.num_layers,
            Depth: self.num_parts,
        };
        // SAFETY: rows within buffers that outlive the copy, as promised.
        Ok(unsafe { sys::cuMemcpy3DAsync_v2(&raw const copy, stream.cu_stream()) }.result()?)
    }
}
