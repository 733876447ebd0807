//! Attention over the paged pool for arbitrary query positions.
//!
//! A query row attends to positions `0..=position` of its sequence, or the last ones of these within a window, independent of its index in
//! the batch: prefill, chunked prefill, decode and a few scattered rows use one kernel, and no row can see later positions. Masking depends
//! on position, never on the row's index.
//!
//! Processes one block of 32 positions at a time with a running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022, alg. 1). A
//! row processes the same blocks in the same order whatever other rows are in the batch, so its bits do not depend on them.

use std::cell::RefCell;
use std::ops::Range;

use super::aligned::AlignedBuffer;
use super::block::{BLOCK, Element, Elements, KvLayer, KvShape, with_elements};
use super::matmul::gemm_panel;
use super::simd::{Simd, dispatch, prefetch};
use super::threads::{SharedMut, Threads};

/// Shape of the queries.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Number of query heads; a multiple of the pool's heads.
    pub num_heads: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Elements from one query row to the next.
    pub q_stride: usize,
    /// Number of last positions that a row attends to, its own among them; at least 1, `u32::MAX` for all.
    pub window: u32,
}

impl AttentionShape {
    /// Returns the first position that a row at `position` attends to.
    pub(super) fn first_visible(&self, position: u32) -> usize {
        (position as usize + 1).saturating_sub(self.window as usize)
    }
}

/// Query rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct QuerySequence<'a> {
    /// First row in the batch.
    pub first_row: usize,
    /// Position of each row, ascending.
    pub positions: &'a [u32],
    /// Block of positions `32 i ..`, covering every row.
    pub block_table: &'a [u32],
}

/// Query rows (token times head of its group) that share one pass over the keys. Chosen: their scores and sums stay in L1.
pub(super) const TILE_ROWS: usize = 96;

/// Computes `out[row] = softmax(scale * q Kᵀ) V` for all rows; `out` is `[rows, num_heads * head_dim]`.
///
/// # Panics
/// If lengths do not fit, or a block table does not cover its rows.
pub fn attention(
    threads: &Threads,
    shape: AttentionShape,
    q: &[f32],
    kv: &KvLayer,
    sequences: &[QuerySequence<'_>],
    out: &mut [f32],
) {
    let pool = kv.shape();
    let width = shape.num_heads * pool.head_dim;
    let group = shape.num_heads / pool.num_kv_heads;
    assert_eq!(group * pool.num_kv_heads, shape.num_heads, "query heads share key heads evenly");
    assert!(shape.window > 0, "a row attends to itself");
    let tile_tokens = (TILE_ROWS / group).max(1);
    let mut tasks = Vec::new();
    for sequence in sequences {
        let (end, last) = (sequence.first_row + sequence.positions.len(), sequence.positions.last().copied().unwrap_or(0));
        assert!(end * width <= out.len() && (end == 0 || (end - 1) * shape.q_stride + width <= q.len()), "rows lie in the batch");
        assert!(last as usize / BLOCK < sequence.block_table.len(), "the block table covers position {last}");
        assert!(sequence.block_table.iter().all(|block| (*block as usize) < pool.num_blocks), "every block lies in the pool");
        debug_assert!(sequence.positions.is_sorted());
        for start in (0..sequence.positions.len()).step_by(tile_tokens) {
            let positions = &sequence.positions[start..(start + tile_tokens).min(sequence.positions.len())];
            tasks.extend((0..pool.num_kv_heads).map(|kv_head| Tile {
                first_row: sequence.first_row + start,
                positions,
                block_table: sequence.block_table,
                kv_head,
                group,
            }));
        }
    }
    let out = SharedMut::new(out);
    // The last tiles of a prompt have the longest context: start with them.
    tasks.reverse();
    threads.for_each(tasks.len(), |i| {
        let job = Job { q: q.as_ptr(), out, shape, pool };
        with_elements!(kv, |keys, values| {
            Scratch::with(|scratch| {
                let (keys, values) = (keys.as_ptr(), values.as_ptr());
                // SAFETY: rows and blocks were checked above; each (row, head) belongs to one task, and the scratch to this thread.
                unsafe { attend(threads.isa(), &job, &tasks[i], keys, values, scratch) }
            });
        });
    });
}

/// Number of rows up to which keys and values are used as stored: converting them to f32 first pays only if they are read often.
const DIRECT_ROWS: usize = 12;

pub(super) struct Job {
    pub(super) q: *const f32,
    pub(super) out: SharedMut<f32>,
    pub(super) shape: AttentionShape,
    pub(super) pool: KvShape,
}

pub(super) struct Tile<'a> {
    pub(super) first_row: usize,
    pub(super) positions: &'a [u32],
    pub(super) block_table: &'a [u32],
    pub(super) kv_head: usize,
    pub(super) group: usize,
}

