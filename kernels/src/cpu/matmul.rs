//! `Y = X · Wᵀ`, for one row or thousands, with the weights as stored.
//!
//! Few rows: weights are decoded in registers and used at once, so that a decode step reads each weight byte once. Many rows: a panel is
//! decoded into a tile of f32 that stays in cache, then multiplied by all rows. Both multiply the same f32 weights in the same order of `k`
//! into one accumulator per output, so both give the same bits.

use std::cell::RefCell;

use super::aligned::AlignedBuffer;
use super::block::Element;
use super::matrix::{Linear, Matrix, PANEL, PanelRef, Panels, Scales};
use super::simd::{Simd, dispatch, prefetch};
use super::threads::{SharedMut, Threads};

/// Initial value of the outputs.
#[derive(Clone, Copy)]
pub enum Init<'a> {
    /// Zero.
    Zero,
    /// The content of `y`: a residual connection.
    Accumulate,
    /// This bias, one element per output.
    Bias(&'a [f32]),
}

/// Inputs decoded into one tile. 1,024 x 32 f32 are 128 KiB, a small share of a core's L2.
const TILE_K: usize = 1024;

/// Number of rows up to which weights are decoded in registers. Chosen: the accumulators of four rows and two panels fit 16 registers.
const STREAM_ROWS: usize = 4;

/// Prefetch distance of weights in inputs: the end of a panel is followed by the panel after the current ones. Measured by alternating runs
/// of `kvshare bench engine --lengths 64`: decoding is about a tenth faster than without.
const FETCH_AHEAD: usize = 128;

thread_local! {
    static TILE: RefCell<AlignedBuffer<f32>> = RefCell::new(AlignedBuffer::zeroed(TILE_K * PANEL));
}

/// Computes `y = x · wᵀ + init` for `x` of `[m, k]` and `y` of `[m, n]`, both dense and row-major.
///
/// # Panics
/// If a length does not fit `m` and the shape of `w`.
pub fn matmul(threads: &Threads, x: &[f32], m: usize, w: &Linear, init: Init<'_>, y: &mut [f32]) {
    assert_eq!(x.len(), m * w.k(), "x is [{m}, {}]", w.k());
    assert_eq!(y.len(), m * w.n(), "y is [{m}, {}]", w.n());
    if let Init::Bias(bias) = init {
        assert_eq!(bias.len(), w.n(), "one bias for each output");
        y.chunks_exact_mut(w.n()).for_each(|row| row.copy_from_slice(bias));
    }
    if m == 0 {
        return;
    }
    let accumulate = !matches!(init, Init::Zero);
    let y = SharedMut::new(y);
    // Eight tasks per thread even out threads of different speed; neighbouring panels in one task keep reads sequential.
    let panels_per_task = w.panels.len().div_ceil(threads.count() * 8).next_multiple_of(2);
    threads.for_each(w.panels.len().div_ceil(panels_per_task), |task| {
        let first = task * panels_per_task;
        let panels = &w.panels[first..(first + panels_per_task).min(w.panels.len())];
        for pair in pairs(panels) {
            let job = Job { x: x.as_ptr(), m, k: w.k(), y, ldy: w.n(), accumulate };
            let isa = threads.isa();
            if m <= STREAM_ROWS {
                // SAFETY: `x` and `y` have the lengths checked above, and each column of `y` belongs to exactly one task.
                unsafe { dispatch!(isa, stream(job: &Job = &job, w: &Linear = w, pair: &[PanelRef] = pair)) }
            } else {
                for panel in pair {
                    TILE.with_borrow_mut(|tile| {
                        let (matrix, tile) = (&w.parts()[panel.part], tile.as_mut_ptr());
                        // SAFETY: as above, and the tile is this thread's own.
                        unsafe { dispatch!(isa, tiled(job: &Job = &job, matrix: &Matrix = matrix, panel: &PanelRef = panel, tile: *mut f32 = tile)) }
                    });
                }
            }
        }
    });
}

