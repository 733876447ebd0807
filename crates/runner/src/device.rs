//! A model with its KV pool on one device.

use engine::ExecutorLimits;

use crate::{DeviceOutput, DeviceStep};

/// A device fault. After one, the content of the pool is undefined.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeviceFault(pub String);

/// One model with its KV pool on one device.
///
/// Each step is begun and finished, one after the other, by one thread.
pub trait Device: Send {
    /// Returns the limits that the pool and the buffers are sized for.
    fn limits(&self) -> ExecutorLimits;

    /// Returns the largest deviation of a moved span that rounding in the pool's format explains.
    fn max_span_deviation(&self) -> f32;

    /// Returns true if the device computes asynchronously to the host.
    fn computes_beside_host(&self) -> bool {
        false
    }

    /// Does all of `step` except waiting for its tokens: an asynchronous device may still compute.
    ///
    /// # Errors
    /// If the device fails.
    fn begin(&mut self, step: DeviceStep<'_>) -> Result<(), DeviceFault>;

    /// Waits for the step that was begun, and returns its output.
    ///
    /// # Errors
    /// If the device fails, or work since the last call has failed.
    ///
    /// # Panics
    /// If no step was begun.
    fn finish(&mut self) -> Result<DeviceOutput, DeviceFault>;
}
