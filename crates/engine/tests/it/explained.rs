//! An explanation predicts what an admission then finds, whatever the engine holds.

use std::collections::BTreeMap;

use engine::{Executor, KvUsage, Repair, Request, SchedulerConfig, SpanOutcome};
use testkit::{RequestBuilder, passage};

use crate::random::Random;
use crate::sharing::last_usage;
use crate::world::{ALL_MODES, World, config};

/// Returns a request of one of three tenants that asks about some of five documents in some order, in any mode and under several
/// policies.
fn any_request(id: u64, random: &mut Random) -> Request {
    let mut prompt = passage(&format!("question {}", random.below(4)), random.below(9) as usize);
    let mut segments = vec![0];
    for _ in 0..1 + random.below(3) {
        segments.push(prompt.len() as u32);
        prompt.extend(passage(&format!("document {}", random.below(5)), 14 + random.below(22) as usize));
    }
    prompt.extend(passage(&format!("end {id}"), 1 + random.below(4) as usize));
    segments.dedup();
    let tenant = random.below(3);
    let mut request = RequestBuilder::new(id, &prompt)
        .tenant(tenant as u32)
        .scope(tenant)
        .sharing(ALL_MODES[random.below(6) as usize])
        .store(!random.one_in(3))
        .segments(segments)
        .max_tokens(1 + random.below(3) as u32)
        .build();
    request.repair = ["none", "epic", "cacheblend@0.2", "full"][random.below(4) as usize].parse::<Repair>().unwrap();
    request
}

/// Runs `num_requests` one after the other; returns the number of them that ended as predicted.
fn check(config: SchedulerConfig, seed: u64, num_requests: u64) -> BTreeMap<Option<SpanOutcome>, u64> {
    let mut random = Random(seed);
    let mut world = World::new(config);
    let mut outcomes = BTreeMap::new();
    for id in 0..num_requests {
        let request = any_request(id, &mut random);
        let told = world.scheduler.explain(&request);
        assert_eq!(world.scheduler.explain(&request), told, "asking changes nothing");
        world.add(request.clone());
        world.step();
        let announced = world.events.iter().rev().find_map(|event| match event {
            engine::EngineEvent::Admitted { usage, .. } => Some(*usage),
            _ => None,
        });
        assert_eq!(announced, Some(told.usage), "{seed} {id}: {:?}", request.sharing);
        world.run();
        let KvUsage { span_tokens, recomputed_tokens, outcome, .. } = last_usage(&world);
        if outcome == told.usage.outcome {
            let chosen = told.usage.span_tokens - span_tokens;
            assert!(chosen <= told.policy_tokens, "{seed} {id}: {chosen} of {}", told.policy_tokens);
            assert_eq!(recomputed_tokens, told.usage.recomputed_tokens + chosen, "{seed} {id}");
        }
        *outcomes.entry(told.usage.outcome).or_default() += 1;
    }
    outcomes
}

#[test]
fn what_is_explained_is_what_an_admission_then_finds() {
    let mut seen = BTreeMap::new();
    for (seed, num_blocks) in [(1, 400), (2, 60), (3, 40), (4, 32)] {
        for (outcome, count) in check(config(num_blocks), seed, 220) {
            *seen.entry(outcome).or_insert(0) += count;
        }
    }
    let named =
        [SpanOutcome::Reused, SpanOutcome::Shadowed, SpanOutcome::Unproven, SpanOutcome::NotResident, SpanOutcome::NoRoom];
    assert!(named.iter().all(|outcome| seen.contains_key(&Some(*outcome))) && seen.contains_key(&None), "{seen:?}");
}

#[test]
fn an_engine_and_an_executor_that_do_not_fit_are_refused_by_both_numbers() {
    let limits =
        engine::ExecutorLimits { block_size: tokens::BlockSize::new(32), num_blocks: 100, max_rows: 512, max_sequences: 64 };
    let base = || SchedulerConfig::new(100, 256);
    let check = |config: SchedulerConfig, expected: &[&str]| {
        let message = config.check_executor(limits).unwrap_err().to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    };
    assert!(base().check_executor(limits).is_ok());
    check(SchedulerConfig { block_size: tokens::BlockSize::new(16).unwrap(), ..base() }, &["block_size", "16", "32"]);
    check(SchedulerConfig::new(101, 256), &["num_blocks", "101", "100"]);
    check(SchedulerConfig { max_num_batched_tokens: 513, ..base() }, &["max_num_batched_tokens", "513", "512"]);
    check(SchedulerConfig { max_num_seqs: 65, ..base() }, &["max_num_seqs", "65", "64"]);
    let echo = testkit::EchoExecutor::new(testkit::Reply::Prompt, 16);
    assert_eq!(echo.limits().block_size, tokens::BlockSize::new(16));
    let error = engine::EngineCore::new(base(), echo).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error, "block_size is 32, but the executor is built for 16");
}
