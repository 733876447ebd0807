//! What the tests of kernels share.

use std::sync::Arc;

use half::bf16;

use super::{Device, Pool, PoolShape};
use crate::cpu::testing::noise;
use crate::cpu::{KvDtype, KvLayer, KvShape, Threads};

/// The device of the tests; each of them is ignored where there is none.
pub(crate) fn device() -> Arc<Device> {
    Device::open(0).expect("a CUDA device")
}

/// Numbers of either width.
pub(crate) trait Number: Copy {
    fn wide(self) -> f32;
}

impl Number for f32 {
    fn wide(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

/// Whether `‖found − expected‖ <= tolerance ‖expected‖`, and nothing is NaN.
#[track_caller]
pub(crate) fn assert_close<T: Number>(found: &[T], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = || found.iter().zip(expected).map(|(found, expected)| (f64::from(found.wide()), f64::from(*expected)));
    let distance = norm(&mut pairs().map(|(found, expected)| found - expected));
    let length = norm(&mut pairs().map(|(_, expected)| expected));
    assert!(distance <= f64::from(tolerance) * length.max(1e-12), "off by {distance} of {length}");
}

pub(crate) fn rounded(numbers: impl IntoIterator<Item = f32>) -> Vec<bf16> {
    numbers.into_iter().map(bf16::from_f32).collect()
}

pub(crate) fn wide(numbers: &[bf16]) -> Vec<f32> {
    numbers.iter().map(|x| x.to_f32()).collect()
}

/// A pool of random numbers on the device, and the same numbers in f32 on the CPU, for a kernel and its twin.
pub(crate) struct TwinPools {
    pub(crate) pool: Pool,
    pub(crate) layers: Vec<KvLayer>,
}

impl TwinPools {
    pub(crate) fn new(device: &Arc<Device>, shape: PoolShape) -> Self {
        let mut pool = Pool::new(device, shape).unwrap();
        let host = [1, 2].map(|seed| rounded(noise(shape.num_elements(), seed)));
        let (keys, values) = pool.parts_mut();
        device.stream().memcpy_htod(&host[0], keys).unwrap();
        device.stream().memcpy_htod(&host[1], values).unwrap();
        let all: Vec<u32> = (0..shape.num_slots() as u32).collect();
        let layers = (0..shape.num_layers).map(|layer| {
            let of_slots = |numbers| all.iter().flat_map(|slot| slot_of(numbers, shape, layer, *slot)).collect::<Vec<f32>>();
            let kv_shape = KvShape { num_blocks: shape.num_blocks, num_kv_heads: shape.num_kv_heads, head_dim: shape.head_dim };
            let mut kv = KvLayer::new(KvDtype::F32, kv_shape);
            kv.write(&Threads::new(1).unwrap(), &all, &of_slots(&host[0]), &of_slots(&host[1]), shape.width());
            kv
        });
        Self { layers: layers.collect(), pool }
    }

    /// Whether every slot of the device holds what the CPU's does: the very bits, where bf16 can, as in all that was not computed.
    #[track_caller]
    pub(crate) fn assert_close(&self, device: &Arc<Device>, tolerance: f32) {
        let shape = self.pool.shape();
        let [keys, values] = [self.pool.keys(), self.pool.values()].map(|numbers| device.download(numbers).unwrap());
        for (layer, expected) in self.layers.iter().enumerate() {
            for slot in 0..shape.num_slots() as u32 {
                let (mut k, mut v) = (vec![0.0; shape.width()], vec![0.0; shape.width()]);
                expected.read(slot, &mut k, &mut v);
                for (found, expected) in [(&keys, k), (&values, v)] {
                    let found = slot_of(found, shape, layer, slot);
                    if wide(&rounded(expected.iter().copied())) == expected {
                        assert_eq!(found, expected, "layer {layer} slot {slot}");
                    } else {
                        super::testing::assert_close(&found, &expected, tolerance);
                    }
                }
            }
        }
    }
}

/// All heads of one slot, from the layout of [`Pool`].
fn slot_of(numbers: &[bf16], shape: PoolShape, layer: usize, slot: u32) -> Vec<f32> {
    let (block, offset) = (slot as usize / 32, slot as usize % 32);
    let head = |head| {
        let at = (((layer * shape.num_blocks + block) * shape.num_kv_heads + head) * 32 + offset) * shape.head_dim;
        wide(&numbers[at..at + shape.head_dim])
    };
    (0..shape.num_kv_heads).flat_map(head).collect()
}
