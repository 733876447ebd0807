//! Launches recorded once and replayed as one.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, DriverError};

use super::device::{Device, DeviceError};

/// Recorded launches. The addresses that they read and write must not change.
pub struct Graph(CudaGraph);

// SAFETY: only one thread at a time uses the graph, by exclusive access or as its only holder; the driver does not bind graphs to threads.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `launches` puts on the device's stream, without running it.
    ///
    /// # Errors
    /// As `launches`; or if it does something that cannot be recorded.
    pub fn record(device: &Device, launches: impl FnOnce() -> Result<(), DeviceError>) -> Result<Self, DeviceError> {
        let stream = device.stream();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let launched = launches();
        // The capture must end in any case, or the stream would stay unusable.
        let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
        launched?;
        let nothing = DriverError(cudarc::driver::sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        Ok(Self(graph?.ok_or(nothing)?))
    }

    /// Launches the graph after what is on the stream.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn launch(&self) -> Result<(), DeviceError> {
        Ok(self.0.launch()?)
    }
}
