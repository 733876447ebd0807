//! One layer of the paged KV pool in main memory.
//!
//! Keys of a block are stored transposed, `[kv_head][head_dim][32]`, so that the scores of 32 positions are one panel of a matrix product;
//! values are not, `[kv_head][32][head_dim]`. A slot is `block * 32 + offset`.

use super::aligned::AlignedBuffer;
use super::isa::Isa;
use super::rows::RopeTable;
use super::simd::{Simd, dispatch};
use super::threads::{SharedMut, Threads};

/// Positions per block. Equal to the width of a matrix panel, which the attention kernel relies on.
pub(crate) const BLOCK: usize = 32;

/// Element type of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvDtype {
    /// Half precision: half the memory and bandwidth; K and V of trained models stay well inside its range.
    F16,
    /// Full precision, for tests of exactness.
    F32,
}

pub(crate) enum Elements {
    F16(AlignedBuffer<u16>),
    F32(AlignedBuffer<f32>),
}

/// An element as the pool stores it.
pub(crate) trait Element: Copy + Send + Sync {
    /// # Safety
    /// `from` is valid for `S::LANES` reads, and the machine has `S`.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// # Safety
    /// `from` is valid for `BLOCK` reads, `to` for `BLOCK` writes, and the machine has `S`.
    unsafe fn widen<S: Simd>(from: *const Self, to: *mut f32);
    /// # Safety
    /// As `widen`.
    unsafe fn narrow<S: Simd>(from: *const f32, to: *mut Self);
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn widen<S: Simd>(from: *const f32, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to, BLOCK) }
    }
    #[inline(always)]
    unsafe fn narrow<S: Simd>(from: *const f32, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to, BLOCK) }
    }
}

/// Largest finite f16: larger values are clamped, so that none turns a sum into NaN through `0 * inf`. NaN stays NaN.
const F16_MAX: f32 = 65504.0;

impl Element for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn widen<S: Simd>(from: *const u16, to: *mut f32) {
        for at in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: the caller's promise.
            unsafe { S::store(to.add(at), S::load_f16(from.add(at))) }
        }
    }
    #[inline(always)]
    unsafe fn narrow<S: Simd>(from: *const f32, to: *mut u16) {
        for at in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let x = S::min(S::splat(F16_MAX), S::max(S::splat(-F16_MAX), S::load(from.add(at))));
                S::store_f16(to.add(at), x);
            }
        }
    }
}

/// Keys and values of one layer.
pub struct KvLayer {
    pub(crate) keys: Elements,
    pub(crate) values: Elements,
    pub(crate) shape: KvShape,
}

/// Sizes of a [`KvLayer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Number of blocks in the pool.
    pub num_blocks: usize,
    /// Number of key and value heads.
    pub num_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl KvShape {
    /// Returns the elements of one token's keys (or values).
    #[must_use]
    pub fn width(self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    pub(crate) fn block_len(self) -> usize {
        BLOCK * self.width()
    }
}

/// Evaluates `$body` with `$keys` and `$values` bound to the typed buffers.
macro_rules! with_elements {
    ($layer:expr, |$keys:ident, $values:ident| $body:expr) => {
        match (&$layer.keys, &$layer.values) {
            (Elements::F16($keys), Elements::F16($values)) => $body,
            (Elements::F32($keys), Elements::F32($values)) => $body,
            _ => unreachable!("keys and values share their type"),
        }
    };
    (mut $layer:expr, |$keys:ident, $values:ident| $body:expr) => {
        match (&mut $layer.keys, &mut $layer.values) {
            (Elements::F16($keys), Elements::F16($values)) => $body,
            (Elements::F32($keys), Elements::F32($values)) => $body,
            _ => unreachable!("keys and values share their type"),
        }
    };
}
pub(crate) use with_elements;

/// Source and destination of the keys and values of a span.
#[derive(Clone, Copy, Debug)]
pub struct SpanMove<'a> {
    /// Blocks from the one that holds `src_pos` on.
    pub src_blocks: &'a [u32],
    /// Position of the first token in its sequence.
    pub src_pos: usize,
    /// Blocks from the one that holds `dst_pos` on. None of them is in `src_blocks`.
    pub dst_blocks: &'a [u32],
    /// New position of the first token.
    pub dst_pos: usize,
    /// Number of tokens.
    pub len: usize,
}

