//! Matrix products with cuBLASLt: one plan per shape, its algorithm chosen once.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys::{
    self, cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t as DescAttribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cudaDataType,
};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use half::bf16;

use super::device::{Device, DeviceError};

/// Scratch memory of an algorithm. Chosen: NVIDIA's recommendation for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Number of algorithms that are timed to tune a shape.
const CANDIDATES: usize = 16;
/// Timed runs of each candidate, after a warm-up run.
const RUNS: usize = 6;

/// Element type of a product's results.
pub trait Output {
    /// Element type for cuBLASLt.
    const TYPE: cudaDataType;
}

impl Output for bf16 {
    const TYPE: cudaDataType = cudaDataType::CUDA_R_16BF;
}

impl Output for f32 {
    const TYPE: cudaDataType = cudaDataType::CUDA_R_32F;
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    n: usize,
    k: usize,
    wide: bool,
}

/// Products of activations with weights. Sums are f32.
pub struct Matmul {
    device: Arc<Device>,
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    plans: HashMap<Shape, Plan>,
}

// SAFETY: only the holder of exclusive access to the `Matmul` uses the handle, one thread at a time; cuBLASLt handles are not bound to
// threads.
unsafe impl Send for Matmul {}

impl Matmul {
    /// Creates a handle and its workspace.
    ///
    /// # Errors
    /// If the library is missing, or memory does not suffice.
    pub fn new(device: &Arc<Device>) -> Result<Self, DeviceError> {
        // SAFETY: looks for a library by name; its initialisers are NVIDIA's.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoBlas);
        }
        let workspace = device.zeros(WORKSPACE_BYTES)?;
        Ok(Self { device: Arc::clone(device), handle: lt::create_handle()?, workspace, plans: HashMap::new() })
    }

    /// Computes `out[rows, n] = x[rows, k] weight[n, k]ᵀ`.
    ///
    /// The algorithm of a new shape is cuBLASLt's first choice, unless [`Self::tune`] found a better one. (That of the next larger tuned
    /// row count was tried: it is 15 % slower at 1,111 rows.)
    ///
    /// # Errors
    /// If the launch fails, or the library has no algorithm for the shape.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub fn run<T: Output>(
        &mut self,
        x: &impl DevicePtr<bf16>,
        rows: usize,
        weight: &impl DevicePtr<bf16>,
        (n, k): (usize, usize),
        out: &mut CudaSlice<T>,
    ) -> Result<(), DeviceError> {
        assert!(x.len() >= rows * k && weight.len() >= n * k && out.len() >= rows * n, "the product fits its buffers");
        let shape = Shape { rows, n, k, wide: T::TYPE == f32::TYPE };
        if !self.plans.contains_key(&shape) {
            let mut choices = self.candidates(shape, T::TYPE, 1)?.into_iter();
            let plan = choices.next().expect("cuBLASLt reports success with one at least");
            self.plans.insert(shape, plan);
        }
        self.launch(&self.plans[&shape], x, weight, out)
    }

    /// Times several algorithms for a shape on the given buffers and keeps the fastest. Overwrites `out`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn tune<T: Output>(
        &mut self,
        x: &impl DevicePtr<bf16>,
        rows: usize,
        weights: &[&CudaSlice<bf16>],
        (n, k): (usize, usize),
        out: &mut CudaSlice<T>,
    ) -> Result<(), DeviceError> {
        assert!(x.len() >= rows * k && out.len() >= rows * n, "the product fits its buffers");
        assert!(!weights.is_empty() && weights.iter().all(|weight| weight.len() >= n * k), "weights have the shape");
        let shape = Shape { rows, n, k, wide: T::TYPE == f32::TYPE };
        let mut best: Option<(f32, Plan)> = None;
        for plan in self.candidates(shape, T::TYPE, CANDIDATES)? {
            // Weights of several layers in turn: one alone would stay in the L2 cache.
            if self.launch(&plan, x, weights[0], out).is_err() {
                continue;
            }
            let event = || self.device.context().new_event(Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT));
            let (start, end) = (event()?, event()?);
            start.record(self.device.stream())?;
            for run in 0..RUNS {
                self.launch(&plan, x, weights[run % weights.len()], out)?;
            }
            end.record(self.device.stream())?;
            let time = start.elapsed_ms(&end)?;
            if best.as_ref().is_none_or(|(fastest, _)| time < *fastest) {
                best = Some((time, plan));
            }
        }
        if let Some((_, plan)) = best {
            self.plans.insert(shape, plan);
        }
        Ok(())
    }

    fn launch<T: Output>(
        &self,
        plan: &Plan,
        x: &impl DevicePtr<bf16>,
        weight: &impl DevicePtr<bf16>,
        out: &mut CudaSlice<T>,
    ) -> Result<(), DeviceError> {
        let stream = self.device.stream();
        let (alpha, beta) = (1f32, 0f32);
        let ((weight, _w), (x, _x), (workspace, _s)) =
            (weight.device_ptr(stream), x.device_ptr(stream), self.workspace.device_ptr(stream));
        let (out, _o) = out.device_ptr_mut(stream);
        // SAFETY: descriptors live in the plan; callers checked that the buffers hold the shapes the plan was made for; the
        // workspace is used by one product after the other on one stream.
        unsafe {
            lt::matmul(
                self.handle,
                plan.product.0,
                ptr::from_ref(&alpha).cast(),
                ptr::from_ref(&beta).cast(),
                weight as *const c_void,
                plan.weight.0,
                x as *const c_void,
                plan.x.0,
                out as *const c_void,
                plan.out.0,
                out as *mut c_void,
                plan.out.0,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        }?;
        Ok(())
    }

    /// Returns the most promising algorithms, best first, as ranked by the library.
    fn candidates(&self, shape: Shape, out: cudaDataType, limit: usize) -> Result<Vec<Plan>, DeviceError> {
        let describe = || Descriptors::new(shape, out);
        let descriptors = describe()?;
        let preference = PreferenceHandle::new()?;
        let mut found = Vec::<sys::cublasLtMatmulHeuristicResult_t>::with_capacity(limit);
        let mut count = 0;
        // SAFETY: descriptors are alive; `found` has room for `limit` results, of which the library writes the first `count`.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                descriptors.product.0,
                descriptors.weight.0,
                descriptors.x.0,
                descriptors.out.0,
                descriptors.out.0,
                preference.0,
                limit as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
            .result()?;
            found.set_len(count as usize);
        }
        let usable = found.into_iter().filter(|found| found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        let plans: Vec<Plan> = usable
            .map(|found| {
                let Descriptors { product, weight, x, out } = describe()?;
                Ok(Plan { product, weight, x, out, algorithm: found.algo })
            })
            .collect::<Result<_, DeviceError>>()?;
        match plans.is_empty() {
            true => Err(lt::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED).into()),
            false => Ok(plans),
        }
    }
}