/// Splits into pairs of neighbouring panels of one part: two panels give enough independent sums to hide the latency of an addition.
fn pairs(mut panels: &[PanelRef]) -> impl Iterator<Item = &[PanelRef]> {
    std::iter::from_fn(move || {
        let take = match panels {
            [] => return None,
            [a, b, ..] if a.part == b.part => 2,
            _ => 1,
        };
        let (pair, rest) = panels.split_at(take);
        panels = rest;
        Some(pair)
    })
}

struct Job {
    x: *const f32,
    m: usize,
    k: usize,
    y: SharedMut<f32>,
    ldy: usize,
    accumulate: bool,
}

/// Decodes the weights of one panel.
///
/// # Safety of the methods
/// `k`, `k + 1` and `group` must lie within the panel, `lane + S::LANES <= PANEL`, and the machine must have `S`.
trait Weights: Copy {
    /// Returns the number of inputs that share a scale, of `k` in total.
    fn group(self, k: usize) -> usize;
    /// Loads scales and minima of one group.
    unsafe fn scales<S: Simd>(self, group: usize, lane: usize) -> (S::V, S::V);
    /// Prefetches the weights of input `k`, which may lie beyond the panel.
    fn fetch(self, k: usize);
    /// Decodes the weights of inputs `k`, which is even, and `k + 1`.
    unsafe fn decode<S: Simd>(self, k: usize, lane: usize, scales: (S::V, S::V)) -> [S::V; 2];
}

macro_rules! dense_weights {
    ($name:ident, $element:ty, $load:ident) => {
        #[derive(Clone, Copy)]
        struct $name(*const $element);

        impl Weights for $name {
            #[inline(always)]
            fn group(self, k: usize) -> usize {
                k
            }
            #[inline(always)]
            unsafe fn scales<S: Simd>(self, _group: usize, _lane: usize) -> (S::V, S::V) {
                // SAFETY: touches no memory; the instruction set is the caller's promise.
                unsafe { (S::splat(1.0), S::splat(0.0)) }
            }
            #[inline(always)]
            fn fetch(self, k: usize) {
                prefetch(self.0.wrapping_add(k * PANEL));
            }
            #[inline(always)]
            unsafe fn decode<S: Simd>(self, k: usize, lane: usize, _scales: (S::V, S::V)) -> [S::V; 2] {
                // SAFETY: within the panel by the caller's promise.
                unsafe { [S::$load(self.0.add(k * PANEL + lane)), S::$load(self.0.add((k + 1) * PANEL + lane))] }
            }
        }
    };
}

dense_weights!(F32Weights, f32, load);
dense_weights!(F16Weights, u16, load_f16);
dense_weights!(Bf16Weights, u16, load_bf16);

#[derive(Clone, Copy)]
struct GroupScales<const AFFINE: bool> {
    scales: *const f32,
    mins: *const f32,
    group: usize,
}

impl<const AFFINE: bool> GroupScales<AFFINE> {
    fn new(scales: &Scales, at: usize) -> Self {
        let mins = if AFFINE { scales.mins[at..].as_ptr() } else { std::ptr::null() };
        Self { scales: scales.scales[at..].as_ptr(), mins, group: scales.group }
    }

    /// # Safety
    /// As [`Weights`].
    #[inline(always)]
    unsafe fn load<S: Simd>(self, group: usize, lane: usize) -> (S::V, S::V) {
        let at = group * PANEL + lane;
        // SAFETY: within the panel by the caller's promise.
        unsafe { (S::load(self.scales.add(at)), if AFFINE { S::load(self.mins.add(at)) } else { S::splat(0.0) }) }
    }
}

#[derive(Clone, Copy)]
struct CodeWeights<const AFFINE: bool> {
    codes: *const i8,
    scales: GroupScales<AFFINE>,
}

