//! Two and three tenants share rows, seats and the queue: what one of them does delays the others by a bounded factor.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::{EngineEvent, Executor, Request, SchedulePolicy, Scheduler, SchedulerConfig, SchedulerOutput};
use testkit::{EchoExecutor, Reply, RequestBuilder, passage};
use tokens::{RequestId, TenantId, Timestamp};

use crate::random::Random;
use crate::world::{World, config};

/// One row takes so long, and a step besides as long as twenty.
const ROW_MICROS: u64 = 1_000;
const STEP_MICROS: u64 = 20 * ROW_MICROS;
/// Rows of a step.
const MAX_ROWS: usize = 512;

const POLICIES: [SchedulePolicy; 3] = [SchedulePolicy::Fcfs, SchedulePolicy::KvHitRate, SchedulePolicy::RemainingWork];

fn scheduling(policy: SchedulePolicy) -> SchedulerConfig {
    SchedulerConfig {
        policy,
        max_num_batched_tokens: MAX_ROWS,
        max_num_seqs: 8,
        max_donors: 0,
        max_model_len: 40_000,
        ..config(40_000)
    }
}

fn request(id: u64, tenant: u32, num_tokens: usize, max_tokens: u32) -> RequestBuilder {
    RequestBuilder::new(id, &passage(&format!("r{id}"), num_tokens)).tenant(tenant).scope(tenant.into()).max_tokens(max_tokens)
}

/// An engine on a clock of its own.
struct Clocked {
    scheduler: Scheduler,
    executor: EchoExecutor,
    now: Timestamp,
    num_steps: u64,
    /// Time of a row for each position before it.
    pair_nanos: u64,
    arrivals: BTreeMap<RequestId, Timestamp>,
    first_tokens: BTreeMap<RequestId, Timestamp>,
    ends: BTreeMap<RequestId, Timestamp>,
    /// Tokens said by each.
    said: BTreeMap<RequestId, usize>,
}

impl Clocked {
    fn new(config: SchedulerConfig) -> Self {
        let executor = EchoExecutor::new(Reply::Successor { vocab_size: 1 << 20 }, config.block_size.as_usize());
        let scheduler = Scheduler::try_new(config).unwrap();
        let (now, num_steps, arrivals, first_tokens, ends, said) = Default::default();
        Self { scheduler, executor, now, num_steps, pair_nanos: 0, arrivals, first_tokens, ends, said }
    }

    fn add(&mut self, request: RequestBuilder) -> RequestId {
        let request = Request { arrival: self.now, ..request.build() };
        let id = request.request_id;
        self.arrivals.insert(id, self.now);
        self.scheduler.add_request(request, self.now);
        id
    }

    fn step(&mut self) -> SchedulerOutput {
        let step = self.scheduler.schedule(self.now);
        let output = self.executor.execute_model(&step).unwrap();
        let rows = step.sequences.iter().flat_map(|sequence| &sequence.rows);
        let pairs: u64 = rows.map(|row| u64::from(row.position)).sum();
        self.now.0 += Duration::from_micros(step.num_scheduled_tokens() as u64 * ROW_MICROS + STEP_MICROS);
        self.now.0 += Duration::from_nanos(pairs * self.pair_nanos);
        self.num_steps += 1;
        for event in self.scheduler.update_from_output(&step, output) {
            match event {
                EngineEvent::Token { request_id, .. } => {
                    self.first_tokens.entry(request_id).or_insert(self.now);
                    *self.said.entry(request_id).or_default() += 1;
                }
                EngineEvent::Finished { request_id, .. } => drop(self.ends.insert(request_id, self.now)),
                EngineEvent::Admitted { .. } | EngineEvent::PromptLogProbs { .. } => {}
            }
        }
        // It takes time in proportion to the pool.
        if self.scheduler.config().num_blocks < 5_000 {
            self.scheduler.check_invariants();
        }
        step
    }

    /// Rows of `step` by tenant.
    fn rows_of(step: &SchedulerOutput, is_of: impl Fn(RequestId) -> bool) -> usize {
        step.sequences.iter().filter(|sequence| is_of(sequence.request_id)).map(|sequence| sequence.rows.len()).sum()
    }

    fn micros(&self, id: RequestId) -> u64 {
        self.ends[&id].since(self.arrivals[&id]).as_micros() as u64
    }

