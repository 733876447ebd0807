//! Times one long prompt on the engine thread, with many waiting requests and long donors, on a device that takes no time.
//!
//! `cargo run --release -p sim --example many_waiting`; the last table is in `benches/scale/donors.md`.

use std::time::{Duration, Instant};

use engine::{
    EngineCore, Executor, ExecutorError, ModelRunnerOutput, Repair, Request, SampledToken, SamplingParams, SchedulerConfig,
    SchedulerOutput,
};
use tokens::{Borders, RequestId, Scope, SharingMode, TenantId, Timestamp, TokenId};

const PROMPT_TOKENS: usize = 128_000;
const NUM_DONORS: u64 = 64;
const NUM_WAITING: u64 = 10_000;
const WAITING_TOKENS: usize = 300;
/// Timed steps with a full queue.
const NUM_STEPS: usize = 300;

/// Executor that always samples the same token.
struct Mute;

impl Executor for Mute {
    fn limits(&self) -> engine::ExecutorLimits {
        engine::ExecutorLimits::NONE
    }

    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        let said =
            |request_id| SampledToken { request_id, token: TokenId(1), margin: f32::INFINITY, logprobs: None, completes: false };
        let sampled = step.sequences.iter().filter(|sequence| sequence.sample).map(|sequence| said(sequence.request_id));
        Ok(ModelRunnerOutput { sampled: sampled.collect(), ..ModelRunnerOutput::default() })
    }
}

/// `SplitMix64`: the same texts on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 33) as usize % n
    }

    fn tokens(&mut self, num_tokens: usize) -> Vec<TokenId> {
        (0..num_tokens).map(|_| TokenId(self.below(50_000) as u32)).collect()
    }

    /// Arranges chunks of a common text in another order, [`PROMPT_TOKENS`] in all.
    fn shuffled(&mut self, chunks: &[Vec<TokenId>]) -> Vec<TokenId> {
        let mut order: Vec<_> = (0..chunks.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.below(i + 1));
        }
        let mut prompt = self.tokens(24);
        prompt.extend(order.into_iter().flat_map(|i| &chunks[i]));
        prompt.truncate(PROMPT_TOKENS - 24);
        prompt.extend(self.tokens(24));
        prompt
    }
}

/// Makes request `id` for `prompt`, which generates `max_tokens` tokens.
fn request(id: u64, prompt: Vec<TokenId>, sharing: SharingMode, max_tokens: u32) -> Request {
    Request {
        request_id: RequestId(id),
        prompt_token_ids: prompt.into(),
        sampling: SamplingParams::greedy(max_tokens),
        tenant: TenantId::default(),
        session: None,
        scope: Scope(0),
        readable: Vec::new(),
        sharing,
        repair: Repair::structural(),
        store: true,
        template: Vec::new(),
        borders: Borders::default(),
        embedding: None,
        arrival: Timestamp::default(),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let num_blocks = (NUM_DONORS as usize + 4) * PROMPT_TOKENS.div_ceil(32) + 4096;
    let config = SchedulerConfig { max_num_batched_tokens: 8192, max_num_seqs: 3, ..SchedulerConfig::new(num_blocks, 131_072) };
    let mut random = Random(1);
    let chunks: Vec<_> = (0..1300)
        .map(|_| {
            let num_tokens = 70 + random.below(61);
            random.tokens(num_tokens)
        })
        .collect();
    let mut engine = EngineCore::new(config, Mute)?;
    for id in 0..NUM_DONORS {
        engine.add_request(request(id, random.shuffled(&chunks), SharingMode::Prefix, 1), Timestamp::default());
        run(&mut engine)?;
    }
    // Long answers take all of `max_num_seqs` but one, then that one, too.
    for id in 100..102 {
        engine.add_request(request(id, random.tokens(40), SharingMode::Prefix, 3000), Timestamp::default());
    }
    engine.step(Timestamp::default())?;
    println!("{} donors of {PROMPT_TOKENS} tokens; times in ms\n", engine.stats().num_donors);
    println!("| operation | median | longest |");
    println!("|---|--:|--:|");
    let mut next_id = 1000;
    for (name, mode) in [("span", SharingMode::Span), ("semantic", SharingMode::Semantic)] {
        let mut times = Vec::new();
        for _ in 0..10 {
            let long = Request { store: false, ..request(next_id, random.shuffled(&chunks), mode, 1) };
            let request_id = long.request_id;
            next_id += 1;
            engine.add_request(long, Timestamp::default());
            times.push(timed(|| drop(engine.step(Timestamp::default()))));
            engine.abort(request_id);
            engine.step(Timestamp::default())?;
        }
        report(&format!("a step that admits 128,000 tokens, {name}"), times);
    }
    engine.add_request(request(102, random.tokens(40), SharingMode::Prefix, 3000), Timestamp::default());
    engine.step(Timestamp::default())?;
    let mut times = Vec::new();
    for _ in 0..NUM_WAITING {
        let waiting = request(next_id, random.tokens(WAITING_TOKENS), SharingMode::Span, 1);
        next_id += 1;
        times.push(timed(|| engine.add_request(waiting, Timestamp::from_micros(next_id))));
    }
    report("add one of 10,000 requests of 300 tokens, span", times);
    for (name, mode) in [("span", SharingMode::Span), ("semantic", SharingMode::Semantic)] {
        let requests: Vec<Request> = (0..20).map(|i| request(next_id + i, random.shuffled(&chunks), mode, 1)).collect();
        next_id += 20;
        ask(&mut engine, requests, Timestamp::from_micros(next_id), name);
    }
    let steps = (0..NUM_STEPS).map(|_| timed(|| drop(engine.step(Timestamp::from_micros(next_id)))));
    report("a step with 10,000 waiting", steps.collect());
    Ok(())
}

/// Explains `requests`, then adds each of them and aborts it a step later.
fn ask(engine: &mut EngineCore<Mute>, requests: Vec<Request>, now: Timestamp, name: &str) {
    let explained: Vec<_> = requests.iter().map(|request| timed(|| drop(engine.explain(request)))).collect();
    report(&format!("explain 128,000 tokens, {name}"), explained);
    let mut added = Vec::new();
    let mut steps = Vec::new();
    for request in requests {
        let request_id = request.request_id;
        added.push(timed(|| engine.add_request(request, now)));
        steps.push(timed(|| drop(engine.step(now))));
        engine.abort(request_id);
        steps.push(timed(|| drop(engine.step(now))));
    }
    report(&format!("add 128,000 tokens, {name}"), added);
    report(&format!("a step meanwhile, {name}"), steps);
}

fn run(engine: &mut EngineCore<Mute>) -> Result<(), ExecutorError> {
    while engine.has_work() {
        engine.step(Timestamp::default())?;
    }
    Ok(())
}

fn timed(operation: impl FnOnce()) -> Duration {
    let start = Instant::now();
    operation();
    start.elapsed()
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let millis = |time: &Duration| time.as_secs_f64() * 1e3;
    let longest = times.last().map_or(0.0, millis);
    println!("| {name} | {:.2} | {longest:.2} |", millis(&times[times.len() / 2]));
}
