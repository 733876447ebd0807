//! Times paged attention by events of the device: decode, few rows over many keys, and the attention that positions receive.
//!
//! `cargo run --release -p kernels --features cuda --example paged_attention_speed`. Heads of Qwen2.5-7B. Decode steps rotate among layers
//! of a pool larger than the L2 cache, in a captured graph.

use std::error::Error;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use kernels::cuda::{
    Attention, AttentionReceived, CudaSlice, DecodeAttention, Device, DeviceError, PagedQueries, PartList, Partials, QueryRows,
    TileList, TileSequence, bf16, decode_parts, num_splits, tiles,
};

const NUM_HEADS: usize = 28;
const NUM_KV_HEADS: usize = 4;
const HEAD_DIM: usize = 128;
const WIDTH: usize = NUM_KV_HEADS * HEAD_DIM;
const STRIDE: usize = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM;
const BLOCK: usize = 32;
/// Positions of the pool: 4 GB of keys and as much of values.
const POOL_POSITIONS: usize = 4 << 20;
/// Measured copy rate of the chip, in bytes per second.
const BANDWIDTH: f64 = 3.0e12;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Reproducible random elements (xorshift32).
struct Noise(u32);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    fn numbers(&mut self, len: usize) -> Vec<bf16> {
        (0..len).map(|_| bf16::from_f32((self.next() as f32 / u32::MAX as f32 - 0.5) * 4.0)).collect()
    }

    fn shuffled(&mut self, len: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..len as u32).collect();
        (1..len).rev().for_each(|i| ids.swap(i, self.next() as usize % (i + 1)));
        ids
    }
}

struct Bench {
    device: Arc<Device>,
    keys: CudaSlice<bf16>,
    values: CudaSlice<bf16>,
    noise: Noise,
}

impl Bench {
    fn new() -> Result<Self> {
        let (device, mut noise) = (Device::open(0)?, Noise(7));
        let mut pool = || -> Result<CudaSlice<bf16>> {
            let piece = noise.numbers(16 << 20);
            let piece = device.upload(&piece)?;
            let mut pool = device.zeros(POOL_POSITIONS * WIDTH)?;
            for start in (0..pool.len()).step_by(piece.len()) {
                device.stream().memcpy_dtod(&piece, &mut pool.slice_mut(start..start + piece.len()))?;
            }
            Ok(pool)
        };
        let (keys, values) = (pool()?, pool()?);
        Ok(Self { device, keys, values, noise })
    }

    /// Returns the median milliseconds of one call of `work`; 16 calls, each with its index, form a graph.
    fn time(&self, mut work: impl FnMut(usize) -> std::result::Result<(), DeviceError>) -> Result<f64> {
        const CALLS: usize = 16;
        let (stream, flags) = (self.device.stream(), CUevent_flags::CU_EVENT_DEFAULT);
        work(0)?;
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        for call in 0..CALLS {
            work(call)?;
        }
        let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?;
        let graph = graph.ok_or("a capture has calls")?;
        graph.launch()?;
        let mut times = Vec::new();
        for _ in 0..9 {
            let start = stream.record_event(Some(flags))?;
            graph.launch()?;
            let end = stream.record_event(Some(flags))?;
            self.device.synchronize()?;
            times.push(f64::from(start.elapsed_ms(&end)?) / CALLS as f64);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    fn decode(&mut self) -> Result<()> {
        let attention = DecodeAttention::new(&self.device, HEAD_DIM)?;
        println!("decode: batch context | parts us GB/s floor");
        for batch in [1, 8, 32, 128, 256] {
            for context in [512, 1024, 4096, 32768] {
                if batch * context <= POOL_POSITIONS {
                    self.decode_rows(&attention, &format!("{batch:>4} {context:>6}"), &vec![context; batch])?;
                }
            }
        }
        let mut mixed = vec![1000; 255];
        mixed.push(32768);
        self.decode_rows(&attention, "255 of 1000, one of 32768", &mixed)?;
        self.decode_rows(&attention, "64 of 100 to 6400", &(1..=64).map(|i| 100 * i).collect::<Vec<_>>())
    }

    fn decode_rows(&mut self, attention: &DecodeAttention, name: &str, lens: &[usize]) -> Result<()> {
        let blocks: Vec<usize> = lens.iter().map(|len| len.div_ceil(BLOCK)).collect();
        let (num_blocks, num_rows) = (blocks.iter().sum::<usize>(), lens.len());
        let max_blocks = blocks.iter().copied().max().ok_or("a batch has rows")?;
        let num_layers = (POOL_POSITIONS / (num_blocks * BLOCK)).min(64);
        let mut shuffled = self.noise.shuffled(num_blocks).into_iter();
        let mut tables = vec![0; num_rows * max_blocks];
        for (table, blocks) in tables.chunks_mut(max_blocks).zip(&blocks) {
            table[..*blocks].iter_mut().zip(&mut shuffled).for_each(|(to, block)| *to = block);
        }
        let positions: Vec<u32> = lens.iter().map(|len| *len as u32 - 1).collect();
        let list = decode_parts(&positions, NUM_KV_HEADS, self.device.num_multiprocessors()?);
        let queries = self.device.upload(&self.noise.numbers(num_rows * STRIDE))?;
        let (positions, block_tables) = (self.device.upload(&positions)?, self.device.upload(&tables)?);
        let (parts, num_parts) = (self.device.upload(&list)?, list.len());
        let mut out = self.device.zeros(num_rows * NUM_HEADS * HEAD_DIM)?;
        let mut partials = Partials::new(&self.device, num_parts * NUM_HEADS, HEAD_DIM)?;
        let ms = self.time(|call| {
            let paged = self.paged(&queries, &positions, &block_tables);
            let paged = PagedQueries { max_blocks, num_blocks, layer: call % num_layers, ..paged };
            attention.run(&paged, &PartList { parts: parts.as_view(), num_parts, num_rows }, &mut partials, &mut out)
        })?;
        let bytes = 4.0 * (lens.iter().sum::<usize>() * WIDTH) as f64;
        println!("{name} | {num_parts:>4} {:>8.1} {:>6.0} {:>8.1}", 1e3 * ms, bytes / ms / 1e6, 1e6 * bytes / BANDWIDTH);
        Ok(())
    }

    fn paged<'a>(
        &'a self,
        queries: &'a CudaSlice<bf16>,
        positions: &'a CudaSlice<u32>,
        block_tables: &'a CudaSlice<u32>,
    ) -> PagedQueries<'a> {
        PagedQueries {
            queries,
            row_stride: STRIDE,
            positions: positions.as_view(),
            num_heads: NUM_HEADS,
            scale: 1.0 / (HEAD_DIM as f32).sqrt(),
            block_tables: block_tables.as_view(),
            max_blocks: block_tables.len(),
            keys: self.keys.as_view(),
            values: self.values.as_view(),
            layer: 0,
            num_blocks: block_tables.len(),
            num_kv_heads: NUM_KV_HEADS,
            head_dim: HEAD_DIM,
            window: u32::MAX,
        }
    }

