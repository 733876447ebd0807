//! Comparison of answers over reused KV with full computation, in time and room that no client needs.

use std::time::Duration;

use engine::{EngineCore, EngineEvent, GuardConfig, MatchClass, SchedulerConfig, SpanOutcome, VerificationConfig};
use testkit::{EchoExecutor, Reply, RequestBuilder};
use tokens::{RequestId, SharingMode, TenantId, Timestamp, TokenId};

use crate::misled::Misled;

struct World {
    core: EngineCore<Misled>,
    next_id: u64,
    now: Timestamp,
}

/// Returns a share of 1 with defaults for the rest.
fn all() -> VerificationConfig {
    VerificationConfig { share: 1.0, ..VerificationConfig::default() }
}

fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.map(|id| TokenId(1000 + id)).collect()
}

impl World {
    fn new(verify_share: f64, is_misled: bool) -> Self {
        Self::with_quota(verify_share, is_misled, usize::MAX)
    }

    fn with(config: SchedulerConfig, executor: EchoExecutor) -> Self {
        let core = EngineCore::new(config, Misled::new(executor, false)).unwrap();
        let mut world = Self { core, next_id: 0, now: Timestamp::default() };
        world.answer(&tokens(0..300), SharingMode::Prefix, None);
        world
    }

    /// Gives the document to tenant 0, all other requests to tenant 1, which has a quota.
    fn with_quota(verify_share: f64, is_misled: bool, quota: usize) -> Self {
        let quotas = [(TenantId(1), quota)].into();
        let guard = GuardConfig { first_pause: 2, ..GuardConfig::default() };
        let verification = VerificationConfig { share: verify_share, ..VerificationConfig::default() };
        let config =
            SchedulerConfig { verification, guard, quotas, max_num_batched_tokens: 96, ..SchedulerConfig::new(256, 4096) };
        let inner = EchoExecutor::new(Reply::Prompt, config.block_size.as_usize());
        let core = EngineCore::new(config, Misled::new(inner, is_misled)).unwrap();
        let mut world = Self { core, next_id: 0, now: Timestamp::default() };
        world.answer(&tokens(0..300), SharingMode::Prefix, None);
        world
    }

    /// Adds a request; returns its events until the engine has nothing left to do, comparisons included.
    fn answer(&mut self, prompt: &[TokenId], sharing: SharingMode, logprobs: Option<u32>) -> Vec<EngineEvent> {
        let id = self.add(prompt, sharing, logprobs);
        let mut events = self.run();
        events.extend(self.run_idle());
        assert!(events.iter().all(|event| event.request_id() == id), "comparisons are no client's news");
        events
    }

    fn add(&mut self, prompt: &[TokenId], sharing: SharingMode, logprobs: Option<u32>) -> RequestId {
        let id = self.next_id;
        self.next_id += 1;
        let request = RequestBuilder::new(id, prompt)
            .sharing(sharing)
            .store(id == 0)
            .tenant(u32::from(id > 0))
            .sampling(|s| s.logprobs = logprobs)
            .build();
        self.core.add_request(request, self.now);
        RequestId(id)
    }

    /// Runs steps until no request is left.
    fn run(&mut self) -> Vec<EngineEvent> {
        let mut events = Vec::new();
        while self.core.has_work() {
            events.extend(self.core.step(self.now).unwrap());
        }
        events
    }

    /// Advances time until all possible comparisons have run.
    fn run_idle(&mut self) -> Vec<EngineEvent> {
        let mut events = Vec::new();
        while let Some(at) = self.core.idle_work_at() {
            self.now = self.now.max(at);
            events.extend(self.core.step(self.now).unwrap());
            events.extend(self.run());
        }
        events
    }

    /// Runs a step that takes 1 ms, and 100 us for each row; returns the rows of each of its sequences.
    fn timed_step(&mut self) -> Vec<usize> {
        self.core.step(self.now).unwrap();
        let rows: Vec<_> = self.core.last_step().sequences.iter().map(|sequence| sequence.rows.len()).collect();
        self.now.0 += Duration::from_micros(1000 + 100 * rows.iter().sum::<usize>() as u64);
        rows
    }