impl<const AFFINE: bool> Weights for CodeWeights<AFFINE> {
    #[inline(always)]
    fn group(self, _k: usize) -> usize {
        self.scales.group
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(self, group: usize, lane: usize) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe { self.scales.load::<S>(group, lane) }
    }
    #[inline(always)]
    fn fetch(self, k: usize) {
        prefetch(self.codes.wrapping_add(k * PANEL));
    }
    #[inline(always)]
    unsafe fn decode<S: Simd>(self, k: usize, lane: usize, (scale, min): (S::V, S::V)) -> [S::V; 2] {
        // SAFETY: within the panel by the caller's promise.
        unsafe {
            let p = self.codes.add(k * PANEL + lane);
            let (even, odd) = (S::load_i8(p), S::load_i8(p.add(PANEL)));
            if AFFINE { [S::fma(even, scale, min), S::fma(odd, scale, min)] } else { [S::mul(even, scale), S::mul(odd, scale)] }
        }
    }
}

#[derive(Clone, Copy)]
struct NibbleWeights<const AFFINE: bool> {
    low: *const u8,
    offset: i8,
    scales: GroupScales<AFFINE>,
}

impl<const AFFINE: bool> Weights for NibbleWeights<AFFINE> {
    #[inline(always)]
    fn group(self, _k: usize) -> usize {
        self.scales.group
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(self, group: usize, lane: usize) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe {
            let (scale, min) = self.scales.load::<S>(group, lane);
            // The offset becomes part of the minimum. It is a power of two, so this product and the following sum round as one.
            (scale, if AFFINE { min } else { S::mul(scale, S::splat(-f32::from(self.offset))) })
        }
    }
    #[inline(always)]
    fn fetch(self, k: usize) {
        prefetch(self.low.wrapping_add(k / 2 * PANEL));
    }
    #[inline(always)]
    unsafe fn decode<S: Simd>(self, k: usize, lane: usize, (scale, min): (S::V, S::V)) -> [S::V; 2] {
        // SAFETY: within the panel by the caller's promise.
        unsafe {
            let [even, odd] = S::load_nibbles(self.low.add(k / 2 * PANEL + lane));
            [S::fma(even, scale, min), S::fma(odd, scale, min)]
        }
    }
}

/// Evaluates `$body` with `$w` bound to a function from a panel index to its [`Weights`].
macro_rules! with_weights {
    ($matrix:expr, |$w:ident| $body:expr) => {{
        let matrix: &Matrix = $matrix;
        let panel_len = matrix.k * PANEL;
        match &matrix.data {
            Panels::F32(data) => {
                let $w = |panel: usize| F32Weights(data[panel * panel_len..].as_ptr());
                $body
            }
            Panels::F16(data) => {
                let $w = |panel: usize| F16Weights(data[panel * panel_len..].as_ptr());
                $body
            }
            Panels::Bf16(data) => {
                let $w = |panel: usize| Bf16Weights(data[panel * panel_len..].as_ptr());
                $body
            }
            Panels::Codes { codes, scales } => {
                let codes = |panel: usize| codes[panel * panel_len..].as_ptr();
                let at = |panel: usize| panel * panel_len / scales.group;
                if scales.mins.is_empty() {
                    let $w =
                        |panel: usize| CodeWeights { codes: codes(panel), scales: GroupScales::<false>::new(scales, at(panel)) };
                    $body
                } else {
                    let $w =
                        |panel: usize| CodeWeights { codes: codes(panel), scales: GroupScales::<true>::new(scales, at(panel)) };
                    $body
                }
            }
            Panels::Nibbles { low, offset, scales } => {
                let low = |panel: usize| low[panel * panel_len / 2..].as_ptr();
                let at = |panel: usize| panel * panel_len / scales.group;
                if scales.mins.is_empty() {
                    let $w = |panel: usize| NibbleWeights {
                        low: low(panel),
                        offset: *offset,
                        scales: GroupScales::<false>::new(scales, at(panel)),
                    };
                    $body
                } else {
                    let $w = |panel: usize| NibbleWeights {
                        low: low(panel),
                        offset: *offset,
                        scales: GroupScales::<true>::new(scales, at(panel)),
                    };
                    $body
                }
            }
        }
    }};
}