    /// Measures `rows` of one sequence: every `step`-th position, the last one being `context - 1`.
    fn rows(&mut self, context: usize, step: usize, counts: &[usize]) -> Result<()> {
        let (attention, received) = (Attention::new(&self.device, HEAD_DIM)?, AttentionReceived::new(&self.device, HEAD_DIM)?);
        let positions: Vec<u32> = (0..context as u32).filter(|p| (*p as usize + 1).is_multiple_of(step)).collect();
        let list = tiles(&[TileSequence { first_row: 0, positions: &positions, table: 0 }], Attention::tile_tokens(7));
        let seen: f64 = positions.iter().map(|p| f64::from(*p) + 1.0).sum();
        let queries = self.device.upload(&self.noise.numbers(positions.len() * STRIDE))?;
        let (num_rows, all) = (positions.len(), self.device.upload(&(0..positions.len() as u32).collect::<Vec<_>>())?);
        let positions = self.device.upload(&positions)?;
        let block_tables = self.device.upload(&self.noise.shuffled(context / BLOCK))?;
        let paged = self.paged(&queries, &positions, &block_tables);
        let on_device = self.device.upload(&list)?;
        let tiles = TileList { tiles: on_device.as_view(), num_tiles: list.len(), num_rows };
        let mut out = self.device.zeros(num_rows * NUM_HEADS * HEAD_DIM)?;
        let mut lse = self.device.zeros(num_rows * NUM_HEADS)?;
        let mut line = String::new();
        for &count in counts {
            let parts = list.len() * Attention::tile_tokens(7) * NUM_HEADS * count;
            let mut partials = Partials::new(&self.device, parts, HEAD_DIM)?;
            let ms = self.time(|_| attention.run_split(&paged, &tiles, (count, &mut partials), &mut out, Some(&mut lse)))?;
            let rate = 4.0 * seen * (NUM_HEADS * HEAD_DIM) as f64 / ms / 1e9;
            line += &format!(" {count}: {:.1} us {rate:.0} TFLOP/s;", 1e3 * ms);
        }
        let mut scratch = self.device.zeros(AttentionReceived::scratch_len(NUM_KV_HEADS, context))?;
        let mut sums = self.device.zeros(context)?;
        let mut of_received = String::new();
        for (name, run) in [("listed", None), ("in a run", Some(0))] {
            let query_rows = QueryRows { rows: &all.as_view(), run, num_rows, lse: &lse, table: 0, len: context };
            let ms = self.time(|_| received.add(&paged, query_rows, &mut scratch, &mut sums))?;
            let rate = 2.0 * seen * (NUM_HEADS * HEAD_DIM) as f64 / ms / 1e9;
            of_received += &format!(" {name} {:.1} us {rate:.0} TFLOP/s;", 1e3 * ms);
        }
        let chosen = num_splits(list.len(), NUM_KV_HEADS, self.device.num_multiprocessors()?, context);
        println!("{context:>6} {num_rows:>6} | by splits (chosen {chosen}):{line} | received{of_received}");
        Ok(())
    }
}

fn main() -> Result<()> {
    let mut bench = Bench::new()?;
    println!("{}", bench.device.name()?);
    bench.decode()?;
    println!("rows of one sequence: context rows | attention, received");
    bench.rows(2048, 1, &[1])?;
    bench.rows(8192, 1, &[1])?;
    bench.rows(8192, 10, &[1, 2])?;
    bench.rows(8192, 256, &[1, 4, 8, 16])?;
    bench.rows(32768, 1024, &[1, 4, 8, 16, 32])?;
    bench.rows(32768, 32768, &[1, 16, 64])
}
