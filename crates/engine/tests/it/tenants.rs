//! Permissions, charges and erasure by tenant.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::{Erase, ErasedCounts, HostConfig, KvUsage, Request, RequestError, SchedulePolicy, SchedulerConfig, SpanOutcome};
use testkit::{RequestBuilder, passage};
use tokens::{DonorId, Scope, SessionId, SharingMode, TenantId, Timestamp};

use crate::blast::{Expected, MAX_MODEL_LEN, check_event, expect, random_prompt, random_repair};
use crate::random::Random;
use crate::sharing::last_usage;
use crate::world::{ALL_MODES, World, config};

const CORPUS: u64 = 30;

/// Returns a request of tenant `tenant` in its own scope, which has the same number.
fn request(id: u64, tenant: u32, text: &str, num_tokens: usize) -> RequestBuilder {
    RequestBuilder::new(id, &passage(text, num_tokens)).tenant(tenant).scope(tenant.into()).max_tokens(1)
}

/// Returns the same, with a document of 32 tokens after other text.
fn asking(id: u64, tenant: u32) -> RequestBuilder {
    let prompt = [passage("question", 7), passage("doc", 32), passage("end", 6)].concat();
    RequestBuilder::new(id, &prompt).tenant(tenant).scope(tenant.into()).sharing(SharingMode::Span).max_tokens(1)
}

fn corpus(id: u64) -> RequestBuilder {
    request(id, 0, "doc", 32).scope(CORPUS)
}

fn run(world: &mut World, request: RequestBuilder) -> KvUsage {
    world.add(request.build());
    world.run();
    last_usage(world)
}

/// Runs `requests` one after the other; returns the prefix and span tokens that the last one found.
#[track_caller]
fn check(requests: impl IntoIterator<Item = RequestBuilder>, expected: (u32, u32)) -> World {
    let mut world = World::new(config(200));
    for request in requests {
        run(&mut world, request);
    }
    let usage = last_usage(&world);
    assert_eq!((usage.prefix_tokens, usage.span_tokens), expected);
    world
}

#[test]
fn a_corpus_is_read_by_those_who_may_and_by_nobody_else() {
    check([corpus(1), request(2, 1, "doc", 32).readable(&[CORPUS])], (28, 0));
    check([corpus(1), request(2, 1, "doc", 32)], (0, 0));
    check([corpus(1), asking(2, 1).readable(&[CORPUS])], (0, 30));
    check([corpus(1), asking(2, 1)], (0, 0));
}

#[test]
fn what_follows_a_corpus_stays_in_the_scope_of_its_request() {
    let longer = |id, tenant| {
        let prompt = [passage("doc", 32), passage("mine", 20)].concat();
        RequestBuilder::new(id, &prompt).tenant(tenant).scope(tenant.into()).readable(&[CORPUS]).max_tokens(1)
    };
    check([corpus(1), longer(2, 1), longer(3, 1)], (51, 0));
    check([corpus(1), longer(2, 1), longer(3, 2)], (32, 0));
    check([corpus(1), longer(2, 1), longer(3, 1).readable(&[])], (0, 0));
    check([corpus(1), longer(2, 1), request(3, 0, "doc", 33).scope(CORPUS)], (32, 0));
}

#[test]
fn a_donor_that_begins_in_a_corpus_serves_only_those_who_may_read_that() {
    let donor = |id| {
        let prompt = [passage("doc", 32), passage("mine", 32)].concat();
        RequestBuilder::new(id, &prompt).tenant(1).scope(1).readable(&[CORPUS]).max_tokens(1)
    };
    let target = |id| {
        let prompt = [passage("other", 5), passage("mine", 32), passage("end", 6)].concat();
        RequestBuilder::new(id, &prompt).tenant(1).scope(1).sharing(SharingMode::Span).max_tokens(1)
    };
    check([corpus(1), donor(2), target(3).readable(&[CORPUS])], (0, 30));
    let world = check([corpus(1), donor(2), target(3)], (0, 0));
    assert_eq!(world.scheduler.stats().span_lookups.get(SpanOutcome::NotResident), 1);
    check([corpus(1), donor(2), target(3).store(false), target(4).readable(&[CORPUS])], (0, 30));
}

