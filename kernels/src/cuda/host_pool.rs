//! Main memory for blocks that do not fit into the pool.
//!
//! Copies are made by copy engines, which use no multiprocessors, and the host does not wait for them. They start after earlier launches,
//! in groups of layers, the first layers first. Overlaps:
//!
//! - Copies to the host and copies to the device use both directions of the link at once, each on its own stream. But a fetch may write a
//!   block that is being offloaded, or read a place that is being written: it is ordered after that, a few blocks later (`turns.rs`).
//! - Launches for a layer wait for the copies of its group alone ([`HostPool::wait_for_layer`]), so that layers are computed while later
//!   layers are in transfer.
//! - The copies of a group are issued when the previous group is waited for, so that the host issues them while the previous copies run.

mod ends;
mod transfers;
mod turns;

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_PITCH;
use cudarc::driver::{DevicePtrMut, PinnedHostSlice};
use half::bf16;

use self::ends::{BlockMove, Direction, LinkAddresses};
use self::transfers::Transfers;
use self::turns::in_turn;
use super::device::{Device, DeviceError};
use super::pool::{BLOCK, Pool, PoolShape};

/// Minimum bytes per copy command, if a block has as many: larger blocks are copied in that many groups of layers. Chosen: a command takes
/// some 2 microseconds besides its bytes (`host_pool_speed`: 50 GB/s by commands of 1.8 MB, 47 by those of 917 kB, 41 by those of 459 kB,
/// 35 by those of 262 kB), which soon exceeds the gain beside the forward pass of a short question (17.2 ms for 17.9 with three groups in
/// place of one, for a prompt of 8,192 tokens of Qwen2.5-7B).
const COMMAND_BYTES: usize = 576 << 10;

/// Number of blocks copied to the host before the fetches that had to wait for them. Chosen: few, so that both directions soon run, yet
/// more bytes than are lost while one stream waits for the other.
const TURN_BLOCKS: usize = 4;

/// Blocks in main memory that the device can read and write, each `[keys, values][num_layers][num_kv_heads][32][head_dim]`.
///
/// Blocks whose copies were started are pending until [`Self::wait_for_all`], or [`Self::wait_for_layer`] for the last layer. Before the
/// wait for a layer, nothing may be launched that touches it: no use of blocks that are fetched, and no write to blocks that are offloaded.
pub struct HostPool {
    device: Arc<Device>,
    blocks: PinnedHostSlice<bf16>,
    /// Shape of the pool whose blocks it holds.
    shape: PoolShape,
    num_blocks: usize,
    max_pitch: usize,
    layers_per_group: usize,
    to_host: Transfers,
    to_device: Transfers,
    /// For each fetched block, the number of leading offloaded blocks that the device copies before it. Ascending.
    turns: Vec<usize>,
    /// Number of leading groups of layers whose pending copies finish before any later launch begins.
    num_joined: usize,
    /// Bytes of the last fetch, until its timing is returned.
    fetched_bytes: u64,
}

