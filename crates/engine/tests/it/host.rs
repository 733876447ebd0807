//! Evicted blocks go to the host tier and come back, if that pays.

use std::time::Duration;

use engine::{Erase, HostConfig, KvUsage, SchedulerConfig, SpanOutcome, Transfer};
use testkit::{RequestBuilder, passage};
use tokens::{DonorId, SessionId, SharingMode, TenantId, Timestamp};

use crate::sharing::last_usage;
use crate::world::{World, config};

/// Returns a pool of 12 blocks of 4 tokens with a host tier.
fn world(num_host_blocks: u32) -> World {
    World::new(with_host(num_host_blocks))
}

fn with_host(num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig { host: HostConfig { num_blocks, ..HostConfig::default() }, ..config(12) }
}

/// Returns request `id` of tenant 1 for `num_tokens` tokens of `text`.
fn request(id: u64, text: &str, num_tokens: usize) -> RequestBuilder {
    RequestBuilder::new(id, &passage(text, num_tokens)).tenant(1).scope(1).max_tokens(1)
}

/// Returns request `id` with 24 tokens of a document after a question.
fn asking(id: u64) -> RequestBuilder {
    let prompt = [passage("question", 7), passage("doc", 24), passage("end", 6)].concat();
    RequestBuilder::new(id, &prompt).tenant(1).scope(1).max_tokens(1).sharing(SharingMode::Span)
}

fn run(world: &mut World, request: RequestBuilder) -> KvUsage {
    world.add(request.build());
    world.run();
    last_usage(world)
}

/// Returns other text that fills the pool.
fn fill(world: &mut World, id: u64) {
    assert_eq!(run(world, request(id, &format!("fill {id}"), 48)).prefix_tokens, 0);
}

/// Returns the prefix hit of a prompt of 24 tokens and one more after other prompts have filled the pool `num_fills` times.
#[track_caller]
fn check_prefix(num_host_blocks: u32, num_fills: u64, expected: u32) {
    let mut world = world(num_host_blocks);
    run(&mut world, request(1, "a", 25));
    (2..2 + num_fills).for_each(|id| fill(&mut world, id));
    assert_eq!(run(&mut world, request(9, "a", 25)).prefix_tokens, expected);
    let expected_fetches = if num_fills > 0 { expected.div_ceil(4) } else { 0 };
    assert_eq!(world.scheduler.stats().host.fetches, u64::from(expected_fetches));
}

#[test]
fn a_prompt_that_was_pushed_out_comes_back() {
    check_prefix(20, 1, 24);
    check_prefix(20, 0, 24);
    check_prefix(0, 1, 0);
}

#[test]
fn a_host_tier_that_is_too_small_keeps_the_beginning() {
    check_prefix(4, 1, 16);
    check_prefix(8, 2, 0);
    check_prefix(20, 2, 24);
}

#[test]
fn a_part_of_a_block_is_copied_from_the_host() {
    let mut world = world(20);
    run(&mut world, request(1, "a", 24));
    fill(&mut world, 2);
    world.add(request(3, "a", 24).build());
    let step = world.step();
    assert_eq!((step.fetches.len(), step.block_copies.len()), (6, 1));
    assert!(step.fetches.iter().any(|fetch| fetch.dst == step.block_copies[0].src));
    world.run();
    assert_eq!(last_usage(&world).prefix_tokens, 23);
}

#[test]
fn of_a_donor_in_the_host_only_what_its_spans_need_is_fetched() {
    let mut world = World::new(SchedulerConfig { num_blocks: 24, ..with_host(40) });
    let donor = RequestBuilder::new(1, &[passage("front", 12), passage("doc", 24)].concat()).segments(vec![12]);
    run(&mut world, donor.tenant(1).scope(1).max_tokens(1));
    run(&mut world, request(2, "big", 96));
    world.add(asking(3).segments(vec![7, 31]).build());
    let step = world.step();
    assert_eq!((step.fetches.len(), step.span_copies.len()), (6, 1), "three blocks in front of the document stay where they are");
    world.run();
    assert_eq!(last_usage(&world).span_tokens, 22);
    assert_eq!(world.scheduler.stats().span_lookups.get(SpanOutcome::Reused), 1);
}

#[test]
fn a_donor_whose_copies_in_the_host_are_gone_means_dense() {
    let mut world = world(6);
    run(&mut world, request(1, "doc", 24));
    fill(&mut world, 2);
    fill(&mut world, 3);
    let usage = run(&mut world, asking(4));
    assert_eq!((usage.span_tokens, usage.computed_tokens), (0, 37));
    assert_eq!(world.scheduler.stats().span_lookups.get(SpanOutcome::NotResident), 1);
}