impl SpanMove<'_> {
    /// Splits into runs inside one source block and one target block: `(src slot, dst slot, len)`.
    fn runs(&self) -> Vec<(usize, usize, usize)> {
        let (src0, dst0) = (self.src_pos / BLOCK * BLOCK, self.dst_pos / BLOCK * BLOCK);
        let slot = |blocks: &[u32], offset: usize| blocks[offset / BLOCK] as usize * BLOCK + offset % BLOCK;
        let mut runs = Vec::new();
        let mut done = 0;
        while done < self.len {
            let (src, dst) = (self.src_pos - src0 + done, self.dst_pos - dst0 + done);
            let len = (BLOCK - src % BLOCK).min(BLOCK - dst % BLOCK).min(self.len - done);
            runs.push((slot(self.src_blocks, src), slot(self.dst_blocks, dst), len));
            done += len;
        }
        runs
    }
}

impl KvLayer {
    /// Creates an empty layer. Memory becomes resident only when it is written.
    #[must_use]
    pub fn new(dtype: KvDtype, shape: KvShape) -> Self {
        let len = shape.num_blocks * shape.block_len();
        // One block more than requested: vector loads of a whole block from the last slots stay inside.
        let new = |len| match dtype {
            KvDtype::F16 => Elements::F16(AlignedBuffer::mapped(len)),
            KvDtype::F32 => Elements::F32(AlignedBuffer::mapped(len)),
        };
        Self { keys: new(len + BLOCK), values: new(len + BLOCK), shape }
    }

    /// Returns the sizes.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Writes keys and values of `slots.len()` tokens. Rows of `k` and `v` start every `stride` elements.
    ///
    /// # Panics
    /// If a slot lies outside the pool or occurs twice, or a slice is too short.
    pub fn write(&mut self, threads: &Threads, slots: &[u32], k: &[f32], v: &[f32], stride: usize) {
        let shape = self.shape;
        let needed = slots.len().saturating_sub(1) * stride + shape.width();
        assert!(slots.is_empty() || (k.len() >= needed && v.len() >= needed), "one row for each slot");
        let end = (shape.num_blocks * BLOCK) as u32;
        assert!(slots.iter().all(|slot| *slot < end), "every slot lies in the pool");
        debug_assert!(all_distinct(slots), "every slot is written once");
        let chunk = slots.len().div_ceil(threads.count()).max(16);
        with_elements!(mut self, |keys, values| {
            let (keys, values) = (SharedMut::new(keys), SharedMut::new(values));
            threads.for_each(slots.len().div_ceil(chunk), |i| {
                for row in i * chunk..((i + 1) * chunk).min(slots.len()) {
                    let (k, v) = (&k[row * stride..][..shape.width()], &v[row * stride..][..shape.width()]);
                    let slot = slots[row] as usize;
                    // SAFETY: the slot lies in the pool, and no other row has it.
                    unsafe { write_slot(threads.isa(), keys, values, shape, slot, k, v) }
                }
            });
        });
    }

    /// Reads keys and values of one slot, `width` elements each.
    ///
    /// # Panics
    /// If the slot lies outside the pool.
    pub fn read(&self, slot: u32, k: &mut [f32], v: &mut [f32]) {
        let (shape, slot) = (self.shape, slot as usize);
        assert!(slot < shape.num_blocks * BLOCK && k.len() == shape.width() && v.len() == shape.width());
        let base = slot / BLOCK * shape.block_len();
        let get = |elements: &Elements, at: usize| match elements {
            Elements::F16(e) => half::f16::from_bits(e[at]).to_f32(),
            Elements::F32(e) => e[at],
        };
        for i in 0..shape.width() {
            let (head, d) = (i / shape.head_dim, i % shape.head_dim);
            k[i] = get(&self.keys, base + i * BLOCK + slot % BLOCK);
            v[i] = get(&self.values, base + (head * BLOCK + slot % BLOCK) * shape.head_dim + d);
        }
    }

