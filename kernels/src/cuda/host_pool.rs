//! Main memory for blocks that the pool has no room for.
//!
//! Copies run on a stream of their own, which takes turns with that of all launches: a copy begins behind what was launched before it,
//! and what is launched behind it waits for it on the device. The host waits for neither.

use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_PITCH;
use cudarc::driver::sys::{self, CUevent_flags::CU_EVENT_DEFAULT, CUmemorytype};
use cudarc::driver::{CudaEvent, CudaStream, DevicePtr, DevicePtrMut, PinnedHostSlice};
use half::bf16;

use super::device::{Device, DeviceError};
use super::pool::{BLOCK, Pool, PoolShape};

/// Blocks in main memory that the device can read and write, each `[keys, values][num_layers][num_kv_heads][32][head_dim]`.
pub struct HostPool {
    device: Arc<Device>,
    stream: Arc<CudaStream>,
    blocks: PinnedHostSlice<bf16>,
    /// Of the pool whose blocks it takes.
    shape: PoolShape,
    num_blocks: usize,
    /// Rows farther apart than so many bytes are copied one by one.
    max_pitch: usize,
    /// Around the last fetch.
    began: CudaEvent,
    ended: CudaEvent,
    /// Bytes of the last fetch, until its time is told.
    fetched_bytes: u64,
}

/// A block's keys (or values) in all layers: rows one behind the other in main memory, `pitch` bytes apart on the device.
struct Rows {
    host: *mut bf16,
    device: sys::CUdeviceptr,
    pitch: usize,
    max_pitch: usize,
    row_bytes: usize,
    num_layers: usize,
}

impl HostPool {
    /// Room for `num_blocks` blocks of pools of `shape`. All of it is locked in memory now, which takes seconds for many gigabytes.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn new(device: &Arc<Device>, shape: PoolShape, num_blocks: usize) -> Result<Self, DeviceError> {
        let len = num_blocks * 2 * shape.num_layers * BLOCK * shape.width();
        // SAFETY: the host never reads it, and a device reads only blocks that were offloaded.
        let blocks = unsafe { device.context().alloc_pinned_with_flags(len.max(1), 0) }?;
        let event = || device.context().new_event(Some(CU_EVENT_DEFAULT));
        Ok(Self {
            stream: device.context().new_stream()?,
            max_pitch: device.context().attribute(CU_DEVICE_ATTRIBUTE_MAX_PITCH)? as usize,
            began: event()?,
            ended: event()?,
            device: Arc::clone(device),
            fetched_bytes: 0,
            blocks,
            shape,
            num_blocks,
        })
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        2 * self.half_block() * size_of::<bf16>()
    }

    /// Copies blocks of `pool` here, of each pair the first to the second.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the pool has another shape, or a block is not there.
    pub fn offload(&mut self, pool: &Pool, pairs: &[(u32, u32)]) -> Result<(), DeviceError> {
        if pairs.is_empty() {
            return Ok(());
        }
        self.stream.join(self.device.stream())?;
        let stream = Arc::clone(&self.stream);
        let bases = [pool.keys().device_ptr(&stream).0, pool.values().device_ptr(&stream).0];
        for &(src, dst) in pairs {
            for rows in self.rows(pool.shape(), bases, src, dst) {
                rows.copy(&stream, Direction::ToHost)?;
            }
        }
        Ok(self.device.stream().join(&self.stream)?)
    }

    /// Copies blocks to `pool` from here, of each pair the first to the second.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the pool has another shape, or a block is not there.
    pub fn fetch(&mut self, pool: &mut Pool, pairs: &[(u32, u32)]) -> Result<(), DeviceError> {
        if pairs.is_empty() {
            return Ok(());
        }
        let (stream, shape) = (Arc::clone(&self.stream), pool.shape());
        stream.join(self.device.stream())?;
        self.began.record(&stream)?;
        let (keys, values) = pool.parts_mut();
        let bases = [keys.device_ptr_mut(&stream).0, values.device_ptr_mut(&stream).0];
        for &(src, dst) in pairs {
            for rows in self.rows(shape, bases, dst, src) {
                rows.copy(&stream, Direction::ToDevice)?;
            }
        }
        self.ended.record(&stream)?;
        self.fetched_bytes = (pairs.len() * self.block_bytes()) as u64;
        Ok(self.device.stream().wait(&self.ended)?)
    }

    /// Bytes and seconds of the last fetch, if it has ended; told once.
    ///
    /// # Errors
    /// If the device fails.
    pub fn take_timing(&mut self) -> Result<Option<(u64, f64)>, DeviceError> {
        if self.fetched_bytes == 0 || !self.ended.try_is_complete()? {
            return Ok(None);
        }
        let seconds = f64::from(self.began.elapsed_ms(&self.ended)?) / 1e3;
        Ok(Some((std::mem::take(&mut self.fetched_bytes), seconds)))
    }

    /// Numbers of a block's keys (or values).
    fn half_block(&self) -> usize {
        self.shape.num_layers * BLOCK * self.shape.width()
    }

    /// Where keys and values of `block` of the pool that begins at `bases` lie, and those of `host_block`.
    fn rows(&mut self, shape: PoolShape, bases: [sys::CUdeviceptr; 2], block: u32, host_block: u32) -> [Rows; 2] {
        let (block, host_block, half) = (block as usize, host_block as usize, self.half_block());
        assert!(shape.width() == self.shape.width() && shape.num_layers == self.shape.num_layers, "blocks of one shape");
        assert!(block < shape.num_blocks && host_block < self.num_blocks, "blocks {block} and {host_block} are there");
        let row_bytes = BLOCK * shape.width() * size_of::<bf16>();
        let first = self.blocks.as_mut_ptr().expect("nothing was recorded on its event");
        [0, 1].map(|part| Rows {
            host: first.wrapping_add((2 * host_block + part) * half),
            device: bases[part] + (block * row_bytes) as u64,
            pitch: shape.num_blocks * row_bytes,
            max_pitch: self.max_pitch,
            row_bytes,
            num_layers: shape.num_layers,
        })
    }
}

