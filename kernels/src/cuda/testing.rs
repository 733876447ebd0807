//! What the tests of kernels share.

use std::sync::Arc;

use half::bf16;

use super::Device;

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
