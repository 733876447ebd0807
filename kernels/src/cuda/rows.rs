//! Packing rows of the residual stream, and making or converting numbers where weights are loaded.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, CudaViewMut, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};

const THREADS: usize = 256;

/// Copies of rows by index, and numbers from nothing.
pub struct Rows {
    device: Arc<Device>,
    gather: CudaFunction,
    scatter: CudaFunction,
    fill_bf16: CudaFunction,
    fill_f32: CudaFunction,
    narrow: CudaFunction,
}

impl Rows {
    /// Loads the functions.
    ///
    /// # Errors
    /// If the device cannot run them.
    pub fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        let function = |name| device.function("rows", name, 0);
        Ok(Self {
            device: Arc::clone(device),
            gather: function("gather_rows")?,
            scatter: function("scatter_rows")?,
            fill_bf16: function("fill_bf16")?,
            fill_f32: function("fill_f32")?,
            narrow: function("narrow_f32")?,
        })
    }

    /// `packed[i] = from[rows[i]]` for rows of `width` numbers; [`super::NO_ROW`] gives zeros.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If `packed` is too short, or `width` no multiple of 4.
    pub fn gather(
        &self,
        from: &CudaSlice<f32>,
        rows: &CudaView<'_, u32>,
        packed: &mut CudaSlice<f32>,
        width: usize,
    ) -> Result<(), DeviceError> {
        assert!(packed.len() >= rows.len() * width && width.is_multiple_of(4), "packed rows lie in their buffer");
        if rows.is_empty() {
            return Ok(());
        }
        let vectors = (width / 4) as i32;
        let mut call = self.device.stream().launch_builder(&self.gather);
        call.arg(from).arg(rows).arg(packed).arg(&vectors);
        // SAFETY: packed rows lie in their buffer; that the named rows lie in `from` is the promise of who names them.
        unsafe { call.launch(launch((rows.len(), 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// `to[rows[i]] = packed[i]` for rows of `width` numbers, each named once; [`super::NO_ROW`] is skipped.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If `packed` is too short, or `width` no multiple of 4.
    pub fn scatter(
        &self,
        packed: &CudaSlice<f32>,
        rows: &CudaView<'_, u32>,
        to: &mut CudaSlice<f32>,
        width: usize,
    ) -> Result<(), DeviceError> {
        assert!(packed.len() >= rows.len() * width && width.is_multiple_of(4), "packed rows lie in their buffer");
        if rows.is_empty() {
            return Ok(());
        }
        let vectors = (width / 4) as i32;
        let mut call = self.device.stream().launch_builder(&self.scatter);
        call.arg(packed).arg(rows).arg(to).arg(&vectors);
        // SAFETY: packed rows lie in their buffer; that the named rows lie in `to` is the promise of who names them.
        unsafe { call.launch(launch((rows.len(), 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// Fills `out` with uniform numbers of mean 0. Number `i` depends on `seed` and `i` alone.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn fill_bf16(&self, out: &mut CudaViewMut<'_, bf16>, seed: u64, standard_deviation: f32) -> Result<(), DeviceError> {
        let (len, scale) = (out.len() as u64, noise_scale(standard_deviation));
        let mut call = self.device.stream().launch_builder(&self.fill_bf16);
        call.arg(out).arg(&len).arg(&seed).arg(&scale);
        // SAFETY: writes `len` numbers, which is what `out` has.
        (len > 0).then(|| unsafe { call.launch(one_number_a_thread(len)) }).transpose()?;
        Ok(())
    }

    /// [`Rows::fill_bf16`] without its last rounding.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn fill_f32(&self, out: &mut CudaViewMut<'_, f32>, seed: u64, standard_deviation: f32) -> Result<(), DeviceError> {
        let (len, scale) = (out.len() as u64, noise_scale(standard_deviation));
        let mut call = self.device.stream().launch_builder(&self.fill_f32);
        call.arg(out).arg(&len).arg(&seed).arg(&scale);
        // SAFETY: writes `len` numbers, which is what `out` has.
        (len > 0).then(|| unsafe { call.launch(one_number_a_thread(len)) }).transpose()?;
        Ok(())
    }

    /// Rounds numbers to bf16.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn narrow(&self, from: &CudaView<'_, f32>, to: &mut CudaViewMut<'_, bf16>) -> Result<(), DeviceError> {
        assert_eq!(from.len(), to.len());
        let len = to.len() as u64;
        let mut call = self.device.stream().launch_builder(&self.narrow);
        call.arg(from).arg(to).arg(&len);
        // SAFETY: reads and writes `len` numbers, which is what both have.
        (len > 0).then(|| unsafe { call.launch(one_number_a_thread(len)) }).transpose()?;
        Ok(())
    }
}

/// What makes 24 random bits around 0 uniform numbers of a standard deviation: those within ±a have a / sqrt(3).
fn noise_scale(standard_deviation: f32) -> f32 {
    standard_deviation * 3f32.sqrt() / (1 << 23) as f32
}

fn one_number_a_thread(len: u64) -> cudarc::driver::LaunchConfig {
    let num_blocks = len.div_ceil(THREADS as u64);
    assert!(num_blocks < 1 << 31, "less than 2^39 numbers");
    launch((num_blocks as usize, 1, 1), THREADS, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cuda::NO_ROW;
    use crate::cuda::testing::{device, rounded};

    /// Gathers `rows` of a buffer and puts them into another, where all other rows must stay as they are.
    #[track_caller]
    fn check(num_rows: usize, width: usize, rows: &[u32]) {
        let device = device();
        let from = noise(num_rows * width, 1);
        let (mut packed_expected, mut to_expected) = (Vec::new(), vec![7.0; from.len()]);
        for &row in rows {
            if row == NO_ROW {
                packed_expected.extend(vec![0.0; width]);
                continue;
            }
            let at = row as usize * width..(row as usize + 1) * width;
            packed_expected.extend(&from[at.clone()]);
            to_expected[at.clone()].copy_from_slice(&from[at]);
        }
        let kernels = Rows::new(&device).unwrap();
        let mut packed = device.upload(&vec![f32::NAN; rows.len() * width]).unwrap();
        let mut to = device.upload(&vec![7.0; from.len()]).unwrap();
        let (from, rows) = (device.upload(&from).unwrap(), device.upload(rows).unwrap());
        kernels.gather(&from, &rows.as_view(), &mut packed, width).unwrap();
        kernels.scatter(&packed, &rows.as_view(), &mut to, width).unwrap();
        assert_eq!(device.download(&packed).unwrap(), packed_expected);
        assert_eq!(device.download(&to).unwrap(), to_expected);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_rows_are_packed_and_put_back_bit_by_bit() {
        check(1, 4, &[0]);
        check(7, 576, &[6, 0, NO_ROW, 3]);
        check(300, 3584, &[299, NO_ROW, 7, 8, 120, 0]);
    }

    /// Numbers of SplitMix64 as [`Rows::fill_f32`] scales them.
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
        let kernels = Rows::new(&device).unwrap();
        for len in [1u64, 255, 100_003] {
            let expected = uniform(11, len, noise_scale(0.02));
            let mut wide = device.upload(&vec![f32::NAN; len as usize]).unwrap();
            let mut short = device.upload(&vec![bf16::NAN; len as usize]).unwrap();
            kernels.fill_f32(&mut wide.as_view_mut(), 11, 0.02).unwrap();
            kernels.fill_bf16(&mut short.as_view_mut(), 11, 0.02).unwrap();
            assert_eq!(device.download(&wide).unwrap(), expected);
            assert_eq!(device.download(&short).unwrap(), rounded(expected.iter().copied()));
            let mut narrowed = device.upload(&vec![bf16::NAN; len as usize]).unwrap();
            kernels.narrow(&wide.as_view(), &mut narrowed.as_view_mut()).unwrap();
            assert_eq!(device.download(&narrowed).unwrap(), rounded(expected));
        }
    }
}
