//! Times the kernels that only move bytes, on shapes of Qwen2.5-7B, and compares them with a copy of as many bytes.
//!
//! `cargo run --release -p kernels --features cuda --example elementwise_speed`

use std::sync::Arc;

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use kernels::cpu::{Activation, RopeLayout};
use kernels::cuda::{
    CudaSlice, Deviation, Device, DeviceError, Differences, Drift, DriftTargets, Fill, FreshRows, Gated, MovedTokens, Pool,
    PoolShape, Qkv, QkvShape, QkvWeights, RopeTable, Scatter, Spans, bf16, drift_tiles,
};

const LAYERS: usize = 28;
const SHAPE: QkvShape = QkvShape { num_heads: 28, num_kv_heads: 4, head_dim: 128 };
const POOL: PoolShape = PoolShape { num_layers: LAYERS, num_blocks: 1024, num_kv_heads: 4, head_dim: 128 };
const INTERMEDIATE: usize = 18944;
/// Bytes of K and V of one token in one layer.
const KV_BYTES: usize = 2 * 4 * 128 * 2;

type Outcome = Result<(), DeviceError>;

struct Bench {
    device: Arc<Device>,
    /// Bytes per second, read and written, of a large copy.
    copy_rate: f64,
}

impl Bench {
    /// Returns the median seconds of one call, of 15 runs of a graph of `calls` of them.
    fn seconds(&self, calls: usize, mut f: impl FnMut(usize) -> Outcome) -> Result<f64, DeviceError> {
        let stream = self.device.stream();
        (0..3).try_for_each(&mut f)?;
        self.device.synchronize()?;
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        (0..calls).try_for_each(&mut f)?;
        let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?;
        let graph = graph.expect("something was captured");
        graph.launch()?;
        let mut times = Vec::new();
        for _ in 0..15 {
            let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            graph.launch()?;
            let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            times.push(start.elapsed_ms(&end)?);
        }
        times.sort_by(f32::total_cmp);
        Ok(f64::from(times[7]) / 1e3 / calls as f64)
    }

    fn row(&self, name: &str, bytes: usize, calls: usize, f: impl FnMut(usize) -> Outcome) -> Outcome {
        let (seconds, floor) = (self.seconds(calls, f)?, bytes as f64 / self.copy_rate);
        let (micros, floor_micros) = (seconds * 1e6, floor * 1e6);
        println!("{name:<44} {micros:>9.1} {floor_micros:>9.1} {:>8.0} {:>6.2}", bytes as f64 / seconds / 1e9, seconds / floor);
        Ok(())
    }
}

fn main() -> Outcome {
    let device = Device::open(0)?;
    let fill = Fill::new(&device)?;
    let (mut from, mut to) = (device.zeros::<bf16>(1 << 29)?, device.zeros::<bf16>(1 << 29)?);
    fill.uniform(&mut from.as_view_mut(), 1, 1.0)?;
    let mut bench = Bench { device, copy_rate: 1.0 };
    // The first round wakes the chip up.
    for _ in 0..3 {
        let seconds = bench.seconds(20, |_| Ok(bench.device.stream().memcpy_dtod(&from, &mut to)?))?;
        bench.copy_rate = (4usize << 29) as f64 / seconds;
    }
    println!("{}: a copy of 1 GiB moves {:.0} GB/s", bench.device.name()?, bench.copy_rate / 1e9);
    println!("{:<44} {:>9} {:>9} {:>8} {:>6}", "kernel", "us", "floor us", "GB/s", "ratio");
    bench.row("fill_bf16, 1 GiB", 2 << 29, 1, |i| fill.uniform(&mut to.as_view_mut(), i as u64, 1.0))?;
    drop((from, to));
    let mut pool = Pool::new(&bench.device, POOL)?;
    let (mut keys, mut values) = pool.parts_mut();
    fill.uniform(&mut keys, 2, 1.0)?;
    fill.uniform(&mut values, 3, 1.0)?;
    let inv_freq = (0..64).map(|i| 1e6f64.powf(-f64::from(i) / 64.0)).collect();
    let rope = RopeTable::new(&bench.device, RopeLayout::Half, inv_freq, 32768)?;
    for num_rows in [1, 32, 256, 2048, 8192] {
        qkv(&bench, &mut pool, &rope, num_rows)?;
    }
    for num_rows in [1, 256, 8192] {
        gated(&bench, num_rows)?;
    }
    for num_tokens in [1024, 8192] {
        spans(&bench, &mut pool, &rope, num_tokens)?;
    }
    deviation(&bench, &pool)?;
    drift(&bench, &mut pool, &rope)
}

