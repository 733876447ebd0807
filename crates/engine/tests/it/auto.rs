//! Mode `auto`: the engine computes traffic exactly until reuse has proven itself for it, and heals answers over reused KV.

use std::time::Duration;

use engine::{EngineCore, EngineEvent, Erase, KvUsage, SchedulerConfig, SpanOutcome, VerificationConfig};
use testkit::{EchoExecutor, Reply, RequestBuilder};
use tokens::{RequestId, SharingMode, TenantId, Timestamp, TokenId};

use crate::misled::Misled;

struct World {
    core: EngineCore<Misled>,
    next_id: u64,
    now: Timestamp,
}

fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.map(|id| TokenId(1000 + id)).collect()
}

impl World {
    fn new(share: f64, heals: bool) -> Self {
        let verification = VerificationConfig { share, heals, ..VerificationConfig::default() };
        let config = SchedulerConfig { verification, max_num_batched_tokens: 96, ..SchedulerConfig::new(2048, 4096) };
        let inner = EchoExecutor::new(Reply::Prompt, config.block_size.as_usize());
        let core = EngineCore::new(config, Misled::new(inner, false)).unwrap();
        let mut world = Self { core, next_id: 0, now: Timestamp::default() };
        (1..3).for_each(|tenant| drop(world.ask(tenant, &tokens(0..300), SharingMode::Prefix)));
        world
    }

    /// Returns the usage and the answer of a request, before any comparison.
    fn ask(&mut self, tenant: u32, prompt: &[TokenId], sharing: SharingMode) -> (KvUsage, Vec<TokenId>) {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.core.add_request(
            RequestBuilder::new(id.0, prompt).sharing(sharing).tenant(tenant).scope(tenant.into()).build(),
            self.now,
        );
        let (mut answer, mut found) = (Vec::new(), None);
        while self.core.has_work() {
            for event in self.core.step(self.now).unwrap() {
                match event {
                    EngineEvent::Finished { request_id, usage, .. } if request_id == id => found = Some(usage),
                    EngineEvent::Token { request_id, token, .. } if request_id == id => answer.push(token),
                    event => assert_eq!(event.request_id(), id, "comparisons are no client's news"),
                }
            }
        }
        (found.expect("it ended"), answer)
    }

    /// Returns a prompt that shares only the document with any other one.
    fn prompt(&self) -> Vec<TokenId> {
        let first = 100_000 + self.next_id as u32 * 1000;
        [tokens(first..first + 40), tokens(50..300)].concat()
    }

    fn ask_auto(&mut self, tenant: u32) -> KvUsage {
        let prompt = self.prompt();
        self.ask(tenant, &prompt, SharingMode::Auto).0
    }

    /// Advances time until all possible comparisons have run.
    fn idle(&mut self) {
        while let Some(at) = self.core.idle_work_at() {
            self.now = self.now.max(at);
            self.core.step(self.now).unwrap();
            while self.core.has_work() {
                assert!(self.core.step(self.now).unwrap().is_empty(), "comparisons are no client's news");
            }
        }
    }

    /// Runs requests of `tenant`, each with a pause after it, until `outcome`; returns the number that had another one.
    fn until(&mut self, tenant: u32, outcome: SpanOutcome, max: usize) -> Option<usize> {
        (0..max).find(|_| {
            let found = self.ask_auto(tenant).outcome;
            self.idle();
            found == Some(outcome)
        })
    }
}

#[test]
fn traffic_is_computed_exactly_until_it_has_proven_itself_and_each_tenant_proves_for_itself() {
    let mut world = World::new(0.01, false);
    let usage = world.ask_auto(1);
    assert_eq!((usage.outcome, usage.span_tokens, usage.class), (Some(SpanOutcome::Unproven), 0, None));
    let num_unproven = world.until(1, SpanOutcome::Reused, 60).expect("equal answers prove it");
    assert!((15..=30).contains(&num_unproven), "{num_unproven}");
    let stats = world.core.stats();
    assert_eq!((stats.traffic.num_open, stats.traffic.num_opened), (1, 1));
    assert_eq!(stats.verification.num_trials, num_unproven as u64 + 1);
    assert_eq!(stats.span_lookups.get(SpanOutcome::Reused), 1, "a trial is no request");
    assert_eq!(world.ask_auto(2).outcome, Some(SpanOutcome::Unproven), "another tenant's proof is its own");
    let classes = world.core.traffic(Some(TenantId(1)));
    let [(class, quality)] = &classes[..] else { panic!("one class: {classes:?}") };
    let (mean_kl, top1) = quality.means.unwrap();
    assert!(quality.is_open && top1 == 1.0 && mean_kl.abs() < 1e-6);
    assert_eq!((class.format.to_string().as_str(), world.core.traffic(Some(TenantId(2))).len()), ("prompt,in_order", 1));
    let prompt = world.prompt();
    let asking =
        |tenant: u32| RequestBuilder::new(999, &prompt).sharing(SharingMode::Auto).tenant(tenant).scope(tenant.into()).build();
    let outcomes = [1, 2].map(|tenant| world.core.explain(&asking(tenant)).usage.outcome);
    assert_eq!(outcomes, [Some(SpanOutcome::Reused), Some(SpanOutcome::Unproven)], "explanations say the same");
}

#[test]
fn reuse_that_would_answer_wrongly_is_never_used() {
    let mut world = World::new(0.01, false);
    world.core.executor_mut().is_misled = true;
    assert_eq!(world.until(1, SpanOutcome::Reused, 80), None);
    assert_eq!(world.core.stats().verification.num_trials, 80, "and all of it was tried");
}

