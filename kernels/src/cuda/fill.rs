//! Random elements for weights without a checkpoint.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaViewMut, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};

const THREADS: usize = 256;

/// Fills buffers with random elements.
pub struct Fill {
    device: Arc<Device>,
    fill_bf16: CudaFunction,
}

impl Fill {
    /// Loads the function.
    ///
    /// # Errors
    /// If the device cannot run it.
    pub fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        Ok(Self { device: Arc::clone(device), fill_bf16: device.function("fill", "fill_bf16", 0)? })
    }

    /// Fills with uniform values of mean 0 and the given standard deviation; element `i` depends on `(seed, i)` alone.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn uniform(&self, out: &mut CudaViewMut<'_, bf16>, seed: u64, standard_deviation: f32) -> Result<(), DeviceError> {
        let (len, scale) = (out.len() as u64, noise_scale(standard_deviation));
        if len == 0 {
            return Ok(());
        }
        let num_blocks = len.div_ceil(THREADS as u64);
        assert!(num_blocks < 1 << 31, "less than 2^39 numbers");
        let mut call = self.device.stream().launch_builder(&self.fill_bf16);
        call.arg(out).arg(&len).arg(&seed).arg(&scale);
        // SAFETY: writes `len` elements, which is the length of `out`.
        unsafe { call.launch(launch((num_blocks as usize, 1, 1), THREADS, 0)) }?;
        Ok(())
    }
}

/// Returns the factor that turns 24 random bits around 0 into uniform values of a standard deviation: values within ±a have a / sqrt(3).
fn noise_scale(standard_deviation: f32) -> f32 {
    standard_deviation * 3f32.sqrt() / (1 << 23) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{device, rounded};

    /// Returns SplitMix64 values as [`Fill::uniform`] scales them.
    fn uniform(seed: u64, len: u64, scale: f32) -> Vec<f32> {
        let number = |i: u64| {
            let x = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((x ^ x >> 31) >> 40) as i64 - (1 << 23)
        };
        (0..len).map(|i| number(i) as f32 * scale).collect()
    }

    #[test]
    fn uniform_numbers_have_the_deviation_asked_for() {
        let numbers = uniform(3, 100_000, noise_scale(0.02));
        let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
        let deviation = (numbers.iter().map(|x| x * x).sum::<f32>() / numbers.len() as f32).sqrt();
        assert!(mean.abs() < 2e-4 && (deviation - 0.02).abs() < 1e-4, "{mean} {deviation}");
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_fills_are_a_function_of_seed_and_place() {
        let device = device();
        let kernel = Fill::new(&device).unwrap();
        for len in [1u64, 255, 100_003] {
            let mut out = device.upload(&vec![bf16::NAN; len as usize]).unwrap();
            kernel.uniform(&mut out.as_view_mut(), 11, 0.02).unwrap();
            assert_eq!(device.download(&out).unwrap(), rounded(uniform(11, len, noise_scale(0.02))));
        }
    }
}