    fn ttft(&self, id: RequestId) -> u64 {
        self.first_tokens[&id].since(self.arrivals[&id]).as_micros() as u64
    }
}

/// A client that sends one request after the other, each of which arrives while a step runs that began without it.
#[derive(Clone, Copy)]
struct Client {
    tenant: u32,
    num_tokens: usize,
    max_tokens: u32,
    /// Of the machine: time of a row for each position before it.
    pair_nanos: u64,
}

struct Beside {
    /// Time of each request of the client, in microseconds.
    times: Vec<u64>,
    /// Part of all rows that were the client's.
    share: f64,
    /// Time to first token of each of the others.
    ttft: Vec<u64>,
}

/// Runs `client` as long as one of `others`, which arrive together, has no first token; for some requests if there are none.
fn beside(config: &SchedulerConfig, others: &[RequestBuilder], client: Client) -> Beside {
    const FIRST: u64 = 1_000;
    let mut world = Clocked::new(config.clone());
    world.pair_nanos = client.pair_nanos;
    // What the machine can do is known from earlier requests.
    let mut id = FIRST;
    for _ in 0..3 {
        let warm_up = world.add(request(id, client.tenant, client.num_tokens, client.max_tokens));
        while !world.ends.contains_key(&warm_up) {
            world.step();
        }
        id += 1;
    }
    let others: Vec<_> = others.iter().map(|other| world.add(other.clone())).collect();
    let (mut times, mut rows, mut rows_of_client) = (Vec::new(), 0, 0);
    while others.iter().any(|other| !world.first_tokens.contains_key(other)) || times.len() < 4 {
        let arrival = world.now;
        if world.scheduler.has_work() {
            let step = world.step();
            rows += step.num_scheduled_tokens();
        }
        let current = world.add(request(id, client.tenant, client.num_tokens, client.max_tokens));
        world.arrivals.insert(current, arrival);
        id += 1;
        while !world.ends.contains_key(&current) {
            let step = world.step();
            rows += step.num_scheduled_tokens();
            rows_of_client += Clocked::rows_of(&step, |id| id.0 >= FIRST);
        }
        times.push(world.micros(current));
    }
    let ttft = others.iter().map(|&other| world.ttft(other)).collect();
    Beside { times, share: rows_of_client as f64 / rows as f64, ttft }
}

/// Whatever `others` do, no request of `client` takes more than three times as long as without them.
#[track_caller]
fn check_client(config: &SchedulerConfig, others: &[RequestBuilder], client: Client) -> Beside {
    let idle = *beside(config, &[], client).times.iter().max().unwrap();
    let found = beside(config, others, client);
    let worst = *found.times.iter().max().unwrap();
    println!(
        "{:?}: {} requests, the worst {:.2} times as long as idle",
        config.policy,
        found.times.len(),
        worst as f64 / idle as f64
    );
    assert!(found.times.len() > 3, "the others end too soon to tell");
    assert!(worst <= 3 * idle, "{:?}: {worst} us, idle {idle} us: {:?}", config.policy, found.times);
    found
}

const CLIENT: Client = Client { tenant: 2, num_tokens: 1_000, max_tokens: 8, pair_nanos: 50 };

#[test]
fn one_long_prompt_delays_another_tenant_by_less_than_three_times() {
    for policy in POLICIES {
        check_client(&scheduling(policy), &[request(1, 1, 30_000, 1)], CLIENT);
    }
}

#[test]
fn so_do_several_that_run_or_wait() {
    for policy in POLICIES {
        let others: Vec<_> = (1..5).map(|id| request(id, 1, 12_000, 1)).collect();
        check_client(&scheduling(policy), &others, CLIENT);
        let more_than_seats: Vec<_> = (1..20).map(|id| request(id, 1, 5_000 - 100 * id as usize, 1)).collect();
        check_client(&scheduling(policy), &more_than_seats, CLIENT);
    }
}

/// Requests that take less than a full step do not wait for one.
#[test]
fn so_do_those_beside_which_a_full_step_takes_long() {
    for policy in POLICIES {
        for (num_tokens, max_tokens) in [(220, 1), (220, 16), (400, 8)] {
            let client = Client { num_tokens, max_tokens, ..CLIENT };
            check_client(&scheduling(policy), &[request(1, 1, 30_000, 1)], client);
            let others: Vec<_> = (1..5).map(|id| request(id, 1, 6_000, 1)).collect();
            check_client(&scheduling(policy), &others, client);
        }
    }
}