/// Multiplies all rows (few) by one or two panels, decoding in registers.
///
/// # Safety
/// `job.x` is `[m, k]`, `job.y` is `[m, ldy]` with no other thread in these panels' columns, and the machine has `S`.
#[inline(always)]
unsafe fn stream<S: Simd>(job: &Job, w: &Linear, pair: &[PanelRef]) {
    let matrix = &w.parts()[pair[0].part];
    with_weights!(matrix, |weights| {
        // SAFETY: the caller's promise, row by row.
        unsafe {
            match (pair, S::LANES) {
                ([a, b], 16) => stream_panels::<S, _, 2, 2>(job, [weights(a.panel), weights(b.panel)], [*a, *b]),
                _ => {
                    for a in pair {
                        match S::LANES {
                            16 => stream_panels::<S, _, 1, 2>(job, [weights(a.panel)], [*a]),
                            8 => stream_panels::<S, _, 1, 4>(job, [weights(a.panel)], [*a]),
                            _ => stream_panels::<S, _, 1, PANEL>(job, [weights(a.panel)], [*a]),
                        }
                    }
                }
            }
        }
    });
}

/// # Safety
/// As [`stream`]; `NV * S::LANES == PANEL`.
#[inline(always)]
unsafe fn stream_panels<S: Simd, W: Weights, const NP: usize, const NV: usize>(
    job: &Job,
    weights: [W; NP],
    panels: [PanelRef; NP],
) {
    let mut row = 0;
    while row < job.m {
        // SAFETY: `row + MR <= m` in each call; the rest is the caller's promise.
        unsafe {
            match job.m - row {
                1 => stream_rows::<S, W, 1, NP, NV>(job, row, weights, panels),
                2 | 3 => stream_rows::<S, W, 2, NP, NV>(job, row, weights, panels),
                _ => stream_rows::<S, W, 4, NP, NV>(job, row, weights, panels),
            }
        }
        row += match job.m - row {
            1 => 1,
            2 | 3 => 2,
            _ => 4,
        };
    }
}

/// # Safety
/// As [`stream_panels`], and `row + MR <= m`.
#[inline(always)]
unsafe fn stream_rows<S: Simd, W: Weights, const MR: usize, const NP: usize, const NV: usize>(
    job: &Job,
    row: usize,
    weights: [W; NP],
    panels: [PanelRef; NP],
) {
    // SAFETY: offsets stay in `[m, k]`, `[m, ldy]` and the panels by the caller's promise.
    unsafe {
        let mut acc = [[[S::splat(0.0); NV]; NP]; MR];
        if job.accumulate {
            for r in 0..MR {
                for p in 0..NP {
                    acc[r][p] = load_columns::<S, NV>(job.y.at((row + r) * job.ldy + panels[p].column), panels[p].width);
                }
            }
        }
        let x = job.x.add(row * job.k);
        let group = weights[0].group(job.k);
        for g in 0..job.k / group {
            let mut scales = [[(S::splat(0.0), S::splat(0.0)); NV]; NP];
            for p in 0..NP {
                for v in 0..NV {
                    scales[p][v] = weights[p].scales::<S>(g, v * S::LANES);
                }
            }
            for k in (g * group..(g + 1) * group).step_by(2) {
                let ahead = if k + FETCH_AHEAD < job.k { k + FETCH_AHEAD } else { k + FETCH_AHEAD + (NP - 1) * job.k };
                for p in 0..NP {
                    weights[p].fetch(ahead);
                    for v in 0..NV {
                        let pair = weights[p].decode::<S>(k, v * S::LANES, scales[p][v]);
                        for r in 0..MR {
                            let x = x.add(r * job.k + k);
                            acc[r][p][v] = S::fma(S::splat(*x), pair[0], acc[r][p][v]);
                            acc[r][p][v] = S::fma(S::splat(*x.add(1)), pair[1], acc[r][p][v]);
                        }
                    }
                }
            }
        }
        for r in 0..MR {
            for p in 0..NP {
                store_columns::<S, NV>(job.y.at((row + r) * job.ldy + panels[p].column), panels[p].width, acc[r][p]);
            }
        }
    }
}