    /// Fills a block with zeros.
    ///
    /// # Panics
    /// If the block lies outside the pool.
    pub fn zero_block(&mut self, block: u32) {
        let (block, shape) = (block as usize, self.shape);
        assert!(block < shape.num_blocks);
        let range = block * shape.block_len()..(block + 1) * shape.block_len();
        with_elements!(mut self, |keys, values| {
            for elements in [keys, values] {
                elements[range.clone()].fill(Default::default());
            }
        });
    }

    /// Copies the first `len` slots of block `src` to block `dst`.
    ///
    /// # Panics
    /// If a block lies outside the pool or `len` exceeds a block.
    pub fn copy_block(&mut self, src: u32, dst: u32, len: usize) {
        let shape = self.shape;
        let (src, dst) = (src as usize, dst as usize);
        assert!(src < shape.num_blocks && dst < shape.num_blocks && len <= BLOCK);
        with_elements!(mut self, |keys, values| {
            for line in 0..shape.width() {
                let at = src * shape.block_len() + line * BLOCK;
                keys.copy_within(at..at + len, dst * shape.block_len() + line * BLOCK);
            }
            for head in 0..shape.num_kv_heads {
                let at = |block: usize| block * shape.block_len() + head * BLOCK * shape.head_dim;
                values.copy_within(at(src)..at(src) + len * shape.head_dim, at(dst));
            }
        });
    }

    /// Copies the whole block `src` of another pool with this block size to block `dst`, bit by bit.
    ///
    /// # Panics
    /// If a block lies outside its pool, or the pools differ in element type or heads.
    pub fn copy_block_from(&mut self, from: &KvLayer, src: u32, dst: u32) {
        let len = self.shape.block_len();
        let heads = |shape: KvShape| (shape.num_kv_heads, shape.head_dim);
        assert_eq!(heads(self.shape), heads(from.shape), "blocks of both pools have the same shape");
        assert!((src as usize) < from.shape.num_blocks && (dst as usize) < self.shape.num_blocks);
        let (src, dst) = (src as usize * len..(src as usize + 1) * len, dst as usize * len..(dst as usize + 1) * len);
        for (to, from) in [(&mut self.keys, &from.keys), (&mut self.values, &from.values)] {
            match (to, from) {
                (Elements::F16(to), Elements::F16(from)) => to[dst.clone()].copy_from_slice(&from[src.clone()]),
                (Elements::F32(to), Elements::F32(from)) => to[dst.clone()].copy_from_slice(&from[src.clone()]),
                _ => panic!("both pools store numbers alike"),
            }
        }
    }

