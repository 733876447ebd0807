//! Times copies of blocks to main memory and back, for several numbers of layers per copy, by events of the device; last, as many both ways
//! in one step, where each group of layers waits for its copy to the host.
//!
//! `cargo run --release -p kernels --features cuda --example host_pool_speed`. Blocks of the shapes of three models, in pools of 8 GB.

use std::error::Error;
use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use kernels::cuda::{Device, DeviceError, HostPool, Pool, PoolShape};

const POOL_BYTES: usize = 8 << 30;
const REPEATS: usize = 9;
const MOST_BLOCKS: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let columns = ["offload GB/s", "fetch GB/s", "both GB/s"].map(|column| format!("{column:>13}")).concat();
    println!("{:<16} {:>7} {:>7} {:>10} {columns}", "model", "layers", "blocks", "MB");
    measure("Qwen2.5-7B", (28, 4, 128), &[28, 14, 10, 7, 4])?;
    measure("Qwen2.5-0.5B", (24, 2, 64), &[24, 12])?;
    measure("SmolLM2-135M", (30, 3, 64), &[30, 15])
}

/// Measures a model with `sizes` (layers, key heads, `head_dim`), for each number of layers per copy in `groups`.
fn measure(model: &str, sizes: (usize, usize, usize), groups: &[usize]) -> Result<(), Box<dyn Error>> {
    let (num_layers, num_kv_heads, head_dim) = sizes;
    let block_bytes = num_layers * num_kv_heads * head_dim * 32 * 4;
    let num_blocks = POOL_BYTES / block_bytes;
    let shape = PoolShape { num_layers, num_blocks, num_kv_heads, head_dim };
    for &layers in groups {
        let mut link = Link::new(shape, layers)?;
        for count in [1, 16, MOST_BLOCKS] {
            let rates = link.rates(count, block_bytes)?.map(|rate| format!("{:>13.1}", rate / 1e9)).concat();
            println!("{model:<16} {layers:>7} {count:>7} {:>10.1} {rates}", (count * block_bytes) as f64 / 1e6);
        }
    }
    Ok(())
}

struct Link {
    device: Arc<Device>,
    pool: Pool,
    host: HostPool,
}

impl Link {
    fn new(shape: PoolShape, layers_per_group: usize) -> Result<Self, DeviceError> {
        let device = Device::open(0)?;
        let host = HostPool::with_groups(&device, shape, 2 * MOST_BLOCKS, layers_per_group)?;
        Ok(Self { pool: Pool::new(&device, shape)?, host, device })
    }

    /// Returns the bytes per second of `count` blocks to the host, back, and both ways at once, together.
    fn rates(&mut self, count: usize, block_bytes: usize) -> Result<[f64; 3], DeviceError> {
        // Blocks of one sequence are seldom contiguous.
        let num_blocks = self.pool.shape().num_blocks;
        let block = |i: usize| (i * 7919 % num_blocks) as u32;
        let to_places = |first: usize| (0..count).map(|i| (block(i), (first + i) as u32)).collect::<Vec<_>>();
        let (there, elsewhere) = (to_places(0), to_places(MOST_BLOCKS));
        let back: Vec<(u32, u32)> = there.iter().map(|&(block, place)| (place, block)).collect();
        let bytes = (count * block_bytes) as f64;
        Ok([bytes / self.time(&there, &[])?, bytes / self.time(&[], &back)?, 2.0 * bytes / self.time(&elsewhere, &back)?])
    }

    /// Returns the median seconds of a step's transfers.
    fn time(&mut self, offloads: &[(u32, u32)], fetches: &[(u32, u32)]) -> Result<f64, DeviceError> {
        let mut seconds = Vec::new();
        for _ in 0..REPEATS {
            let event = || self.device.context().new_event(Some(CU_EVENT_DEFAULT));
            let (began, ended) = (event()?, event()?);
            began.record(self.device.stream())?;
            self.host.begin_offload(&mut self.pool, offloads)?;
            self.host.begin_fetch(&mut self.pool, fetches)?;
            self.host.wait_for_all(&mut self.pool)?;
            ended.record(self.device.stream())?;
            seconds.push(f64::from(began.elapsed_ms(&ended)?) / 1e3);
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[REPEATS / 2])
    }
}
