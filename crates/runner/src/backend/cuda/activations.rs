//! Buffers of one step. They are allocated once for the largest step, so that steps allocate nothing and graphs have fixed addresses.

use kernels::cuda::{CudaSlice, Device, DeviceError, bf16};

use crate::ModelSpec;

/// Rows of logits computed at once; more rows are processed in chunks.
pub(super) const MAX_LOGIT_ROWS: usize = 256;

/// `[rows, width]` each.
pub(super) struct Activations {
    /// Residual stream without the output of the last product.
    pub(super) hidden: CudaSlice<f32>,
    pub(super) normed: CudaSlice<bf16>,
    pub(super) qkv: CudaSlice<bf16>,
    pub(super) attended: CudaSlice<bf16>,
    /// Output of a product, which the next norm adds to the residual stream.
    pub(super) delta: CudaSlice<bf16>,
    pub(super) gate_up: CudaSlice<bf16>,
    pub(super) activated: CudaSlice<bf16>,
    /// Residual stream of the rows that are computed past the last layer's attention, `[MAX_LOGIT_ROWS, hidden]`.
    pub(super) packed: CudaSlice<f32>,
    /// Log-sum-exp of each row's scores, by head.
    pub(super) lse: CudaSlice<f32>,
    /// `[MAX_LOGIT_ROWS, vocab]`
    pub(super) logits: CudaSlice<f32>,
    pub(super) num_rows: usize,
}

impl Activations {
    pub(super) fn new(device: &Device, config: &ModelSpec, num_rows: usize) -> Result<Self, DeviceError> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            hidden: device.zeros(num_rows * hidden)?,
            normed: device.zeros(num_rows.max(MAX_LOGIT_ROWS) * hidden)?,
            qkv: device.zeros(num_rows * config.qkv_width())?,
            attended: device.zeros(num_rows * config.num_heads * config.head_dim)?,
            delta: device.zeros(num_rows * hidden)?,
            gate_up: device.zeros(num_rows * 2 * wide)?,
            activated: device.zeros(num_rows * wide)?,
            packed: device.zeros(MAX_LOGIT_ROWS * hidden)?,
            lse: device.zeros(num_rows * config.num_heads)?,
            logits: device.zeros(MAX_LOGIT_ROWS * config.vocab_size)?,
            num_rows,
        })
    }
}
