//! Row-wise kernels: normalisation, rotary positions, activation.

use super::simd::{Simd, dispatch};
use super::threads::{SharedMut, Threads};

/// Layout of the pairs of elements that rotate together in a head. A property of each checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// `(i, i + d/2)`: Hugging Face's "rotate half", GGUF's NEOX.
    Half,
    /// `(2i, 2i + 1)`: the original paper, GGUF files of the llama architecture.
    Interleaved,
}

/// Cosines and sines of all positions of one model.
pub struct RopeTable {
    layout: RopeLayout,
    inv_freq: Vec<f64>,
    /// `[position][inv_freq.len()]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Rotation by one angle for each frequency.
pub(crate) struct Rotation {
    layout: RopeLayout,
    cos_sin: Vec<(f32, f32)>,
}

pub(crate) struct RotatedPair {
    pub(crate) first: usize,
    pub(crate) second: usize,
    pub(crate) cos: f32,
    pub(crate) sin: f32,
}

impl Rotation {
    /// Returns the pair that element `i` of a head belongs to, `None` if it does not rotate.
    pub(crate) fn pair(&self, i: usize) -> Option<RotatedPair> {
        let half = self.cos_sin.len();
        if i >= 2 * half {
            return None;
        }
        let (first, second, f) = match self.layout {
            RopeLayout::Half => (i % half, i % half + half, i % half),
            RopeLayout::Interleaved => (i / 2 * 2, i / 2 * 2 + 1, i / 2),
        };
        let (cos, sin) = self.cos_sin[f];
        Some(RotatedPair { first, second, cos, sin })
    }
}

impl RopeTable {
    /// Computes the angles `position * inv_freq[i]` in f64, for positions below `num_positions`.
    ///
    /// The first `2 * inv_freq.len()` elements of a head rotate.
    #[must_use]
    pub fn new(layout: RopeLayout, inv_freq: Vec<f64>, num_positions: usize) -> Self {
        let angles = || (0..num_positions).flat_map(|p| inv_freq.iter().map(move |f| p as f64 * f));
        let cos = angles().map(|angle| angle.cos() as f32).collect();
        let sin = angles().map(|angle| angle.sin() as f32).collect();
        Self { layout, inv_freq, cos, sin }
    }

    /// Returns the number of positions covered.
    #[must_use]
    pub fn num_positions(&self) -> usize {
        self.cos.len() / self.inv_freq.len()
    }

    /// Rotates one head to `position`, or with `direction` -1 back from it.
    pub(crate) fn rotate(&self, head: &mut [f32], position: u32, direction: f32) {
        let half = self.inv_freq.len();
        let at = position as usize * half;
        for (i, (cos, sin)) in self.cos[at..at + half].iter().zip(&self.sin[at..at + half]).enumerate() {
            let (first, second) = match self.layout {
                RopeLayout::Half => (i, i + half),
                RopeLayout::Interleaved => (2 * i, 2 * i + 1),
            };
            let (a, b, sin) = (head[first], head[second], sin * direction);
            (head[first], head[second]) = (a * cos - b * sin, a * sin + b * cos);
        }
    }

    /// Returns the rotation from one position to another `delta` further on.
    pub(crate) fn rotation(&self, delta: i64) -> Rotation {
        let cos_sin = self.inv_freq.iter().map(|f| (delta as f64 * f).sin_cos()).map(|(sin, cos)| (cos as f32, sin as f32));
        Rotation { layout: self.layout, cos_sin: cos_sin.collect() }
    }
}

/// Adjacent heads in the rows of an array.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Elements from one row to the next.
    pub stride: usize,
    /// Column at which the first head starts.
    pub column: usize,
    /// Number of heads.
    pub count: usize,
    /// Elements per head.
    pub dim: usize,
}

impl Heads {
    fn rows_of(self, x: &[f32]) -> usize {
        assert!(
            x.len().is_multiple_of(self.stride) && self.column + self.count * self.dim <= self.stride,
            "{self:?} lie in the rows"
        );
        x.len() / self.stride
    }
}