#[test]
fn so_do_those_that_are_not_far_longer() {
    for policy in POLICIES {
        let others: Vec<_> = (1..12).map(|id| request(id, 1, 3_900, 1)).collect();
        check_client(&scheduling(policy), &others, CLIENT);
        let as_long: Vec<_> = (1..40).map(|id| request(id, 1, 1_000, 1)).collect();
        check_client(&scheduling(policy), &as_long, CLIENT);
    }
}

#[test]
fn so_do_those_of_two_other_tenants() {
    for policy in POLICIES {
        check_client(&scheduling(policy), &[request(1, 1, 20_000, 1), request(2, 3, 20_000, 1)], CLIENT);
        let others: Vec<_> = (1..12).map(|id| request(id, 1 + 2 * (id % 2) as u32, 3_900, 1)).collect();
        check_client(&scheduling(policy), &others, CLIENT);
    }
}

/// Rows deep in the long prompt take ten times as long as those of the client.
#[test]
fn so_do_those_whose_rows_take_far_longer() {
    for policy in POLICIES {
        let client = Client { pair_nanos: 600, ..CLIENT };
        check_client(&scheduling(policy), &[request(1, 1, 16_000, 1), request(2, 1, 9_600, 1)], client);
        check_client(&scheduling(policy), &[request(1, 1, 9_000, 1), request(2, 3, 9_000, 1)], client);
    }
}

/// Tokens of an answer come at most three times as slowly beside the prompts of others.
#[test]
fn a_long_answer_goes_on_beside_a_long_prompt() {
    for policy in POLICIES {
        check_client(&scheduling(policy), &[request(1, 1, 30_000, 1)], Client { max_tokens: 400, ..CLIENT });
    }
}

#[test]
fn the_long_prompt_is_delayed_by_no_more_than_what_the_others_take() {
    for policy in POLICIES {
        let long = [request(1, 1, 30_000, 1)];
        let mut alone = Clocked::new(scheduling(policy));
        alone.pair_nanos = CLIENT.pair_nanos;
        let id = alone.add(long[0].clone());
        while !alone.ends.contains_key(&id) {
            alone.step();
        }
        let found = beside(&scheduling(policy), &long, CLIENT);
        let bound = alone.ttft(id) as f64 / (1.0 - found.share);
        println!(
            "{policy:?}: {:.2} times as long as alone, share {:.2}",
            found.ttft[0] as f64 / alone.ttft(id) as f64,
            found.share
        );
        // Steps with few rows of a prompt cost a little more for each row.
        assert!((found.ttft[0] as f64) < 1.25 * bound, "{policy:?}: {} us, bound {bound}", found.ttft[0]);
    }
}

#[test]
fn nobody_is_limited_while_no_other_tenant_has_been_here_of_late() {
    for policy in POLICIES {
        let mut world = Clocked::new(scheduling(policy));
        for id in 10..13 {
            world.add(request(id, 1, 30_000, 1));
        }
        assert_eq!(world.step().num_scheduled_tokens(), MAX_ROWS);
        let short = world.add(request(2, 2, 100, 1));
        let step = world.step();
        assert_eq!(Clocked::rows_of(&step, |id| id.0 == 2), 100, "{policy:?}: a short prompt is computed at once");
        let beside = step.num_scheduled_tokens() - 100;
        assert!((100..MAX_ROWS - 100).contains(&beside), "{policy:?}: beside {beside} rows of the long one");
        let behind = world.step().num_scheduled_tokens();
        assert!((100..MAX_ROWS - 100).contains(&behind), "{policy:?}: the next short one waits for {behind} rows");
        while world.now.since(world.arrivals[&short]) <= Duration::from_mins(1) {
            world.step();
        }
        assert_eq!(world.step().num_scheduled_tokens(), MAX_ROWS);
    }
}

/// A deadline that has passed decides who is next, and gives no rows.
#[test]
fn a_prompt_past_its_deadline_leaves_rows_all_the_same() {
    for policy in POLICIES {
        let mut world = Clocked::new(SchedulerConfig { max_overtake: Duration::ZERO, ..scheduling(policy) });
        world.add(request(1, 1, 30_000, 1));
        (0..20).for_each(|_| drop(world.step()));
        world.add(request(2, 2, 1_000, 1));
        let rows: Vec<_> = (0..3).map(|_| Clocked::rows_of(&world.step(), |id| id.0 == 2)).collect();
        assert_eq!(rows.iter().sum::<usize>(), 1_000, "{policy:?}: {rows:?}");
    }
}

