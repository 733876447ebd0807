//! Attention that each position of a sequence receives from some query rows.
//!
//! Flash attention never holds the weights, so they are recomputed: a first pass over the keys finds each row's maximum and sum as
//! [`super::attention()`] does, a second one adds up the weights by position.

use std::ops::Range;

use super::attention::{AttentionShape, Job, QuerySequence, Scratch, TILE_ROWS, Tile, load_queries, soften};
use super::block::{BLOCK, Element, Elements, KvLayer, with_elements};
use super::matmul::gemm_panel;
use super::simd::{Simd, dispatch};
use super::threads::{SharedMut, Threads};

/// Computes `received[p] += Σ over rows and heads of softmax(scale * q Kᵀ)[p]` for the rows of one sequence.
///
/// `q` is `[rows, q_stride]` from the batch's first row on, `received` has one entry for each position up to the last row's. The sums are
/// added in the same order for any number of threads.
///
/// # Panics
/// If lengths do not fit, or the block table does not cover the rows.
pub fn add_attention_received(
    threads: &Threads,
    shape: AttentionShape,
    q: &[f32],
    kv: &KvLayer,
    sequence: &QuerySequence<'_>,
    received: &mut [f32],
) {
    let pool = kv.shape();
    let Some(&last) = sequence.positions.last() else { return };
    let group = shape.num_heads / pool.num_kv_heads;
    assert_eq!(group * pool.num_kv_heads, shape.num_heads, "query heads share key heads evenly");
    let end = sequence.first_row + sequence.positions.len();
    assert!((end - 1) * shape.q_stride + shape.num_heads * pool.head_dim <= q.len(), "rows lie in the batch");
    assert!(last as usize / BLOCK < sequence.block_table.len(), "the block table covers position {last}");
    assert!(sequence.block_table.iter().all(|block| (*block as usize) < pool.num_blocks), "every block lies in the pool");
    assert!((last as usize) < received.len(), "every position has a sum");
    debug_assert!(sequence.positions.is_sorted());
    let tile_tokens = (TILE_ROWS / group).max(1);
    let tiles = (0..sequence.positions.len()).step_by(tile_tokens).flat_map(|start| {
        let positions = &sequence.positions[start..(start + tile_tokens).min(sequence.positions.len())];
        let first_row = sequence.first_row + start;
        (0..pool.num_kv_heads).map(move |kv_head| Tile {
            first_row,
            positions,
            block_table: sequence.block_table,
            kv_head,
            group,
        })
    });
    let tiles: Vec<Tile<'_>> = tiles.collect();
    let width = (last as usize + 1).next_multiple_of(BLOCK);
    let mut sums = vec![0f32; tiles.len() * width];
    let out = SharedMut::new(&mut sums);
    threads.for_each(tiles.len(), |i| {
        let job = Job { q: q.as_ptr(), out, shape, pool };
        with_elements!(kv, |keys, _values| {
            Scratch::with(|scratch| {
                // SAFETY: rows and blocks were checked above; each tile has sums of its own, and the scratch is this thread's.
                unsafe { receive(threads.isa(), &job, &tiles[i], keys.as_ptr(), i * width, scratch) }
            });
        });
    });
    for of_tile in sums.chunks_exact(width) {
        received.iter_mut().zip(of_tile).for_each(|(received, sum)| *received += sum);
    }
}

