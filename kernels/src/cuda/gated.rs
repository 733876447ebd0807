//! The gate of the feed-forward network.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};
use crate::cpu::Activation;

/// Threads per block. Chosen: eight elements per thread, so a row of Qwen2.5-7B is nine thread blocks.
const THREADS: usize = 256;

/// Device version of [`crate::cpu::gated`].
pub struct Gated {
    device: Arc<Device>,
    function: CudaFunction,
}

impl Gated {
    /// Loads the function of `activation`.
    ///
    /// # Errors
    /// If the device cannot run it.
    pub fn new(device: &Arc<Device>, activation: Activation) -> Result<Self, DeviceError> {
        let name = match activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu",
        };
        Ok(Self { device: Arc::clone(device), function: device.function("gated", name, 0)? })
    }

    /// Computes `activated = activation(gate) * up` for `num_rows` rows of `[gate, up]`, each `width` wide.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If rows do not lie in their buffers, or `width` is not a multiple of 8.
    pub fn run(
        &self,
        gate_up: &CudaSlice<bf16>,
        activated: &mut CudaSlice<bf16>,
        num_rows: usize,
        width: usize,
    ) -> Result<(), DeviceError> {
        let len = num_rows * width;
        assert!(gate_up.len() >= 2 * len && activated.len() >= len && width.is_multiple_of(8), "rows lie in their buffers");
        let num_vectors = u32::try_from(len / 8).expect("a step has less than 2^35 numbers");
        if num_vectors == 0 {
            return Ok(());
        }
        let width = (width / 8) as u32;
        let mut call = self.device.stream().launch_builder(&self.function);
        call.arg(gate_up).arg(activated).arg(&num_vectors).arg(&width);
        // SAFETY: `num_vectors` vectors lie in `activated` and twice as many in `gate_up`, as asserted.
        unsafe { call.launch(launch((num_vectors.div_ceil(THREADS as u32) as usize, 1, 1), THREADS, 0)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{self, Threads, testing::noise};
    use crate::cuda::testing::{assert_close, device, rounded, wide};

    #[track_caller]
    fn check(num_rows: usize, width: usize) {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            check_activation(activation, num_rows, width);
        }
    }

    #[track_caller]
    fn check_activation(activation: Activation, num_rows: usize, width: usize) {
        let device = device();
        let gate_up = rounded(noise(num_rows * 2 * width, 1).iter().map(|x| 20.0 * x));
        let mut expected = vec![0.0; num_rows * width];
        cpu::gated(&Threads::new(1).unwrap(), activation, &wide(&gate_up), width, &mut expected);
        let mut activated = device.upload(&vec![bf16::NAN; num_rows * width]).unwrap();
        let gated = Gated::new(&device, activation).unwrap();
        gated.run(&device.upload(&gate_up).unwrap(), &mut activated, num_rows, width).unwrap();
        assert_close(&device.download(&activated).unwrap(), &expected, 3e-3);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_gates_are_the_cpus() {
        check(1, 8);
        check(3, 1536);
        check(131, 4864);
        check(37, 18944);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_gates_far_from_zero_are_open_or_shut() {
        let device = device();
        let gates: Vec<bf16> = [-3e38, -200.0, -89.0, -0.0, 0.0, 89.0, 200.0, 3e38].map(bf16::from_f32).into();
        let gate_up = [gates, vec![bf16::ONE; 8]].concat();
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut activated = device.upload(&[bf16::NAN; 8]).unwrap();
            Gated::new(&device, activation).unwrap().run(&device.upload(&gate_up).unwrap(), &mut activated, 1, 8).unwrap();
            let found = device.download(&activated).unwrap();
            assert!(found[..5].iter().all(|x| x.to_f32().abs() < 1e-30), "{activation:?}: {found:?}");
            assert_eq!(found[5..], gate_up[5..8], "{activation:?}");
        }
    }
}
