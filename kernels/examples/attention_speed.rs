//! How fast attention of prefill is on a Hopper GPU: whole prompts, and a tenth of a prompt's rows.
//!
//! `cargo run --release -p kernels --features cuda --example attention_speed`
//!
//! Floating-point operations are those of visible keys, four a number of a head and key. The floor divides them by 798 TFLOP/s, the
//! rate of a large product of bf16 matrices measured on an H100.

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use kernels::cuda::{AttentionHopper, CudaSlice, Device, DeviceError, PrefillAttention, TileSequence, bf16, tiles};

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

fn main() -> Result<(), DeviceError> {
    let device = Device::open(0)?;
    let attention = AttentionHopper::new(&device)?;
    println!("{}", device.name()?);
    println!("{:>6} {:>7} {:>5} {:>8} {:>8} {:>9}", "heads", "context", "rows", "ms", "floor", "TFLOP/s");
    let qwen_7b = Heads { num_heads: 28, num_kv_heads: 4, head_dim: 128 };
    for context in [512, 1024, 2048, 4096, 8192, 16384, 32768] {
        measure(&device, &attention, qwen_7b, &(0..context).collect::<Vec<u32>>())?;
    }
    for context in [2048, 8192, 32768] {
        measure(&device, &attention, qwen_7b, &(0..context / 10).map(|i| 10 * i + 9).collect::<Vec<u32>>())?;
    }
    let qwen_half_b = Heads { num_heads: 14, num_kv_heads: 2, head_dim: 64 };
    for context in [1024, 8192] {
        measure(&device, &attention, qwen_half_b, &(0..context).collect::<Vec<u32>>())?;
    }
    Ok(())
}

/// Prints the median time of one layer for rows at `positions`.
fn measure(device: &Device, attention: &AttentionHopper, heads: Heads, positions: &[u32]) -> Result<(), DeviceError> {
    let Heads { num_heads, num_kv_heads, head_dim } = heads;
    let context = *positions.last().expect("rows") as usize + 1;
    let num_blocks = context.div_ceil(BLOCK);
    // An odd step visits every block of a power of two, far from the one before.
    let table: Vec<u32> = (0..num_blocks).map(|i| ((i * 37 + 5) % num_blocks) as u32).collect();
    let tiles =
        tiles(&[TileSequence { first_row: 0, positions, table: 0 }], AttentionHopper::tile_tokens(num_heads / num_kv_heads));
    let q_stride = (num_heads + 2 * num_kv_heads) * head_dim;
    let pool_len = num_blocks * num_kv_heads * BLOCK * head_dim;
    let on_device = (device.upload(positions)?, device.upload(&tiles)?, device.upload(&table)?);
    let from = PrefillAttention {
        q: &random(device, positions.len() * q_stride, 1)?,
        q_stride,
        positions: on_device.0.as_view(),
        num_tiles: tiles.len(),
        tiles: on_device.1.as_view(),
        block_tables: on_device.2.as_view(),
        max_blocks: num_blocks,
        keys: &random(device, pool_len, 2)?,
        values: &random(device, pool_len, 3)?,
        layer: 0,
        num_blocks,
        num_heads,
        num_kv_heads,
        head_dim,
        scale: (head_dim as f32).sqrt().recip(),
    };
    let mut out = device.zeros::<bf16>(positions.len() * num_heads * head_dim)?;
    let mut times = Vec::new();
    for _ in 0..RUNS + 3 {
        let start = device.stream().record_event(Some(CU_EVENT_DEFAULT))?;
        attention.attend(&from, &mut out, None)?;
        let end = device.stream().record_event(Some(CU_EVENT_DEFAULT))?;
        times.push(f64::from(start.elapsed_ms(&end)?));
    }
    let times = &mut times[3..];
    times.sort_by(f64::total_cmp);
    let ms = times[RUNS / 2];
    let visible: f64 = positions.iter().map(|position| f64::from(*position) + 1.0).sum();
    let work = 4.0 * (num_heads * head_dim) as f64 * visible;
    let (floor_ms, rate) = (work / FLOPS * 1e3, work / ms / 1e9);
    println!(
        "{num_heads:>2}/{num_kv_heads}x{head_dim:<3} {context:>6} {:>5} {ms:>8.3} {floor_ms:>8.3} {rate:>9.0}",
        positions.len()
    );
    Ok(())
}

/// Numbers between -1 and 1 (xorshift32), about as large as those of a model.
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