#[test]
fn what_is_erased_is_not_found_in_the_host() {
    let all = [Erase::Donor(DonorId(0)), Erase::Session(TenantId(1), SessionId(7)), Erase::Tenant(TenantId(1)), Erase::All];
    for what in all {
        let mut world = world(40);
        run(&mut world, request(1, "doc", 24).session(7));
        run(&mut world, request(2, "other", 48).tenant(2).scope(2));
        let outcome = |world: &World| world.scheduler.explain(&asking(4).build()).usage.outcome;
        assert_eq!((world.scheduler.stats().host.used, outcome(&world)), (6, Some(SpanOutcome::NoRoom)));
        assert!(world.erase(what).blocks >= 6, "{what:?}");
        let nothing = Some(SpanOutcome::Rejected(engine::RejectReason::NoDonor));
        assert_eq!((world.scheduler.stats().host.used, outcome(&world)), (0, nothing));
        assert_eq!(run(&mut world, request(3, "doc", 24)).prefix_tokens, 0);
    }
}

#[test]
fn a_reset_leaves_nothing_in_the_host() {
    let mut world = world(40);
    run(&mut world, request(1, "doc", 24));
    fill(&mut world, 2);
    world.scheduler.reset_prefix_cache();
    assert_eq!(world.scheduler.stats().host.used, 0);
    assert_eq!(run(&mut world, request(3, "doc", 24)).prefix_tokens, 0);
}

#[test]
fn what_was_not_used_for_too_long_is_forgotten_in_the_host_too() {
    let ttl = Some(Duration::from_micros(10));
    let mut world = World::new(SchedulerConfig { donor_ttl: ttl, ..with_host(20) });
    run(&mut world, request(1, "doc", 25));
    world.now = Timestamp::from_micros(6);
    fill(&mut world, 2);
    world.now = Timestamp::from_micros(10);
    assert_eq!(run(&mut world, request(3, "doc", 25)).prefix_tokens, 24);
    fill(&mut world, 4);
    assert!(world.scheduler.stats().host.used > 0);
    world.now = Timestamp::from_micros(21);
    assert_eq!(run(&mut world, request(5, "doc", 25)).prefix_tokens, 0);
    assert_eq!(world.scheduler.stats().host.used, 0);
}

#[test]
fn a_tenant_with_a_quota_takes_no_place_of_others_beyond_its_share() {
    let quotas = [(TenantId(1), 9)].into();
    let mut world = World::new(SchedulerConfig { quotas, ..SchedulerConfig { num_blocks: 18, ..with_host(12) } });
    run(&mut world, request(1, "mine", 24).tenant(2).scope(2));
    run(&mut world, request(2, "big", 72).tenant(3).scope(3).store(false));
    for id in 3..9 {
        run(&mut world, request(id, &id.to_string(), 36));
    }
    let hit = run(&mut world, request(9, "mine", 25).tenant(2).scope(2)).prefix_tokens;
    assert_eq!(hit, 24, "half of the host belongs to others");
}

/// On a machine that takes 100 microseconds a token, with blocks of 4 tokens of 1 MB: blocks that went to the host and came back.
fn transfers(bandwidth: f64, measured: Option<Transfer>) -> (u64, u64) {
    let host = HostConfig { num_blocks: 100, block_bytes: 1_000_000, bandwidth };
    let mut world = World::new(SchedulerConfig { host, ..config(12) });
    for (id, text) in (0..).zip(["a", "b", "c", "d", "e", "f", "a"]) {
        world.add(request(id, text, 41).max_tokens(8).build());
        while world.scheduler.has_work() {
            world.memory.transfer = measured;
            let step = world.step();
            world.now.0 += Duration::from_micros(100 * step.num_scheduled_tokens() as u64);
        }
    }
    let stats = world.scheduler.stats();
    (stats.host.offloads, stats.host.fetches)
}

#[test]
fn blocks_go_to_the_host_only_where_fetching_beats_computing() {
    let (offloads, fetches) = transfers(16.0, None);
    assert!(offloads > 40 && fetches == 10, "{offloads} offloads, {fetches} fetches");
    let (offloads, fetches) = transfers(0.5, None);
    assert!(offloads < 25 && fetches == 0, "{offloads} offloads, {fetches} fetches over a slow link");
}

#[test]
fn a_bandwidth_that_was_measured_overrules_the_configured_one() {
    let at = |seconds| Some(Transfer { bytes: 100_000_000, seconds });
    assert_eq!(transfers(16.0, at(0.2)), transfers(0.5, None));
    assert_eq!(transfers(0.5, at(0.01)), transfers(16.0, None));
}
