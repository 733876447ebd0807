//! Times of blocks on their way to main memory and back, by events of the device.
//!
//! `cargo run --release -p kernels --features cuda --example host_pool_speed`. Blocks as three models have them, in pools of 8 GB.

use std::error::Error;

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use kernels::cuda::{Device, HostPool, Pool, PoolShape};

const POOL_BYTES: usize = 8 << 30;
const REPEATS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    println!("{:<16} {:>7} {:>10} {:>13} {:>13}", "model", "blocks", "MB", "offload GB/s", "fetch GB/s");
    measure("Qwen2.5-7B", 28, 4, 128)?;
    measure("Qwen2.5-0.5B", 24, 2, 64)?;
    measure("SmolLM2-135M", 30, 3, 64)
}

fn measure(model: &str, num_layers: usize, num_kv_heads: usize, head_dim: usize) -> Result<(), Box<dyn Error>> {
    let device = Device::open(0)?;
    let block_bytes = num_layers * num_kv_heads * head_dim * 32 * 4;
    let num_blocks = POOL_BYTES / block_bytes;
    let shape = PoolShape { num_layers, num_blocks, num_kv_heads, head_dim };
    let mut pool = Pool::new(&device, shape)?;
    let mut host = HostPool::new(&device, shape, 256)?;
    for count in [1, 16, 256] {
        // Blocks of one sequence seldom lie side by side.
        let there: Vec<(u32, u32)> = (0..count).map(|i| ((i as usize * 7919 % num_blocks) as u32, i)).collect();
        let back: Vec<(u32, u32)> = there.iter().map(|&(block, place)| (place, block)).collect();
        let (mut offloads, mut fetches) = (Vec::new(), Vec::new());
        for _ in 0..REPEATS {
            let event = || device.context().new_event(Some(CU_EVENT_DEFAULT));
            let (began, ended) = (event()?, event()?);
            began.record(device.stream())?;
            host.offload(&pool, &there)?;
            ended.record(device.stream())?;
            offloads.push(f64::from(began.elapsed_ms(&ended)?) / 1e3);
            host.fetch(&mut pool, &back)?;
            device.synchronize()?;
            fetches.push(host.take_timing()?.ok_or("the fetch has not ended")?.1);
        }
        let bytes = (count as usize * block_bytes) as f64;
        let rate = |seconds: &mut Vec<f64>| {
            seconds.sort_by(f64::total_cmp);
            bytes / seconds[REPEATS / 2] / 1e9
        };
        println!("{model:<16} {count:>7} {:>10.1} {:>13.1} {:>13.1}", bytes / 1e6, rate(&mut offloads), rate(&mut fetches));
    }
    Ok(())
}