/// Computes `out = x / sqrt(mean(x^2) + eps) * weight`, row by row (Zhang and Sennrich 2019, eq. 4).
///
/// # Panics
/// If lengths do not fit.
pub fn rms_norm(threads: &Threads, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width), "rows of {width}");
    let out = SharedMut::new(out);
    for_rows(threads, x.len() / width, |row| {
        let x = &x[row * width..][..width];
        // SAFETY: each row of `out` belongs to one thread.
        unsafe {
            dispatch!(threads.isa(), norm_row(x: *const f32 = x.as_ptr(), weight: &[f32] = weight, eps: f32 = eps, out: *mut f32 = out.at(row * width)))
        }
    });
}

/// Applies [`rms_norm`] to each head in place (Qwen3's QK norm).
///
/// # Panics
/// If lengths do not fit.
pub fn rms_norm_heads(threads: &Threads, x: &mut [f32], heads: Heads, weight: &[f32], eps: f32) {
    assert_eq!(weight.len(), heads.dim);
    let rows = heads.rows_of(x);
    let x = SharedMut::new(x);
    for_rows(threads, rows, |row| {
        for head in 0..heads.count {
            // SAFETY: each row belongs to one thread; a kernel reads an element before it writes it.
            unsafe {
                let p = x.at(row * heads.stride + heads.column + head * heads.dim);
                dispatch!(threads.isa(), norm_row(x: *const f32 = p, weight: &[f32] = weight, eps: f32 = eps, out: *mut f32 = p));
            }
        }
    });
}

/// # Safety
/// `x` and `out` hold `weight.len()` elements; they may be the same.
#[inline(always)]
unsafe fn norm_row<S: Simd>(x: *const f32, weight: &[f32], eps: f32, out: *mut f32) {
    let width = weight.len();
    let whole = width / S::LANES * S::LANES;
    // SAFETY: all offsets are below `width`.
    unsafe {
        let scale = inverse_rms::<S>(x, width, eps);
        for i in (0..whole).step_by(S::LANES) {
            let v = S::mul(S::load(x.add(i)), S::splat(scale));
            S::store(out.add(i), S::mul(v, S::load(weight.as_ptr().add(i))));
        }
        for i in whole..width {
            *out.add(i) = *x.add(i) * scale * weight[i];
        }
    }
}

/// # Safety
/// `x` and `out` hold `weight.len()` elements and do not overlap.
#[inline(always)]
unsafe fn add_norm_row<S: Simd>(x: *const f32, weight: &[f32], eps: f32, out: *mut f32) {
    let width = weight.len();
    let whole = width / S::LANES * S::LANES;
    // SAFETY: all offsets are below `width`.
    unsafe {
        let scale = inverse_rms::<S>(x, width, eps);
        for i in (0..whole).step_by(S::LANES) {
            let v = S::mul(S::load(x.add(i)), S::splat(scale));
            S::store(out.add(i), S::fma(v, S::load(weight.as_ptr().add(i)), S::load(out.add(i))));
        }
        for i in whole..width {
            *out.add(i) += *x.add(i) * scale * weight[i];
        }
    }
}

/// Returns `1 / sqrt(mean(x^2) + eps)`.
///
/// # Safety
/// `x` holds `width` elements; the machine has `S`.
#[inline(always)]
unsafe fn inverse_rms<S: Simd>(x: *const f32, width: usize, eps: f32) -> f32 {
    let whole = width / S::LANES * S::LANES;
    // SAFETY: all offsets are below `width`.
    unsafe {
        let mut squares = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            let v = S::load(x.add(i));
            squares = S::fma(v, v, squares);
        }
        let tail: f32 = (whole..width).map(|i| *x.add(i) * *x.add(i)).sum();
        1.0 / ((S::reduce_add(squares) + tail) / width as f32 + eps).sqrt()
    }
}

/// Rotates heads to the positions of their rows, in place.
///
/// # Panics
/// If lengths do not fit, or a position is beyond the table.
pub fn rope(threads: &Threads, x: &mut [f32], heads: Heads, positions: &[u32], table: &RopeTable) {
    let half = table.inv_freq.len();
    assert!(heads.rows_of(x) == positions.len() && 2 * half <= heads.dim, "one position for each row");
    let x = SharedMut::new(x);
    for_rows(threads, positions.len(), |row| {
        let at = positions[row] as usize * half;
        let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
        for head in 0..heads.count {
            // SAFETY: each row belongs to one thread, and the head lies inside it.
            let head =
                unsafe { std::slice::from_raw_parts_mut(x.at(row * heads.stride + heads.column + head * heads.dim), 2 * half) };
            match table.layout {
                RopeLayout::Half => {
                    let (a, b) = head.split_at_mut(half);
                    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
                RopeLayout::Interleaved => {
                    for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
                    }
                }
            }
        }
    });
}