    /// Copies spans to new positions, rotating their keys: `K' = R(dst_pos - src_pos) K` (RoFormer, Su et al. 2021, sec. 3.2).
    ///
    /// The rotation is computed in f32 from the stored elements; a move by zero copies the bits.
    ///
    /// # Panics
    /// If a block lies outside the pool, or the block lists do not cover the span.
    pub fn move_span(&mut self, isa: Isa, span: SpanMove<'_>, rope: &RopeTable) {
        let shape = self.shape;
        let in_pool = |blocks: &[u32]| blocks.iter().all(|block| (*block as usize) < shape.num_blocks);
        assert!(in_pool(span.src_blocks) && in_pool(span.dst_blocks), "every block lies in the pool");
        let rotation = (span.dst_pos != span.src_pos).then(|| rope.rotation(span.dst_pos as i64 - span.src_pos as i64));
        for (src, dst, len) in span.runs() {
            with_elements!(mut self, |keys, values| {
                for head in 0..shape.num_kv_heads {
                    for i in 0..shape.head_dim {
                        let line = |slot: usize, i: usize| {
                            slot / BLOCK * shape.block_len() + (head * shape.head_dim + i) * BLOCK + slot % BLOCK
                        };
                        match rotation.as_ref().and_then(|rotation| rotation.pair(i)) {
                            None => keys.copy_within(line(src, i)..line(src, i) + len, line(dst, i)),
                            // The first of a pair rotates both; its partner comes later and is already written.
                            Some(pair) if pair.first == i => {
                                let (a, b) = (line(src, i), line(src, pair.second));
                                let to = (line(dst, i), line(dst, pair.second));
                                // SAFETY: whole blocks are readable from any slot (see `new`); `len` slots of both lines are in the pool.
                                unsafe {
                                    let keys = keys.as_mut_ptr();
                                    rotate_run(isa, keys, (a, b), to, len, (pair.cos, pair.sin));
                                }
                            }
                            Some(_) => {}
                        }
                    }
                    let at = |slot: usize| slot / BLOCK * shape.block_len() + (head * BLOCK + slot % BLOCK) * shape.head_dim;
                    values.copy_within(at(src)..at(src) + len * shape.head_dim, at(dst));
                }
            });
        }
    }
}