/// Until a sequence of `tenant` runs; the steps that took.
fn steps_to_first_token(world: &mut Clocked, id: RequestId, most: u64) -> u64 {
    let before = world.num_steps;
    while !world.first_tokens.contains_key(&id) {
        assert!(world.num_steps - before < most, "{id} has no token after {most} steps");
        world.step();
    }
    world.num_steps - before
}

#[test]
fn a_tenant_with_nothing_running_gets_the_next_seat_at_the_next_step() {
    for policy in POLICIES {
        for num_seats in [2, 8] {
            let mut world = Clocked::new(SchedulerConfig { max_num_seqs: num_seats, ..scheduling(policy) });
            let streams: Vec<_> = (1..=12).map(|id| world.add(request(id, 1, 40, 300))).collect();
            (0..10).for_each(|_| drop(world.step()));
            for id in 100..140 {
                let short = world.add(request(id, 2, 30, 20));
                let most = if num_seats == 2 { 20 } else { 1 };
                steps_to_first_token(&mut world, short, most);
                while !world.ends.contains_key(&short) {
                    world.step();
                }
            }
            while world.scheduler.has_work() {
                assert!(world.num_steps < 5_000, "streams do not end");
                world.step();
            }
            assert!(streams.iter().all(|stream| world.said[stream] == 300), "{policy:?}: preempted streams end");
            assert!(world.scheduler.stats().preemptions > 0);
        }
    }
}

#[test]
fn tenants_take_turns_where_there_are_more_of_them_than_seats() {
    let mut world = Clocked::new(SchedulerConfig { max_num_seqs: 1, ..scheduling(SchedulePolicy::RemainingWork) });
    let streams: Vec<_> = (1..=3).map(|id| world.add(request(id, id as u32, 40, 400))).collect();
    for &stream in &streams {
        steps_to_first_token(&mut world, stream, 150);
    }
    let slowest = |world: &Clocked| streams.iter().map(|stream| world.said.get(stream).copied().unwrap_or(0)).min().unwrap();
    while world.num_steps < 1_000 {
        world.step();
    }
    assert!(slowest(&world) > 250, "{} of some 330 tokens", slowest(&world));
}

/// Blocks are missing rather than seats, with and without a quota.
#[test]
fn it_gets_its_blocks_too() {
    for quotas in [BTreeMap::new(), [(TenantId(2), 100)].into(), [(TenantId(1), 380), (TenantId(2), 100)].into()] {
        let config = SchedulerConfig {
            quotas,
            num_blocks: 400,
            max_num_seqs: 64,
            max_model_len: 1_600,
            ..scheduling(SchedulePolicy::RemainingWork)
        };
        let mut world = Clocked::new(config);
        let streams: Vec<_> = (1..=12).map(|id| world.add(request(id, 1, 150, 300))).collect();
        (0..20).for_each(|_| drop(world.step()));
        for id in 100..120 {
            let short = world.add(request(id, 2, 120, 10));
            steps_to_first_token(&mut world, short, 4);
            while !world.ends.contains_key(&short) {
                world.step();
            }
        }
        while world.scheduler.has_work() {
            assert!(world.num_steps < 10_000, "streams do not end");
            world.step();
        }
        assert!(streams.iter().all(|stream| world.said[stream] == 300));
    }
}

/// A request that needs most of the pool waits for it beside others, and is not starved by them.
#[test]
fn a_request_of_most_of_the_pool_neither_stops_others_nor_starves() {
    let config =
        SchedulerConfig { num_blocks: 400, max_num_seqs: 8, max_model_len: 1_600, ..scheduling(SchedulePolicy::RemainingWork) };
    let mut world = Clocked::new(config);
    world.add(request(1, 1, 40, 300));
    world.step();
    let large = world.add(request(2, 3, 1_400, 10));
    let mut id = 100;
    let mut worst = 0;
    while !world.ends.contains_key(&large) {
        assert!(world.num_steps < 2_000, "the large request starves");
        id += 1;
        if id % 40 == 0 {
            world.add(request(id, 1, 40, 300));
        }
        let short = world.add(request(id, 2, 30, 5));
        worst = worst.max(steps_to_first_token(&mut world, short, 150));
        while !world.ends.contains_key(&short) {
            world.step();
        }
    }
    println!("{} steps until it ended, at worst {worst} for a short one", world.num_steps);
}