    /// Advances time until all possible comparisons have run, in timed steps; returns the rows of each.
    fn timed_idle_steps(&mut self) -> Vec<usize> {
        let mut steps = Vec::new();
        while let Some(at) = self.core.idle_work_at() {
            self.now = self.now.max(at);
            steps.push(self.timed_step().iter().sum());
            while self.core.has_work() {
                steps.push(self.timed_step().iter().sum());
            }
        }
        steps
    }

    /// Returns a prompt that has nothing in common with any other one.
    fn new_text(&mut self, num_tokens: u32) -> Vec<TokenId> {
        let first = 100_000 + self.next_id as u32 * 10_000;
        tokens(first..first + num_tokens)
    }

    /// Returns the document after new text.
    fn recipient(&mut self, logprobs: Option<u32>) -> Vec<EngineEvent> {
        let prompt = self.recipient_prompt();
        self.answer(&prompt, SharingMode::Span, logprobs)
    }

    fn recipient_prompt(&mut self) -> Vec<TokenId> {
        [self.new_text(40), tokens(50..300)].concat()
    }

    /// Adds a recipient, and runs until it has ended.
    fn answer_recipient(&mut self) {
        let prompt = self.recipient_prompt();
        self.add(&prompt, SharingMode::Span, None);
        self.run();
    }

    fn num_verified(&self) -> u64 {
        self.core.stats().quality.iter().map(|(_, quality)| quality.num_verified).sum()
    }
}

#[test]
fn every_answer_is_verified_at_a_share_of_one_and_none_at_zero() {
    for (share, expected) in [(1.0, 5), (0.0, 0)] {
        let mut world = World::new(share, false);
        (0..5).for_each(|_| drop(world.recipient(None)));
        assert_eq!(world.num_verified(), expected);
        assert_eq!(world.core.stats().span_lookups.get(SpanOutcome::Reused), 5);
    }
}

#[test]
fn an_answer_is_not_verified_where_scoring_it_would_exceed_the_quota() {
    // Of a prompt of 317 tokens and an answer of 4, all but the last are computed, in 10 blocks of 32; scoring computes that too.
    for (num_tokens, expected) in [(316, 1), (317, 0)] {
        let mut world = World::with_quota(1.0, false, 10);
        let prompt = [tokens(10_000..10_000 + num_tokens - 250), tokens(50..300)].concat();
        world.answer(&prompt, SharingMode::Span, None);
        let reused = world.core.stats().span_lookups.get(SpanOutcome::Reused);
        assert_eq!((reused, world.num_verified()), (1, expected), "{num_tokens}");
    }
}

#[test]
fn an_erased_answer_is_not_verified() {
    let mut world = World::new(1.0, false);
    world.answer_recipient();
    assert!(world.core.idle_work_at().is_some(), "the answer waits to be compared");
    world.core.erase(engine::Erase::Tenant(TenantId(1)));
    world.run_idle();
    assert_eq!((world.num_verified(), world.core.stats().verification.num_pending), (0, 0));
}

#[test]
fn equal_answers_do_not_diverge() {
    let mut world = World::new(1.0, false);
    (0..5).for_each(|_| drop(world.recipient(None)));
    let [(class, quality)] = world.core.stats().quality[..] else { panic!("one class was reused") };
    assert_eq!((class, quality.top1, quality.num_tenants_off), (MatchClass::Composition, 1.0, 0));
    assert!(quality.mean_kl.abs() < 1e-6, "{quality:?}");
}

