//! Replay of one trace through one engine, on virtual time.

use std::collections::HashMap;
use std::time::Duration;

use engine::{EngineCore, EngineEvent, KvUsage, Request, RequestError, SamplingParams, SchedulePolicy, SchedulerConfig};
use tokens::{BlockSize, Borders, RequestId, Scope, SharingMode, Timestamp};

use crate::prompt::padded_prompt;
use crate::report::{RunReport, TtftReport};
use crate::trace::MAX_ARRIVAL_SECONDS;
use crate::{
    BLOCK_TOKENS, BlockHits, CostModel, PoolSize, SimExecutor, SimOptions, Trace, TraceRequest, VirtualClock, ideal_hits,
};

/// Share of a request's blocks found by an unbounded cache below which it is a miss. Chosen: by the trace alone, so that all runs count
/// the same requests, and above 0, because in some traces all requests share their first block.
const MISS_RATIO: f64 = 0.1;

/// Settings of one run.
#[derive(Clone, Debug)]
pub struct ReplayConfig {
    /// Size of the pool.
    pub pool: PoolSize,
    /// KV that all requests may reuse.
    pub sharing: SharingMode,
    /// Cost of steps.
    pub cost: CostModel,
    /// Order of the waiting requests.
    pub policy: SchedulePolicy,
    /// Maximum rows in a step.
    pub max_num_batched_tokens: usize,
    /// Maximum sequences in a step.
    pub max_num_seqs: usize,
    /// Longest time for which later requests may go first in a short queue.
    pub max_overtake: Duration,
    /// Same limit in a long queue, as a multiple of the time that queue takes.
    pub max_overtake_ratio: f64,
    /// Share of the longest recent delay that a request with much work waits longer than by arrival.
    pub overtake_share: f64,
    /// Maximum share of the waiting time that counts against predicted work.
    pub ageing: f64,
    /// Share of a step's rows for a long prompt while shorter ones wait.
    pub long_prompt_share: f64,
}

impl ReplayConfig {
    /// Returns the run of `options` with `pool` and `policy`.
    #[must_use]
    pub fn new(options: &SimOptions, pool: PoolSize, policy: SchedulePolicy) -> Self {
        let &SimOptions { sharing, cost, max_num_batched_tokens, max_num_seqs, max_overtake, .. } = options;
        let &SimOptions { max_overtake_ratio, ageing, overtake_share, long_prompt_share, .. } = options;
        Self {
            pool,
            sharing,
            cost,
            policy,
            max_num_batched_tokens,
            max_num_seqs,
            max_overtake,
            max_overtake_ratio,
            ageing,
            overtake_share,
            long_prompt_share,
        }
    }

    fn scheduler_config(&self, trace: &Trace) -> SchedulerConfig {
        let block_size = BlockSize::new(BLOCK_TOKENS).expect("512 is not zero");
        let lengths = trace.requests.iter().map(|request| request.padded_tokens() + request.output_tokens);
        let num_blocks = match self.pool {
            PoolSize::Blocks(num_blocks) => num_blocks,
            PoolSize::Unlimited => lengths.clone().map(|len| block_size.blocks_for(len as usize)).sum::<usize>() + 1,
        };
        let defaults = SchedulerConfig::new(num_blocks, lengths.max().unwrap_or_default().max(2));
        let max_donors = if self.sharing == SharingMode::Span { defaults.max_donors } else { 0 };
        SchedulerConfig {
            block_size,
            policy: self.policy,
            max_donors,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_num_seqs: self.max_num_seqs,
            max_overtake: self.max_overtake,
            max_overtake_ratio: self.max_overtake_ratio,
            ageing: self.ageing,
            overtake_share: self.overtake_share,
            long_prompt_share: self.long_prompt_share,
            ..defaults
        }
    }
}