/// Answers are charged: of two tenants with equally many short prompts, the one with long answers gets no more than its part.
#[test]
fn answers_count_as_work_of_their_tenant() {
    let mut world = Clocked::new(SchedulerConfig { max_num_seqs: 4, ..scheduling(SchedulePolicy::RemainingWork) });
    let mut of = BTreeMap::new();
    for id in 0..400 {
        let tenant = 1 + (id % 2) as u32;
        of.insert(world.add(request(id, tenant, 20, if tenant == 1 { 40 } else { 4 })), tenant);
    }
    (0..300).for_each(|_| drop(world.step()));
    let count = |tenant| of.iter().filter(|&(id, &owner)| owner == tenant && world.ends.contains_key(id)).count();
    println!("{} with long answers, {} with short ones", count(1), count(2));
    assert!(count(2) >= 2 * count(1) && count(1) > 3, "{} with long answers, {} with short ones", count(1), count(2));
}

/// So do answers to questions that the engine is asked.
#[test]
fn questions_count_as_work_of_their_tenant() {
    let mut world = Clocked::new(SchedulerConfig { max_num_seqs: 4, ..scheduling(SchedulePolicy::RemainingWork) });
    for id in 0..200 {
        world.add(request(id, 1 + (id % 2) as u32, 20, 6));
    }
    world.step();
    world.scheduler.charge(TenantId(1), Duration::from_secs(10));
    (0..80).for_each(|_| drop(world.step()));
    let count = |odd| world.ends.keys().filter(|id| id.0 % 2 == odd).count();
    println!("{} of the one that asked, {} of the other", count(0), count(1));
    assert!(count(1) > 2 * count(0) && count(0) > 3, "{} of the one that asked, {} of the other", count(0), count(1));
}

#[test]
fn steps_are_chosen_ahead_while_requests_wait_that_have_no_seat() {
    let mut world = World::new(SchedulerConfig { max_num_seqs: 2, ..config(200) });
    world.overlaps = true;
    (1..=3).for_each(|id| world.add(RequestBuilder::new(id, &passage(&format!("r{id}"), 6)).max_tokens(40).build()));
    world.run();
    assert_eq!([1, 2, 3].map(|id| world.output(id).len()), [40; 3]);
    assert!(world.num_ahead >= 60, "{} of some 80 steps", world.num_ahead);
}

/// With 10,000 waiting, a step looks at no more of them than with ten, whether rows, seats, blocks or a prefix in flight is missing.
#[test]
fn a_step_looks_at_few_of_those_that_wait() {
    for (what, num_tenants, common) in [("seats", 1, false), ("tenants", 5_000, false), ("a prefix in flight", 1, true)] {
        let config = SchedulerConfig { max_num_seqs: 4, max_num_batched_tokens: 16, ..scheduling(SchedulePolicy::RemainingWork) };
        let mut world = Clocked::new(config);
        for id in 0..10_000 {
            let text = if common { passage("common", 600) } else { passage(&format!("r{id}"), 24) };
            let tenant = (id % num_tenants) as u32;
            world.add(RequestBuilder::new(id, &text).tenant(tenant).scope(tenant.into()).max_tokens(30));
        }
        world.step();
        let mut most = 0;
        for _ in 0..40 {
            let before = world.scheduler.stats().examined_requests;
            world.step();
            most = most.max(world.scheduler.stats().examined_requests - before);
        }
        println!("{what}: {most} at most");
        assert!(most <= 140, "{what}: {most} in one step");
    }
}

/// Requests parked behind a prompt in flight are looked at once more, when it is there.
#[test]
fn those_that_wait_for_a_prefix_are_looked_at_when_it_is_there() {
    let mut world = Clocked::new(SchedulerConfig { max_num_batched_tokens: 16, ..scheduling(SchedulePolicy::RemainingWork) });
    let ids: Vec<_> = (0..6).map(|id| world.add(RequestBuilder::new(id, &passage("common", 640)).max_tokens(1))).collect();
    while world.scheduler.has_work() {
        world.step();
    }
    assert!(ids.iter().all(|id| world.ends.contains_key(id)));
    let examined = world.scheduler.stats().examined_requests;
    assert!(examined <= 2 * 6 + 1, "{examined} looks at 6 requests in {} steps", world.num_steps);
}