fn all_distinct(slots: &[u32]) -> bool {
    let mut sorted = slots.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

/// # Safety
/// `slot` lies in the pool and is written by this thread alone.
unsafe fn write_slot<E: Element>(
    isa: Isa,
    keys: SharedMut<E>,
    values: SharedMut<E>,
    shape: KvShape,
    slot: usize,
    k: &[f32],
    v: &[f32],
) {
    #[inline(always)]
    unsafe fn run<S: Simd, E: Element>(
        keys: SharedMut<E>,
        values: SharedMut<E>,
        shape: KvShape,
        slot: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let base = slot / BLOCK * shape.block_len();
        let mut wide = [0f32; BLOCK];
        let mut narrow = [const { std::mem::MaybeUninit::<E>::uninit() }; BLOCK];
        for start in (0..shape.width()).step_by(BLOCK) {
            let len = BLOCK.min(shape.width() - start);
            for (from, is_key) in [(k, true), (v, false)] {
                wide[..len].copy_from_slice(&from[start..start + len]);
                // SAFETY: both arrays hold `BLOCK`; targets lie in the slot's block.
                unsafe {
                    E::narrow::<S>(wide.as_ptr(), narrow.as_mut_ptr().cast::<E>());
                    for (j, x) in narrow[..len].iter().enumerate() {
                        let (i, x) = (start + j, x.assume_init());
                        let (head, d) = (i / shape.head_dim, i % shape.head_dim);
                        if is_key {
                            *keys.at(base + i * BLOCK + slot % BLOCK) = x;
                        } else {
                            *values.at(base + (head * BLOCK + slot % BLOCK) * shape.head_dim + d) = x;
                        }
                    }
                }
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        dispatch!(isa, run[E: Element](keys: SharedMut<E> = keys, values: SharedMut<E> = values, shape: KvShape = shape, slot: usize = slot, k: &[f32] = k, v: &[f32] = v))
    }
}

/// Rotates `len` pairs of elements `(x, y)` to `(x cos - y sin, x sin + y cos)`.
///
/// # Safety
/// `BLOCK` elements are readable from both `from`, and `len` elements from both `to` are this thread's to write.
unsafe fn rotate_run<E: Element>(
    isa: Isa,
    keys: *mut E,
    from: (usize, usize),
    to: (usize, usize),
    len: usize,
    cos_sin: (f32, f32),
) {
    #[inline(always)]
    unsafe fn run<S: Simd, E: Element>(
        keys: *mut E,
        from: (usize, usize),
        to: (usize, usize),
        len: usize,
        (cos, sin): (f32, f32),
    ) {
        let (mut x, mut y) = ([0f32; BLOCK], [0f32; BLOCK]);
        let mut narrow = [const { std::mem::MaybeUninit::<E>::uninit() }; BLOCK];
        // SAFETY: reads of a whole block by the caller's promise, writes of `len` elements.
        unsafe {
            E::widen::<S>(keys.add(from.0), x.as_mut_ptr());
            E::widen::<S>(keys.add(from.1), y.as_mut_ptr());
            for (x, y) in x.iter_mut().zip(&mut y) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
            for (half, to) in [(&x, to.0), (&y, to.1)] {
                E::narrow::<S>(half.as_ptr(), narrow.as_mut_ptr().cast::<E>());
                std::ptr::copy_nonoverlapping(narrow.as_ptr().cast::<E>(), keys.add(to), len);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        dispatch!(isa, run[E: Element](keys: *mut E = keys, from: (usize, usize) = from, to: (usize, usize) = to, len: usize = len, cos_sin: (f32, f32) = cos_sin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cpu::{Heads, RopeLayout, rope};

    const SHAPE: KvShape = KvShape { num_blocks: 8, num_kv_heads: 2, head_dim: 16 };

    fn slots(blocks: &[u32], start: usize, len: usize) -> Vec<u32> {
        (start..start + len).map(|p| blocks[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32).collect()
    }

    fn read(kv: &KvLayer, slots: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for slot in slots {
            let (mut k, mut v) = (vec![0.0; SHAPE.width()], vec![0.0; SHAPE.width()]);
            kv.read(*slot, &mut k, &mut v);
            keys.extend(k);
            values.extend(v);
        }
        (keys, values)
    }

    /// Moves 40 tokens from `src_pos` to `dst_pos` and compares their keys with keys rotated directly to the new position.
    #[track_caller]
    fn check_move(dtype: KvDtype, layout: RopeLayout, src_pos: usize, dst_pos: usize, tolerance: f32) {
        const LEN: usize = 40;
        let inv_freq: Vec<f64> = (0..6).map(|i| 10_000f64.powf(-f64::from(i) / 6.0)).collect();
        let table = RopeTable::new(layout, inv_freq, 2048);
        for isa in Isa::available() {
            let threads = Threads::with_isa(1, isa).unwrap();
            let mut kv = KvLayer::new(dtype, SHAPE);
            let (raw, v) = (noise(LEN * SHAPE.width(), 1), noise(LEN * SHAPE.width(), 2));
            let rotated = |start: usize| {
                let positions: Vec<u32> = (start..start + LEN).map(|p| p as u32).collect();
                let mut k = raw.clone();
                let heads = Heads { stride: SHAPE.width(), column: 0, count: SHAPE.num_kv_heads, dim: SHAPE.head_dim };
                rope(&threads, &mut k, heads, &positions, &table);
                k
            };
            let (src_blocks, dst_blocks) = ([5, 1, 7], [0, 6, 3]);
            let src_slots = slots(&src_blocks, src_pos % BLOCK, LEN);
            let dst_slots = slots(&dst_blocks, dst_pos % BLOCK, LEN);
            kv.write(&threads, &src_slots, &rotated(src_pos), &v, SHAPE.width());
            let span = SpanMove { src_blocks: &src_blocks, src_pos, dst_blocks: &dst_blocks, dst_pos, len: LEN };
            kv.move_span(isa, span, &table);
            let ((keys, values), expected) = (read(&kv, &dst_slots), rotated(dst_pos));
            for (i, (k, e)) in keys.iter().zip(&expected).enumerate() {
                assert!((k - e).abs() <= tolerance, "{isa:?} {layout:?} at {i}: {k} is not {e}");
            }
            assert_eq!(values, read(&kv, &src_slots).1, "values move as they are");
            if src_pos == dst_pos {
                assert_eq!(keys, read(&kv, &src_slots).0, "a move by zero copies the bits");
            }
        }
    }

    #[test]
    fn a_block_of_another_pool_is_copied_as_a_whole_and_nothing_else_is() {
        for dtype in [KvDtype::F16, KvDtype::F32] {
            let threads = Threads::with_isa(1, Isa::available()[0]).unwrap();
            let filled = |shape: KvShape, seed: u32| {
                let mut kv = KvLayer::new(dtype, shape);
                let all: Vec<u32> = (0..(shape.num_blocks * BLOCK) as u32).collect();
                let len = all.len() * shape.width();
                kv.write(&threads, &all, &noise(len, seed), &noise(len, seed + 1), shape.width());
                kv
            };
            let other = filled(KvShape { num_blocks: 3, ..SHAPE }, 5);
            let (mut kv, before) = (filled(SHAPE, 7), filled(SHAPE, 7));
            kv.copy_block_from(&other, 2, 6);
            for block in 0..SHAPE.num_blocks as u32 {
                let expected =
                    if block == 6 { read(&other, &slots(&[2], 0, BLOCK)) } else { read(&before, &slots(&[block], 0, BLOCK)) };
                assert_eq!(read(&kv, &slots(&[block], 0, BLOCK)), expected, "{dtype:?}: block {block}");
            }
        }
    }

    #[test]
    fn moved_keys_are_the_keys_of_the_new_position() {
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            for (src, dst) in [(10, 11), (11, 10), (10, 27), (27, 1027), (1000, 3)] {
                check_move(KvDtype::F32, layout, src, dst, 2e-6);
                check_move(KvDtype::F16, layout, src, dst, 6e-4);
            }
        }
    }

    #[test]
    fn a_move_by_zero_changes_no_bit() {
        check_move(KvDtype::F16, RopeLayout::Half, 37, 37, 6e-4);
    }

    #[test]
    fn a_copied_block_holds_its_leading_slots() {
        let threads = Threads::new(1).unwrap();
        let mut kv = KvLayer::new(KvDtype::F16, SHAPE);
        let (k, v) = (noise(32 * SHAPE.width(), 1), noise(32 * SHAPE.width(), 2));
        kv.write(&threads, &slots(&[2], 0, 32), &k, &v, SHAPE.width());
        kv.copy_block(2, 4, 20);
        assert_eq!(read(&kv, &slots(&[4], 0, 20)), read(&kv, &slots(&[2], 0, 20)));
        assert!(read(&kv, &slots(&[4], 20, 12)).0.iter().all(|x| *x == 0.0));
    }

    #[test]
    fn halves_never_become_infinite() {
        let threads = Threads::new(1).unwrap();
        let mut kv = KvLayer::new(KvDtype::F16, SHAPE);
        kv.write(&threads, &[3], &[1e30; 32], &[-1e30; 32], 32);
        let (k, v) = read(&kv, &[3]);
        assert!(k.iter().all(|x| *x == F16_MAX) && v.iter().all(|x| *x == -F16_MAX));
        kv.write(&threads, &[4], &[f32::NAN; 32], &[f32::NAN; 32], 32);
        let (k, v) = read(&kv, &[4]);
        assert!(k.iter().chain(&v).all(|x| x.is_nan()));
    }

    #[test]
    fn a_zeroed_block_holds_nothing_and_its_neighbours_everything() {
        for dtype in [KvDtype::F16, KvDtype::F32] {
            let threads = Threads::new(2).unwrap();
            let mut kv = KvLayer::new(dtype, SHAPE);
            let all: Vec<u32> = (0..(SHAPE.num_blocks * BLOCK) as u32).collect();
            kv.write(&threads, &all, &noise(all.len() * SHAPE.width(), 1), &noise(all.len() * SHAPE.width(), 2), SHAPE.width());
            let before: Vec<_> = all.iter().map(|slot| read(&kv, &[*slot])).collect();
            kv.zero_block(3);
            for (slot, before) in all.iter().zip(before) {
                let (k, v) = read(&kv, &[*slot]);
                let is_zero = k.iter().chain(&v).all(|x| *x == 0.0);
                assert!(if *slot as usize / BLOCK == 3 { is_zero } else { (k, v) == before }, "{dtype:?} slot {slot}");
            }
        }
    }
}