/// Reason why a trace cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The engine refuses the settings.
    #[error(transparent)]
    Config(#[from] engine::ConfigError),
    /// The engine failed.
    #[error(transparent)]
    Executor(#[from] engine::ExecutorError),
    /// Arrivals cannot be scaled by this factor.
    #[error("time_scale is {0:?}, but must be finite, not negative, and leave arrivals within {MAX_ARRIVAL_SECONDS} s")]
    TimeScale(f64),
    /// There is no request to replay.
    #[error("the trace has no requests to replay")]
    Empty,
    /// The engine has work, but makes no progress, and nothing more arrives.
    #[error("the engine stands still with {num_unfinished} requests unfinished")]
    Stalled {
        /// Requests that never ended.
        num_unfinished: usize,
    },
}

/// Replays `trace` and reports the outcome. Requests that can never fit the pool are refused and counted.
///
/// # Errors
/// If the settings contradict each other, or the engine makes no progress.
pub fn replay(trace: &Trace, config: &ReplayConfig) -> Result<RunReport, SimError> {
    let engine = EngineCore::new(config.scheduler_config(trace), SimExecutor::new(config.cost))?;
    let mut replay = Replay {
        trace,
        config,
        engine,
        clock: VirtualClock::default(),
        num_arrived: 0,
        num_steps: 0,
        num_refused: 0,
        unfinished: HashMap::new(),
        outcomes: vec![Outcome::default(); trace.requests.len()],
    };
    while replay.advance()? {}
    Ok(replay.report())
}

struct Replay<'a> {
    trace: &'a Trace,
    config: &'a ReplayConfig,
    engine: EngineCore<SimExecutor>,
    clock: VirtualClock,
    num_arrived: usize,
    num_steps: u64,
    num_refused: u64,
    /// Trace indices of the requests in the engine.
    unfinished: HashMap<RequestId, usize>,
    outcomes: Vec<Outcome>,
}

/// Outcome of one request.
#[derive(Clone, Copy, Default)]
struct Outcome {
    /// Usage at its first admission.
    usage: Option<KvUsage>,
    first_token: Option<Timestamp>,
    finished: Option<Timestamp>,
}

