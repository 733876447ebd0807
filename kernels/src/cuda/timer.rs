//! Timer of launches on the stream, by the device's clock.

use std::time::Duration;

use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;

use super::device::{Device, DeviceError};

/// Measures the time between two points of the stream. Reusable after [`Self::elapsed`].
pub struct Timer {
    began: CudaEvent,
    ended: CudaEvent,
}

impl Timer {
    /// Creates a timer of `device`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(device: &Device) -> Result<Self, DeviceError> {
        let event = || device.context().new_event(Some(CU_EVENT_DEFAULT));
        Ok(Self { began: event()?, ended: event()? })
    }

    /// Starts after everything launched before.
    ///
    /// # Errors
    /// If the device fails.
    pub fn start(&self, device: &Device) -> Result<(), DeviceError> {
        Ok(self.began.record(device.stream())?)
    }

    /// Stops after everything launched before.
    ///
    /// # Errors
    /// If the device fails.
    pub fn stop(&self, device: &Device) -> Result<(), DeviceError> {
        Ok(self.ended.record(device.stream())?)
    }

    /// Returns the time from start to stop; waits for the latter.
    ///
    /// # Errors
    /// If it was not started and stopped, or the device fails.
    pub fn elapsed(&self) -> Result<Duration, DeviceError> {
        Ok(Duration::from_secs_f32(self.began.elapsed_ms(&self.ended)? / 1e3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::device;

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_more_work_takes_more_time() {
        let device = device();
        let timer = Timer::new(&device).unwrap();
        let mut buffer = device.zeros::<u32>(256 << 20).unwrap();
        let mut time = |num_fills: usize| {
            timer.start(&device).unwrap();
            (0..num_fills).for_each(|_| device.stream().memset_zeros(&mut buffer).unwrap());
            timer.stop(&device).unwrap();
            timer.elapsed().unwrap()
        };
        time(1);
        let (one, ten) = (time(1), time(10));
        assert!(!one.is_zero() && ten > 5 * one && ten < 20 * one, "{one:?} and {ten:?}");
    }
}
