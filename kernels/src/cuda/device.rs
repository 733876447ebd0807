//! One GPU: its context, one stream, and the functions loaded from the embedded modules.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig,
    ValidAsZeroBits,
};
use cudarc::nvrtc::Ptx;

/// A fault of the device, or none there.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's library is not installed.
    #[error("no NVIDIA driver: libcuda is not installed")]
    NoDriver,
    /// There are fewer GPUs.
    #[error("there is no GPU {ordinal}: this machine has {count}, counted from 0")]
    NoSuchDevice {
        /// The one asked for, from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The driver reports an error. What the device's memory holds is unknown from then on.
    #[error("CUDA: {0}")]
    Driver(#[from] DriverError),
    /// cuBLAS reports an error.
    #[error("cuBLASLt: {0:?}")]
    Blas(#[from] cudarc::cublaslt::result::CublasError),
    /// The libraries of CUDA 13 are not where the loader looks.
    #[error("cuBLASLt of CUDA 13 is not installed, or not where the loader looks (LD_LIBRARY_PATH)")]
    NoBlas,
}

/// A GPU that this process uses, with one stream that everything but a [`super::HostPool`]'s copies happens on in order.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
}

/// Declares the modules that the build made of `cuda/*.cu`.
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
    "norm",
    "qkv",
    "received",
    "received_hopper",
    "sample",
    "spans",
    "swiglu",
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

    /// As the driver names it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn name(&self) -> Result<String, DeviceError> {
        Ok(self.context.name()?)
    }

    /// Free and total bytes of memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn memory(&self) -> Result<(usize, usize), DeviceError> {
        Ok(self.context.mem_get_info()?)
    }

    /// Streaming multiprocessors.
    ///
    /// # Errors
    /// If the device fails.
    pub fn num_multiprocessors(&self) -> Result<usize, DeviceError> {
        use cudarc::driver::sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as COUNT;
        Ok(self.context.attribute(COUNT)? as usize)
    }

    /// Compute capability, as 90 for Hopper.
    ///
    /// # Errors
    /// If the device fails.
    pub fn capability(&self) -> Result<u32, DeviceError> {
        let (major, minor) = self.context.compute_capability()?;
        Ok((10 * major + minor) as u32)
    }

    /// The stream of all launches.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The context, for streams and events beside the one of all launches.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Waits until everything launched is done.
    ///
    /// # Errors
    /// If anything launched since the last call failed.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(self.stream.synchronize()?)
    }

    /// `len` numbers, all zero.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>, DeviceError> {
        Ok(self.stream.alloc_zeros(len.max(1))?)
    }

    /// A copy of `host` on the device.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn upload<T: DeviceRepr>(&self, host: &[T]) -> Result<CudaSlice<T>, DeviceError> {
        Ok(self.stream.clone_htod(host)?)
    }

    /// A copy of `slice` on the host; waits for what was launched before.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download<T: DeviceRepr>(&self, slice: &impl DevicePtr<T>) -> Result<Vec<T>, DeviceError> {
        let host = self.stream.clone_dtoh(slice)?;
        self.synchronize()?;
        Ok(host)
    }

    /// Function `name` of module `module`, allowed `shared_bytes` of dynamic shared memory.
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

/// A grid of `grid` blocks of `threads` threads each.
pub(super) fn launch(grid: (usize, usize, usize), threads: usize, shared_bytes: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid.0 as u32, grid.1 as u32, grid.2 as u32),
        block_dim: (threads as u32, 1, 1),
        shared_mem_bytes: shared_bytes as u32,
    }
}
