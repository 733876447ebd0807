//! Activations of a step in main memory.

/// Activations of one step, `[rows, width]` each. Their memory is reused from step to step.
#[derive(Default)]
pub(super) struct Workspace {
    /// Residual stream.
    pub(super) hidden: Vec<f32>,
    pub(super) normed: Vec<f32>,
    pub(super) qkv: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) gate_up: Vec<f32>,
    pub(super) activated: Vec<f32>,
    /// Output of a sublayer before its norm.
    pub(super) unnormed: Vec<f32>,
    /// Logits of the last rows that went through the head.
    pub(super) logits: Vec<f32>,
    /// Attention paid by the last rows of watched sequences, with the index of the sequence in the batch.
    pub(super) watched: Vec<(usize, Vec<f32>)>,
}

impl Workspace {
    /// Returns the attention that the last row of each watched sequence paid.
    pub(super) fn take_attention_paid(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.watched).into_iter().map(|(_, paid)| paid).collect()
    }
}

/// Returns `buffer`, resized to `len` elements.
pub(super) fn resized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}