/// A scope identifies tenant, `cache_salt` and model: a new model means new scopes.
#[test]
fn another_scope_finds_nothing_of_the_same_text() {
    let again = |id, scope| request(id, 1, "doc", 32).scope(scope).sharing(SharingMode::Span);
    let world = check([again(1, 1), again(2, 40)], (0, 0));
    let explained = world.scheduler.explain(&asking(3, 1).scope(41).readable(&[42]).build());
    assert_eq!((explained.usage.prefix_tokens, explained.plan.spans.len(), explained.matches.len()), (0, 0, 0));
}

#[test]
fn shadow_mode_counts_what_span_mode_would_copy_and_copies_nothing() {
    let world = check([request(1, 1, "doc", 32), asking(2, 1).sharing(SharingMode::Shadow)], (0, 0));
    let stats = world.scheduler.stats();
    let outcomes: Vec<_> = stats.span_lookups.iter().filter(|&(_, count)| count > 0).collect();
    assert_eq!((outcomes, stats.shadowed_tokens), (vec![(SpanOutcome::Shadowed, 1)], 30));
    let world = check([request(1, 1, "doc", 32), asking(2, 1).sharing(SharingMode::Shadow), asking(3, 1)], (44, 0));
    assert_eq!(world.scheduler.stats().num_donors, 2);
}

#[test]
fn semantic_mode_copies_spans() {
    check([request(1, 1, "doc", 32), asking(2, 1).sharing(SharingMode::Semantic)], (0, 30));
}

#[test]
fn donors_are_listed_by_age_with_what_became_of_them() {
    let mut world = World::new(config(200));
    world.now = Timestamp::from_micros(3);
    run(&mut world, request(1, 1, "doc", 34).session(7));
    run(&mut world, request(2, 2, "other", 16));
    world.now = Timestamp::from_micros(5);
    run(&mut world, asking(3, 1).store(false));
    let donors = world.scheduler.donors(None, 9);
    let expected = engine::DonorInfo {
        id: DonorId(0),
        tenant: TenantId(1),
        scope: Scope(1),
        session: Some(SessionId(7)),
        num_tokens: 32,
        num_resident_tokens: 32,
        hits: 1,
        created: Timestamp::from_micros(3),
        last_used: Timestamp::from_micros(5),
    };
    assert_eq!((donors.len(), donors[0]), (2, expected));
    assert_eq!(world.scheduler.donors(None, 1), donors[..1]);
    assert_eq!(world.scheduler.donors(Some(DonorId(0)), 9), donors[1..]);
}

/// Runs two tenants with two conversations each and erases `what`; returns which of `1.1 1.2 2.1` still find their prompt.
#[track_caller]
fn check_erased(what: Erase, expected: ErasedCounts, found: [u32; 3]) {
    let mut world = World::new(config(200));
    let all = [(1, 1, "a"), (1, 2, "b"), (2, 1, "c")];
    for (id, (tenant, session, text)) in (0..).zip(all) {
        run(&mut world, request(id, tenant, text, 33).session(session));
    }
    assert_eq!(world.erase(what), expected);
    assert_eq!(world.erase(what), ErasedCounts::default());
    let hits = all.map(|(tenant, _, text)| world.scheduler.explain(&request(9, tenant, text, 33).build()).usage.prefix_tokens);
    assert_eq!(hits, found);
    assert_eq!(world.scheduler.stats().blocks.cached, 24 - expected.blocks);
}

