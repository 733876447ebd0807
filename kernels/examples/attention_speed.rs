//! Times prefill attention on a Hopper GPU: whole prompts, a tenth of a prompt's rows, and the last rows of one, with and without division
//! of the keys; and the logarithms of the rows' sums alone.
//!
//! `cargo run --release -p kernels --features cuda --example attention_speed`
//!
//! Floating-point operations are those of visible keys: four for each element of a head and key. The floor divides them by 798 TFLOP/s, the
//! rate of a large product of bf16 matrices measured on an H100.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use kernels::cuda::{AttentionHopper, CudaSlice, Device, DeviceError, PagedQueries, TileList, TileSequence, bf16, tiles};

const BLOCK: usize = 32;
const FLOPS: f64 = 798e12;
const RUNS: usize = 15;

/// Heads of a model.
#[derive(Clone, Copy)]
struct Heads {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

const QWEN_7B: Heads = Heads { num_heads: 28, num_kv_heads: 4, head_dim: 128 };
const QWEN_HALF_B: Heads = Heads { num_heads: 14, num_kv_heads: 2, head_dim: 64 };

fn main() -> Result<(), DeviceError> {
    let device = Device::open(0)?;
    println!("{}", device.name()?);
    let names = ["heads", "context", "rows", "splits", "ms", "floor", "TFLOP/s", "lse ms"];
    let [heads, context, rows, splits, ms, floor, rate, lse] = names;
    println!("{heads:>8} {context:>7} {rows:>5} {splits:>6} {ms:>8} {floor:>8} {rate:>9} {lse:>8}");
    for context in [512, 1024, 2048, 4096, 8192, 16384, 32768] {
        measure(&device, QWEN_7B, &(0..context).collect::<Vec<u32>>())?;
    }
    for context in [2048, 8192, 32768] {
        measure(&device, QWEN_7B, &(0..context / 10).map(|i| 10 * i + 9).collect::<Vec<u32>>())?;
    }
    for (context, rows) in [(8192, 16), (8192, 256), (32768, 16), (32768, 256), (32768, 2048)] {
        measure(&device, QWEN_7B, &(context - rows..context).collect::<Vec<u32>>())?;
    }
    for context in [1024, 8192] {
        measure(&device, QWEN_HALF_B, &(0..context).collect::<Vec<u32>>())?;
    }
    Ok(())
}

/// Prints the median time of one layer for rows at `positions`.
fn measure(device: &Arc<Device>, heads: Heads, positions: &[u32]) -> Result<(), DeviceError> {
    let Heads { num_heads, num_kv_heads, head_dim } = heads;
    let attention = AttentionHopper::new(device, head_dim)?;
    let context = *positions.last().expect("rows") as usize + 1;
    let num_blocks = context.div_ceil(BLOCK);
    // An odd step visits every block of a power of two, far from the one before.
    let table: Vec<u32> = (0..num_blocks).map(|i| ((i * 37 + 5) % num_blocks) as u32).collect();
    let tile_tokens = AttentionHopper::tile_tokens(num_heads / num_kv_heads);
    let list = tiles(&[TileSequence { first_row: 0, positions, table: 0 }], tile_tokens);
    let on_device = (device.upload(&list)?, device.upload(positions)?, device.upload(&table)?);
    let list = TileList { tiles: on_device.0.as_view(), num_tiles: list.len(), num_rows: positions.len() };
    let row_stride = (num_heads + 2 * num_kv_heads) * head_dim;
    let pool_len = num_blocks * num_kv_heads * BLOCK * head_dim;
    let (keys, values) = (random(device, pool_len, 2)?, random(device, pool_len, 3)?);
    let paged = PagedQueries {
        queries: &random(device, positions.len() * row_stride, 1)?,
        row_stride,
        positions: on_device.1.as_view(),
        num_heads,
        scale: (head_dim as f32).sqrt().recip(),
        block_tables: on_device.2.as_view(),
        max_blocks: num_blocks,
        keys: keys.as_view(),
        values: values.as_view(),
        layer: 0,
        num_blocks,
        num_kv_heads,
        head_dim,
        window: u32::MAX,
    };
    let mut lse = device.zeros::<f32>(positions.len() * num_heads)?;
    let lse_ms = median_ms(device, || attention.log_sums(&paged, &list, &mut lse))?;
    let best = attention.num_splits(list.num_tiles, num_kv_heads, context);
    for num_splits in if best > 1 { vec![1, best] } else { vec![1] } {
        let mut partials = attention.partials(head_dim)?;
        let mut out = device.zeros::<bf16>(positions.len() * num_heads * head_dim)?;
        let ms = median_ms(device, || attention.run_split(&paged, &list, (num_splits, &mut partials), &mut out, None))?;
        let visible: f64 = positions.iter().map(|position| f64::from(*position) + 1.0).sum();
        let work = 4.0 * (num_heads * head_dim) as f64 * visible;
        let (floor_ms, rate, rows) = (work / FLOPS * 1e3, work / ms / 1e9, positions.len());
        let heads = format!("{num_heads}/{num_kv_heads}x{head_dim}");
        println!("{heads:>8} {context:>7} {rows:>5} {num_splits:>6} {ms:>8.3} {floor_ms:>8.3} {rate:>9.0} {lse_ms:>8.3}");
    }
    Ok(())
}

/// Returns the median time of one call.
fn median_ms(device: &Device, mut call: impl FnMut() -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
    let mut times = Vec::new();
    for _ in 0..RUNS + 3 {
        let start = device.stream().record_event(Some(CU_EVENT_DEFAULT))?;
        call()?;
        let end = device.stream().record_event(Some(CU_EVENT_DEFAULT))?;
        times.push(f64::from(start.elapsed_ms(&end)?));
    }
    // The first calls warm up.
    let times = &mut times[3..];
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

/// Returns random elements between -1 and 1 (xorshift32).
fn random(device: &Device, len: usize, seed: u32) -> Result<CudaSlice<bf16>, DeviceError> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let numbers: Vec<bf16> = (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            bf16::from_f32(state as f32 / u32::MAX as f32 * 2.0 - 1.0)
        })
        .collect();
    device.upload(&numbers)
}
