//! Waiting times under load, in virtual time.

use std::time::Duration;

use engine::{EngineEvent, Executor, Request, SchedulePolicy, Scheduler, SchedulerConfig};
use testkit::{EchoExecutor, Reply, RequestBuilder, passage};
use tokens::{Timestamp, TokenId};

use crate::random::Random;
use crate::world::config;

const NUM_REQUESTS: u64 = 6_000;
/// Tokens that hits have in common with earlier requests, and misses have not.
const DOCUMENT_TOKENS: usize = 256;
/// Time of one row; a step takes no other time.
const ROW_MICROS: u64 = 10;
/// Share of the time that arriving work takes.
const LOAD: f64 = 0.95;

/// Requests for a scheduler of 64 rows a step, which takes 640 us for them.
#[derive(Clone, Copy)]
struct Mix {
    seed: u64,
    /// Number of requests in 100 about a document of their own; the others are about one of four.
    misses: u64,
    /// Requests that arrive at once. The time between such groups is random, and on average [`LOAD`] of it is what they take.
    burst: u64,
}

struct Trace {
    requests: Vec<Request>,
    is_miss: Vec<bool>,
}

/// Questions have 1 to 512 tokens, short ones more often than long ones: each power of two is as likely.
fn trace(mix: Mix) -> Trace {
    let mut random = Random(mix.seed);
    let mut trace = Trace { requests: Vec::new(), is_miss: Vec::new() };
    let (mut at_micros, mut rows_of_burst) = (0.0, 0);
    for id in 0..NUM_REQUESTS {
        if id.is_multiple_of(mix.burst) {
            at_micros += random.exponential() * (rows_of_burst * ROW_MICROS) as f64 / LOAD;
            rows_of_burst = 0;
        }
        let (is_miss, range) = (random.below(100) < mix.misses, 1 << (4 + random.below(6)));
        let num_question = 1 + random.below(range);
        let document = if is_miss { 1_000 + id } else { random.below(4) };
        rows_of_burst += num_question + 1 + if is_miss { DOCUMENT_TOKENS as u64 } else { 0 };
        let request = RequestBuilder::new(id, &question(id, document, num_question as usize)).max_tokens(2);
        trace.requests.push(request.arrival_micros(at_micros as u64).build());
        trace.is_miss.push(is_miss);
    }
    trace
}

fn question(id: u64, document: u64, num_tokens: usize) -> Vec<TokenId> {
    [passage(&format!("document{document}"), DOCUMENT_TOKENS), passage(&format!("question{id}"), num_tokens)].concat()
}

fn scheduling(policy: SchedulePolicy) -> SchedulerConfig {
    SchedulerConfig { policy, max_num_batched_tokens: 64, max_num_seqs: 8, max_donors: 0, max_model_len: 1_024, ..config(20_000) }
}

/// A run of a trace.
struct Replay {
    /// Time to first token by request, in microseconds.
    ttft: Vec<u64>,
    /// Requests in the order of their admission.
    admitted: Vec<u64>,
}

impl Replay {
    fn mean(&self) -> u64 {
        self.ttft.iter().sum::<u64>() / self.ttft.len() as u64
    }

    fn p99_of_misses(&self, trace: &Trace) -> u64 {
        let times = self.ttft.iter().zip(&trace.is_miss).filter(|(_, is_miss)| **is_miss);
        let mut sorted: Vec<_> = times.map(|(&time, _)| time).collect();
        sorted.sort_unstable();
        sorted[sorted.len() * 99 / 100]
    }
}

fn replay(trace: &[Request], config: SchedulerConfig) -> Replay {
    let mut executor = EchoExecutor::new(Reply::Successor { vocab_size: 1 << 20 }, config.block_size.as_usize());
    let mut scheduler = Scheduler::try_new(config).unwrap();
    let mut arriving = trace.iter().peekable();
    let mut now = Timestamp::default();
    let mut run = Replay { ttft: vec![u64::MAX; trace.len()], admitted: Vec::new() };
    while arriving.peek().is_some() || scheduler.has_work() {
        if !scheduler.has_work() {
            now = now.max(arriving.peek().expect("there is more to come").arrival);
        }
        while let Some(request) = arriving.next_if(|request| request.arrival <= now) {
            scheduler.add_request(request.clone(), now);
        }
        let step = scheduler.schedule(now);
        let output = executor.execute_model(&step).unwrap();
        now.0 += Duration::from_micros(step.num_scheduled_tokens() as u64 * ROW_MICROS);
        for event in scheduler.update_from_output(&step, output) {
            match event {
                EngineEvent::Admitted { request_id, .. } => run.admitted.push(request_id.0),
                EngineEvent::Token { request_id, .. } => {
                    let (ttft, arrival) = (&mut run.ttft[request_id.0 as usize], trace[request_id.0 as usize].arrival);
                    *ttft = (*ttft).min(now.since(arrival).as_micros() as u64);
                }
                EngineEvent::PromptLogProbs { .. } | EngineEvent::Finished { .. } => {}
            }
        }
    }
    assert!(run.ttft.iter().all(|&ttft| ttft < u64::MAX), "somebody never got a token");
    run
}