#[test]
fn what_is_erased_is_found_no_more_and_the_rest_is() {
    check_erased(Erase::Donor(DonorId(0)), ErasedCounts { donors: 1, blocks: 8 }, [0, 32, 32]);
    check_erased(Erase::Donor(DonorId(8)), ErasedCounts::default(), [32, 32, 32]);
    check_erased(Erase::Session(TenantId(1), SessionId(2)), ErasedCounts { donors: 1, blocks: 8 }, [32, 0, 32]);
    check_erased(Erase::Session(TenantId(3), SessionId(2)), ErasedCounts::default(), [32, 32, 32]);
    check_erased(Erase::Tenant(TenantId(1)), ErasedCounts { donors: 2, blocks: 16 }, [0, 0, 32]);
    check_erased(Erase::All, ErasedCounts { donors: 3, blocks: 24 }, [0, 0, 0]);
}

#[test]
fn a_request_in_flight_whose_traces_are_erased_ends_and_leaves_nothing() {
    let mut world = World::new(config(200));
    world.add(request(1, 1, "a", 40).max_tokens(9).build());
    world.add(request(2, 1, "b", 40).max_tokens(9).build());
    world.step();
    assert_eq!(world.erase(Erase::Tenant(TenantId(1))).donors, 0);
    world.run();
    assert_eq!((world.output(1).len(), world.output(2).len()), (9, 9));
    let stats = world.scheduler.stats();
    assert_eq!((stats.blocks.cached, stats.num_donors), (0, 0));
    assert_eq!(run(&mut world, request(3, 1, "a", 40)).prefix_tokens, 0);
}

#[test]
fn a_donor_that_vanishes_before_admission_means_dense() {
    let mut world = World::new(config(200));
    run(&mut world, request(1, 1, "doc", 32));
    world.add(asking(2, 1).build());
    world.erase(Erase::Donor(DonorId(0)));
    world.run();
    let usage = last_usage(&world);
    assert_eq!((usage.span_tokens, usage.computed_tokens), (0, 45));
}

#[test]
fn a_donor_erased_while_it_is_copied_from_leaves_its_receiver_alone() {
    let mut world = World::new(config(200));
    run(&mut world, request(1, 1, "doc", 32).session(5));
    world.add(asking(2, 1).max_tokens(5).build());
    world.step();
    assert_eq!(world.erase(Erase::Session(TenantId(1), SessionId(5))), ErasedCounts { donors: 1, blocks: 8 });
    world.run();
    assert_eq!((last_usage(&world).span_tokens, world.output(2).len()), (30, 5));
    assert_eq!(run(&mut world, asking(3, 1)).span_tokens, 0);
}

#[test]
fn what_was_not_used_for_too_long_is_forgotten() {
    let ttl = Some(Duration::from_micros(10));
    let mut world = World::new(SchedulerConfig { donor_ttl: ttl, ..config(200) });
    run(&mut world, request(1, 1, "doc", 33));
    run(&mut world, request(2, 1, "other", 33));
    world.now = Timestamp::from_micros(10);
    assert_eq!(run(&mut world, request(3, 1, "doc", 33)).prefix_tokens, 32);
    world.now = Timestamp::from_micros(11);
    assert_eq!(run(&mut world, request(4, 1, "other", 33).store(false)).prefix_tokens, 0);
    assert_eq!(run(&mut world, asking(5, 1).store(false)).span_tokens, 30);
    world.now = Timestamp::from_micros(22);
    assert_eq!(run(&mut world, asking(6, 1).store(false)).span_tokens, 0);
    let stats = world.scheduler.stats();
    assert_eq!((stats.num_donors, stats.blocks.cached), (0, 0));
}

#[test]
fn explaining_finds_what_an_admission_finds_and_changes_nothing() {
    let mut world = World::new(config(200));
    run(&mut world, corpus(1));
    run(&mut world, request(2, 1, "question", 7));
    let before = (world.scheduler.donors(None, 9), world.scheduler.stats().blocks);
    let explained = world.scheduler.explain(&asking(3, 1).readable(&[CORPUS]).build());
    assert_eq!((explained.usage.prefix_tokens, explained.usage.span_tokens), (4, 30));
    assert_eq!(explained.plan.spans.iter().map(|span| span.num_tokens).sum::<u32>(), 30);
    assert_eq!(explained.matches.iter().map(|found| found.num_tokens).collect::<Vec<_>>(), [32]);
    assert_eq!((world.scheduler.donors(None, 9), world.scheduler.stats().blocks), before);
    let usage = run(&mut world, asking(4, 1).readable(&[CORPUS]));
    assert_eq!((usage.prefix_tokens, usage.span_tokens), (4, 30));
}