fn random(device: &Arc<Device>, len: usize) -> Result<CudaSlice<bf16>, DeviceError> {
    let mut numbers = device.zeros(len)?;
    Fill::new(device)?.uniform(&mut numbers.as_view_mut(), len as u64, 1.0)?;
    Ok(numbers)
}

fn indices(device: &Arc<Device>, range: std::ops::Range<usize>) -> Result<CudaSlice<u32>, DeviceError> {
    device.upload(&range.map(|i| i as u32).collect::<Vec<_>>())
}

/// Processes one layer per call, in several buffers of rows so that none of them stays in the cache.
fn qkv(bench: &Bench, pool: &mut Pool, rope: &RopeTable, num_rows: usize) -> Outcome {
    let kernel = Qkv::new(&bench.device, SHAPE)?;
    let mut buffers = (0..4).map(|_| random(&bench.device, num_rows * SHAPE.width())).collect::<Result<Vec<_>, _>>()?;
    let bias = bench.device.zeros::<f32>(SHAPE.width())?;
    let weights = QkvWeights { bias: Some(bias.as_view()), norms: None, epsilon: 1e-6 };
    let (positions, slots) = (indices(&bench.device, 0..num_rows)?, indices(&bench.device, 0..num_rows)?);
    let (all, q) = (num_rows * SHAPE.width() * 2, num_rows * SHAPE.k_column() * 2);
    bench.row(&format!("qkv rotate, {num_rows} rows"), 2 * all, LAYERS, |i| {
        kernel.rotate(&mut buffers[i % 4], num_rows, &positions.as_view(), &weights, rope)
    })?;
    bench.row(&format!("qkv rotate + scatter, {num_rows} rows"), 2 * all, LAYERS, |i| {
        let scatter = Scatter { pool: &mut *pool, layer: i % LAYERS, slots: slots.as_view(), differences: None };
        kernel.rotate_and_scatter(&mut buffers[i % 4], num_rows, &positions.as_view(), &weights, rope, scatter, false)
    })?;
    let places = bench.device.upload(&(0..num_rows as i32).collect::<Vec<_>>())?;
    let mut out = bench.device.zeros::<f32>(num_rows * KV_BYTES / 2)?;
    let bytes = all + q + num_rows * KV_BYTES * 5;
    bench.row(&format!("qkv all with differences, {num_rows} rows"), bytes, LAYERS, |i| {
        let differences = Some(Differences { rows: places.as_view(), out: &mut out });
        let scatter = Scatter { pool: &mut *pool, layer: i % LAYERS, slots: slots.as_view(), differences };
        kernel.rotate_and_scatter(&mut buffers[i % 4], num_rows, &positions.as_view(), &weights, rope, scatter, true)
    })
}

fn gated(bench: &Bench, num_rows: usize) -> Outcome {
    let kernel = Gated::new(&bench.device, Activation::Silu)?;
    let gate_up = random(&bench.device, 2 * num_rows * INTERMEDIATE)?;
    let mut activated = bench.device.zeros(num_rows * INTERMEDIATE)?;
    bench.row(&format!("swiglu, {num_rows} rows"), 6 * num_rows * INTERMEDIATE, LAYERS, |_| {
        kernel.run(&gate_up, &mut activated, num_rows, INTERMEDIATE)
    })
}

