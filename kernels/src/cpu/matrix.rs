//! Weight matrices, packed for the kernels.
//!
//! Layout: output columns in panels of [`PANEL`]; inside a panel, input by input, the panel's 32 weights are adjacent: element `(n, k)` is
//! at `(n / 32 * K + k) * 32 + n % 32`. A vector then holds the same input's weights of neighbouring outputs, every load is contiguous, and
//! each output is summed over `k` in ascending order for any number of rows.

use std::sync::Arc;

use super::aligned::AlignedBuffer;
use super::ggml::{DecodedRow, GgmlType};

/// Number of output columns per panel.
pub(crate) const PANEL: usize = 32;

/// One weight matrix, `[n, k]`: `n` outputs of `k` inputs.
pub struct Matrix {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) data: Panels,
}

pub(crate) enum Panels {
    F32(AlignedBuffer<f32>),
    F16(AlignedBuffer<u16>),
    Bf16(AlignedBuffer<u16>),
    /// Codes of up to 8 bits, one byte each.
    Codes {
        codes: AlignedBuffer<i8>,
        scales: Scales,
    },
    /// 4-bit codes. A decode step reads every weight, so its speed is bound by memory: these take half of it. (With a plane of fifth bits
    /// beside them, 5-bit formats decode slower than as bytes.)
    Nibbles {
        /// `[panel][k / 2][32]`: input `k` in the low, `k + 1` in the high half of a byte.
        low: AlignedBuffer<u8>,
        /// Subtracted from each code.
        offset: i8,
        scales: Scales,
    },
}

/// Scales and minima that turn codes into weights: `w = scale * code + min`.
pub(crate) struct Scales {
    /// `[panel][k / group][32]`
    pub(crate) scales: AlignedBuffer<f32>,
    /// As `scales`; empty if all are zero.
    pub(crate) mins: AlignedBuffer<f32>,
    pub(crate) group: usize,
}

impl Scales {
    fn bytes(&self) -> usize {
        4 * (self.scales.len() + self.mins.len())
    }

    /// Returns the weight of `code` at input `k` of a panel of `num_inputs`.
    fn weight(&self, code: i8, panel: usize, num_inputs: usize, k: usize, lane: usize) -> f32 {
        let at = (panel * (num_inputs / self.group) + k / self.group) * PANEL + lane;
        f32::from(code).mul_add(self.scales[at], self.mins.get(at).copied().unwrap_or(0.0))
    }
}

impl Matrix {
    /// Packs `bytes`, the `n` rows of a tensor of format `ty` with `k` weights each, little endian.
    ///
    /// # Panics
    /// If `k` is odd or not a multiple of the format's block, or the length of `bytes` does not match the shape.
    #[must_use]
    pub fn from_ggml(ty: GgmlType, n: usize, k: usize, bytes: &[u8]) -> Self {
        assert_eq!(k % 2, 0, "kernels take inputs in pairs");
        assert_eq!(k % ty.block_len(), 0, "rows of {k} weights do not fill blocks of {}", ty.block_len());
        let row_bytes = k / ty.block_len() * ty.block_bytes();
        assert_eq!(bytes.len(), n * row_bytes, "a {n}x{k} tensor of {ty:?}");
        let rows = bytes.chunks_exact(row_bytes);
        let data = match ty {
            GgmlType::F32 => Panels::F32(pack(n, k, rows.map(|row| words(row, |b: [u8; 4]| f32::from_le_bytes(b))))),
            GgmlType::F16 => Panels::F16(pack(n, k, rows.map(|row| words(row, u16::from_le_bytes)))),
            GgmlType::Bf16 => Panels::Bf16(pack(n, k, rows.map(|row| words(row, u16::from_le_bytes)))),
            _ => pack_codes(ty, n, k, rows),
        };
        Self { n, k, data }
    }

    /// Packs `n` rows of `k` weights.
    ///
    /// # Panics
    /// If `k` is odd or `weights` has another length.
    #[must_use]
    pub fn from_f32(n: usize, k: usize, weights: &[f32]) -> Self {
        assert!(k.is_multiple_of(2) && weights.len() == n * k, "an even number of inputs, {n}x{k} weights");
        let data = Panels::F32(pack(n, k, weights.chunks_exact(k).map(|row| row.iter().copied())));
        Self { n, k, data }
    }

    /// Returns the number of outputs.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Returns the number of inputs.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Returns the number of bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.data {
            Panels::F32(w) => w.len() * 4,
            Panels::F16(w) | Panels::Bf16(w) => w.len() * 2,
            Panels::Codes { codes, scales } => codes.len() + scales.bytes(),
            Panels::Nibbles { low, scales, .. } => low.len() + scales.bytes(),
        }
    }

    /// Writes row `row` (`k` weights) to `out`, as for an embedding table.
    ///
    /// # Panics
    /// If `row` is out of range or `out` is not `k` long.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n && out.len() == self.k);
        let (panel, lane) = (row / PANEL, row % PANEL);
        let at = |k: usize| (panel * self.k + k) * PANEL + lane;
        match &self.data {
            Panels::F32(w) => out.iter_mut().enumerate().for_each(|(k, out)| *out = w[at(k)]),
            Panels::F16(w) => out.iter_mut().enumerate().for_each(|(k, out)| *out = half::f16::from_bits(w[at(k)]).to_f32()),
            Panels::Bf16(w) => out.iter_mut().enumerate().for_each(|(k, out)| *out = f32::from_bits(u32::from(w[at(k)]) << 16)),
            Panels::Codes { codes, scales } => {
                out.iter_mut().enumerate().for_each(|(k, out)| *out = scales.weight(codes[at(k)], panel, self.k, k, lane));
            }
            Panels::Nibbles { low, offset, scales } => {
                for (k, out) in out.iter_mut().enumerate() {
                    let nibble = low[(panel * self.k / 2 + k / 2) * PANEL + lane] >> (4 * (k % 2)) & 15;
                    *out = scales.weight(nibble as i8 - offset, panel, self.k, k, lane);
                }
            }
        }
    }

    pub(crate) fn num_panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }
}