/// # Safety
/// `p` is valid for `width <= PANEL` reads.
#[inline(always)]
unsafe fn load_columns<S: Simd, const NV: usize>(p: *const f32, width: usize) -> [S::V; NV] {
    let mut out = [0f32; PANEL];
    // SAFETY: `width` elements by the caller's promise, then the local array.
    unsafe {
        let from = if width == PANEL {
            p
        } else {
            std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), width);
            out.as_ptr()
        };
        std::array::from_fn(|v| S::load(from.add(v * S::LANES)))
    }
}

/// # Safety
/// `p` is valid for `width <= PANEL` writes.
#[inline(always)]
unsafe fn store_columns<S: Simd, const NV: usize>(p: *mut f32, width: usize, values: [S::V; NV]) {
    let mut out = [0f32; PANEL];
    // SAFETY: the local array, or `width` elements by the caller's promise.
    unsafe {
        let to = if width == PANEL { p } else { out.as_mut_ptr() };
        for (v, value) in values.into_iter().enumerate() {
            S::store(to.add(v * S::LANES), value);
        }
        if width != PANEL {
            std::ptr::copy_nonoverlapping(out.as_ptr(), p, width);
        }
    }
}

/// Multiplies all rows (many) by one panel, decoded piece by piece into `tile`.
///
/// # Safety
/// As [`stream`]; `tile` holds `TILE_K * PANEL` elements of this thread's own.
#[inline(always)]
unsafe fn tiled<S: Simd>(job: &Job, matrix: &Matrix, panel: &PanelRef, tile: *mut f32) {
    let mut edge = [0f32; 16 * PANEL];
    for k0 in (0..job.k).step_by(TILE_K) {
        let kc = TILE_K.min(job.k - k0);
        let accumulate = job.accumulate || k0 > 0;
        // SAFETY: rows `row..row + rows` and columns of this panel lie in `y`; a narrow panel goes through `edge`, 16 rows at a time.
        unsafe {
            with_weights!(matrix, |weights| decode_tile::<S, _>(weights(panel.panel), matrix.k, k0, kc, tile));
            let step = if panel.width == PANEL { job.m } else { 16 };
            for row in (0..job.m).step_by(step) {
                let rows = step.min(job.m - row);
                let a = job.x.add(row * job.k + k0);
                let y = |r: usize| job.y.at((row + r) * job.ldy + panel.column);
                if panel.width == PANEL {
                    gemm_panel::<S, f32>(rows, kc, a, job.k, tile, PANEL, y(0), job.ldy, accumulate);
                    continue;
                }
                for r in 0..rows {
                    std::ptr::copy_nonoverlapping(y(r), edge.as_mut_ptr().add(r * PANEL), panel.width);
                }
                gemm_panel::<S, f32>(rows, kc, a, job.k, tile, PANEL, edge.as_mut_ptr(), PANEL, accumulate);
                for r in 0..rows {
                    std::ptr::copy_nonoverlapping(edge.as_ptr().add(r * PANEL), y(r), panel.width);
                }
            }
        }
    }
}

