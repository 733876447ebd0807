//! Times sampling at Qwen2.5's vocabulary, and compares it with one read of the logits.
//!
//! `cargo run --release -p kernels --features cuda --example sample_speed`

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use kernels::cpu::Distribution;
use kernels::cuda::{CudaSlice, Device, DeviceError, SampleChain, SampleSpec, Sampler};

const VOCAB_SIZE: usize = 152_064;
const MAX_ROWS: usize = 256;
/// Launches of the chain in one graph, so that the start of a graph is not measured.
const CALLS: usize = 10;
/// Bytes per second that a copy reads and writes on an H100 SXM.
const COPY_RATE: f64 = 3.0e12;

const GREEDY: Distribution = Distribution { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
const ALL: Distribution = Distribution { temperature: 1.0, ..GREEDY };

struct Bench {
    device: std::sync::Arc<Device>,
    sampler: Sampler,
    logits: CudaSlice<f32>,
}

impl Bench {
    /// Returns the median microseconds of one chain, of 15 runs of a graph; the logits do not change from call to call.
    fn micros(&mut self, num_rows: usize, chain: SampleChain) -> Result<f64, DeviceError> {
        let stream = self.device.stream().clone();
        self.sampler.launch(&mut self.logits, VOCAB_SIZE, VOCAB_SIZE, num_rows, chain)?;
        self.device.synchronize()?;
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        for _ in 0..CALLS {
            self.sampler.launch(&mut self.logits, VOCAB_SIZE, VOCAB_SIZE, num_rows, chain)?;
        }
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
        Ok(f64::from(times[7]) * 1e3 / CALLS as f64)
    }

    fn row(&mut self, name: &str, distribution: Distribution, logprobs: Option<u32>) -> Result<(), DeviceError> {
        print!("{name:<28}");
        for num_rows in [1, 32, MAX_ROWS] {
            let spec = SampleSpec { adjustments: &[], distribution, uniform: 0.7, logprobs, mask: None };
            let chain = self.sampler.upload(&vec![spec; num_rows])?;
            let floor = (num_rows * VOCAB_SIZE * 4) as f64 / COPY_RATE * 1e6;
            print!(" {:>9.1} ({floor:>5.1})", self.micros(num_rows, chain)?);
        }
        println!();
        Ok(())
    }
}

/// Returns bell-shaped elements of standard deviation `spread`: each a sum of four uniform ones.
fn bells(len: usize, spread: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut even = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| spread * 1.732 * (even() + even() + even() + even())).collect()
}

fn main() -> Result<(), DeviceError> {
    let device = Device::open(0)?;
    println!("{}: us of a chain (us of one reading) for 1, 32 and {MAX_ROWS} rows of {VOCAB_SIZE}", device.name()?);
    let sampler = Sampler::new(&device, MAX_ROWS)?;
    let logits = device.zeros(1)?;
    let mut bench = Bench { device, sampler, logits };
    for (shape, spread) in [("peaked", 8.0), ("wide", 4.0), ("flat", 1.0)] {
        bench.logits = bench.device.upload(&bells(MAX_ROWS * VOCAB_SIZE, spread))?;
        println!("{shape}: standard deviation {spread}");
        bench.row("greedy", GREEDY, None)?;
        bench.row("drawn from all", ALL, None)?;
        bench.row("top-k 50", Distribution { top_k: 50, ..ALL }, None)?;
        bench.row("top-p 0.9", Distribution { top_p: 0.9, ..ALL }, None)?;
        bench.row("min-p 0.05", Distribution { min_p: 0.05, ..ALL }, None)?;
        bench.row("greedy, 5 log probabilities", GREEDY, Some(5))?;
        bench.row("top-p 0.9, 5 of them", Distribution { top_p: 0.9, ..ALL }, Some(5))?;
    }
    Ok(())
}
