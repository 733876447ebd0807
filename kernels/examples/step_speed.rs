//! Times a step outside attention: each product and kernel of Qwen2.5-7B's shapes, compared with its floor.
//!
//! `cargo run --release -p kernels --features cuda --example step_speed`

use cudarc::driver::sys::CUevent_flags;
use kernels::cuda::{CudaSlice, Device, DeviceError, Fill, Matmul, Norm, bf16};

const HIDDEN: usize = 3584;
const INTERMEDIATE: usize = 18944;
const QKV: usize = 4608;
const VOCAB: usize = 152_064;
/// Measured on the chip by large copies and products.
const BYTES_PER_US: f64 = 3.0e6;
const FLOP_PER_US: f64 = 798e6;
/// Copies of each weight that are used in turn, so that none stays in the L2 cache.
const COPIES: usize = 4;
const RUNS: usize = 20;

fn main() -> Result<(), DeviceError> {
    let device = Device::open(0)?;
    println!("{}: microseconds, floor by bytes or FLOPs, share of it", device.name()?);
    let mut matmul = Matmul::new(&device)?;
    let fill = Fill::new(&device)?;
    let random = |len: usize, seed: u64| -> Result<CudaSlice<bf16>, DeviceError> {
        let mut numbers = device.zeros(len)?;
        fill.uniform(&mut numbers.slice_mut(..), seed, 1.0)?;
        Ok(numbers)
    };
    let shapes = [
        ("qkv", QKV, HIDDEN),
        ("output", HIDDEN, HIDDEN),
        ("gate, up", 2 * INTERMEDIATE, HIDDEN),
        ("down", HIDDEN, INTERMEDIATE),
    ];
    for (name, n, k) in shapes {
        let weights = (0..COPIES as u64).map(|seed| random(n * k, seed)).collect::<Result<Vec<_>, _>>()?;
        let refs: Vec<&CudaSlice<bf16>> = weights.iter().collect();
        for rows in [1, 8, 32, 128, 256, 1024, 8192] {
            let x = random(rows * k, 9)?;
            let mut out: CudaSlice<bf16> = device.zeros(rows * n)?;
            matmul.tune(&x, rows, &refs, (n, k), &mut out)?;
            let us = time(&device, |run| matmul.run(&x, rows, &weights[run % COPIES], (n, k), &mut out))?;
            report(name, rows, us, 2 * (n * k + rows * (n + k)), 2 * n * k * rows);
        }
    }
    let head = random(VOCAB * HIDDEN, 5)?;
    for rows in [1, 32, 256] {
        let (x, mut out) = (random(rows * HIDDEN, 9)?, device.zeros::<f32>(rows * VOCAB)?);
        matmul.tune(&x, rows, &[&head], (VOCAB, HIDDEN), &mut out)?;
        let us = time(&device, |_| matmul.run(&x, rows, &head, (VOCAB, HIDDEN), &mut out))?;
        report("head", rows, us, 2 * VOCAB * HIDDEN + 4 * rows * VOCAB, 2 * VOCAB * HIDDEN * rows);
    }
    let norm = Norm::new(&device)?;
    let weight = device.upload(&vec![1f32; HIDDEN])?;
    for rows in [1, 256, 8192] {
        let (mut hidden, delta) = (device.upload(&vec![1f32; rows * HIDDEN])?, random(rows * HIDDEN, 3)?);
        let mut normed = device.zeros(rows * HIDDEN)?;
        let us = time(&device, |_| norm.add_rms_norm(&mut hidden, Some(&delta), &weight, 1e-6, &mut normed, rows))?;
        report("add, norm", rows, us, 12 * rows * HIDDEN, 0);
    }
    Ok(())
}

fn report(name: &str, rows: usize, us: f64, bytes: usize, flop: usize) {
    let floor = (bytes as f64 / BYTES_PER_US).max(flop as f64 / FLOP_PER_US);
    println!("{name:10} {rows:6} rows {us:9.1} us  floor {floor:9.1}  {:5.1} %", 100.0 * floor / us);
}

/// Returns the mean time of a launch in microseconds.
fn time(device: &Device, mut launch: impl FnMut(usize) -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
    (0..3).try_for_each(&mut launch)?;
    let event = || device.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    let (start, end) = (event()?, event()?);
    start.record(device.stream())?;
    (0..RUNS).try_for_each(&mut launch)?;
    end.record(device.stream())?;
    Ok(f64::from(start.elapsed_ms(&end)?) * 1e3 / RUNS as f64)
}