/// Checks a mean time to first token of at most `mean_percent` of that by arrival order, and a p99 of misses of at most
/// `p99_percent`.
#[track_caller]
fn check_remaining_work(mix: Mix, mean_percent: u64, p99_percent: u64) {
    let trace = trace(mix);
    let fcfs = replay(&trace.requests, scheduling(SchedulePolicy::Fcfs));
    let ranked = replay(&trace.requests, scheduling(SchedulePolicy::RemainingWork));
    let of = |run: &Replay| (run.mean(), run.p99_of_misses(&trace));
    println!("mean and p99 of misses, us: fcfs {:?}, remaining work {:?}", of(&fcfs), of(&ranked));
    assert!(ranked.mean() * 100 <= fcfs.mean() * mean_percent, "ranking by work does not pay");
    assert!(ranked.p99_of_misses(&trace) * 100 <= fcfs.p99_of_misses(&trace) * p99_percent, "misses starve");
}

const MIXED: Mix = Mix { seed: 1, misses: 40, burst: 20 };

#[test]
fn the_mean_falls_by_a_third_and_misses_hardly_wait_longer() {
    for seed in [1, 2, 6] {
        check_remaining_work(Mix { seed, ..MIXED }, 66, 120);
    }
}

/// Chance makes queues three times as long of these seeds.
#[test]
fn in_deep_overload_the_mean_falls_less() {
    for seed in [5, 7] {
        check_remaining_work(Mix { seed, ..MIXED }, 75, 133);
    }
}

/// Few misses that are far longer than all others: ranking without ageing starves them.
const FEW_MISSES: Mix = Mix { seed: 3, misses: 5, burst: 1 };

#[test]
fn without_ageing_misses_would_starve() {
    let trace = trace(FEW_MISSES);
    let fcfs = replay(&trace.requests, scheduling(SchedulePolicy::Fcfs));
    for policy in [SchedulePolicy::KvHitRate, SchedulePolicy::RemainingWork] {
        let never = SchedulerConfig { ageing: 0.0, max_overtake: Duration::MAX, ..scheduling(policy) };
        let starving = replay(&trace.requests, never);
        assert!(starving.p99_of_misses(&trace) * 10 > fcfs.p99_of_misses(&trace) * 15, "{policy:?}: the load is too light");
    }
}

#[test]
fn hits_go_first_by_hit_rate() {
    let trace = trace(MIXED);
    let fcfs = replay(&trace.requests, scheduling(SchedulePolicy::Fcfs));
    let ranked = replay(&trace.requests, scheduling(SchedulePolicy::KvHitRate));
    assert!(ranked.mean() < fcfs.mean(), "{} instead of {}", ranked.mean(), fcfs.mean());
}

const FLOOD_TOKENS: usize = 320;

/// Runs `num_flood` requests of tenant 1 at once, then one of `tenant` with as long a prompt; returns the time to its first
/// token, in prompts.
fn prompts_before(tenant: u32, num_flood: u64, policy: SchedulePolicy) -> u64 {
    let miss = |id: u64| RequestBuilder::new(id, &passage(&format!("miss{id}"), FLOOD_TOKENS)).max_tokens(2);
    let mut trace: Vec<_> = (0..num_flood).map(|id| miss(id).tenant(1).build()).collect();
    trace.push(miss(num_flood).tenant(tenant).arrival_micros(100_000).build());
    let run = replay(&trace, scheduling(policy));
    run.ttft[num_flood as usize] / (FLOOD_TOKENS as u64 * ROW_MICROS)
}

#[test]
fn a_flood_of_one_tenant_hardly_delays_another() {
    for policy in [SchedulePolicy::Fcfs, SchedulePolicy::KvHitRate, SchedulePolicy::RemainingWork] {
        let (same, other) = (prompts_before(1, 400, policy), prompts_before(2, 400, policy));
        assert!(same > 300, "{policy:?}: {same} prompts are no flood");
        assert!(other <= 4, "{policy:?}: {other} prompts went first");
        assert_eq!(prompts_before(2, 800, policy), other, "{policy:?}: twice the flood delays longer");
    }
}

/// Returns the tenants of admitted requests, in order, when two ask at once about a document that only the first one has cached,
/// or neither.
fn turns(is_cached: bool, policy: SchedulePolicy) -> Vec<u32> {
    let cached = if is_cached { 0 } else { 9 };
    let warm = RequestBuilder::new(0, &question(900, cached, 1)).tenant(1).scope(1).max_tokens(1).build();
    let ask = |id: u64| {
        let tenant = 1 + (id % 2) as u32;
        let request = RequestBuilder::new(id, &question(id, 0, 16)).tenant(tenant).scope(tenant.into());
        request.max_tokens(2).arrival_micros(1_000_000).build()
    };
    let trace: Vec<_> = std::iter::once(warm).chain((1..41).map(ask)).collect();
    let run = replay(&trace, SchedulerConfig { max_num_seqs: 1, ..scheduling(policy) });
    run.admitted.iter().map(|&id| trace[id as usize].tenant.0).collect()
}

#[test]
fn turns_of_tenants_do_not_tell_what_is_cached() {
    for policy in [SchedulePolicy::Fcfs, SchedulePolicy::KvHitRate, SchedulePolicy::RemainingWork] {
        assert_eq!(turns(true, policy), turns(false, policy), "{policy:?}");
    }
}