fn with_quota(num_blocks: usize, quota: usize) -> World {
    let (policy, quotas) = (SchedulePolicy::Fcfs, [(TenantId(1), quota)].into());
    World::new(SchedulerConfig { policy, quotas, ..config(num_blocks) })
}

#[test]
fn a_tenant_over_its_quota_loses_its_own_cache_and_nobody_elses() {
    let mut world = with_quota(20, 9);
    run(&mut world, request(1, 2, "a", 32));
    for id in 2..8 {
        run(&mut world, request(id, 1, &id.to_string(), 32));
    }
    assert_eq!(run(&mut world, request(8, 2, "a", 32)).prefix_tokens, 31);
    assert_eq!(run(&mut world, request(9, 1, "6", 32)).prefix_tokens, 4);
}

#[test]
fn a_request_that_waits_for_its_quota_lets_other_tenants_pass() {
    let mut world = with_quota(100, 8);
    for id in 1..3 {
        world.add(request(id, 1, &id.to_string(), 16).max_tokens(9).build());
    }
    world.add(request(3, 1, "tiny", 4).build());
    world.add(request(4, 2, "other", 16).build());
    (0..4).for_each(|_| drop(world.step()));
    let stats = world.scheduler.stats();
    assert_eq!((stats.num_running, stats.num_waiting, world.output(4).len()), (1, 2, 1));
    world.run();
    assert_eq!([1, 2, 3].map(|id| world.output(id).len()), [9, 9, 1]);
}

#[test]
fn a_full_quota_preempts_only_its_own_tenant() {
    let mut world = with_quota(100, 7);
    world.add(request(1, 1, "a", 8).max_tokens(13).build());
    world.step();
    world.add(request(2, 1, "b", 8).max_tokens(13).build());
    world.step();
    world.add(request(3, 2, "c", 8).max_tokens(30).build());
    let mut rows = Vec::new();
    while world.scheduler.has_work() {
        let step = world.step();
        rows.extend(step.sequences.iter().filter(|sequence| sequence.request_id.0 == 3).map(|sequence| sequence.rows.len()));
    }
    assert_eq!([1, 2, 3].map(|id| world.output(id).len()), [13, 13, 30]);
    assert_eq!(world.scheduler.stats().preemptions, 1);
    assert_eq!(rows, [&[8][..], &[1; 29]].concat(), "the last one admitted is of another tenant and goes on");
}

#[test]
fn a_request_larger_than_its_quota_is_refused() {
    let world = with_quota(100, 7);
    let fits = |num_tokens| world.scheduler.fits(&request(1, 1, "a", num_tokens).build());
    assert_eq!(fits(28), Ok(()));
    assert_eq!(fits(29), Err(RequestError::QuotaTooSmall { num_tokens: 30, needed: 8, quota: 7 }));
}

/// Scopes of the walk: tenant `t` owns `t` and `t + 10`; all may be allowed to read the corpora of tenant 0.
fn random_request(id: u64, random: &mut Random, now: Timestamp) -> Request {
    let tenant = random.below(4) as u32;
    let scope = match tenant {
        0 => CORPUS + random.below(2),
        tenant => u64::from(tenant) + 10 * u64::from(random.one_in(3)),
    };
    let readable: Vec<_> = (CORPUS..CORPUS + 2).filter(|_| tenant > 0 && random.one_in(2)).collect();
    let request = RequestBuilder::new(id, &random_prompt(random))
        .max_tokens(1 + random.below(16) as u32)
        .sharing(ALL_MODES[random.below(6) as usize])
        .tenant(tenant)
        .scope(scope)
        .readable(&readable)
        .store(!random.one_in(6));
    let request = if random.one_in(2) { request.session(random.below(2)) } else { request };
    Request { arrival: now, repair: random_repair(random), ..request.build() }
}

