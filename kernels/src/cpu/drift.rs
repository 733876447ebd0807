//! Updates keys and values of some slots by a weighted sum of the changes of others.

use super::block::{BLOCK, KvLayer};
use super::rows::RopeTable;
use super::threads::{SharedMut, Threads};

/// A slot that is about to be overwritten.
#[derive(Clone, Copy, Debug)]
pub struct DriftSample<'a> {
    /// Position that its key is rotated to.
    pub position: u32,
    /// Slot of its old key and value.
    pub slot: u32,
    /// New key, all heads, rotated.
    pub k: &'a [f32],
    /// New value, all heads.
    pub v: &'a [f32],
}

impl KvLayer {
    /// Adds to the value of target `t` the sum over samples `s` of `weights[t, s] (V_new − V_old)[s]`, and the same to its key, with the
    /// differences of keys rotated from their sample's position to the target's.
    ///
    /// `targets` are `(position, slot)`, none of them a sample; `weights` is `[targets, samples]`.
    ///
    /// # Panics
    /// If lengths do not fit, a slot lies outside the pool, or a position is beyond the table.
    pub fn follow_drift(
        &mut self,
        threads: &Threads,
        rope: &RopeTable,
        samples: &[DriftSample<'_>],
        targets: &[(u32, u32)],
        weights: &[f32],
    ) {
        assert_eq!(weights.len(), targets.len() * samples.len(), "one weight for each pair");
        let (width, head_dim) = (self.shape().width(), self.shape().head_dim);
        let differences = self.differences(threads, rope, samples);
        let slots: Vec<u32> = targets.iter().map(|(_, slot)| *slot).collect();
        let mut moved = vec![0f32; targets.len() * 2 * width];
        let out = SharedMut::new(&mut moved);
        threads.for_each(targets.len().div_ceil(BLOCK), |chunk| {
            for t in chunk * BLOCK..((chunk + 1) * BLOCK).min(targets.len()) {
                // SAFETY: each row of `moved` belongs to one target, and each target to one chunk.
                let row = unsafe { std::slice::from_raw_parts_mut(out.at(t * 2 * width), 2 * width) };
                for (weight, difference) in weights[t * samples.len()..].iter().zip(differences.chunks_exact(2 * width)) {
                    if *weight == 0.0 {
                        continue; // Most are: only near samples count.
                    }
                    row.iter_mut().zip(difference).for_each(|(row, difference)| *row += weight * difference);
                }
                let (position, slot) = targets[t];
                let (k, v) = row.split_at_mut(width);
                k.chunks_exact_mut(head_dim).for_each(|head| rope.rotate(head, position, 1.0));
                self.add_slot(slot, k, v);
            }
        });
        self.write(threads, &slots, &moved, &moved[width.min(moved.len())..], 2 * width);
    }

    /// Returns new minus old of each sample, `[samples, K then V]`, keys as before rotation.
    pub(crate) fn differences(&self, threads: &Threads, rope: &RopeTable, samples: &[DriftSample<'_>]) -> Vec<f32> {
        let (width, head_dim) = (self.shape().width(), self.shape().head_dim);
        let mut differences = vec![0f32; samples.len() * 2 * width];
        let mut rows: Vec<(&DriftSample<'_>, &mut [f32])> = samples.iter().zip(differences.chunks_exact_mut(2 * width)).collect();
        threads.for_each_mut(&mut rows, |(sample, row)| {
            let (k, v) = row.split_at_mut(width);
            self.read(sample.slot, k, v);
            k.iter_mut().zip(sample.k).for_each(|(old, new)| *old = new - *old);
            v.iter_mut().zip(sample.v).for_each(|(old, new)| *old = new - *old);
            k.chunks_exact_mut(head_dim).for_each(|head| rope.rotate(head, sample.position, -1.0));
        });
        differences
    }

    /// Adds the content of a slot to `k` and `v`.
    fn add_slot(&self, slot: u32, k: &mut [f32], v: &mut [f32]) {
        let (mut old_k, mut old_v) = (vec![0.0; k.len()], vec![0.0; v.len()]);
        self.read(slot, &mut old_k, &mut old_v);
        k.iter_mut().zip(old_k).for_each(|(k, old)| *k += old);
        v.iter_mut().zip(old_v).for_each(|(v, old)| *v += old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::noise;
    use crate::cpu::{Heads, KvDtype, KvShape, RopeLayout, rope};

    const SHAPE: KvShape = KvShape { num_blocks: 8, num_kv_heads: 2, head_dim: 16 };

    fn read(kv: &KvLayer, slot: u32) -> (Vec<f32>, Vec<f32>) {
        let (mut k, mut v) = (vec![0.0; SHAPE.width()], vec![0.0; SHAPE.width()]);
        kv.read(slot, &mut k, &mut v);
        (k, v)
    }

    /// Checks that, when two samples change by known amounts before rotation, a target with weights 0.25 and 0.5 changes by their weighted
    /// sum, rotated to its own position, and nothing else changes.
    #[track_caller]
    fn check(layout: RopeLayout) {
        let threads = Threads::new(2).unwrap();
        let table = RopeTable::new(layout, (0..8).map(|i| 0.5f64.powi(i)).collect(), 100);
        let heads = Heads { stride: SHAPE.width(), column: 0, count: 2, dim: 16 };
        let (positions, slots) = ([20u32, 22, 90], [40u32, 42, 7]);
        let (plain, values) = (noise(3 * SHAPE.width(), 1), noise(3 * SHAPE.width(), 2));
        let (change_k, change_v) = (noise(2 * SHAPE.width(), 3), noise(2 * SHAPE.width(), 4));
        let rotated = |mut k: Vec<f32>, positions: &[u32]| {
            rope(&threads, &mut k, heads, positions, &table);
            k
        };
        let mut kv = KvLayer::new(KvDtype::F32, SHAPE);
        kv.write(&threads, &slots, &rotated(plain.clone(), &positions), &values, SHAPE.width());
        let sum = |a: &[f32], b: &[f32]| -> Vec<f32> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        let (new_k, new_v) = (rotated(sum(&plain, &change_k), &positions[..2]), sum(&values, &change_v));
        let before: Vec<_> = (0..64).map(|slot| read(&kv, slot)).collect();
        let samples = [0, 1].map(|i| DriftSample {
            position: positions[i],
            slot: slots[i],
            k: &new_k[i * SHAPE.width()..][..SHAPE.width()],
            v: &new_v[i * SHAPE.width()..][..SHAPE.width()],
        });
        kv.follow_drift(&threads, &table, &samples, &[(90, 7)], &[0.25, 0.5]);
        let weighted = |change: &[f32], i: usize| 0.25 * change[i] + 0.5 * change[SHAPE.width() + i];
        let target = 2 * SHAPE.width();
        let expected_k: Vec<f32> = (0..SHAPE.width()).map(|i| plain[target + i] + weighted(&change_k, i)).collect();
        let expected_k = rotated(expected_k, &[90]);
        let (k, v) = read(&kv, 7);
        for i in 0..SHAPE.width() {
            assert!((k[i] - expected_k[i]).abs() < 1e-5, "{layout:?} key {i}: {} is not {}", k[i], expected_k[i]);
            assert!((v[i] - values[target + i] - weighted(&change_v, i)).abs() < 1e-5);
        }
        let others = (0..64).filter(|slot| *slot != 7);
        assert!(others.into_iter().all(|slot| read(&kv, slot) == before[slot as usize]));
    }

    #[test]
    fn targets_follow_in_the_frame_before_rotation() {
        check(RopeLayout::Half);
        check(RopeLayout::Interleaved);
    }
}