#[test]
fn a_class_that_answers_wrongly_is_switched_off_and_tried_again() {
    let mut world = World::new(1.0, true);
    (0..2).for_each(|_| drop(world.recipient(None)));
    assert_eq!(world.core.stats().quality[0].1.num_tenants_off, 1, "two answers of which nothing agrees are enough");
    let prompt = world.recipient_prompt();
    let asking = RequestBuilder::new(99, &prompt).sharing(SharingMode::Span).tenant(1).build();
    assert_eq!(world.core.explain(&asking).usage.outcome, Some(SpanOutcome::SwitchedOff), "and it is told");
    (0..2).for_each(|_| drop(world.recipient(None)));
    let lookups = world.core.stats().span_lookups;
    assert_eq!((lookups.get(SpanOutcome::Reused), lookups.get(SpanOutcome::SwitchedOff)), (2, 2));
    assert_eq!(world.core.explain(&asking).usage.outcome, Some(SpanOutcome::Reused), "asking does not shorten the pause");
    (0..2).for_each(|_| drop(world.recipient(None)));
    let (quality, lookups) = (world.core.stats().quality[0].1, world.core.stats().span_lookups);
    assert_eq!(lookups.get(SpanOutcome::Reused), 4, "the pause is over");
    assert_eq!((quality.num_tenants_off, quality.num_switched_off), (1, [0, 2]), "and it failed again");
}

#[test]
fn a_verified_request_reports_the_log_probabilities_it_asked_for() {
    for asked in [None, Some(0), Some(3)] {
        let mut world = World::new(1.0, false);
        let events = world.recipient(asked);
        let reported: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                EngineEvent::Token { logprobs, .. } => Some(logprobs.as_ref().map(|found| found.top.len() as u32)),
                _ => None,
            })
            .collect();
        assert_eq!(reported, [asked; 4]);
    }
}

#[test]
fn a_comparison_gives_way_to_a_request_and_is_made_later() {
    let echo = || EchoExecutor::new(Reply::Prompt, 32);
    for (executor, overlaps) in [(echo(), false), (echo().overlapping(), true)] {
        let mut world = World::with(SchedulerConfig { verification: all(), ..SchedulerConfig::new(256, 4096) }, executor);
        world.answer_recipient();
        world.now = world.core.idle_work_at().expect("the answer waits to be compared");
        world.core.step(world.now).unwrap();
        assert_eq!((world.core.stats().num_running, world.num_verified()), (1, 0), "the comparison has begun");
        assert!(world.core.step_ahead().is_none(), "nothing follows it that a request would have to wait for");
        let prompt = world.new_text(40);
        let request = world.add(&prompt, SharingMode::Span, None);
        let mut is_over = false;
        while !is_over {
            let events = world.core.step(world.now).unwrap();
            let only_request = world.core.last_step().sequences.iter().all(|sequence| sequence.request_id == request);
            assert!(only_request, "from its arrival on, no step computes anything else");
            is_over = events.iter().any(|event| matches!(event, EngineEvent::Finished { .. }));
        }
        assert_eq!((world.num_verified(), world.core.stats().verification.num_put_off), (0, 1));
        world.run();
        assert_eq!(world.core.executor().inner.prepared().is_empty(), !overlaps, "decode steps do run ahead");
        world.run_idle();
        assert_eq!(world.num_verified(), 1);
    }
}

#[test]
fn a_comparison_begins_after_an_idle_gap_that_each_request_starts_anew() {
    let idle = Duration::from_millis(70);
    let verification = VerificationConfig { idle, ..all() };
    let mut world =
        World::with(SchedulerConfig { verification, ..SchedulerConfig::new(256, 4096) }, EchoExecutor::new(Reply::Prompt, 32));
    world.answer_recipient();
    for millis in [69, 100, 169] {
        world.now = Timestamp(Duration::from_millis(millis));
        let due = world.core.idle_work_at().unwrap();
        assert!(due > world.now, "{millis} ms: {due:?}");
        world.core.step(world.now).unwrap();
        assert_eq!(world.core.stats().num_running, 0);
        let prompt = world.new_text(40);
        world.add(&prompt, SharingMode::Prefix, None);
        world.run();
        assert_eq!(world.core.idle_work_at().unwrap(), Timestamp(world.now.0 + idle));
    }
    world.now.0 += idle;
    world.core.step(world.now).unwrap();
    assert_eq!(world.core.stats().num_running, 1);
}

