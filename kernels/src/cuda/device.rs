//! One GPU: its context, one stream, and the functions loaded from the embedded modules.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig,
    ValidAsZeroBits,
};
use cudarc::nvrtc::Ptx;

/// A device fault, or a missing device or library.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's library is not installed.
    #[error("no NVIDIA driver: libcuda is not installed")]
    NoDriver,
    /// There are fewer GPUs.
    #[error("there is no GPU {ordinal}: this machine has {count}, counted from 0")]
    NoSuchDevice {
        /// Requested GPU index, from 0.
        ordinal: usize,
        /// Number of GPUs.
        count: usize,
    },
    /// The driver reports an error. The content of device memory is undefined from then on.
    #[error("CUDA: {0}")]
    Driver(#[from] DriverError),
    /// cuBLAS reports an error.
    #[error("cuBLASLt: {0:?}")]
    Blas(#[from] cudarc::cublaslt::result::CublasError),
    /// The loader does not find the libraries of CUDA 13.
    #[error("cuBLASLt of CUDA 13 is not installed, or not where the loader looks (LD_LIBRARY_PATH)")]
    NoBlas,
}

/// A GPU used by this process, with one stream on which everything except a [`super::HostPool`]'s copies runs in order.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
}

/// Declares the modules that the build compiles from `cuda/*.cu`.
macro_rules! modules {
    ($($name:literal),+ $(,)?) => {
        fn image(name: &str) -> &'static [u8] {
            match name {
                $($name => include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin")),)+
                other => unreachable!("no module {other}"),
            }
        }
    };
}

modules!(
    "attention",
    "attention_hopper",
    "combine_attention",
    "decode_attention",
    "deviation",
    "drift",
    "fill",
    "gated",
    "norm",
    "qkv",
    "received",
    "received_hopper",
    "sample",
    "spans",
);

impl Device {
    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// If there is no driver, no such GPU, or it is not usable.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, DeviceError> {
        // SAFETY: looks for a library by name; libcuda's initialisers are those every CUDA program runs.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        let count = CudaContext::device_count()? as usize;
        if ordinal >= count {
            return Err(DeviceError::NoSuchDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal)?;
        // SAFETY: all work goes to one stream in program order. Copies of a host pool alone have others: events order them, and the memory
        // at both of their ends is freed when they are done.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        Ok(Arc::new(Self { context, stream, modules: Mutex::default() }))
    }

    /// Returns the driver's name of the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn name(&self) -> Result<String, DeviceError> {
        Ok(self.context.name()?)
    }

    /// Returns free and total bytes of memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn memory(&self) -> Result<(usize, usize), DeviceError> {
        Ok(self.context.mem_get_info()?)
    }

    /// Returns the number of streaming multiprocessors.
    ///
    /// # Errors
    /// If the device fails.
    pub fn num_multiprocessors(&self) -> Result<usize, DeviceError> {
        use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as COUNT;
        Ok(self.context.attribute(COUNT)? as usize)
    }

    /// Returns the compute capability, such as 90 for Hopper.
    ///
    /// # Errors
    /// If the device fails.
    pub fn capability(&self) -> Result<u32, DeviceError> {
        let (major, minor) = self.context.compute_capability()?;
        Ok((10 * major + minor) as u32)
    }

    /// Returns the stream of all launches.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Returns the context, for streams and events besides the stream of all launches.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Waits until all launches are done.
    ///
    /// # Errors
    /// If anything launched since the last call failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(self.stream.synchronize()?)
    }

    /// Allocates `len` zeroed elements.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>, DeviceError> {
        Ok(self.stream.alloc_zeros(len.max(1))?)
    }

    /// Copies `host` to the device.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn upload<T: DeviceRepr>(&self, host: &[T]) -> Result<CudaSlice<T>, DeviceError> {
        Ok(self.stream.clone_htod(host)?)
    }

    /// Copies `slice` to the host; waits for all earlier launches.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download<T: DeviceRepr>(&self, slice: &impl DevicePtr<T>) -> Result<Vec<T>, DeviceError> {
        let host = self.stream.clone_dtoh(slice)?;
        self.synchronize()?;
        Ok(host)
    }

    /// Returns function `name` of module `module`, with up to `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// If the device cannot run it.
    pub(super) fn function(&self, module: &'static str, name: &str, shared_bytes: usize) -> Result<CudaFunction, DeviceError> {
        let mut modules = self.modules.lock().expect("nothing panics under it");
        let loaded = match modules.get(module) {
            Some(loaded) => Arc::clone(loaded),
            None => {
                let loaded = self.context.load_module(Ptx::from_binary(image(module).to_vec()))?;
                modules.insert(module, Arc::clone(&loaded));
                loaded
            }
        };
        let function = loaded.load_function(name)?;
        if shared_bytes > 48 << 10 {
            function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes as i32)?;
        }
        Ok(function)
    }
}

/// Returns the configuration of a grid of `grid` blocks of `threads` threads each.
pub(super) fn launch(grid: (usize, usize, usize), threads: usize, shared_bytes: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid.0 as u32, grid.1 as u32, grid.2 as u32),
        block_dim: (threads as u32, 1, 1),
        shared_mem_bytes: shared_bytes as u32,
    }
}