impl Tile<'_> {
    pub(super) fn rows(&self) -> usize {
        self.positions.len() * self.group
    }

    /// Returns the blocks that any row attends to.
    pub(super) fn blocks(&self, shape: &AttentionShape) -> Range<usize> {
        let (first, last) = (self.positions[0], *self.positions.last().expect("a tile has rows"));
        shape.first_visible(first) / BLOCK..last as usize / BLOCK + 1
    }

    /// Returns the rows that attend to `block`. They are adjacent, for positions ascend.
    pub(super) fn readers(&self, shape: &AttentionShape, block: usize) -> Range<usize> {
        let before = self.positions.partition_point(|p| (*p as usize) < block * BLOCK);
        let until = self.positions.partition_point(|p| shape.first_visible(*p) < (block + 1) * BLOCK);
        before * self.group..until * self.group
    }

    /// Returns the slots of `block` that `row` attends to.
    pub(super) fn visible(&self, shape: &AttentionShape, row: usize, block: usize) -> Range<usize> {
        let position = self.positions[row / self.group];
        let first = shape.first_visible(position).saturating_sub(block * BLOCK);
        first..(position as usize + 1 - block * BLOCK).min(BLOCK)
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Working memory of one tile; grows to the largest head and group seen.
#[derive(Default)]
pub(super) struct Scratch {
    sizes: (usize, usize),
    /// `[rows, head_dim]`, scaled.
    q: Option<AlignedBuffer<f32>>,
    /// `[head_dim, 32]`
    keys: Option<AlignedBuffer<f32>>,
    /// `[32, padded head_dim]`
    values: Option<AlignedBuffer<f32>>,
    /// `[rows, 32]`
    scores: Option<AlignedBuffer<f32>>,
    /// `[rows, padded head_dim]`
    sums: Option<AlignedBuffer<f32>>,
    max: Vec<f32>,
    total: Vec<f32>,
}

pub(super) struct Buffers<'a> {
    pub(super) q: &'a mut [f32],
    pub(super) keys: &'a mut [f32],
    values: &'a mut [f32],
    pub(super) scores: &'a mut [f32],
    sums: &'a mut [f32],
    pub(super) max: &'a mut [f32],
    pub(super) total: &'a mut [f32],
}

impl Scratch {
    /// Calls `f` with this thread's scratch.
    pub(super) fn with(f: impl FnOnce(&mut Self)) {
        SCRATCH.with_borrow_mut(f);
    }

    pub(super) fn buffers(&mut self, rows: usize, head_dim: usize) -> Buffers<'_> {
        let padded = head_dim.next_multiple_of(BLOCK);
        if self.sizes.0 < rows || self.sizes.1 != head_dim {
            let rows = rows.max(TILE_ROWS);
            self.sizes = (rows, head_dim);
            self.q = Some(AlignedBuffer::zeroed(rows * head_dim));
            // A block is converted 32 elements at a time: the last line may overrun by one block.
            self.keys = Some(AlignedBuffer::zeroed(head_dim * BLOCK));
            self.values = Some(AlignedBuffer::zeroed(BLOCK * padded + BLOCK));
            self.scores = Some(AlignedBuffer::zeroed(rows * BLOCK));
            self.sums = Some(AlignedBuffer::zeroed(rows * padded));
            self.max = vec![0.0; rows];
            self.total = vec![0.0; rows];
        }
        fn some(buffer: &mut Option<AlignedBuffer<f32>>) -> &mut [f32] {
            buffer.as_mut().expect("allocated above")
        }
        Buffers {
            q: some(&mut self.q),
            keys: some(&mut self.keys),
            values: some(&mut self.values),
            scores: some(&mut self.scores),
            sums: some(&mut self.sums),
            max: &mut self.max,
            total: &mut self.total,
        }
    }
}