/// A step takes 1 ms and 100 us a row, so 90 rows take the 10 ms that a step of a comparison may take.
#[test]
fn steps_of_a_comparison_are_as_short_as_predicted() {
    let gate = engine::Gate::open();
    let config = SchedulerConfig { verification: all(), gate, max_num_batched_tokens: 512, ..SchedulerConfig::new(2048, 40_000) };
    let mut world = World::with(config, EchoExecutor::new(Reply::Prompt, 32));
    world.answer_recipient();
    let unfitted = world.timed_idle_steps();
    assert_eq!(world.num_verified(), 1);
    assert!(unfitted[..16].iter().all(|&rows| rows == 16), "before anything is known of this machine: {unfitted:?}");
    assert!(unfitted.iter().all(|&rows| rows <= 93), "{unfitted:?}");
    for num_tokens in [10, 100, 900, 3000] {
        let prompt = world.new_text(num_tokens);
        world.add(&prompt, SharingMode::Off, None);
        while world.core.has_work() {
            world.timed_step();
        }
    }
    let long = [world.new_text(3000), tokens(50..300)].concat();
    world.add(&long, SharingMode::Span, None);
    while world.core.has_work() {
        world.timed_step();
    }
    let steps = world.timed_idle_steps();
    assert_eq!(world.num_verified(), 2);
    assert!(steps.iter().all(|&rows| rows <= 93), "10.3 ms at most: {steps:?}");
    assert!(steps.iter().filter(|&&rows| rows >= 60).count() >= 20, "and hardly less than there is time for: {steps:?}");
}

/// Requests that arrive faster than a comparison takes do not starve it.
#[test]
fn a_comparison_goes_on_where_it_was_put_off() {
    let config = SchedulerConfig { verification: all(), ..SchedulerConfig::new(256, 4096) };
    let block_size = config.block_size.as_usize();
    let mut world = World::with(config, EchoExecutor::new(Reply::Prompt, 32));
    let prompt = world.recipient_prompt();
    world.next_id += 1;
    world.core.add_request(RequestBuilder::new(1, &prompt).sharing(SharingMode::Span).build(), world.now);
    world.run();
    let (mut rows_at_once, mut num_rows) = (0, 0);
    while world.num_verified() == 0 {
        world.now = world.now.max(world.core.idle_work_at().expect("the answer waits to be compared"));
        for _ in 0..4 {
            rows_at_once = world.timed_step().iter().sum::<usize>().max(rows_at_once);
            num_rows += world.core.last_step().sequences.iter().map(|sequence| sequence.rows.len()).sum::<usize>();
        }
        let other = world.new_text(40);
        world.add(&other, SharingMode::Prefix, None);
        world.run();
        assert!(num_rows < 2 * prompt.len(), "it begins anew");
    }
    let num_put_off = world.core.stats().verification.num_put_off as usize;
    assert!(num_put_off >= 3 && rows_at_once <= 16, "{num_put_off}, {rows_at_once}");
    assert!(num_rows <= prompt.len() + 4 + num_put_off * block_size, "at most a block is computed again: {num_rows}");
    let donor = world.core.donors(None, usize::MAX).last().expect("an exact prompt is a donor").id;
    let erased = world.core.erase(engine::Erase::Donor(donor));
    let num_own = 40 / block_size;
    assert_eq!(
        erased.blocks,
        prompt.len() / block_size - num_own,
        "of all attempts; the request itself left what is before its span"
    );
}

#[test]
fn a_comparison_pushes_nothing_out_that_was_used_lately() {
    let mut world = full_pool(VerificationConfig { unused: Duration::MAX, ..all() });
    let full = world.core.stats().blocks;
    assert!(full.free < 10 && full.cached > 30, "{full:?}: nothing is left for the 10 blocks that the comparison takes");
    world.run_idle();
    assert_eq!((world.core.stats().blocks, world.num_verified()), (full, 0));
    assert_eq!((world.core.idle_work_at(), world.core.stats().verification.num_pending), (None, 1), "it waits for room");
    world.core.erase(engine::Erase::Tenant(TenantId(0)));
    world.run_idle();
    assert_eq!((world.core.stats().blocks.evictions, world.num_verified()), (full.evictions, 1));
}