struct Walk {
    num_seats: usize,
    num_blocks: usize,
    num_tenants: u64,
    quota: Option<usize>,
}

/// Random requests of several tenants. No tenant waits with nothing running for more than some steps while another has a second seat;
/// all requests end with all their tokens.
fn walk(seed: u64, walk: &Walk) -> u64 {
    let &Walk { num_seats, num_blocks, num_tenants, quota } = walk;
    let quotas = quota.map(|quota| (TenantId(1), quota)).into_iter().collect();
    let config = SchedulerConfig {
        quotas,
        num_blocks,
        max_num_seqs: num_seats,
        max_num_batched_tokens: 32,
        max_model_len: 160,
        policy: POLICIES[(seed % 3) as usize],
        ..scheduling(SchedulePolicy::Fcfs)
    };
    let mut random = Random(seed << 32);
    let mut world = Clocked::new(config);
    let mut wanted: BTreeMap<RequestId, (TenantId, usize)> = BTreeMap::new();
    let mut waits: BTreeMap<TenantId, u64> = BTreeMap::new();
    let mut worst = 0;
    for at in 0..6_000_u64 {
        if at >= 3_000 && !world.scheduler.has_work() {
            break;
        }
        if at < 3_000 && random.one_in(4) && wanted.len() - world.ends.len() < 30 {
            // One tenant asks far more than the others.
            let tenant = if random.one_in(2) { 1 } else { 1 + random.below(num_tenants) as u32 };
            let (num_tokens, max_tokens) = (1 + random.below(90) as usize, 1 + random.below(60) as u32);
            let id = world.add(request(at, tenant, num_tokens, max_tokens).store(!random.one_in(4)));
            wanted.insert(id, (TenantId(tenant), max_tokens as usize));
        }
        let step = world.step();
        let mut running: BTreeMap<TenantId, usize> = BTreeMap::new();
        for sequence in &step.sequences {
            *running.entry(wanted[&sequence.request_id].0).or_default() += 1;
        }
        let others_have_more = running.values().any(|&seats| seats > 1);
        let open = wanted.iter().filter(|(id, _)| !world.ends.contains_key(id) && world.arrivals[id] < world.now);
        let outside: BTreeSet<_> = open.map(|(_, &(tenant, _))| tenant).filter(|tenant| !running.contains_key(tenant)).collect();
        waits.retain(|tenant, _| outside.contains(tenant) && others_have_more);
        for tenant in outside.into_iter().filter(|_| others_have_more) {
            let steps = waits.entry(tenant).or_insert(0);
            *steps += 1;
            worst = worst.max(*steps);
        }
    }
    assert!(!world.scheduler.has_work(), "seed {seed}: requests do not end");
    for (id, (_, max_tokens)) in &wanted {
        assert_eq!(world.said[id], *max_tokens, "seed {seed}: {id}");
    }
    println!(
        "seed {seed}: {} requests, {} preemptions, at worst {worst} steps without a seat",
        wanted.len(),
        world.scheduler.stats().preemptions
    );
    worst
}

#[test]
fn no_tenant_waits_long_for_a_seat_while_another_has_two() {
    for seed in 0..4 {
        let worst = walk(seed, &Walk { num_seats: 6, num_blocks: 2_000, num_tenants: 4, quota: None });
        assert!(worst <= 40, "seats, seed {seed}: {worst} steps");
        let worst = walk(seed + 10, &Walk { num_seats: 3, num_blocks: 2_000, num_tenants: 5, quota: None });
        assert!(worst <= 80, "turns, seed {seed}: {worst} steps");
        let worst = walk(seed + 20, &Walk { num_seats: 16, num_blocks: 120, num_tenants: 3, quota: None });
        assert!(worst <= 80, "blocks, seed {seed}: {worst} steps");
        let worst = walk(seed + 30, &Walk { num_seats: 16, num_blocks: 120, num_tenants: 3, quota: Some(50) });
        assert!(worst <= 80, "quota, seed {seed}: {worst} steps");
    }
}