fn random_erasure(random: &mut Random, world: &World) -> Erase {
    let tenant = TenantId(random.below(4) as u32);
    let donors = world.scheduler.donors(None, usize::MAX);
    match random.below(10) {
        0..4 if !donors.is_empty() => Erase::Donor(donors[random.below(donors.len() as u64) as usize].id),
        0..7 => Erase::Session(tenant, SessionId(random.below(2))),
        7..9 => Erase::Tenant(tenant),
        _ => Erase::All,
    }
}

/// Random tenants, scopes, corpora, quotas and erasures in a small pool that checks labels, erased traces and zeroes at every read
/// and write (see `memory`).
fn walk(seed: u64, overlaps: bool, num_steps: u64) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(SchedulerConfig {
        max_model_len: MAX_MODEL_LEN,
        max_num_batched_tokens: 24,
        max_num_seqs: 6,
        max_donors: 12,
        donor_ttl: Some(Duration::from_micros(300)),
        quotas: [(TenantId(1), 24), (TenantId(2), 36)].into(),
        host: HostConfig { num_blocks: 40 * (seed >> 32) as u32, ..HostConfig::default() },
        ..config(64)
    });
    world.memory.reject_one_in = Some(10);
    world.overlaps = overlaps;
    let mut random = Random(seed);
    let mut open: BTreeMap<u64, Expected> = BTreeMap::new();
    let mut tally = BTreeMap::new();
    let mut count = |name, n: u64| *tally.entry(name).or_insert(0) += n;
    for at in 0..num_steps + 5_000 {
        let is_open = at < num_steps;
        if !is_open && !world.has_work() {
            break;
        }
        if is_open && random.one_in(4) && open.len() < 30 {
            let request = random_request(at, &mut random, world.now);
            match world.scheduler.fits(&request) {
                Ok(()) => {
                    open.insert(at, expect(request.clone()));
                    world.add(request);
                }
                Err(error) => {
                    assert!(matches!(error, RequestError::QuotaTooSmall { .. }), "{error}");
                    count("refused", 1);
                }
            }
        }
        if random.one_in(50) {
            let erased = random_erasure(&mut random, &world);
            let erased = world.erase(erased);
            count("erased donors", erased.donors as u64);
            count("erased blocks", erased.blocks as u64);
        }
        world.step();
        world.now = Timestamp::from_micros(at);
        for event in std::mem::take(&mut world.events) {
            let id = event.request_id().0;
            if check_event(open.get_mut(&id).expect("an event of a request that has ended"), &event) {
                open.remove(&id);
                count("finished", 1);
            }
        }
        world.log.clear();
    }
    assert!(open.is_empty(), "{} requests do not end", open.len());
    let stats = world.scheduler.stats();
    count("public tokens", world.memory.num_public_tokens);
    count("fetched", stats.host.fetches);
    count("zeroed", world.memory.num_zeroed);
    count("preemptions", stats.preemptions);
    count("chosen ahead", world.num_ahead);
    count("reused", stats.span_lookups.get(SpanOutcome::Reused));
    count("shadowed", stats.span_lookups.get(SpanOutcome::Shadowed));
    tally
}

#[test]
fn nobody_is_given_what_has_anything_in_its_past_that_it_may_not_read() {
    let mut sum: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..12 {
        for (name, n) in walk(seed << 32, seed % 2 == 1, 3_000) {
            *sum.entry(name).or_default() += n;
        }
    }
    println!("{sum:?}");
    let rare: BTreeSet<_> = sum.iter().filter(|&(_, &n)| n < 20).collect();
    assert!(rare.is_empty(), "hardly tested: {rare:?}");
}