/// # Safety
/// `k0 + kc <= k`, `k0` a multiple of every group; `tile` holds `kc * PANEL` elements.
#[inline(always)]
unsafe fn decode_tile<S: Simd, W: Weights>(weights: W, k: usize, k0: usize, kc: usize, tile: *mut f32) {
    let group = weights.group(k);
    let mut at = 0;
    while at < kc {
        let end = kc.min(((k0 + at) / group + 1) * group - k0);
        for lane in (0..PANEL).step_by(S::LANES) {
            // SAFETY: inputs `k0 + at .. k0 + end` lie in the panel, and `at .. end` in the tile.
            unsafe {
                let scales = weights.scales::<S>((k0 + at) / group, lane);
                for i in (at..end).step_by(2) {
                    let [even, odd] = weights.decode::<S>(k0 + i, lane, scales);
                    S::store(tile.add(i * PANEL + lane), even);
                    S::store(tile.add((i + 1) * PANEL + lane), odd);
                }
            }
        }
        at = end;
    }
}

/// Computes `C[rows, 32] (+)= A[rows, kc] · B[kc, 32]`, each sum in ascending order of `k`. `B` may be stored in f16.
///
/// # Safety
/// The strides must keep all accesses inside the three arrays; `C` overlaps neither `A` nor `B`; the machine has `S`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the shape of a BLAS routine, known to every reader")]
pub(crate) unsafe fn gemm_panel<S: Simd, E: Element>(
    rows: usize,
    kc: usize,
    a: *const f32,
    lda: usize,
    b: *const E,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    let mut row = 0;
    macro_rules! run {
        ($mr:literal, $nv:expr) => {
            while rows - row >= $mr {
                // SAFETY: `row + $mr <= rows`; the rest is the caller's promise.
                unsafe { micro::<S, E, $mr, { $nv }>(kc, a.add(row * lda), lda, b, ldb, c.add(row * ldc), ldc, accumulate) }
                row += $mr;
            }
        };
    }
    match S::LANES {
        16 => {
            run!(12, 2);
            run!(8, 2);
            run!(7, 2);
            run!(4, 2);
            run!(3, 2);
            run!(2, 2);
            run!(1, 2);
        }
        8 => {
            run!(3, 4);
            run!(1, 4);
        }
        _ => {
            run!(1, PANEL);
        }
    }
}

