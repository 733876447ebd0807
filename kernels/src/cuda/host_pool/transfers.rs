//! Pending block copies in one direction.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use cudarc::driver::{CudaEvent, CudaStream, DriverError};

use super::ends::{BlockMove, Direction, LinkAddresses};
use crate::cuda::device::{Device, DeviceError};

/// Copies of blocks in one direction, on a stream of their own: groups of layers, one after the other.
pub(super) struct Transfers {
    direction: Direction,
    stream: Arc<CudaStream>,
    /// Blocks that launches are not yet ordered after in all layers.
    pending: Vec<BlockMove>,
    /// Events around the copies of each group.
    groups: Vec<GroupEvents>,
    /// Number of leading groups whose copies were issued, of the blocks that were started last.
    num_issued: usize,
}

struct GroupEvents {
    began: CudaEvent,
    ended: CudaEvent,
}

impl Transfers {
    pub(super) fn new(device: &Device, direction: Direction, num_groups: usize) -> Result<Self, DeviceError> {
        let event = || device.context().new_event(Some(CU_EVENT_DEFAULT));
        let groups = (0..num_groups).map(|_| Ok(GroupEvents { began: event()?, ended: event()? }));
        Ok(Self {
            direction,
            stream: device.context().new_stream()?,
            pending: Vec::new(),
            groups: groups.collect::<Result<_, DeviceError>>()?,
            num_issued: 0,
        })
    }

    /// Returns true if launches are ordered after all started copies.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes on `pairs`, to be issued in their order after what is on `stream`. None may be pending.
    pub(super) fn begin(&mut self, pairs: Vec<BlockMove>, stream: &CudaStream) -> Result<(), DeviceError> {
        assert!(self.is_idle(), "events are of one list of blocks");
        self.stream.join(stream)?;
        self.num_issued = 0;
        self.pending = pairs;
        Ok(())
    }

    /// Issues copies of `layers`, which are those of `group`, for some of the pending blocks. All of them are issued in their order.
    ///
    /// # Safety
    /// The pending blocks and the layers lie within the buffers at both ends. These are not freed, and the host does not touch its own,
    /// before the stream is done: [`Self::synchronize`].
    pub(super) unsafe fn issue(
        &mut self,
        group: usize,
        layers: &Range<usize>,
        ends: &LinkAddresses,
        blocks: Range<usize>,
    ) -> Result<(), DeviceError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let GroupEvents { began, ended } = &self.groups[group];
        if blocks.start == 0 {
            began.record(&self.stream)?;
        }
        for pair in &self.pending[blocks.clone()] {
            // SAFETY: the caller's promise.
            unsafe { ends.copy(&self.stream, self.direction, *pair, layers.clone()) }?;
        }
        if blocks.end == self.pending.len() {
            ended.record(&self.stream)?;
            self.num_issued = group + 1;
        }
        Ok(())
    }

    /// Orders later copies after those issued to `other`.
    pub(super) fn come_behind(&self, other: &Self) -> Result<(), DeviceError> {
        Ok(self.stream.join(&other.stream)?)
    }

    /// Returns blocks that launches are not yet ordered after.
    pub(super) fn pending(&self) -> &[BlockMove] {
        &self.pending
    }

    /// Returns the number of leading groups issued of the pending copies.
    pub(super) fn num_issued_of_pending(&self) -> usize {
        if self.is_idle() { 0 } else { self.num_issued }
    }

    /// Returns the end of the copies of an issued group, unless nothing is pending.
    pub(super) fn end_of(&self, group: usize) -> Option<&CudaEvent> {
        if self.is_idle() {
            return None;
        }
        assert!(group < self.num_issued, "an event that was not recorded would be taken for one that is past");
        Some(&self.groups[group].ended)
    }

    /// Marks all copies as joined: launches are ordered after them.
    pub(super) fn finish(&mut self) {
        self.pending.clear();
    }

    /// Returns the duration of the copies that were started last, without the gaps between groups; `None` before all have ended.
    pub(super) fn seconds(&self) -> Result<Option<f64>, DeviceError> {
        let Some(last) = self.groups.last().filter(|_| self.num_issued == self.groups.len()) else { return Ok(None) };
        if !last.ended.try_is_complete()? {
            return Ok(None);
        }
        let of_group = |group: &GroupEvents| Ok(f64::from(group.began.elapsed_ms(&group.ended)?) / 1e3);
        self.groups.iter().map(of_group).sum::<Result<f64, DeviceError>>().map(Some)
    }

    /// Waits for all issued copies.
    pub(super) fn synchronize(&self) -> Result<(), DriverError> {
        self.stream.synchronize()
    }
}