impl Replay<'_> {
    /// Runs one step, or skips to the next arrival; returns false when all is done.
    fn advance(&mut self) -> Result<bool, SimError> {
        self.let_arrive()?;
        if !self.engine.has_work() {
            return Ok(self.skip_to_next_arrival());
        }
        let busy_before = self.engine.executor().busy();
        let events = self.engine.step(self.clock.now())?;
        let step_time = self.engine.executor().busy() - busy_before;
        self.clock.advance(step_time);
        self.num_steps += u64::from(!step_time.is_zero());
        let stands_still = step_time.is_zero() && events.is_empty() && self.engine.has_work();
        for event in &events {
            self.record(event);
        }
        if stands_still && !self.skip_to_next_arrival() {
            return Err(SimError::Stalled { num_unfinished: self.unfinished.len() });
        }
        Ok(true)
    }

    fn skip_to_next_arrival(&mut self) -> bool {
        let next = self.trace.requests.get(self.num_arrived);
        next.inspect(|request| self.clock.advance_to(request.arrival)).is_some()
    }

    /// Submits requests that have arrived by now. Makes prompts here, so that only those in progress take memory.
    fn let_arrive(&mut self) -> Result<(), SimError> {
        while let Some(traced) = self.trace.requests.get(self.num_arrived)
            && traced.arrival <= self.clock.now()
        {
            let request = self.request(RequestId(self.num_arrived as u64), traced);
            match self.engine.fits(&request) {
                Ok(()) => self.add(request, traced),
                Err(RequestError::PoolTooSmall { .. }) => self.num_refused += 1,
                Err(error) => unreachable!("traced requests are not empty and the model is as long as the longest: {error}"),
            }
            self.num_arrived += 1;
        }
        Ok(())
    }

    fn add(&mut self, request: Request, traced: &TraceRequest) {
        let request_id = request.request_id;
        self.engine.executor_mut().announce(request_id, traced.input_tokens, traced.padded_tokens());
        self.unfinished.insert(request_id, self.num_arrived);
        self.engine.add_request(request, self.clock.now());
    }

    fn request(&self, request_id: RequestId, traced: &TraceRequest) -> Request {
        Request {
            request_id,
            prompt_token_ids: padded_prompt(traced),
            sampling: SamplingParams::greedy(traced.output_tokens),
            tenant: tokens::TenantId::default(),
            scope: Scope::default(),
            sharing: self.config.sharing,
            repair: engine::Repair::structural(),
            store: true,
            template: Vec::new(),
            borders: Borders::default(),
            embedding: None,
            session: None,
            readable: Vec::new(),
            arrival: traced.arrival,
        }
    }

    fn record(&mut self, event: &EngineEvent) {
        let now = self.clock.now();
        match *event {
            EngineEvent::Admitted { request_id, usage, .. } => self.outcomes[self.unfinished[&request_id]].usage = Some(usage),
            EngineEvent::Token { request_id, .. } => {
                self.outcomes[self.unfinished[&request_id]].first_token.get_or_insert(now);
            }
            EngineEvent::Finished { request_id, .. } => {
                let request_idx = self.unfinished.remove(&request_id).expect("a request ends once");
                self.outcomes[request_idx].finished = Some(now);
            }
            EngineEvent::PromptLogProbs { .. } => unreachable!("no request asks for log probabilities"),
        }
    }

    fn report(&self) -> RunReport {
        let stats = self.engine.stats();
        let makespan = self.outcomes.iter().filter_map(|outcome| outcome.finished).max().unwrap_or_default().0;
        let busy = self.engine.executor().busy();
        let (blocks, prefix_tokens, span_tokens, input_tokens) = self.count_hits();
        let share = |part: u64, whole: u64| BlockHits { hits: part, lookups: whole }.ratio();
        RunReport {
            pool: self.config.pool.to_string(),
            policy: policy_name(self.config.policy).to_owned(),
            num_finished: self.outcomes.iter().filter(|outcome| outcome.finished.is_some()).count() as u64,
            num_refused: self.num_refused,
            block_hit_ratio: blocks.ratio(),
            token_hit_ratio: share(prefix_tokens, input_tokens),
            span_token_ratio: share(span_tokens, input_tokens),
            ttft: TtftReport::new(self.ttfts(|_| true)),
            miss_ttft: TtftReport::new(self.ttfts(|ideal| ideal.ratio() < MISS_RATIO)),
            num_evictions: stats.blocks.evictions,
            num_preemptions: stats.preemptions,
            num_steps: self.num_steps,
            makespan_seconds: makespan.as_secs_f64(),
            busy_ratio: if makespan.is_zero() { 0.0 } else { busy.as_secs_f64() / makespan.as_secs_f64() },
        }
    }

    /// Counts blocks found, tokens found as prefix and as spans, and input tokens, of requests that were admitted.
    fn count_hits(&self) -> (BlockHits, u64, u64, u64) {
        let (mut blocks, mut prefix_tokens, mut span_tokens, mut input_tokens) = (BlockHits::default(), 0, 0, 0);
        for (traced, outcome) in self.trace.requests.iter().zip(&self.outcomes) {
            if let Some(usage) = outcome.usage {
                blocks.hits += blocks_found(traced, usage);
                blocks.lookups += traced.blocks.len() as u64;
                prefix_tokens += u64::from(usage.prefix_tokens.min(traced.input_tokens));
                span_tokens += u64::from(usage.span_tokens);
                input_tokens += u64::from(traced.input_tokens);
            }
        }
        (blocks, prefix_tokens, span_tokens, input_tokens)
    }

    /// Returns times to first token of the requests that `among` selects by the hits of an unbounded cache.
    fn ttfts(&self, among: impl Fn(BlockHits) -> bool) -> Vec<Duration> {
        let requests = self.trace.requests.iter().zip(&self.outcomes).zip(ideal_hits(self.trace));
        let picked = requests.filter(|(_, ideal)| among(*ideal));
        picked.filter_map(|((traced, outcome), _)| Some(outcome.first_token?.since(traced.arrival))).collect()
    }
}

/// Counts the blocks of a prompt that were found. The last one counts as found although its last token is always computed.
fn blocks_found(traced: &TraceRequest, usage: KvUsage) -> u64 {
    let is_whole = usage.prefix_tokens + 1 >= traced.padded_tokens();
    let prefix_tokens = if is_whole { traced.padded_tokens() } else { usage.prefix_tokens };
    u64::from(prefix_tokens / BLOCK_TOKENS)
}