/// # Safety
/// Rows of the tile lie in `q` and `out`, its blocks in the pool, and its (row, head) pairs belong to this thread.
unsafe fn attend<E: Element>(
    isa: super::Isa,
    job: &Job,
    tile: &Tile<'_>,
    keys: *const E,
    values: *const E,
    scratch: &mut Scratch,
) {
    // SAFETY: the caller's promise.
    unsafe {
        dispatch!(isa, attend_tile[E: Element](job: &Job = job, tile: &Tile<'_> = tile, keys: *const E = keys, values: *const E = values, scratch: &mut Scratch = scratch));
    }
}

/// # Safety
/// As [`attend`]; the machine has `S`.
#[inline(always)]
unsafe fn attend_tile<S: Simd, E: Element>(job: &Job, tile: &Tile<'_>, keys: *const E, values: *const E, scratch: &mut Scratch) {
    let (rows, head_dim) = (tile.rows(), job.pool.head_dim);
    let padded = head_dim.next_multiple_of(BLOCK);
    let b = scratch.buffers(rows, head_dim);
    b.max[..rows].fill(f32::NEG_INFINITY);
    b.total[..rows].fill(0.0);
    b.sums[..rows * padded].fill(0.0);
    let last = *tile.positions.last().expect("a tile has rows") as usize;
    // SAFETY: all offsets lie in the scratch (sized for `rows` and `head_dim`), the pool and the batch.
    unsafe {
        load_queries::<S>(job, tile, b.q);
        for i in tile.blocks(&job.shape) {
            let base = tile.block_table[i] as usize * job.pool.block_len() + tile.kv_head * BLOCK * head_dim;
            if let Some(next) = tile.block_table.get(i + 1) {
                let next = *next as usize * job.pool.block_len() + tile.kv_head * BLOCK * head_dim;
                fetch_ahead(keys.wrapping_add(next), values.wrapping_add(next), BLOCK * head_dim);
            }
            if rows > DIRECT_ROWS {
                widen_block::<S, E>(keys.add(base), values.add(base), head_dim, b.keys, b.values);
            }
            let readers = tile.readers(&job.shape, i);
            let (skip, active) = (readers.start, readers.len());
            let scores = b.scores.as_mut_ptr().add(skip * BLOCK);
            let q = b.q.as_ptr().add(skip * head_dim);
            if rows > DIRECT_ROWS {
                gemm_panel::<S, f32>(active, head_dim, q, head_dim, b.keys.as_ptr(), BLOCK, scores, BLOCK, false);
            } else {
                gemm_panel::<S, E>(active, head_dim, q, head_dim, keys.add(base), BLOCK, scores, BLOCK, false);
            }
            for row in readers {
                let visible = tile.visible(&job.shape, row, i);
                let scores = &mut b.scores[row * BLOCK..][..BLOCK];
                let sums = &mut b.sums[row * padded..][..padded];
                soften::<S>(scores, visible, &mut b.max[row], &mut b.total[row], sums);
            }
            // Slots after the last row's hold what an earlier sequence left: perhaps NaN, which a weight of zero does not remove.
            let written = (last + 1 - i * BLOCK).min(BLOCK);
            for d in (0..padded).step_by(BLOCK) {
                let sums = b.sums.as_mut_ptr().add(skip * padded + d);
                if rows > DIRECT_ROWS {
                    gemm_panel::<S, f32>(active, written, scores, BLOCK, b.values.as_ptr().add(d), padded, sums, padded, true);
                } else {
                    gemm_panel::<S, E>(active, written, scores, BLOCK, values.add(base + d), head_dim, sums, padded, true);
                }
            }
        }
        store_rows(job, tile, b.sums, b.total);
    }
}

/// Prefetches the next block. Hardware prefetchers stop at the end of a page, which one head of a block fills.
fn fetch_ahead<E: Element>(keys: *const E, values: *const E, len: usize) {
    let elements_per_line = 64 / size_of::<E>();
    for at in (0..len).step_by(elements_per_line) {
        prefetch(keys.wrapping_add(at));
        prefetch(values.wrapping_add(at));
    }
}

/// Converts one head of a block to f32: keys in their layout, values with their rows padded to whole panels.
///
/// # Safety
/// `keys` and `values` are valid for a block and [`BLOCK`] elements more; the buffers are those of [`Scratch`].
#[inline(always)]
unsafe fn widen_block<S: Simd, E: Element>(
    keys: *const E,
    values: *const E,
    head_dim: usize,
    wide_keys: &mut [f32],
    wide_values: &mut [f32],
) {
    let padded = head_dim.next_multiple_of(BLOCK);
    // SAFETY: the caller's promise.
    unsafe {
        for line in 0..head_dim {
            E::widen::<S>(keys.add(line * BLOCK), wide_keys.as_mut_ptr().add(line * BLOCK));
        }
        for slot in 0..BLOCK {
            for d in (0..head_dim).step_by(BLOCK) {
                E::widen::<S>(values.add(slot * head_dim + d), wide_values.as_mut_ptr().add(slot * padded + d));
            }
        }
    }
}

/// # Safety
/// As [`attend`].
#[inline(always)]
pub(super) unsafe fn load_queries<S: Simd>(job: &Job, tile: &Tile<'_>, q: &mut [f32]) {
    let head_dim = job.pool.head_dim;
    for row in 0..tile.rows() {
        let (token, head) = (row / tile.group, tile.kv_head * tile.group + row % tile.group);
        // SAFETY: the row lies in the batch.
        unsafe {
            let from = job.q.add((tile.first_row + token) * job.shape.q_stride + head * head_dim);
            for (i, q) in q[row * head_dim..][..head_dim].iter_mut().enumerate() {
                *q = *from.add(i) * job.shape.scale;
            }
        }
    }
}

/// Turns the scores of one row and block into weights, and rescales earlier sums to the new maximum.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(super) unsafe fn soften<S: Simd>(
    scores: &mut [f32],
    visible: Range<usize>,
    max: &mut f32,
    total: &mut f32,
    sums: &mut [f32],
) {
    scores[..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..].fill(f32::NEG_INFINITY);
    let p = scores.as_mut_ptr();
    // SAFETY: a row of scores holds 32 elements, the sums whole vectors.
    unsafe {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for i in (0..BLOCK).step_by(S::LANES) {
            largest = S::max(largest, S::load(p.add(i)));
        }
        let new_max = S::reduce_max(largest).max(*max);
        let mut sum = S::splat(0.0);
        for i in (0..BLOCK).step_by(S::LANES) {
            let e = S::exp(S::sub(S::load(p.add(i)), S::splat(new_max)));
            S::store(p.add(i), e);
            sum = S::add(sum, e);
        }
        let correction = if *max == f32::NEG_INFINITY { 0.0 } else { (*max - new_max).exp() };
        *total = *total * correction + S::reduce_add(sum);
        *max = new_max;
        if correction != 1.0 {
            for i in (0..sums.len()).step_by(S::LANES) {
                let at = sums.as_mut_ptr().add(i);
                S::store(at, S::mul(S::load(at), S::splat(correction)));
            }
        }
    }
}

/// # Safety
/// As [`attend`].
unsafe fn store_rows(job: &Job, tile: &Tile<'_>, sums: &[f32], total: &[f32]) {
    let head_dim = job.pool.head_dim;
    let padded = head_dim.next_multiple_of(BLOCK);
    for row in 0..tile.rows() {
        let (token, head) = (row / tile.group, tile.kv_head * tile.group + row % tile.group);
        let inverse = 1.0 / total[row];
        let at = ((tile.first_row + token) * job.shape.num_heads + head) * head_dim;
        // SAFETY: the row lies in `out`, and this (row, head) is this thread's.
        let out = unsafe { std::slice::from_raw_parts_mut(job.out.at(at), head_dim) };
        for (out, sum) in out.iter_mut().zip(&sums[row * padded..]) {
            *out = sum * inverse;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cpu::{Isa, KvDtype};

    /// Pool content of one sequence, and queries at some of its positions.
    struct World {
        head_dim: usize,
        num_heads: usize,
        num_kv_heads: usize,
        positions: Vec<u32>,
        window: u32,
    }

    impl World {
        fn tables(&self) -> Vec<u32> {
            let blocks = *self.positions.last().unwrap() as usize / BLOCK + 1;
            (0..blocks as u32).map(|i| (i * 7 + 3) % 11).collect()
        }

        fn run(&self, isa: Isa, dtype: KvDtype, only: &[usize]) -> Vec<f32> {
            let threads = Threads::with_isa(2, isa).unwrap();
            let shape = KvShape { num_blocks: 11, num_kv_heads: self.num_kv_heads, head_dim: self.head_dim };
            let mut kv = KvLayer::new(dtype, shape);
            let (table, len) = (self.tables(), *self.positions.last().unwrap() as usize + 1);
            let slots: Vec<u32> = (0..len).map(|p| table[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32).collect();
            let (k, v) = (noise(len * shape.width(), 1), noise(len * shape.width(), 2));
            kv.write(&threads, &slots, &k, &v, shape.width());
            let width = self.num_heads * self.head_dim;
            let all = noise(self.positions.len() * width, 3);
            let q: Vec<f32> = only.iter().flat_map(|row| all[row * width..][..width].to_vec()).collect();
            let positions: Vec<u32> = only.iter().map(|row| self.positions[*row]).collect();
            let sequence = QuerySequence { first_row: 0, positions: &positions, block_table: &table };
            let attention_shape = AttentionShape { num_heads: self.num_heads, scale: 0.7, q_stride: width, window: self.window };
            let mut out = vec![0.0; q.len()];
            attention(&threads, attention_shape, &q, &kv, &[sequence], &mut out);
            out
        }

        /// Computes softmax over all visible positions at once, in f64.
        fn reference(&self) -> Vec<f32> {
            let kv_width = self.num_kv_heads * self.head_dim;
            let len = *self.positions.last().unwrap() as usize + 1;
            let (k, v) = (noise(len * kv_width, 1), noise(len * kv_width, 2));
            let q = noise(self.positions.len() * self.num_heads * self.head_dim, 3);
            let mut out = Vec::new();
            for (row, position) in self.positions.iter().enumerate() {
                for head in 0..self.num_heads {
                    let q = &q[(row * self.num_heads + head) * self.head_dim..][..self.head_dim];
                    let column = head / (self.num_heads / self.num_kv_heads) * self.head_dim;
                    let dot = |p: usize| {
                        (0..self.head_dim).map(|d| f64::from(q[d]) * f64::from(k[p * kv_width + column + d])).sum::<f64>()
                    };
                    let sees = |p: usize| p as u32 + self.window.min(1 << 20) > *position;
                    let weight = |p: usize| if sees(p) { (0.7 * dot(p)).exp() } else { 0.0 };
                    let weights: Vec<f64> = (0..=*position as usize).map(weight).collect();
                    let total: f64 = weights.iter().sum();
                    out.extend((0..self.head_dim).map(|d| {
                        let sum: f64 = weights.iter().enumerate().map(|(p, w)| w * f64::from(v[p * kv_width + column + d])).sum();
                        (sum / total) as f32
                    }));
                }
            }
            out
        }
    }

    #[track_caller]
    fn check(world: &World) {
        let rows: Vec<usize> = (0..world.positions.len()).collect();
        let expected = world.reference();
        for (dtype, tolerance) in [(KvDtype::F32, 1e-5), (KvDtype::F16, 1e-3)] {
            for isa in Isa::available() {
                let out = world.run(isa, dtype, &rows);
                for (i, (y, e)) in out.iter().zip(&expected).enumerate() {
                    assert!((y - e).abs() < tolerance, "{isa:?} {dtype:?} at {i}: {y} is not {e}");
                }
                // Any subset of the rows gives the same bits as all of them.
                let some: Vec<usize> = rows.iter().copied().filter(|row| row % 3 == 1).collect();
                if !some.is_empty() {
                    let width = world.num_heads * world.head_dim;
                    let subset: Vec<f32> = some.iter().flat_map(|row| out[row * width..][..width].to_vec()).collect();
                    assert_eq!(world.run(isa, dtype, &some), subset, "{isa:?} {dtype:?}: batch variant");
                }
            }
        }
    }

    #[test]
    fn a_whole_prompt() {
        check(&World { head_dim: 64, num_heads: 9, num_kv_heads: 3, positions: (0..100).collect(), window: u32::MAX });
    }

    #[test]
    fn one_row_far_from_the_start() {
        check(&World { head_dim: 128, num_heads: 4, num_kv_heads: 1, positions: vec![250], window: u32::MAX });
    }

    #[test]
    fn scattered_rows_see_their_past_only() {
        let positions = vec![0, 5, 31, 32, 33, 90, 200, 201, 319];
        check(&World { head_dim: 64, num_heads: 14, num_kv_heads: 2, positions, window: u32::MAX });
    }

    #[test]
    fn heads_that_are_no_multiple_of_a_block() {
        check(&World { head_dim: 16, num_heads: 4, num_kv_heads: 2, positions: (0..70).collect(), window: u32::MAX });
        check(&World { head_dim: 48, num_heads: 2, num_kv_heads: 2, positions: (30..70).collect(), window: u32::MAX });
    }

    /// Input that has one NaN.
    #[derive(Clone, Copy, PartialEq)]
    enum Poison {
        Query,
        Key,
        Value,
    }

    /// Returns the rows `0..len` of one head that are NaN if row 40 of `poison` has a NaN. Keys and values exist up to position 69; `step`
    /// rows are computed at once.
    fn faulty(isa: Isa, dtype: KvDtype, poison: Poison, len: usize, step: usize) -> Vec<usize> {
        const HEAD_DIM: usize = 64;
        let threads = Threads::with_isa(1, isa).unwrap();
        let mut kv = KvLayer::new(dtype, KvShape { num_blocks: 3, num_kv_heads: 1, head_dim: HEAD_DIM });
        let input = |of: Poison, seed| {
            let mut elements = noise(70 * HEAD_DIM, seed);
            if of == poison {
                elements[40 * HEAD_DIM + 7] = f32::NAN;
            }
            elements
        };
        let slots: Vec<u32> = (0..70).collect();
        kv.write(&threads, &slots, &input(Poison::Key, 1), &input(Poison::Value, 2), HEAD_DIM);
        let q = input(Poison::Query, 3);
        let mut out = vec![0.0; len * HEAD_DIM];
        let shape = AttentionShape { num_heads: 1, scale: 0.7, q_stride: HEAD_DIM, window: u32::MAX };
        for start in (0..len).step_by(step) {
            let positions: Vec<u32> = (start..(start + step).min(len)).map(|p| p as u32).collect();
            let sequence = QuerySequence { first_row: start, positions: &positions, block_table: &[0, 1, 2] };
            attention(&threads, shape, &q, &kv, &[sequence], &mut out);
        }
        (0..len).filter(|row| out[row * HEAD_DIM..][..HEAD_DIM].iter().any(|x| x.is_nan())).collect()
    }

    #[test]
    fn nan_reaches_the_rows_that_read_it() {
        for isa in Isa::available() {
            for dtype in [KvDtype::F32, KvDtype::F16] {
                // Few rows are computed from keys as stored, many from converted ones.
                for step in [4, 70] {
                    assert_eq!(faulty(isa, dtype, Poison::Query, 70, step), [40], "{isa:?} {dtype:?}");
                    assert_eq!(faulty(isa, dtype, Poison::Key, 70, step), (40..70).collect::<Vec<_>>(), "{isa:?} {dtype:?}");
                    // Rows of the same block that are computed together may meet the values of later ones.
                    let of_values = faulty(isa, dtype, Poison::Value, 70, step);
                    assert!(of_values.ends_with(&(40..70).collect::<Vec<_>>()) && of_values[0] >= 32, "{isa:?} {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn nan_after_the_last_row_reaches_none() {
        for isa in Isa::available() {
            for (dtype, step) in [(KvDtype::F32, 4), (KvDtype::F16, 4), (KvDtype::F16, 40)] {
                for poison in [Poison::Key, Poison::Value] {
                    assert!(faulty(isa, dtype, poison, 40, step).is_empty(), "{isa:?} {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn a_window_hides_what_lies_left_of_it() {
        for window in [1, 31, 32, 33, 80] {
            check(&World { head_dim: 64, num_heads: 9, num_kv_heads: 3, positions: (0..100).collect(), window });
            check(&World { head_dim: 256, num_heads: 4, num_kv_heads: 1, positions: vec![250], window });
            let positions = vec![0, 5, 31, 32, 33, 90, 200, 201, 319];
            check(&World { head_dim: 64, num_heads: 14, num_kv_heads: 2, positions, window });
        }
    }
}
