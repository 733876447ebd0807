//! Embedding, RMSNorm and the residual stream.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, PushKernelArg};
use half::bf16;

use super::device::{Device, DeviceError, launch};

/// Threads per row. Chosen: a row of some thousand elements keeps each of them busy with a few vectors.
const THREADS: usize = 256;

/// Embedding rows and [`super::super::cpu::rms_norm`] with the addition before it.
pub struct Norm {
    device: Arc<Device>,
    embed: CudaFunction,
    add_rms_norm: CudaFunction,
    gather_sum: CudaFunction,
    rms_norm_in_place: CudaFunction,
}

impl Norm {
    /// Loads the functions.
    ///
    /// # Errors
    /// If the device cannot run them.
    pub fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        let function = |name| device.function("norm", name, 0);
        Ok(Self {
            device: Arc::clone(device),
            embed: function("embed")?,
            add_rms_norm: function("add_rms_norm")?,
            gather_sum: function("gather_sum")?,
            rms_norm_in_place: function("rms_norm_in_place")?,
        })
    }

    /// Computes `hidden[row] = scale * table[token_ids[row]]` for `num_rows` rows of `width` elements.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn embed(
        &self,
        table: &CudaSlice<bf16>,
        token_ids: &CudaView<'_, u32>,
        hidden: &mut CudaSlice<f32>,
        num_rows: usize,
        (width, scale): (usize, f32),
    ) -> Result<(), DeviceError> {
        assert!(token_ids.len() >= num_rows && hidden.len() >= num_rows * width, "rows lie in their buffers");
        let width = width as i32;
        let mut call = self.device.stream().launch_builder(&self.embed);
        call.arg(table).arg(token_ids).arg(hidden).arg(&width).arg(&scale);
        // SAFETY: rows lie in the buffers; token ids below the table's length are the caller's promise, checked on entry of text.
        unsafe { call.launch(launch((num_rows, 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// Computes `hidden += delta`, then `normed = weight * hidden / rms(hidden)`, for `num_rows` rows of `weight.len()` elements.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub fn add_rms_norm(
        &self,
        hidden: &mut CudaSlice<f32>,
        delta: Option<&CudaSlice<bf16>>,
        weight: &CudaSlice<f32>,
        epsilon: f32,
        normed: &mut CudaSlice<bf16>,
        num_rows: usize,
    ) -> Result<(), DeviceError> {
        assert!(hidden.len() >= num_rows * weight.len(), "rows lie in the residual stream");
        self.launch_rms_norm(hidden, delta, weight, epsilon, None, normed, num_rows)
    }

    /// Computes `normed[i] = weight * x / rms(x)` of `x = hidden[rows[i]] + delta[rows[i]]`, for the first `num_rows` of `rows`.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If a buffer is too short.
    #[expect(clippy::too_many_arguments, reason = "one launch")]
    pub fn rms_norm_of_rows(
        &self,
        hidden: &mut CudaSlice<f32>,
        delta: Option<&CudaSlice<bf16>>,
        weight: &CudaSlice<f32>,
        epsilon: f32,
        rows: &CudaView<'_, u32>,
        normed: &mut CudaSlice<bf16>,
        num_rows: usize,
    ) -> Result<(), DeviceError> {
        assert!(rows.len() >= num_rows, "a row is named for each result");
        self.launch_rms_norm(hidden, delta, weight, epsilon, Some(rows), normed, num_rows)
    }

    /// Computes `delta = weight * delta / rms(delta)` for `num_rows` rows of `weight.len()` elements: a norm of what is added to the
    /// residual stream.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the buffer is too short.
    pub fn rms_norm_in_place(
        &self,
        delta: &mut CudaSlice<bf16>,
        weight: &CudaSlice<f32>,
        epsilon: f32,
        num_rows: usize,
    ) -> Result<(), DeviceError> {
        let width = weight.len();
        assert!(delta.len() >= num_rows * width && width.is_multiple_of(4), "rows lie in their buffer");
        let columns = width as i32;
        let mut call = self.device.stream().launch_builder(&self.rms_norm_in_place);
        call.arg(delta).arg(weight).arg(&columns).arg(&epsilon);
        // SAFETY: rows lie in the buffer, as asserted.
        unsafe { call.launch(launch((num_rows, 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// Computes `packed[i] = hidden[rows[i]] + delta[rows[i]]`, rows of `width` elements. Without `delta` nothing is added.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub fn gather_sum(
        &self,
        hidden: &CudaSlice<f32>,
        delta: Option<&CudaSlice<bf16>>,
        rows: &CudaView<'_, u32>,
        packed: &mut CudaSlice<f32>,
        width: usize,
    ) -> Result<(), DeviceError> {
        assert!(packed.len() >= rows.len() * width && width.is_multiple_of(4), "results lie in their buffer");
        assert!(delta.is_none_or(|delta| delta.len() == hidden.len()), "there is something to add");
        let (columns, none) = (width as i32, 0u64);
        let mut call = self.device.stream().launch_builder(&self.gather_sum);
        call.arg(hidden);
        match delta {
            Some(delta) => call.arg(delta),
            None => call.arg(&none),
        };
        call.arg(rows).arg(packed).arg(&columns);
        // SAFETY: results lie in their buffer, as asserted; the listed rows are those of a step, which the buffers hold.
        unsafe { call.launch(launch((rows.len(), 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one launch")]
    fn launch_rms_norm(
        &self,
        hidden: &mut CudaSlice<f32>,
        delta: Option<&CudaSlice<bf16>>,
        weight: &CudaSlice<f32>,
        epsilon: f32,
        rows: Option<&CudaView<'_, u32>>,
        normed: &mut CudaSlice<bf16>,
        num_rows: usize,
    ) -> Result<(), DeviceError> {
        let width = weight.len();
        assert!(normed.len() >= num_rows * width && width.is_multiple_of(4), "results lie in their buffer");
        assert!(delta.is_none_or(|delta| delta.len() >= hidden.len().min(num_rows * width)), "there is something to add");
        let (columns, none) = (width as i32, 0u64);
        let mut call = self.device.stream().launch_builder(&self.add_rms_norm);
        call.arg(hidden);
        match delta {
            Some(delta) => call.arg(delta),
            None => call.arg(&none),
        };
        call.arg(weight);
        match rows {
            Some(rows) => call.arg(rows),
            None => call.arg(&none),
        };
        call.arg(normed).arg(&columns).arg(&epsilon);
        // SAFETY: rows lie in their buffers, as asserted; the listed rows are those of a step, which the buffers hold; the current row is
        // kept in `width` floats of shared memory.
        unsafe { call.launch(launch((num_rows, 1, 1), THREADS, 4 * width)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{self, Threads, testing::noise};
    use crate::cuda::testing::{assert_close, device};

    #[track_caller]
    fn check(num_rows: usize, width: usize) {
        let device = device();
        let (hidden, delta, weight) = (noise(num_rows * width, 1), noise(num_rows * width, 2), noise(width, 3));
        let delta: Vec<bf16> = delta.into_iter().map(bf16::from_f32).collect();
        let added: Vec<f32> = delta.iter().map(|delta| delta.to_f32()).collect();
        let sum: Vec<f32> = hidden.iter().zip(&added).map(|(a, b)| a + b).collect();
        let mut expected = vec![0.0; sum.len()];
        cpu::rms_norm(&Threads::new(1).unwrap(), &sum, &weight, 1e-6, &mut expected);
        let mut on_device = device.upload(&hidden).unwrap();
        let mut normed = device.upload(&vec![bf16::NAN; hidden.len()]).unwrap();
        let (delta, weight) = (device.upload(&delta).unwrap(), device.upload(&weight).unwrap());
        let norm = Norm::new(&device).unwrap();
        norm.add_rms_norm(&mut on_device, Some(&delta), &weight, 1e-6, &mut normed, num_rows).unwrap();
        assert_close(&device.download(&normed).unwrap(), &expected, 4e-3);
        assert_eq!(device.download(&on_device).unwrap(), sum);
        let rows: Vec<u32> = (0..num_rows as u32).rev().step_by(2).collect();
        let mut of_rows = device.upload(&vec![bf16::NAN; rows.len() * width]).unwrap();
        let on_rows = device.upload(&rows).unwrap();
        norm.rms_norm_of_rows(&mut on_device, None, &weight, 1e-6, &on_rows.as_view(), &mut of_rows, rows.len()).unwrap();
        let mut packed = device.upload(&vec![f32::NAN; rows.len() * width]).unwrap();
        norm.gather_sum(&on_device, Some(&delta), &on_rows.as_view(), &mut packed, width).unwrap();
        let twice: Vec<f32> = sum.iter().zip(&added).map(|(sum, delta)| sum + delta).collect();
        let twice: Vec<f32> = rows.iter().flat_map(|row| &twice[*row as usize * width..][..width]).copied().collect();
        assert_eq!(device.download(&packed).unwrap(), twice);
        let expected: Vec<f32> = rows.iter().flat_map(|row| &expected[*row as usize * width..][..width]).copied().collect();
        assert_close(&device.download(&of_rows).unwrap(), &expected, 4e-3);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_rms_norm_is_the_cpus() {
        check(1, 64);
        check(3, 576);
        check(257, 3584);
    }
}