/// # Safety
/// Rows of the tile lie in `q`, its blocks in the pool, and the sums from `first_sum` on belong to this thread.
unsafe fn receive<E: Element>(
    isa: super::Isa,
    job: &Job,
    tile: &Tile<'_>,
    keys: *const E,
    first_sum: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: the caller's promise.
    unsafe {
        dispatch!(isa, receive_tile[E: Element](job: &Job = job, tile: &Tile<'_> = tile, keys: *const E = keys, first_sum: usize = first_sum, scratch: &mut Scratch = scratch));
    }
}

/// # Safety
/// As [`receive`]; the machine has `S`.
#[inline(always)]
unsafe fn receive_tile<S: Simd, E: Element>(job: &Job, tile: &Tile<'_>, keys: *const E, first_sum: usize, scratch: &mut Scratch) {
    let (rows, head_dim) = (tile.rows(), job.pool.head_dim);
    let b = scratch.buffers(rows, head_dim);
    b.max[..rows].fill(f32::NEG_INFINITY);
    b.total[..rows].fill(0.0);
    // SAFETY: all offsets lie in the scratch (sized for `rows` and `head_dim`), the pool, the batch, and this tile's sums.
    unsafe {
        load_queries::<S>(job, tile, b.q);
        for pass in [Pass::Totals, Pass::Weights] {
            for i in tile.blocks(&job.shape) {
                let keys = keys.add(tile.block_table[i] as usize * job.pool.block_len() + tile.kv_head * BLOCK * head_dim);
                for line in 0..head_dim {
                    E::widen::<S>(keys.add(line * BLOCK), b.keys.as_mut_ptr().add(line * BLOCK));
                }
                let readers = tile.readers(&job.shape, i);
                let scores = b.scores.as_mut_ptr().add(readers.start * BLOCK);
                let q = b.q.as_ptr().add(readers.start * head_dim);
                gemm_panel::<S, f32>(readers.len(), head_dim, q, head_dim, b.keys.as_ptr(), BLOCK, scores, BLOCK, false);
                let sums = std::slice::from_raw_parts_mut(job.out.at(first_sum + i * BLOCK), BLOCK);
                for row in readers {
                    let visible = tile.visible(&job.shape, row, i);
                    let scores = &mut b.scores[row * BLOCK..][..BLOCK];
                    match pass {
                        Pass::Totals => soften::<S>(scores, visible, &mut b.max[row], &mut b.total[row], &mut []),
                        Pass::Weights => add_weights::<S>(scores, visible, b.max[row], b.total[row], sums),
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Pass {
    Totals,
    Weights,
}

/// Adds the attention weights of one query row over the keys of one block to the sums of the block's positions.
///
/// # Safety
/// The machine has `S`; `scores` and `sums` have [`BLOCK`] elements.
#[inline(always)]
unsafe fn add_weights<S: Simd>(scores: &mut [f32], visible: Range<usize>, max: f32, total: f32, sums: &mut [f32]) {
    scores[..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..].fill(f32::NEG_INFINITY);
    // SAFETY: both are whole vectors long.
    unsafe {
        for i in (0..BLOCK).step_by(S::LANES) {
            let weight = S::exp(S::sub(S::load(scores.as_ptr().add(i)), S::splat(max)));
            let sum = sums.as_mut_ptr().add(i);
            S::store(sum, S::fma(weight, S::splat(1.0 / total), S::load(sum)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cpu::{Isa, KvDtype, KvShape};

    /// Compares the sums of some rows with softmax in f64.
    #[track_caller]
    fn check(head_dim: usize, (num_heads, num_kv_heads): (usize, usize), positions: &[u32], window: u32) {
        let len = *positions.last().unwrap() as usize + 1;
        let shape = KvShape { num_blocks: 11, num_kv_heads, head_dim };
        let table: Vec<u32> = (0..len.div_ceil(BLOCK) as u32).map(|i| (i * 7 + 3) % 11).collect();
        let slots: Vec<u32> = (0..len).map(|p| table[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32).collect();
        let (k, v) = (noise(len * shape.width(), 1), noise(len * shape.width(), 2));
        let width = num_heads * head_dim;
        let q = noise(positions.len() * width, 3);
        let mut expected = vec![0f64; len];
        for (row, &position) in positions.iter().enumerate() {
            for head in 0..num_heads {
                let q = &q[row * width + head * head_dim..][..head_dim];
                let column = head / (num_heads / num_kv_heads) * head_dim;
                let dot = |p: usize| -> f64 {
                    q.iter().zip(&k[p * shape.width() + column..]).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
                };
                let sees = |p: usize| p as u32 + window.min(1 << 20) > position;
                let weight = |p: usize| if sees(p) { (0.7 * dot(p)).exp() } else { 0.0 };
                let weights: Vec<f64> = (0..=position as usize).map(weight).collect();
                let total: f64 = weights.iter().sum();
                expected.iter_mut().zip(&weights).for_each(|(sum, weight)| *sum += weight / total);
            }
        }
        for isa in Isa::available() {
            let threads = Threads::with_isa(2, isa).unwrap();
            let mut kv = KvLayer::new(KvDtype::F32, shape);
            kv.write(&threads, &slots, &k, &v, shape.width());
            let shape = AttentionShape { num_heads, scale: 0.7, q_stride: width, window };
            let sequence = QuerySequence { first_row: 0, positions, block_table: &table };
            let mut received = vec![1.0; len + 5];
            add_attention_received(&threads, shape, &q, &kv, &sequence, &mut received);
            for (p, (found, expected)) in received.iter().zip(&expected).enumerate() {
                assert!((f64::from(*found) - 1.0 - expected).abs() < 1e-4, "{isa:?} at {p}: {found} is not 1 + {expected}");
            }
            assert_eq!(received[len..], [1.0; 5]);
        }
    }

    #[test]
    fn a_whole_prompt() {
        check(64, (9, 3), &(0..100).collect::<Vec<_>>(), u32::MAX);
    }

    #[test]
    fn scattered_rows_give_nothing_to_their_future() {
        check(64, (14, 2), &[0, 5, 31, 32, 33, 90, 200, 201, 319], u32::MAX);
    }

    #[test]
    fn one_row() {
        check(48, (2, 2), &[70], u32::MAX);
    }

    #[test]
    fn nothing_left_of_a_window_receives() {
        for window in [1, 31, 32, 33, 80] {
            check(64, (9, 3), &(0..100).collect::<Vec<_>>(), window);
            check(256, (4, 1), &[0, 5, 31, 32, 33, 90, 200, 201, 319], window);
        }
    }
}