/// Runs the innermost loop: `MR` rows, `NV` vectors of columns, all sums in registers.
///
/// # Safety
/// As [`gemm_panel`], for `MR` rows.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "as `gemm_panel`")]
unsafe fn micro<S: Simd, E: Element, const MR: usize, const NV: usize>(
    kc: usize,
    a: *const f32,
    lda: usize,
    b: *const E,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: offsets are those of the caller's promise.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        if accumulate {
            for r in 0..MR {
                for v in 0..NV {
                    acc[r][v] = S::load(c.add(r * ldc + v * S::LANES));
                }
            }
        }
        for k in 0..kc {
            let mut weights = [S::splat(0.0); NV];
            for v in 0..NV {
                weights[v] = E::load::<S>(b.add(k * ldb + v * S::LANES));
            }
            for r in 0..MR {
                let x = S::splat(*a.add(r * lda + k));
                for v in 0..NV {
                    acc[r][v] = S::fma(x, weights[v], acc[r][v]);
                }
            }
        }
        for r in 0..MR {
            for v in 0..NV {
                S::store(c.add(r * ldc + v * S::LANES), acc[r][v]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cpu::{GgmlType, Isa};

    fn reference(x: &[f32], m: usize, k: usize, rows: &[Vec<f32>], init: &[f32]) -> Vec<f32> {
        let mut y = Vec::new();
        for r in 0..m {
            for (n, w) in rows.iter().enumerate() {
                let dot: f64 = (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[i])).sum();
                y.push((dot + f64::from(init[r * rows.len() + n])) as f32);
            }
        }
        y
    }

    fn decoded(w: &Linear) -> Vec<Vec<f32>> {
        let row = |matrix: &Matrix, i: usize| {
            let mut out = vec![0.0; matrix.k()];
            matrix.read_row(i, &mut out);
            out
        };
        w.parts().iter().flat_map(|matrix| (0..matrix.n()).map(move |i| row(matrix, i))).collect()
    }

    #[track_caller]
    fn check(w: &Linear, m: usize) {
        let (x, before) = (noise(m * w.k(), 1), noise(m * w.n(), 2));
        let expected = reference(&x, m, w.k(), &decoded(w), &before);
        for isa in Isa::available() {
            let threads = Threads::with_isa(2, isa).unwrap();
            let mut y = before.clone();
            matmul(&threads, &x, m, w, Init::Accumulate, &mut y);
            for (i, (y, e)) in y.iter().zip(&expected).enumerate() {
                assert!((y - e).abs() < 1e-4 * (1.0 + e.abs()), "{isa:?} m={m} at {i}: {y} is not {e}");
            }
            // A single row gives the same bits as in a batch.
            let r = m / 2;
            let mut alone = before[r * w.n()..][..w.n()].to_vec();
            matmul(&threads, &x[r * w.k()..][..w.k()], 1, w, Init::Accumulate, &mut alone);
            assert_eq!(alone, y[r * w.n()..][..w.n()], "{isa:?} m={m}: batch variant");
        }
    }

    fn random_matrix(ty: GgmlType, n: usize, k: usize) -> Matrix {
        let bytes = k / ty.block_len() * ty.block_bytes();
        let mut raw: Vec<u8> = noise(n * bytes, 3).iter().map(|x| (x * 255.0) as i32 as u8).collect();
        // Scales must be finite f16 values: overwrite the exponent of each field that may be one, through the whole block.
        for block in raw.chunks_exact_mut(ty.block_bytes()) {
            let halves: &[usize] = match ty {
                GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
                GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => &[0, 2],
                GgmlType::Q2K => &[80, 82],
                GgmlType::Q3K => &[108],
                GgmlType::Q6K => &[208],
                GgmlType::F16 => &[0],
                GgmlType::Bf16 | GgmlType::F32 => &[],
            };
            for at in halves {
                block[*at + 1] = 0x20 | (block[*at + 1] & 0x83);
            }
            match ty {
                GgmlType::Bf16 => block[1] = 0x3c | (block[1] & 0x80),
                GgmlType::F32 => block.copy_from_slice(&(f32::from(block[0]) / 512.0 - 0.25).to_le_bytes()),
                _ => {}
            }
        }
        Matrix::from_ggml(ty, n, k, &raw)
    }

    #[test]
    fn every_format_multiplies_as_its_decoded_rows() {
        use GgmlType::*;
        for ty in [F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
            let w = Linear::new(vec![random_matrix(ty, 70, 256)]);
            for m in [1, 3, 31] {
                check(&w, m);
            }
        }
    }

    #[test]
    fn parts_of_odd_widths_stand_side_by_side() {
        let w = Linear::new(vec![random_matrix(GgmlType::Q4_0, 33, 64), random_matrix(GgmlType::F32, 7, 64)]);
        for m in [1, 2, 5, 40] {
            check(&w, m);
        }
    }

    #[test]
    fn more_inputs_than_a_tile_holds() {
        let w = Linear::new(vec![random_matrix(GgmlType::Q5_1, 40, 2 * TILE_K + 96)]);
        for m in [4, 13] {
            check(&w, m);
        }
    }

    #[test]
    fn a_bias_is_the_start_of_the_sum() {
        let w = Linear::new(vec![Matrix::from_f32(3, 2, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0])]);
        let mut y = vec![0.0; 3];
        matmul(&Threads::new(1).unwrap(), &[2.0, 3.0], 1, &w, Init::Bias(&[10.0, 20.0, 30.0]), &mut y);
        assert_eq!(y, [12.0, 23.0, 35.0]);
    }
}