impl HostPool {
    /// Allocates `num_blocks` blocks for pools of `shape`. All of it is page-locked now, which takes seconds for many gigabytes.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn new(device: &Arc<Device>, shape: PoolShape, num_blocks: usize) -> Result<Self, DeviceError> {
        Self::with_groups(device, shape, num_blocks, layers_per_group(shape))
    }

    /// Allocates the same with copies of `layers_per_group` layers at once, for measurements.
    ///
    /// # Errors
    /// If memory does not suffice.
    ///
    /// # Panics
    /// If `layers_per_group` is 0.
    pub fn with_groups(
        device: &Arc<Device>,
        shape: PoolShape,
        num_blocks: usize,
        layers_per_group: usize,
    ) -> Result<Self, DeviceError> {
        let len = num_blocks * 2 * shape.num_layers * BLOCK * shape.width();
        // SAFETY: the host never reads it, and a device reads only blocks that were offloaded.
        let blocks = unsafe { device.context().alloc_pinned_with_flags(len.max(1), 0) }?;
        let num_groups = shape.num_layers.div_ceil(layers_per_group);
        Ok(Self {
            to_host: Transfers::new(device, Direction::ToHost, num_groups)?,
            to_device: Transfers::new(device, Direction::ToDevice, num_groups)?,
            max_pitch: device.context().attribute(CU_DEVICE_ATTRIBUTE_MAX_PITCH)? as usize,
            device: Arc::clone(device),
            turns: Vec::new(),
            num_joined: 0,
            fetched_bytes: 0,
            layers_per_group,
            blocks,
            shape,
            num_blocks,
        })
    }

    /// Returns the bytes of a block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        2 * self.shape.num_layers * BLOCK * self.shape.width() * size_of::<bf16>()
    }

    /// Returns the bytes, in both directions, of started copies that launches are not yet ordered after in all layers.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        (self.to_host.pending().len() + self.to_device.pending().len()) * self.block_bytes()
    }

    /// Returns true if launches are ordered after all started copies.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.to_host.is_idle() && self.to_device.is_idle()
    }

    /// Starts copying blocks of `pool` here, of each pair the first to the second, after everything launched and started before.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the pool has another shape, or a block does not exist.
    pub fn begin_offload(&mut self, pool: &mut Pool, pairs: &[(u32, u32)]) -> Result<(), DeviceError> {
        if pairs.is_empty() {
            return Ok(());
        }
        self.wait_for_all(pool)?;
        let pairs = self.checked(pairs.iter().map(|&(block, place)| BlockMove { block, place }));
        self.num_joined = 0;
        self.to_host.begin(pairs, self.device.stream())
    }

    /// Starts copying blocks to `pool` from here, of each pair the first to the second, after everything launched and started before.
    /// Copies that share no block and no place with a pending offload may run before it.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the pool has another shape, or a block does not exist.
    pub fn begin_fetch(&mut self, pool: &mut Pool, pairs: &[(u32, u32)]) -> Result<(), DeviceError> {
        if pairs.is_empty() {
            return Ok(());
        }
        // A group that was waited for was issued without these.
        if !self.to_device.is_idle() || self.num_joined > 0 {
            self.wait_for_all(pool)?;
        }
        self.fetched_bytes = (pairs.len() * self.block_bytes()) as u64;
        let pairs = self.checked(pairs.iter().map(|&(place, block)| BlockMove { block, place }));
        let (turns, pairs) = in_turn(pairs, self.to_host.pending()).into_iter().unzip();
        self.turns = turns;
        self.num_joined = 0;
        self.to_device.begin(pairs, self.device.stream())
    }

    /// Orders later launches after the pending copies of `layer` and of those before it. The host does not wait. Returns the number of
    /// leading layers that launches are ordered after.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the pool has another shape, or no such layer.
    pub fn wait_for_layer(&mut self, pool: &mut Pool, layer: usize) -> Result<usize, DeviceError> {
        assert!(layer < self.shape.num_layers, "there is a layer {layer}");
        let group = layer / self.layers_per_group;
        if !self.is_idle() && group >= self.num_joined {
            self.issue(pool, group + 2)?;
            self.join(group)?;
        }
        Ok(if self.is_idle() { self.shape.num_layers } else { self.num_joined * self.layers_per_group })
    }

    /// Orders later launches after all started copies. The host does not wait.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the pool has another shape.
    pub fn wait_for_all(&mut self, pool: &mut Pool) -> Result<(), DeviceError> {
        self.wait_for_layer(pool, self.shape.num_layers - 1)?;
        Ok(())
    }

    /// Returns the bytes of the last fetch and the seconds that its copies took, without the gaps between groups, if it has ended; returned
    /// once. Waiting for blocks that are offloaded counts: they make room for the fetch, and are part of its cost.
    ///
    /// # Errors
    /// If the device fails.
    pub fn take_timing(&mut self) -> Result<Option<(u64, f64)>, DeviceError> {
        if self.fetched_bytes == 0 {
            return Ok(None);
        }
        let seconds = self.to_device.seconds()?;
        Ok(seconds.map(|seconds| (std::mem::take(&mut self.fetched_bytes), seconds)))
    }

    fn checked(&self, pairs: impl Iterator<Item = BlockMove>) -> Vec<BlockMove> {
        let is_there =
            |pair: &BlockMove| (pair.block as usize) < self.shape.num_blocks && (pair.place as usize) < self.num_blocks;
        pairs.inspect(|pair| assert!(is_there(pair), "blocks and places are there: {pair:?}")).collect()
    }

    /// Issues the copies of groups before `end` that were not yet issued.
    fn issue(&mut self, pool: &mut Pool, end: usize) -> Result<(), DeviceError> {
        let ends = self.ends(pool);
        let num_issued = self.to_host.num_issued_of_pending().max(self.to_device.num_issued_of_pending());
        (num_issued..end.min(self.num_groups())).try_for_each(|group| self.issue_group(&ends, group))
    }

    /// Issues the copies of a group: those to the host a turn at a time, and after each turn those to the device that waited for it.
    fn issue_group(&mut self, ends: &LinkAddresses, group: usize) -> Result<(), DeviceError> {
        let layers = self.layers_of(group);
        let (num_offloads, num_fetches) = (self.to_host.pending().len(), self.to_device.pending().len());
        let mut num_fetched = 0;
        for first in (0..num_offloads).step_by(TURN_BLOCKS) {
            let end = (first + TURN_BLOCKS).min(num_offloads);
            // SAFETY: `checked` and `ends` made sure that all blocks lie in their buffers. The host never touches its own, and `drop` waits
            // for the stream before it is freed; a pool waits for the whole device before it is freed.
            unsafe { self.to_host.issue(group, &layers, ends, first..end) }?;
            let ready = self.turns[..num_fetches].partition_point(|&num_before| num_before <= end);
            if ready > num_fetched {
                self.to_device.come_behind(&self.to_host)?;
                // SAFETY: as above.
                unsafe { self.to_device.issue(group, &layers, ends, num_fetched..ready) }?;
                num_fetched = ready;
            }
        }
        // SAFETY: as above.
        unsafe { self.to_device.issue(group, &layers, ends, num_fetched..num_fetches) }
    }

    /// Makes launches wait for the copies of `group`, and so for those before it.
    fn join(&mut self, group: usize) -> Result<(), DeviceError> {
        for ended in [&self.to_host, &self.to_device].into_iter().filter_map(|transfers| transfers.end_of(group)) {
            self.device.stream().wait(ended)?;
        }
        self.num_joined = group + 1;
        if self.num_joined == self.num_groups() {
            self.to_host.finish();
            self.to_device.finish();
        }
        Ok(())
    }

    fn num_groups(&self) -> usize {
        self.shape.num_layers.div_ceil(self.layers_per_group)
    }

    fn layers_of(&self, group: usize) -> Range<usize> {
        let first = group * self.layers_per_group;
        first..(first + self.layers_per_group).min(self.shape.num_layers)
    }

    fn ends(&mut self, pool: &mut Pool) -> LinkAddresses {
        assert_eq!(pool.shape(), self.shape, "blocks of one shape");
        let stream = Arc::clone(self.device.stream());
        LinkAddresses {
            host: self.blocks.as_mut_ptr().expect("nothing was recorded on its event"),
            device: pool.parts_mut().0.device_ptr_mut(&stream).0,
            shape: self.shape,
            max_pitch: self.max_pitch,
        }
    }
}