impl Drop for Matmul {
    fn drop(&mut self) {
        // SAFETY: this value created the handle and is its only user. A failure needs no handling.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// A shape with the algorithm that computes it.
struct Plan {
    product: Product,
    weight: Layout,
    x: Layout,
    out: Layout,
    algorithm: cublasLtMatmulAlgo_t,
}

struct Descriptors {
    product: Product,
    weight: Layout,
    x: Layout,
    out: Layout,
}

impl Descriptors {
    /// Creates a plan. Our rows are cuBLAS columns: `outᵀ[n, rows] = weight[k, n]ᵀ x[k, rows]`.
    fn new(shape: Shape, out: cudaDataType) -> Result<Self, DeviceError> {
        Ok(Self {
            product: Product::transposed_first()?,
            weight: Layout::new(bf16::TYPE, shape.k, shape.n)?,
            x: Layout::new(bf16::TYPE, shape.k, shape.rows)?,
            out: Layout::new(out, shape.n, shape.rows)?,
        })
    }
}

struct Product(sys::cublasLtMatmulDesc_t);

impl Product {
    fn transposed_first() -> Result<Self, DeviceError> {
        let new = Self(lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)?);
        /// `CUBLAS_OP_T`, which cudarc declares only with cuBLAS.
        const TRANSPOSED: i32 = 1;
        // SAFETY: the attribute is an operation, and this is one.
        unsafe {
            let attribute = DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA;
            lt::set_matmul_desc_attribute(new.0, attribute, ptr::from_ref(&TRANSPOSED).cast(), size_of_val(&TRANSPOSED))
        }?;
        Ok(new)
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: created by this value, no longer used.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(of: cudaDataType, rows: usize, columns: usize) -> Result<Self, DeviceError> {
        Ok(Self(lt::create_matrix_layout(of, rows as u64, columns as u64, rows as i64)?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by this value, no longer used.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

struct PreferenceHandle(sys::cublasLtMatmulPreference_t);

impl PreferenceHandle {
    fn new() -> Result<Self, DeviceError> {
        let new = Self(lt::create_matmul_pref()?);
        let bytes = WORKSPACE_BYTES;
        // SAFETY: the attribute is a size.
        unsafe {
            let attribute = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            lt::set_matmul_pref_attribute(new.0, attribute, ptr::from_ref(&bytes).cast(), size_of_val(&bytes))
        }?;
        Ok(new)
    }
}

impl Drop for PreferenceHandle {
    fn drop(&mut self) {
        // SAFETY: created by this value, no longer used.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cuda::testing::{assert_close, device};

    #[track_caller]
    fn check(rows: usize, n: usize, k: usize) {
        let device = device();
        let mut matmul = Matmul::new(&device).unwrap();
        let round = |numbers: Vec<f32>| -> Vec<bf16> { numbers.into_iter().map(bf16::from_f32).collect() };
        let (x, weight) = (round(noise(rows * k, 1)), round(noise(n * k, 2)));
        let dot = |row: usize, column: usize| -> f32 {
            x[row * k..][..k].iter().zip(&weight[column * k..][..k]).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
        };
        let expected: Vec<f32> = (0..rows * n).map(|i| dot(i / n, i % n)).collect();
        let (x, weight) = (device.upload(&x).unwrap(), device.upload(&weight).unwrap());
        let mut narrow = device.upload(&vec![bf16::NAN; rows * n]).unwrap();
        let mut wide = device.upload(&vec![f32::NAN; rows * n]).unwrap();
        matmul.run(&x, rows, &weight, (n, k), &mut narrow).unwrap();
        matmul.run(&x, rows, &weight, (n, k), &mut wide).unwrap();
        assert_close(&device.download(&narrow).unwrap(), &expected, 4e-3);
        assert_close(&device.download(&wide).unwrap(), &expected, 1e-5);
        matmul.tune(&x, rows, &[&weight], (n, k), &mut wide).unwrap();
        matmul.run(&x, rows, &weight, (n, k), &mut wide).unwrap();
        assert_close(&device.download(&wide).unwrap(), &expected, 1e-5);
    }

    #[test]
    #[ignore = "needs a CUDA device"]
    fn cuda_products_are_those_of_f32() {
        check(1, 576, 576);
        check(7, 1152, 896);
        check(130, 320, 1536);
    }
}