impl Drop for HostPool {
    fn drop(&mut self) {
        // A copy may still be at work. If waiting for it fails, so has the device, and who asks next is told.
        self.device.context().record_err(self.stream.synchronize());
    }
}

/// Which way rows go.
#[derive(Clone, Copy)]
enum Direction {
    ToHost,
    ToDevice,
}

impl Rows {
    /// Copies them, all by one command where their pitch is allowed.
    fn copy(&self, stream: &CudaStream, direction: Direction) -> Result<(), DeviceError> {
        let at_once = if self.pitch <= self.max_pitch { self.num_layers } else { 1 };
        for layer in (0..self.num_layers).step_by(at_once) {
            self.copy_layers(stream, direction, layer, at_once)?;
        }
        Ok(())
    }

    fn copy_layers(&self, stream: &CudaStream, direction: Direction, first: usize, num_layers: usize) -> Result<(), DeviceError> {
        let host = self.host.wrapping_byte_add(first * self.row_bytes);
        let device = self.device + (first * self.pitch) as u64;
        // One row has no pitch that would have to be allowed.
        let pitch = if num_layers == 1 { self.row_bytes } else { self.pitch };
        let [(src_type, src_pitch), (dst_type, dst_pitch)] = match direction {
            Direction::ToHost => {
                [(CUmemorytype::CU_MEMORYTYPE_DEVICE, pitch), (CUmemorytype::CU_MEMORYTYPE_HOST, self.row_bytes)]
            }
            Direction::ToDevice => {
                [(CUmemorytype::CU_MEMORYTYPE_HOST, self.row_bytes), (CUmemorytype::CU_MEMORYTYPE_DEVICE, pitch)]
            }
        };
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: src_type,
            srcHost: host.cast_const().cast(),
            srcDevice: device,
            srcArray: std::ptr::null_mut(),
            srcPitch: src_pitch,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: dst_type,
            dstHost: host.cast(),
            dstDevice: device,
            dstArray: std::ptr::null_mut(),
            dstPitch: dst_pitch,
            WidthInBytes: self.row_bytes,
            Height: num_layers,
        };
        // SAFETY: `HostPool::rows` checked that both blocks lie in their buffers. Neither is freed or touched by the host before the
        // stream is done: the buffers outlive the copy, whose stream is waited for by every launch behind it and when they are dropped.
        Ok(unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, stream.cu_stream()) }.result()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cuda::testing::{device, rounded};

    const PAIRS: [(u32, u32); 3] = [(4, 0), (0, 2), (6, 1)];

    /// Blocks offloaded, overwritten and fetched to other places hold the same bits there, and no other block has changed.
    #[track_caller]
    fn check(num_layers: usize, num_kv_heads: usize, head_dim: usize, max_pitch: usize) {
        let device = device();
        let shape = PoolShape { num_layers, num_blocks: 7, num_kv_heads, head_dim };
        let mut pool = Pool::new(&device, shape).unwrap();
        let mut host = HostPool::new(&device, shape, 3).unwrap();
        host.max_pitch = host.max_pitch.min(max_pitch);
        let numbers = [1, 2].map(|seed| rounded(noise(shape.num_elements(), seed)));
        write(&device, &mut pool, &numbers);
        host.offload(&pool, &PAIRS).unwrap();
        let others = [3, 4].map(|seed| rounded(noise(shape.num_elements(), seed)));
        write(&device, &mut pool, &others);
        assert_eq!(host.take_timing().unwrap(), None, "nothing was fetched");
        // Back in another order, the last to where it was.
        host.fetch(&mut pool, &[(0, 3), (2, 5), (1, 6)]).unwrap();
        let found = [pool.keys(), pool.values()].map(|part| device.download(part).unwrap());
        let (bytes, seconds) = host.take_timing().unwrap().expect("the fetch has ended");
        assert_eq!(bytes, (3 * 2 * num_layers * num_kv_heads * 32 * head_dim * 2) as u64);
        assert!(seconds > 0.0 && host.take_timing().unwrap().is_none());
        let row = BLOCK * shape.width();
        for part in 0..2 {
            for (i, found) in found[part].chunks(row).enumerate() {
                let (layer, block) = (i / 7, i % 7);
                let at = |block: usize| (layer * 7 + block) * row..(layer * 7 + block + 1) * row;
                let expected = match [(3, 4), (5, 0), (6, 6)].iter().find(|(to, _)| *to == block) {
                    Some((_, from)) => &numbers[part][at(*from)],
                    None => &others[part][at(block)],
                };
                assert!(found == expected, "part {part} layer {layer} block {block}");
            }
        }
    }

    fn write(device: &Device, pool: &mut Pool, numbers: &[Vec<bf16>; 2]) {
        let (keys, values) = pool.parts_mut();
        device.stream().memcpy_htod(&numbers[0], keys).unwrap();
        device.stream().memcpy_htod(&numbers[1], values).unwrap();
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_blocks_come_back_from_the_host_as_they_went() {
        check(1, 1, 64, usize::MAX);
        check(3, 3, 64, usize::MAX);
        check(28, 4, 128, usize::MAX);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_layers_too_far_apart_go_one_by_one() {
        check(3, 3, 64, 1);
    }
}