/// Activation of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)` (Shazeer 2020, eq. 5).
    Silu,
    /// The tanh approximation of GELU, `0.5 x (1 + tanh(u)) = x * sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)` (Hendrycks and
    /// Gimpel 2016, sec. 2).
    GeluTanh,
}

/// Computes `out = activation(gate) * up` for rows of `[gate, up]`, each `width` wide (Shazeer 2020, eq. 6).
///
/// # Panics
/// If lengths do not fit.
pub fn gated(threads: &Threads, activation: Activation, gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * out.len());
    assert!(out.len().is_multiple_of(width));
    let rows = out.len() / width;
    let out = SharedMut::new(out);
    for_rows(threads, rows, |row| {
        let gate_up = &gate_up[row * 2 * width..][..2 * width];
        // SAFETY: each row of `out` belongs to one thread.
        unsafe {
            dispatch!(threads.isa(), gated_row(activation: Activation = activation, gate_up: &[f32] = gate_up, width: usize = width, out: *mut f32 = out.at(row * width)))
        }
    });
}

/// `2 sqrt(2 / pi)` and its product with 0.044715, of [`Activation::GeluTanh`].
const GELU_LINEAR: f32 = 1.595_769;
const GELU_CUBIC: f32 = 0.071_354_814;

/// # Safety
/// `out` holds `width` elements.
#[inline(always)]
unsafe fn gated_row<S: Simd>(activation: Activation, gate_up: &[f32], width: usize, out: *mut f32) {
    let (gate, up) = gate_up.split_at(width);
    let whole = width / S::LANES * S::LANES;
    // SAFETY: all offsets are below `width`.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            let (g, u) = (S::load(gate.as_ptr().add(i)), S::load(up.as_ptr().add(i)));
            let steepness = match activation {
                Activation::Silu => g,
                Activation::GeluTanh => S::mul(g, S::fma(S::mul(g, g), S::splat(GELU_CUBIC), S::splat(GELU_LINEAR))),
            };
            let e = S::exp(S::sub(S::splat(0.0), steepness));
            S::store(out.add(i), S::mul(S::div(g, S::add(S::splat(1.0), e)), u));
        }
        for i in whole..width {
            let g = gate[i];
            let steepness = match activation {
                Activation::Silu => g,
                Activation::GeluTanh => g * (g * g).mul_add(GELU_CUBIC, GELU_LINEAR),
            };
            *out.add(i) = g / (1.0 + (-steepness).exp()) * up[i];
        }
    }
}

/// Computes `out += x / sqrt(mean(x^2) + eps) * weight`, row by row: [`rms_norm`] of what is added to a residual stream.
///
/// # Panics
/// If lengths do not fit.
pub fn add_rms_norm(threads: &Threads, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width), "rows of {width}");
    let out = SharedMut::new(out);
    for_rows(threads, x.len() / width, |row| {
        let x = &x[row * width..][..width];
        // SAFETY: each row of `out` belongs to one thread.
        unsafe {
            dispatch!(threads.isa(), add_norm_row(x: *const f32 = x.as_ptr(), weight: &[f32] = weight, eps: f32 = eps, out: *mut f32 = out.at(row * width)))
        }
    });
}

