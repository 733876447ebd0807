//! Nobody starves: waiting times under load, in virtual time.

use std::time::Duration;

use engine::{EngineEvent, Executor, Request, SchedulePolicy, Scheduler, SchedulerConfig};
use testkit::{EchoExecutor, Reply, RequestBuilder, passage};
use tokens::{Timestamp, TokenId};

use crate::random::Random;
use crate::world::config;

const NUM_REQUESTS: u64 = 6_000;
const MISS_TOKENS: usize = 320;
const DOCUMENT_TOKENS: usize = 256;
const QUESTION_TOKENS: usize = 16;
/// One row takes so long; a step takes nothing else.
const ROW_MICROS: u64 = 10;

/// 95 of 100 requests ask about one of four documents, the others have nothing in common with anybody.
/// They arrive at random, just as fast as they can be served.
fn trace(seed: u64) -> Vec<Request> {
    let mut random = Random(seed);
    let row_share = |hits: f64| 0.95 * hits + 0.05 * (MISS_TOKENS as f64 + 1.0);
    let mean_micros = row_share(QUESTION_TOKENS as f64 + 1.0) * ROW_MICROS as f64;
    let mut at_micros = 0.0;
    (0..NUM_REQUESTS)
        .map(|id| {
            at_micros += random.exponential() * mean_micros;
            let prompt = match random.below(100) {
                0..5 => passage(&format!("miss{id}"), MISS_TOKENS),
                roll => question(id, roll % 4),
            };
            RequestBuilder::new(id, &prompt).max_tokens(2).arrival_micros(at_micros as u64).build()
        })
        .collect()
}

fn question(id: u64, document: u64) -> Vec<TokenId> {
    [passage(&format!("document{document}"), DOCUMENT_TOKENS), passage(&format!("question{id}"), QUESTION_TOKENS)].concat()
}

/// Waiting times until admission, in microseconds.
#[derive(Default)]
struct Waits {
    all: Vec<u64>,
    misses: Vec<u64>,
}

impl Waits {
    fn mean(&self) -> u64 {
        self.all.iter().sum::<u64>() / self.all.len() as u64
    }

    fn p99_of_misses(&self) -> u64 {
        let mut sorted = self.misses.clone();
        sorted.sort_unstable();
        sorted[sorted.len() * 99 / 100]
    }
}

fn replay(trace: &[Request], policy: SchedulePolicy, max_overtake: Duration) -> Waits {
    let config =
        SchedulerConfig { policy, max_overtake, max_num_batched_tokens: 64, max_num_seqs: 8, max_donors: 0, ..config(2_000) };
    let mut executor = EchoExecutor::new(Reply::Successor { vocab_size: 1 << 20 }, config.block_size.as_usize());
    let mut scheduler = Scheduler::try_new(config).unwrap();
    let mut arriving = trace.iter().peekable();
    let mut now = Timestamp::default();
    let mut waits = Waits::default();
    while arriving.peek().is_some() || scheduler.has_work() {
        if !scheduler.has_work() {
            now = now.max(arriving.peek().expect("there is more to come").arrival);
        }
        while let Some(request) = arriving.next_if(|request| request.arrival <= now) {
            scheduler.add_request(request.clone(), now);
        }
        let step = scheduler.schedule(now);
        let output = executor.execute_model(&step).unwrap();
        for event in scheduler.update_from_output(&step, output) {
            if let EngineEvent::Admitted { request_id, at, .. } = event {
                let request = &trace[request_id.0 as usize];
                let wait = at.since(request.arrival).as_micros() as u64;
                waits.all.push(wait);
                if request.prompt_token_ids.len() == MISS_TOKENS {
                    waits.misses.push(wait);
                }
            }
        }
        now.0 += Duration::from_micros(step.num_scheduled_tokens() as u64 * ROW_MICROS);
    }
    waits
}

#[test]
fn misses_wait_hardly_longer_than_first_come_first_served() {
    let trace = trace(3);
    let fcfs = replay(&trace, SchedulePolicy::Fcfs, Duration::ZERO);
    let ranked = replay(&trace, SchedulePolicy::KvHitRate, Duration::from_millis(10));
    let starving = replay(&trace, SchedulePolicy::KvHitRate, Duration::MAX);
    let of = |waits: &Waits| (waits.mean(), waits.p99_of_misses());
    println!("mean and p99 of misses, us: fcfs {:?}, ranked {:?}, without ageing {:?}", of(&fcfs), of(&ranked), of(&starving));
    assert_eq!(fcfs.all.len(), trace.len());
    assert!(ranked.mean() < fcfs.mean(), "ranking by hits does not pay");
    assert!(ranked.p99_of_misses() * 10 <= fcfs.p99_of_misses() * 12, "misses starve");
    assert!(starving.p99_of_misses() * 10 > fcfs.p99_of_misses() * 12, "the load is too light to starve anybody");
}