fn policy_name(policy: SchedulePolicy) -> &'static str {
    match policy {
        SchedulePolicy::Fcfs => "fcfs",
        SchedulePolicy::KvHitRate => "kv-hit-rate",
        SchedulePolicy::RemainingWork => "remaining-work",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::trace;

    /// Costs 1 s for the prefill of a block, and nothing else.
    const SECOND_PER_BLOCK: CostModel = CostModel {
        step_us: 0.0,
        prefill_token_us: 1e6 / BLOCK_TOKENS as f64,
        attention_pair_ns: 0.0,
        decode_row_us: 0.0,
        decode_context_token_ns: 0.0,
        copied_token_ns: 0.0,
    };

    fn run(requests: &[(u64, &[u32], u32)], pool: PoolSize) -> RunReport {
        let options = SimOptions { cost: SECOND_PER_BLOCK, ..SimOptions::default() };
        replay(&trace(requests), &ReplayConfig::new(&options, pool, SchedulePolicy::Fcfs)).unwrap()
    }

    #[track_caller]
    fn check_hits(requests: &[(u64, &[u32], u32)], pool: PoolSize, expected_blocks: f64, expected_evictions: bool) {
        let report = run(requests, pool);
        assert_eq!(report.num_finished, requests.len() as u64);
        assert!((report.block_hit_ratio - expected_blocks).abs() < 1e-9, "{}", report.block_hit_ratio);
        assert_eq!(report.num_evictions > 0, expected_evictions);
    }

    #[test]
    fn an_unlimited_pool_finds_what_the_ideal_finds() {
        let requests: &[(u64, &[u32], u32)] =
            &[(0, &[1, 2, 3], 700), (10, &[1, 2, 4], 1), (20, &[1, 2, 3], 1), (30, &[5, 2, 3], 1), (40, &[1, 2, 4, 6], 1)];
        let ideal: u64 = ideal_hits(&trace(requests)).iter().map(|hits| hits.hits).sum();
        assert_eq!(ideal, 8);
        check_hits(requests, PoolSize::Unlimited, 8.0 / 16.0, false);
    }

    #[test]
    fn requests_that_arrive_together_share_too() {
        check_hits(&[(0, &[1, 2, 3], 1), (0, &[1, 2, 4], 1), (0, &[1, 2, 3], 1)], PoolSize::Unlimited, 5.0 / 9.0, false);
    }

    #[test]
    fn a_small_pool_forgets() {
        let requests: &[(u64, &[u32], u32)] = &[(0, &[1, 2], 1), (10, &[3, 4, 5], 1), (20, &[1, 2], 1)];
        check_hits(requests, PoolSize::Blocks(4), 1.0 / 7.0, true);
        check_hits(requests, PoolSize::Blocks(6), 2.0 / 7.0, false);
    }

    #[test]
    fn time_to_the_first_token_is_waiting_and_prefill() {
        let report = run(&[(0, &[1, 2, 3], 1), (1, &[4], 1), (60, &[1, 2, 3, 9], 1)], PoolSize::Unlimited);
        // 3 s; 2 s of waiting and 1 s; 1 s for the one block that was not found.
        assert!((report.ttft.mean_seconds - (3.0 + 3.0 + 1.0) / 3.0).abs() < 1e-6, "{:?}", report.ttft);
        assert!((report.ttft.p50_seconds - 3.0).abs() < 1e-6);
        assert_eq!(report.miss_ttft.num_requests, 2);
        assert!((report.makespan_seconds - 61.0).abs() < 1e-6);
        assert!((report.busy_ratio - 5.0 / 61.0).abs() < 1e-6);
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        let report = run(&[(0, &[1, 2, 3], 1), (0, &[1], 1)], PoolSize::Blocks(2));
        assert_eq!((report.num_refused, report.num_finished), (1, 1));
    }

    #[test]
    fn the_same_replay_gives_the_same_report() {
        let requests: Vec<(u64, [u32; 2], u32)> = (0..50).map(|i| (u64::from(i / 4), [i % 7, i % 5], 1 + i * 13 % 40)).collect();
        let requests: Vec<(u64, &[u32], u32)> = requests.iter().map(|(at, blocks, out)| (*at, &blocks[..], *out)).collect();
        assert_eq!(run(&requests, PoolSize::Blocks(9)), run(&requests, PoolSize::Blocks(9)));
    }
}
