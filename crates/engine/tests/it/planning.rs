//! The number of plans of spans, and their work.

use engine::{EngineEvent, SchedulePolicy, SchedulerConfig, SpanConfig};
use testkit::{RequestBuilder, passage};
use tokens::{SharingMode, TokenId};

use crate::sharing::last_usage;
use crate::world::{World, config};

/// Returns document `topic` after its own question.
fn asking(id: u64, topic: &str, question: &str) -> RequestBuilder {
    let prompt = [passage(question, 7), passage(topic, 32), passage("end", 6)].concat();
    RequestBuilder::new(id, &prompt).sharing(SharingMode::Span).store(false)
}

#[test]
fn a_request_that_waits_is_planned_once_while_its_donors_stay() {
    let mut world = World::new(SchedulerConfig { max_num_seqs: 1, ..config(200) });
    world.add(RequestBuilder::new(1, &passage("doc", 32)).build());
    world.run();
    for id in 2..12 {
        world.add(asking(id, "doc", &format!("q{id}")).build());
    }
    world.run();
    assert_eq!(last_usage(&world).span_tokens, 30);
    let work = world.scheduler.planning_work();
    assert_eq!(work.num_plans, 10, "ten requests, each of which waited many steps");
    assert!(work.steps.total() > 0);
}

#[test]
fn a_prefix_hit_that_ends_within_a_block_needs_no_second_plan() {
    let mut world = World::new(SchedulerConfig { max_num_seqs: 1, ..config(200) });
    let header = passage("header", 11);
    world.add(RequestBuilder::new(1, &[header.clone(), passage("doc", 32)].concat()).build());
    world.run();
    let prompt = [header, passage("q", 9), passage("doc", 32), passage("end", 6)].concat();
    world.add(RequestBuilder::new(2, &prompt).sharing(SharingMode::Span).store(false).build());
    world.run();
    assert_eq!(last_usage(&world).prefix_tokens, 11);
    assert_eq!(world.scheduler.planning_work().num_plans, 1);
}

#[test]
fn a_new_donor_makes_a_plan_stale() {
    let mut world = World::new(SchedulerConfig { max_num_seqs: 1, ..config(200) });
    world.add(RequestBuilder::new(1, &passage("doc", 32)).build());
    world.add(asking(2, "doc", "q").build());
    world.run();
    assert_eq!(last_usage(&world).span_tokens, 30, "the donor came after the first plan");
    assert_eq!(world.scheduler.planning_work().num_plans, 2);
}

#[test]
fn donors_of_another_scope_make_no_plan_stale() {
    let mut world = World::new(SchedulerConfig { max_num_seqs: 1, ..config(200) });
    world.add(RequestBuilder::new(1, &passage("doc", 32)).build());
    world.run();
    world.add(RequestBuilder::new(2, &passage("other", 32)).scope(7).max_tokens(9).build());
    world.add(asking(3, "doc", "q").build());
    world.run();
    let usage_of_3 = world.events.iter().find_map(|event| match event {
        EngineEvent::Finished { request_id, usage, .. } if request_id.0 == 3 => Some(*usage),
        _ => None,
    });
    assert_eq!(usage_of_3.map(|usage| usage.span_tokens), Some(30));
    assert_eq!(world.scheduler.planning_work().num_plans, 1);
}

#[test]
fn a_plan_whose_donor_was_evicted_meanwhile_is_made_anew() {
    let mut world = World::new(SchedulerConfig { max_num_seqs: 1, ..config(16) });
    world.add(RequestBuilder::new(1, &passage("doc", 32)).max_tokens(1).build());
    world.run();
    world.add(RequestBuilder::new(2, &passage("long", 56)).store(false).max_tokens(1).build());
    world.add(asking(3, "doc", "q").max_tokens(1).build());
    world.run();
    assert_eq!(last_usage(&world).span_tokens, 0);
}

/// Returns the tokens of document `topic`, each its own.
fn document(topic: u32, num_tokens: u32) -> Vec<TokenId> {
    (0..num_tokens).map(|i| TokenId(topic * 1_000_000 + i)).collect()
}

#[test]
fn between_two_steps_a_bounded_number_of_tokens_is_planned_for() {
    const PROMPT: u32 = 20_000;
    let mut world = World::new(SchedulerConfig {
        max_num_batched_tokens: 8192,
        max_num_seqs: 64,
        spans: SpanConfig::default(),
        policy: SchedulePolicy::RemainingWork,
        ..SchedulerConfig { max_model_len: 32_768, ..config(120_000) }
    });
    world.add(RequestBuilder::new(1, &document(1, PROMPT)).max_tokens(1).build());
    world.run();
    // Far more tokens than may be planned for at once arrive together.
    for id in 2..22 {
        let prompt = [document(id, 40), document(1, PROMPT), document(id + 100, 40)].concat();
        let request = RequestBuilder::new(id.into(), &prompt).sharing(SharingMode::Span).store(false).max_tokens(1);
        world.add(request.build());
    }
    world.run();
    let work = world.scheduler.planning_work();
    assert!(work.max_tokens_per_step <= 1 << 17, "{work:?}");
    assert_eq!(work.num_plans, 20);
    let reused = world.events.iter().filter_map(|event| match event {
        EngineEvent::Finished { usage, .. } => Some(usage.span_tokens),
        _ => None,
    });
    assert_eq!(reused.filter(|&span_tokens| span_tokens > PROMPT - 100).count(), 20);
}

#[test]
fn each_of_many_donors_of_the_same_chunks_leaves_as_much_reuse() {
    let chunks: Vec<_> = (0..40).map(|topic| document(topic + 10, 90)).collect();
    let shuffled = |seed: usize| {
        // 7 and 40 have no factor in common, nor have the other steps.
        let step = [7, 9, 11, 13, 17, 19, 21, 23][seed % 8];
        let order = (0..40).map(|i| (i * step + seed) % 40);
        [document(1000 + seed as u32, 20), order.flat_map(|i| chunks[i].clone()).collect(), document(2000 + seed as u32, 20)]
            .concat()
    };
    let mut reused = Vec::new();
    for num_donors in [1, 8, 64] {
        let mut world = World::new(SchedulerConfig {
            max_num_batched_tokens: 4096,
            spans: SpanConfig::default(),
            ..SchedulerConfig { max_model_len: 8192, ..config(80_000) }
        });
        for seed in 0..num_donors {
            world.add(RequestBuilder::new(seed as u64, &shuffled(seed)).max_tokens(1).build());
            world.run();
        }
        world.add(RequestBuilder::new(999, &shuffled(777)).sharing(SharingMode::Span).max_tokens(1).build());
        world.run();
        reused.push(last_usage(&world).span_tokens);
    }
    assert!(reused.iter().all(|&tokens| f64::from(tokens) >= 0.95 * f64::from(reused[0])), "{reused:?}");
    assert!(reused[0] > 2800, "{reused:?}");
}