fn spans(bench: &Bench, pool: &mut Pool, rope: &RopeTable, num_tokens: usize) -> Outcome {
    let kernel = Spans::new(&bench.device, SHAPE.head_dim, &[0; LAYERS])?;
    let half = POOL.num_slots() / 2;
    let bytes = 2 * num_tokens * KV_BYTES * LAYERS;
    for (name, first) in [("aligned", 0), ("off by 13 slots", 13)] {
        let (src, dst) = (indices(&bench.device, first..first + num_tokens)?, indices(&bench.device, half..half + num_tokens)?);
        let of_span = bench.device.upload(&(0..num_tokens as u32).map(|i| i / 512).collect::<Vec<_>>())?;
        let rotations: Vec<[f32; 2]> = (0..num_tokens.div_ceil(512)).flat_map(|i| rope.rotation(1000 + i as i64)).collect();
        let rotations = bench.device.upload(&rotations)?;
        let tokens = MovedTokens {
            src_slots: src.as_view(),
            dst_slots: dst.as_view(),
            spans: of_span.as_view(),
            rotations: rotations.as_view(),
            num_spans: num_tokens.div_ceil(512),
        };
        bench.row(&format!("move {num_tokens} tokens, 28 layers, {name}"), bytes, 1, |_| {
            kernel.move_tokens(pool, &tokens, RopeLayout::Half)
        })?;
    }
    let num_blocks = num_tokens / 32;
    let copies: Vec<[u32; 3]> = (0..num_blocks as u32).map(|i| [i, i + 512, 32]).collect();
    let copies = bench.device.upload(&copies)?;
    bench
        .row(&format!("copy {num_blocks} blocks, 28 layers"), bytes, 1, |_| kernel.copy_blocks(pool, 0..28, &copies.as_view()))?;
    let zeroed = indices(&bench.device, 512..512 + num_blocks)?;
    bench.row(&format!("zero {num_blocks} blocks, 28 layers"), bytes / 2, 1, |_| kernel.zero_blocks(pool, &zeroed.as_view()))
}

fn deviation(bench: &Bench, pool: &Pool) -> Outcome {
    const NUM_ROWS: usize = 8192;
    let kernel = Deviation::new(&bench.device)?;
    let buffer = random(&bench.device, NUM_ROWS * SHAPE.width())?;
    let rows = indices(&bench.device, 0..NUM_ROWS)?;
    let mut out = bench.device.zeros(NUM_ROWS * Deviation::WIDTH)?;
    let fresh = FreshRows { buffer: &buffer, shape: SHAPE, rows: rows.as_view(), slots: rows.as_view() };
    bench.row("deviation, 8192 rows, one layer", 2 * NUM_ROWS * KV_BYTES, LAYERS, |i| {
        kernel.measure(&fresh, pool, i % LAYERS, &mut out.as_view_mut())
    })
}

/// 16 pieces of 512 tokens, every tenth of them a sample; a weight is more than 0 within 80 tokens. Bytes are those of the targets alone.
fn drift(bench: &Bench, pool: &mut Pool, rope: &RopeTable) -> Outcome {
    const PIECES: usize = 16;
    let is_sample = |i: &usize| i.is_multiple_of(10);
    let (samples, targets): (Vec<usize>, Vec<usize>) = (0..512).partition(is_sample);
    let weight = |target: usize, sample: usize| if target.abs_diff(sample) < 80 { 0.03 } else { 0.0 };
    let of_piece: Vec<f32> = targets.iter().flat_map(|t| samples.iter().map(|s| weight(*t, *s))).collect();
    let places: Vec<u32> = (0..PIECES).flat_map(|piece| targets.iter().map(move |t| (512 * piece + t) as u32)).collect();
    let device = &bench.device;
    let (places, weights) = (device.upload(&places)?, device.upload(&of_piece.repeat(PIECES))?);
    let tiles = device.upload(&drift_tiles(vec![(targets.len(), samples.len()); PIECES]))?;
    let differences = device.upload(&vec![1e-3f32; PIECES * samples.len() * KV_BYTES / 2])?;
    let targets =
        DriftTargets { tiles: tiles.as_view(), positions: places.as_view(), slots: places.as_view(), weights: weights.as_view() };
    let kernel = Drift::new(device, SHAPE.head_dim)?;
    bench.row("drift, 8192 tokens, one layer", 2 * places.len() * KV_BYTES, LAYERS, |i| {
        kernel.follow(pool, i % LAYERS, rope, &targets, &differences)
    })
}