/// Distributes rows over the threads, some at a time; a few rows stay on the calling thread, where they finish sooner.
fn for_rows(threads: &Threads, rows: usize, f: impl Fn(usize) + Sync) {
    const ROWS_WORTH_A_HANDOVER: usize = 16;
    if rows < ROWS_WORTH_A_HANDOVER {
        return (0..rows).for_each(f);
    }
    let chunk = rows.div_ceil(threads.count() * 4);
    threads.for_each(rows.div_ceil(chunk), |i| (i * chunk..((i + 1) * chunk).min(rows)).for_each(&f));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::testing::noise;

    #[track_caller]
    fn check(kernel: impl Fn(&Threads) -> Vec<f32>, expected: &[f32]) {
        for isa in Isa::available() {
            let out = kernel(&Threads::with_isa(2, isa).unwrap());
            for (i, (y, e)) in out.iter().zip(expected).enumerate() {
                assert!((y - e).abs() < 2e-6 * (1.0 + e.abs()), "{isa:?} at {i}: {y} is not {e}");
            }
        }
    }

    #[test]
    fn rms_norm_divides_by_the_root_mean_square() {
        let (x, weight) = (noise(5 * 37, 1), noise(37, 2));
        let expected: Vec<f32> = x
            .chunks(37)
            .flat_map(|row| {
                let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 37.0;
                row.iter().zip(&weight).map(move |(x, w)| (f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*w)) as f32)
            })
            .collect();
        let norm = |threads: &Threads| {
            let mut out = vec![0.0; x.len()];
            rms_norm(threads, &x, &weight, 1e-5, &mut out);
            out
        };
        check(norm, &expected);
    }

    #[test]
    fn head_norm_leaves_other_columns_alone() {
        let (x, weight) = (noise(3 * 50, 1), noise(16, 2));
        let mut expected = x.clone();
        for row in expected.chunks_mut(50) {
            for head in row[10..42].chunks_mut(16) {
                let mean = head.iter().map(|x| x * x).sum::<f32>() / 16.0;
                head.iter_mut().zip(&weight).for_each(|(x, w)| *x = *x / (mean + 1e-6).sqrt() * w);
            }
        }
        let norm = |threads: &Threads| {
            let mut x = x.clone();
            rms_norm_heads(threads, &mut x, Heads { stride: 50, column: 10, count: 2, dim: 16 }, &weight, 1e-6);
            x
        };
        check(norm, &expected);
    }

    #[track_caller]
    fn check_gated(activation: Activation, of: impl Fn(f64) -> f64) {
        let x: Vec<f32> = noise(20 * 2 * 21, 1).iter().map(|x| x * 60.0).collect();
        let expected: Vec<f32> = x
            .chunks(42)
            .flat_map(|row| (0..21).map(|i| (of(f64::from(row[i])) * f64::from(row[21 + i])) as f32).collect::<Vec<_>>())
            .collect();
        let run = |threads: &Threads| {
            let mut out = vec![0.0; 20 * 21];
            gated(threads, activation, &x, 21, &mut out);
            out
        };
        check(run, &expected);
    }

    #[test]
    fn a_gate_is_activated_and_multiplies() {
        check_gated(Activation::Silu, |x| x / (1.0 + (-x).exp()));
        let root = (2.0 / std::f64::consts::PI).sqrt();
        check_gated(Activation::GeluTanh, |x| 0.5 * x * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh()));
    }

    #[test]
    fn a_norm_may_be_added() {
        let (x, weight, before) = (noise(20 * 37, 1), noise(37, 2), noise(20 * 37, 3));
        let mut expected = vec![0.0; x.len()];
        rms_norm(&Threads::new(1).unwrap(), &x, &weight, 1e-5, &mut expected);
        expected.iter_mut().zip(&before).for_each(|(sum, before)| *sum += before);
        let run = |threads: &Threads| {
            let mut out = before.clone();
            add_rms_norm(threads, &x, &weight, 1e-5, &mut out);
            out
        };
        check(run, &expected);
    }

    #[test]
    fn layouts_pair_other_numbers_by_the_same_angles() {
        let x = [1.0, 2.0, 3.0, 4.0, 9.0];
        for (layout, pairs) in [(RopeLayout::Half, [(0, 2), (1, 3)]), (RopeLayout::Interleaved, [(0, 1), (2, 3)])] {
            let table = RopeTable::new(layout, vec![1.0, 0.1], 8);
            let mut expected = x;
            for (i, (a, b)) in pairs.into_iter().enumerate() {
                let (sin, cos) = (7.0 * [1.0f32, 0.1][i]).sin_cos();
                (expected[a], expected[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
            }
            let run = |threads: &Threads| {
                let mut x = x.to_vec();
                rope(threads, &mut x, Heads { stride: 5, column: 0, count: 1, dim: 5 }, &[7], &table);
                x
            };
            check(run, &expected);
        }
    }
}