fn words<const B: usize, T>(row: &[u8], from: impl Fn([u8; B]) -> T) -> impl Iterator<Item = T> {
    row.chunks_exact(B).map(move |bytes| from(bytes.try_into().expect("chunks of B bytes")))
}

fn pack<T: super::aligned::Plain, R: Iterator<Item = T>>(n: usize, k: usize, rows: impl Iterator<Item = R>) -> AlignedBuffer<T> {
    let mut packed = AlignedBuffer::zeroed(n.div_ceil(PANEL) * PANEL * k);
    for (row, weights) in rows.enumerate() {
        let base = row / PANEL * k * PANEL + row % PANEL;
        for (i, weight) in weights.enumerate() {
            packed[base + i * PANEL] = weight;
        }
    }
    packed
}

fn pack_codes<'a>(ty: GgmlType, n: usize, k: usize, rows: impl Iterator<Item = &'a [u8]>) -> Panels {
    let (group, panels) = (ty.group(), n.div_ceil(PANEL));
    let len = panels * PANEL * k;
    let nibble_offset = ty.nibble_offset();
    let mut codes = AlignedBuffer::<i8>::zeroed(if nibble_offset.is_none() { len } else { 0 });
    let mut low = AlignedBuffer::<u8>::zeroed(if nibble_offset.is_some() { len / 2 } else { 0 });
    let mut scales = AlignedBuffer::<f32>::zeroed(len / group);
    let mut mins = AlignedBuffer::<f32>::zeroed(if ty.is_affine() { scales.len() } else { 0 });
    let mut decoded = DecodedRow::new(k, group);
    for (row, bytes) in rows.enumerate() {
        decoded.decode(ty, bytes);
        let (panel, lane) = (row / PANEL, row % PANEL);
        for (i, code) in decoded.codes.iter().enumerate() {
            let Some(offset) = nibble_offset else {
                codes[(panel * k + i) * PANEL + lane] = *code;
                continue;
            };
            low[(panel * k / 2 + i / 2) * PANEL + lane] |= ((code + offset) as u8) << (4 * (i % 2));
        }
        for g in 0..k / group {
            let at = (panel * (k / group) + g) * PANEL + lane;
            scales[at] = decoded.scales[g];
            if ty.is_affine() {
                mins[at] = decoded.mins[g];
            }
        }
    }
    let scales = Scales { scales, mins, group };
    match nibble_offset {
        None => Panels::Codes { codes, scales },
        Some(offset) => Panels::Nibbles { low, offset, scales },
    }
}

/// Matrices over the same input whose outputs are concatenated: Q, K and V, or gate and up.
///
/// They stay separate because a file may store them in different formats; they run in one pass because a pass has a fixed cost.
pub struct Linear {
    parts: Vec<Arc<Matrix>>,
    /// Part, panel in it, and first output column, for each panel of all parts.
    pub(crate) panels: Vec<PanelRef>,
    n: usize,
    k: usize,
}

#[derive(Clone, Copy)]
pub(crate) struct PanelRef {
    pub(crate) part: usize,
    pub(crate) panel: usize,
    pub(crate) column: usize,
    pub(crate) width: usize,
}

impl Linear {
    /// Stacks `parts`.
    ///
    /// # Panics
    /// If there are none, or their inputs differ in number.
    #[must_use]
    pub fn new(parts: Vec<Matrix>) -> Self {
        Self::shared(parts.into_iter().map(Arc::new).collect())
    }

    /// Stacks matrices that other stacks may share.
    ///
    /// # Panics
    /// As [`Linear::new`].
    #[must_use]
    pub fn shared(parts: Vec<Arc<Matrix>>) -> Self {
        let k = parts.first().expect("at least one matrix").k;
        let mut panels = Vec::new();
        let mut column = 0;
        for (part, matrix) in parts.iter().enumerate() {
            assert_eq!(matrix.k, k, "stacked matrices share their input");
            for panel in 0..matrix.num_panels() {
                let width = (matrix.n - panel * PANEL).min(PANEL);
                panels.push(PanelRef { part, panel, column: column + panel * PANEL, width });
            }
            column += matrix.n;
        }
        Self { parts, panels, n: column, k }
    }

    /// Returns the number of outputs of all parts.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Returns the number of inputs.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Returns the number of bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|matrix| matrix.bytes()).sum()
    }

    /// Returns the parts, in order.
    #[must_use]
    pub fn parts(&self) -> &[Arc<Matrix>] {
        &self.parts
    }
}
