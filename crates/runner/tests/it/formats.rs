//! Weight formats against candle's own reading of them.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use kernels::cpu::{GgmlType, Matrix};

#[test]
fn every_quantised_format_decodes_as_candle_decodes_it() {
    let formats = [
        (GgmlDType::Q4_0, GgmlType::Q4_0),
        (GgmlDType::Q4_1, GgmlType::Q4_1),
        (GgmlDType::Q5_0, GgmlType::Q5_0),
        (GgmlDType::Q5_1, GgmlType::Q5_1),
        (GgmlDType::Q8_0, GgmlType::Q8_0),
        (GgmlDType::Q2K, GgmlType::Q2K),
        (GgmlDType::Q3K, GgmlType::Q3K),
        (GgmlDType::Q4K, GgmlType::Q4K),
        (GgmlDType::Q5K, GgmlType::Q5K),
        (GgmlDType::Q6K, GgmlType::Q6K),
        (GgmlDType::F16, GgmlType::F16),
        (GgmlDType::BF16, GgmlType::Bf16),
    ];
    let (n, k) = (40, 512);
    let mut state = 1u32;
    let values: Vec<f32> = (0..n * k)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 * 2.0 - 0.9
        })
        .collect();
    let tensor = Tensor::from_vec(values, (n, k), &Device::Cpu).unwrap();
    for (theirs, ours) in formats {
        let quantised = QTensor::quantize(&tensor, theirs).unwrap();
        let expected: Vec<f32> = quantised.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let matrix = Matrix::from_ggml(ours, n, k, &quantised.data().unwrap());
        let mut row = vec![0.0; k];
        for i in 0..n {
            matrix.read_row(i, &mut row);
            for (j, (a, b)) in row.iter().zip(&expected[i * k..]).enumerate() {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(0.1), "{ours:?} at {i},{j}: {a} is not {b}");
            }
        }
    }
}