impl Drop for HostPool {
    fn drop(&mut self) {
        // Copies may still be running. If waiting for them fails, so has the device, and the next call reports it.
        for transfers in [&self.to_host, &self.to_device] {
            self.device.context().record_err(transfers.synchronize());
        }
    }
}

/// Returns the number of layers whose rows one command copies; groups are as equal as possible.
fn layers_per_group(shape: PoolShape) -> usize {
    let row_bytes = BLOCK * shape.width() * size_of::<bf16>();
    let num_groups = (2 * shape.num_layers * row_bytes / COMMAND_BYTES).clamp(1, shape.num_layers);
    shape.num_layers.div_ceil(num_groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cuda::testing::{device, rounded};

    /// Keys and values of a whole pool.
    type Numbers = [Vec<bf16>; 2];

    /// A pool and a host pool of as many blocks.
    struct Link {
        device: Arc<Device>,
        pool: Pool,
        host: HostPool,
    }

    impl Link {
        fn new(shape: PoolShape, layers_per_group: usize) -> Self {
            let device = device();
            let host = HostPool::with_groups(&device, shape, shape.num_blocks, layers_per_group).unwrap();
            Self { pool: Pool::new(&device, shape).unwrap(), host, device }
        }

        /// Creates a link with copies that take far longer than the host needs to issue them: 7 layers in groups of three.
        fn slow() -> Self {
            Self::new(PoolShape { num_layers: 7, num_blocks: 12, num_kv_heads: 64, head_dim: 128 }, 3)
        }

        /// Writes noise to the whole pool.
        fn fill(&mut self, seed: u32) -> Numbers {
            let len = self.pool.shape().num_elements();
            let numbers = [seed, seed + 1].map(|seed| rounded(noise(len, seed)));
            let (mut keys, mut values) = self.pool.parts_mut();
            self.device.stream().memcpy_htod(&numbers[0], &mut keys).unwrap();
            self.device.stream().memcpy_htod(&numbers[1], &mut values).unwrap();
            numbers
        }

        /// Writes zeros to the whole pool.
        fn clear(&mut self) {
            let (mut keys, mut values) = self.pool.parts_mut();
            self.device.stream().memset_zeros(&mut keys).unwrap();
            self.device.stream().memset_zeros(&mut values).unwrap();
        }

        fn offload(&mut self, pairs: &[(u32, u32)]) {
            self.host.begin_offload(&mut self.pool, pairs).unwrap();
        }

        fn fetch(&mut self, pairs: &[(u32, u32)]) {
            self.host.begin_fetch(&mut self.pool, pairs).unwrap();
        }

        fn wait_for_layer(&mut self, layer: usize) -> usize {
            self.host.wait_for_layer(&mut self.pool, layer).unwrap()
        }

        fn wait(&mut self) {
            self.host.wait_for_all(&mut self.pool).unwrap();
            assert!(self.host.is_idle());
        }

        /// Checks that each block, as a launch reads it now, holds in `layers` the bits of the block that `expected` returns.
        #[track_caller]
        fn check<'a>(&self, layers: Range<usize>, expected: impl Fn(usize) -> (&'a Numbers, usize)) {
            let shape = self.pool.shape();
            let row = BLOCK * shape.width();
            let at = |layer: usize, block: usize| (layer * shape.num_blocks + block) * row;
            let of_layers = at(layers.start, 0)..at(layers.end, 0);
            for (part, numbers) in [self.pool.keys(), self.pool.values()].into_iter().enumerate() {
                let found = self.device.stream().clone_dtoh(&numbers.slice(of_layers.clone())).unwrap();
                self.device.synchronize().unwrap();
                for (i, found) in found.chunks(row).enumerate() {
                    let (layer, block) = (layers.start + i / shape.num_blocks, i % shape.num_blocks);
                    let (numbers, from) = expected(block);
                    let expected = &numbers[part][at(layer, from)..][..row];
                    assert!(found == expected, "part {part} layer {layer} block {block}");
                }
            }
        }
    }

    /// Returns all blocks, each with the place of the same index.
    fn all(link: &Link) -> Vec<(u32, u32)> {
        (0..link.pool.shape().num_blocks as u32).map(|block| (block, block)).collect()
    }

    /// Returns all places, each with the block after the one of the same index.
    fn turned(link: &Link) -> Vec<(u32, u32)> {
        let num_blocks = link.pool.shape().num_blocks as u32;
        (0..num_blocks).map(|place| (place, (place + 1) % num_blocks)).collect()
    }

    /// Checks that blocks offloaded, overwritten and fetched to other places hold the same bits there, and no other block has changed.
    #[track_caller]
    fn check(num_layers: usize, num_kv_heads: usize, head_dim: usize, layers_per_group: usize, max_pitch: usize) {
        let mut link = Link::new(PoolShape { num_layers, num_blocks: 7, num_kv_heads, head_dim }, layers_per_group);
        link.host.max_pitch = link.host.max_pitch.min(max_pitch);
        let numbers = link.fill(1);
        link.offload(&[(4, 0), (0, 2), (6, 1)]);
        link.wait();
        let others = link.fill(3);
        assert_eq!(link.host.take_timing().unwrap(), None, "nothing was fetched");
        // Back in another order, the last to its old place.
        link.fetch(&[(0, 3), (2, 5), (1, 6)]);
        link.wait();
        link.check(0..num_layers, |block| match [(3, 4), (5, 0), (6, 6)].iter().find(|(to, _)| *to == block) {
            Some((_, from)) => (&numbers, *from),
            None => (&others, block),
        });
        let (bytes, seconds) = link.host.take_timing().unwrap().expect("the fetch has ended");
        assert_eq!(bytes, (3 * 2 * num_layers * num_kv_heads * 32 * head_dim * 2) as u64);
        assert!(seconds > 0.0 && link.host.take_timing().unwrap().is_none());
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_blocks_come_back_from_the_host_as_they_went() {
        check(1, 1, 64, 1, usize::MAX);
        check(3, 3, 64, 1, usize::MAX);
        // A last group of fewer layers, and a group larger than all layers.
        check(3, 3, 64, 2, usize::MAX);
        check(3, 3, 64, 5, usize::MAX);
        check(28, 4, 128, 6, usize::MAX);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_layers_too_far_apart_go_one_by_one() {
        check(3, 3, 64, 2, 1);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_layer_is_there_for_launches_that_waited_for_it() {
        let mut link = Link::slow();
        let (there, turned) = (all(&link), turned(&link));
        let numbers = link.fill(1);
        link.offload(&there);
        link.wait();
        link.clear();
        link.fetch(&turned);
        let expected = |block: usize| (&numbers, (block + there.len() - 1) % there.len());
        assert_eq!(link.wait_for_layer(0), 3);
        link.check(0..3, expected);
        assert_eq!(link.host.take_timing().unwrap(), None, "the last group was not even issued");
        assert_eq!((link.wait_for_layer(4), link.host.is_idle()), (6, false));
        link.check(3..6, expected);
        assert_eq!((link.wait_for_layer(6), link.host.is_idle()), (7, true));
        link.check(6..7, expected);
        assert_eq!(link.wait_for_layer(0), 7, "nothing is pending");
        link.check(0..7, expected);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_offloads_of_a_layer_are_done_for_launches_that_waited_for_it() {
        let mut link = Link::slow();
        let there = all(&link);
        let numbers = link.fill(1);
        link.offload(&there);
        // A layer's writes are ordered after its offloads.
        for layer in 0..7 {
            link.wait_for_layer(layer);
            let len = numbers[0].len() / 7;
            let (keys, values) = link.pool.parts_mut();
            for mut part in [keys, values] {
                link.device.stream().memset_zeros(&mut part.slice_mut(layer * len..(layer + 1) * len)).unwrap();
            }
        }
        assert!(link.host.is_idle());
        link.fetch(&there);
        link.wait();
        link.check(0..7, |block| (&numbers, block));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_fetch_comes_behind_offloads_of_its_step_and_a_step_behind_the_one_before() {
        let mut link = Link::slow();
        let (there, turned) = (all(&link), turned(&link));
        let numbers = link.fill(1);
        // Each block is fetched from a place that the same step writes, to one that the same step offloads.
        for _ in 0..3 {
            link.offload(&there);
            link.fetch(&turned);
        }
        link.wait();
        link.check(0..7, |block| (&numbers, (block + there.len() - 3) % there.len()));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_copies_come_behind_what_was_launched_before_them() {
        let mut link = Link::slow();
        let there = all(&link);
        let numbers = link.fill(1);
        let kept = [link.pool.keys(), link.pool.values()].map(|part| link.device.stream().clone_dtod(&part).unwrap());
        // Some milliseconds of launches.
        (0..100).for_each(|_| link.clear());
        let (mut keys, mut values) = link.pool.parts_mut();
        link.device.stream().memcpy_dtod(&kept[0], &mut keys).unwrap();
        link.device.stream().memcpy_dtod(&kept[1], &mut values).unwrap();
        link.offload(&there);
        link.wait();
        (0..100).for_each(|_| link.clear());
        link.fetch(&there);
        link.wait();
        link.check(0..7, |block| (&numbers, block));
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_a_pool_is_not_freed_before_copies_to_it_are_done() {
        let shape = Link::slow().pool.shape();
        let mut link = Link::new(shape, shape.num_layers);
        let there = all(&link);
        link.offload(&there);
        link.fetch(&there);
        link.wait();
        drop(link.pool);
        assert!(link.host.take_timing().unwrap().is_some(), "the fetch is still under way");
    }

    #[test]
    fn groups_are_small_where_their_rows_are_large() {
        let layers =
            |num_layers, num_kv_heads| layers_per_group(PoolShape { num_layers, num_blocks: 1, num_kv_heads, head_dim: 128 });
        // Rows of 32, 64, 8 and 512 kB.
        assert_eq!([layers(28, 4), layers(36, 8), layers(24, 1), layers(3, 64)], [10, 5, 24, 1]);
    }
}
