//! Launches recorded once and repeated as one.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, DriverError};

use super::device::{Device, DeviceError};

/// Recorded launches. What they read and write must stay where it was.
pub struct Graph(CudaGraph);

// SAFETY: whoever holds the graph mutably or alone uses it, one thread at a time; the driver does not bind graphs to threads.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `launches` puts on the device's stream, without running it.
    ///
    /// # Errors
    /// As `launches`; or if it did what cannot be recorded.
    pub fn record(device: &Device, launches: impl FnOnce() -> Result<(), DeviceError>) -> Result<Self, DeviceError> {
        let stream = device.stream();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let launched = launches();
        // The capture ends whatever happened, or the stream would stay unusable.
        let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
        launched?;
        let nothing = DriverError(cudarc::driver::sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        Ok(Self(graph?.ok_or(nothing)?))
    }

    /// Runs it behind what is on the stream.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn launch(&self) -> Result<(), DeviceError> {
        Ok(self.0.launch()?)
    }
}