#[test]
fn a_comparison_takes_blocks_that_nobody_used_for_long() {
    let mut world = full_pool(all());
    let full = world.core.stats().blocks;
    world.now = world.core.idle_work_at().unwrap();
    world.core.step(world.now).unwrap();
    let retry = world.core.idle_work_at().expect("it looks again later");
    assert_eq!((retry.since(world.now), world.num_verified()), (Duration::from_secs(60), 0));
    world.run_idle();
    assert_eq!(world.num_verified(), 1);
    let evicted = world.core.stats().blocks.evictions - full.evictions;
    assert!((1..=10).contains(&evicted), "{evicted}: no more than the comparison takes");
}

/// An answer that waits to be compared, in a pool whose other blocks are cached.
fn full_pool(verification: VerificationConfig) -> World {
    let mut world =
        World::with(SchedulerConfig { verification, ..SchedulerConfig::new(40, 4096) }, EchoExecutor::new(Reply::Prompt, 32));
    world.answer_recipient();
    let text = world.new_text(30 * 32);
    let request = RequestBuilder::new(99, &text).max_tokens(1).build();
    world.core.add_request(request, world.now);
    world.run();
    world
}

#[test]
fn answers_that_wait_are_bounded_in_bytes() {
    let max_bytes = 64 << 10;
    let verification = VerificationConfig { max_bytes, ..all() };
    let mut world =
        World::with(SchedulerConfig { verification, ..SchedulerConfig::new(1024, 4096) }, EchoExecutor::new(Reply::Prompt, 32));
    for _ in 0..16 {
        let prompt = world.recipient_prompt();
        world.add(&prompt, SharingMode::Span, None);
    }
    let mut most = 0;
    while world.core.has_work() {
        world.core.step(world.now).unwrap();
        most = most.max(world.core.stats().verification.num_bytes);
    }
    let stats = world.core.stats().verification;
    assert!(most <= max_bytes && most > max_bytes / 2, "{most}");
    assert!(stats.num_pending >= 3 && stats.num_pending + stats.num_dropped as usize == 16, "{stats:?}");
    world.run_idle();
    assert_eq!(world.num_verified(), stats.num_pending as u64);
}

#[test]
fn an_answer_too_long_to_keep_is_given_up_and_counted() {
    let verification = VerificationConfig { max_bytes: 64 << 10, ..all() };
    let mut world =
        World::with(SchedulerConfig { verification, ..SchedulerConfig::new(1024, 4096) }, EchoExecutor::new(Reply::Prompt, 32));
    let prompt = world.recipient_prompt();
    let request = RequestBuilder::new(50, &prompt).sharing(SharingMode::Span).store(false).max_tokens(100).build();
    world.core.add_request(request, world.now);
    while world.core.has_work() {
        world.core.step(world.now).unwrap();
        assert!(world.core.stats().verification.num_bytes <= 64 << 10);
    }
    let stats = world.core.stats().verification;
    assert_eq!((stats.num_pending, stats.num_bytes, stats.num_dropped), (0, 0, 1));
}

#[test]
fn what_switches_a_class_off_for_one_tenant_leaves_the_others_alone() {
    let mut world = World::new(1.0, true);
    (0..3).for_each(|_| drop(world.recipient(None)));
    let lookups = world.core.stats().span_lookups;
    assert_eq!((lookups.get(SpanOutcome::Reused), lookups.get(SpanOutcome::SwitchedOff)), (2, 1));
    let prompt = world.recipient_prompt();
    let request = RequestBuilder::new(77, &prompt).sharing(SharingMode::Span).tenant(2).build();
    world.core.add_request(request, world.now);
    world.run();
    assert_eq!(world.core.stats().span_lookups.get(SpanOutcome::Reused), 3, "another tenant reuses as before");
}