#[test]
fn a_class_that_turns_bad_is_closed_within_a_few_dozen_answers() {
    let mut world = World::new(0.01, false);
    world.until(1, SpanOutcome::Reused, 60).unwrap();
    world.core.executor_mut().is_misled = true;
    let num_reused = world.until(1, SpanOutcome::Unproven, 200).expect("it is closed");
    assert!(num_reused <= 64, "{num_reused} answers were bad");
    assert_eq!(world.core.stats().traffic.num_closed, 1);
    world.core.executor_mut().is_misled = false;
    assert!(world.until(1, SpanOutcome::Reused, 60).is_some(), "it may prove itself anew");
}

#[test]
fn without_pauses_an_open_class_gives_a_bounded_number_of_answers() {
    let mut world = World::new(0.01, false);
    world.until(1, SpanOutcome::Reused, 60).unwrap();
    let num_reused = (0..200).filter(|_| world.ask_auto(1).outcome == Some(SpanOutcome::Reused)).count();
    assert!((50..=64).contains(&num_reused), "{num_reused}");
    world.idle();
    assert_eq!(world.ask_auto(1).outcome, Some(SpanOutcome::Reused), "and goes on after a pause");
}

#[test]
fn nothing_opens_where_nothing_is_compared() {
    let mut world = World::new(0.0, false);
    assert_eq!(world.until(1, SpanOutcome::Reused, 50), None);
    assert_eq!(world.core.stats().verification.num_trials, 0);
}

#[test]
fn what_is_erased_is_tried_no_more_and_proves_nothing() {
    let mut world = World::new(0.01, false);
    for _ in 0..3 {
        world.ask_auto(1);
    }
    world.core.erase(Erase::Tenant(TenantId(1)));
    world.idle();
    assert_eq!((world.core.stats().verification.num_trials, world.core.traffic(None).len()), (0, 0));
    // Erases only the donor: the KV to try is gone.
    world.ask(1, &tokens(0..300), SharingMode::Prefix);
    world.ask_auto(1);
    let donor = world.core.donors(None, 100).into_iter().filter(|donor| donor.tenant == TenantId(1)).map(|donor| donor.id).min();
    world.core.erase(Erase::Donor(donor.unwrap()));
    world.idle();
    assert_eq!((world.core.stats().verification.num_trials, world.core.stats().verification.num_gone), (0, 1));
}

#[test]
fn a_trial_gives_way_to_a_request_and_leaves_nothing_behind() {
    let mut world = World::new(0.01, false);
    let donors = |world: &World| world.core.donors(None, 100).iter().map(|donor| (donor.id, donor.hits)).collect::<Vec<_>>();
    world.ask_auto(1);
    let before = (donors(&world), world.core.stats().blocks);
    world.now = world.core.idle_work_at().unwrap();
    world.core.step(world.now).unwrap();
    assert_eq!(world.core.stats().num_running, 1, "the trial has begun");
    world.ask(2, &tokens(9000..9040), SharingMode::Off);
    assert_eq!((world.core.stats().verification.num_trials, world.core.stats().verification.num_put_off), (0, 1));
    world.idle();
    assert_eq!(world.core.stats().verification.num_trials, 1);
    assert_eq!(donors(&world), before.0, "it is no donor, and no donor counts a hit");
    assert_eq!(world.core.stats().blocks.active, before.1.active, "it holds no blocks");
}

/// A conversation that began over moved spans; tokens of the next turn's prompt that are exact, and those that are not.
fn next_turn(heals: bool, pause: bool) -> (KvUsage, u64) {
    let mut world = World::new(0.0, heals);
    let prompt = world.prompt();
    let (first, answer) = world.ask(1, &prompt, SharingMode::Span);
    assert!(first.span_tokens > 200, "{first:?}");
    if pause {
        world.idle();
    }
    let turn = [prompt, answer, tokens(50_000..50_040)].concat();
    let usage = world.ask(1, &turn, SharingMode::Span).0;
    (usage, world.core.stats().verification.num_healed)
}

#[test]
fn an_answer_over_moved_spans_is_healed_in_idle_time_and_the_next_turn_finds_exact_kv() {
    let (usage, num_healed) = next_turn(true, true);
    assert_eq!((num_healed, usage.continued_tokens), (1, 0));
    assert!(usage.prefix_tokens >= 256, "{usage:?}");
    for (heals, pause) in [(true, false), (false, true)] {
        let (usage, num_healed) = next_turn(heals, pause);
        assert_eq!((num_healed, usage.continued_tokens > 200), (0, true), "{heals} {pause}: {usage:?}");
    }
}

#[test]
fn healed_kv_takes_the_place_of_the_approximate_one_and_is_a_donor() {
    let mut world = World::new(0.0, true);
    let prompt = world.prompt();
    world.ask(1, &prompt, SharingMode::Span);
    let (donors, cached) = (world.core.stats().num_donors, world.core.stats().blocks.cached);
    world.idle();
    assert_eq!(world.core.stats().num_donors, donors + 1);
    assert!(world.core.stats().blocks.cached <= cached + 1, "both are not kept: {cached}, {:?}", world.core.stats().blocks);
    world.core.erase(Erase::Tenant(TenantId(1)));
    world.now.0 += Duration::from_secs(1);
    let usage = world.ask(1, &prompt, SharingMode::Span).0;
    assert_eq!((usage.prefix_tokens, usage.span_tokens), (0, 0), "it is erased with its request");
}
