//! KV that requests may share.

use engine::{DecodeRepair, EngineEvent, FinishReason, KvUsage, RejectReason, Repair, RepairPolicy, SpanOutcome};
use testkit::{RequestBuilder, passage};
use tokens::{RequestId, SharingMode, TokenRange};

use crate::world::{World, config};

/// Runs the requests one after the other in a large pool; returns the usage of the last one.
#[track_caller]
fn check(requests: impl IntoIterator<Item = RequestBuilder>, prefix_tokens: u32, span_tokens: u32) -> World {
    let mut world = World::new(config(200));
    for request in requests {
        world.add(request.build());
        world.run();
    }
    let usage = last_usage(&world);
    assert_eq!((usage.prefix_tokens, usage.span_tokens), (prefix_tokens, span_tokens));
    world
}

pub(crate) fn last_usage(world: &World) -> KvUsage {
    match world.events.last() {
        Some(EngineEvent::Finished { usage, .. }) => *usage,
        other => panic!("{other:?} is not the end of a request"),
    }
}

fn first(text: &str, num_tokens: usize) -> RequestBuilder {
    RequestBuilder::new(1, &passage(text, num_tokens))
}

/// Returns `question`, then 32 tokens of a document.
fn asking(id: u64, question: &str) -> RequestBuilder {
    let prompt = [passage(question, 7), passage("doc", 32), passage("end", 6)].concat();
    RequestBuilder::new(id, &prompt).sharing(SharingMode::Span)
}

#[test]
fn a_prefix_is_shared_within_a_scope_only() {
    check([first("a", 21), RequestBuilder::new(2, &passage("a", 21))], 20, 0);
    check([first("a", 21), RequestBuilder::new(2, &passage("a", 21)).scope(1)], 0, 0);
}

#[test]
fn a_span_is_shared_within_a_scope_only() {
    check([first("doc", 32), asking(2, "q")], 0, 30);
    check([first("doc", 32), asking(2, "q").scope(1)], 0, 0);
}

#[test]
fn a_request_that_is_not_stored_leaves_nothing() {
    check([first("a", 21).store(false), RequestBuilder::new(2, &passage("a", 21))], 0, 0);
    check([first("doc", 32).store(false), asking(2, "q")], 0, 0);
}

#[test]
fn off_computes_everything_but_serves_others() {
    check([first("a", 21), RequestBuilder::new(2, &passage("a", 21)).sharing(SharingMode::Off)], 0, 0);
    check([first("a", 21).sharing(SharingMode::Off), RequestBuilder::new(2, &passage("a", 21))], 20, 0);
}

#[test]
fn prefix_mode_copies_no_spans() {
    check([first("doc", 32), asking(2, "q").sharing(SharingMode::Prefix)], 0, 0);
}

#[test]
fn generated_tokens_are_shared_too() {
    let mut world = World::new(config(200));
    world.add(first("a", 10).max_tokens(11).build());
    world.run();
    let answer = world.output(1).into_iter().map(tokens::TokenId);
    let prompt: Vec<_> = passage("a", 10).into_iter().chain(answer).chain(passage("b", 3)).collect();
    world.add(RequestBuilder::new(2, &prompt).build());
    world.run();
    // The last generated token was never computed.
    assert_eq!(last_usage(&world).prefix_tokens, 20);
}

#[test]
fn an_approximate_prompt_serves_nobody_behind_its_first_span() {
    let world = check([first("doc", 32), asking(2, "q")], 0, 30);
    assert_eq!(world.scheduler.stats().num_donors, 1);
    check([first("doc", 32), asking(2, "q"), asking(3, "q").sharing(SharingMode::Prefix)], 8, 0);
}

#[test]
fn a_donor_gives_way_to_one_that_continues_it() {
    let world = check([first("a", 32), RequestBuilder::new(2, &passage("a", 64))], 32, 0);
    assert_eq!(world.scheduler.stats().num_donors, 1);
    let world = check([first("a", 32), RequestBuilder::new(2, &passage("a", 34))], 32, 0);
    assert_eq!(world.scheduler.stats().num_donors, 1);
}

#[test]
fn template_tokens_inside_a_span_are_computed() {
    check([first("doc", 32), asking(2, "q").template(vec![TokenRange::new(20, 25)])], 0, 25);
}

/// Returns eight tokens, a fact of two and two passages of 32 tokens, the second of which begins a segment if `starts` says so.
fn stating(id: u64, fact: &str, starts: &[u32]) -> RequestBuilder {
    let prompt = [passage("a", 8), passage(fact, 2), passage("doc", 32), passage("rest", 32), passage(fact, 6)].concat();
    RequestBuilder::new(id, &prompt).segments(starts.to_vec()).sharing(SharingMode::Span)
}

#[test]
fn behind_a_changed_fact_its_segment_is_computed() {
    check([stating(1, "old", &[42]), stating(2, "new", &[42])], 8, 32);
    let world = check([stating(1, "old", &[]), stating(2, "new", &[])], 8, 0);
    assert_eq!(world.scheduler.stats().span_lookups.get(SpanOutcome::Rejected(RejectReason::Edited)), 1);
}

#[test]
fn prefix_and_span_add_up() {
    let donor = RequestBuilder::new(1, &passage("doc", 32));
    let system = RequestBuilder::new(2, &passage("system", 16));
    let prompt = [passage("system", 16), passage("doc", 32), passage("end", 6)].concat();
    let world = check([donor, system, RequestBuilder::new(3, &prompt).sharing(SharingMode::Span)], 16, 30);
    let usage = last_usage(&world);
    assert_eq!((usage.computed_tokens, usage.recomputed_tokens, usage.donors), (8, 2, 1));
    assert_eq!(world.scheduler.stats().span_lookups.get(SpanOutcome::Reused), 1);
}

#[test]
fn an_evicted_donor_gives_nothing() {
    let mut world = World::new(config(14));
    for request in [first("doc", 32), RequestBuilder::new(2, &passage("other", 50)), asking(3, "q")] {
        world.add(request.max_tokens(1).build());
        world.run();
    }
    assert_eq!(last_usage(&world).span_tokens, 0);
    let stats = world.scheduler.stats();
    assert_eq!(stats.span_lookups.get(SpanOutcome::NotResident), 1);
    assert_eq!(stats.num_donors, 2, "the evicted one is forgotten");
}

/// Returns a document of 8 blocks, then a prompt of `other_tokens` that evicts its last two, then a question about it.
#[track_caller]
fn check_half_evicted(num_blocks: usize, other_tokens: usize, span_tokens: u32, expected: SpanOutcome) {
    let mut world = World::new(config(num_blocks));
    for request in [first("doc", 32), RequestBuilder::new(2, &passage("other", other_tokens)), asking(3, "q")] {
        world.add(request.max_tokens(1).build());
        world.run();
    }
    assert_eq!(last_usage(&world).span_tokens, span_tokens);
    assert_eq!(world.scheduler.stats().span_lookups.get(expected), 1);
}

#[test]
fn a_donor_of_which_a_part_was_evicted_gives_the_rest() {
    check_half_evicted(20, 54, 22, SpanOutcome::Reused);
}

#[test]
fn without_room_to_hold_a_donor_everything_is_computed() {
    check_half_evicted(14, 30, 0, SpanOutcome::NoRoom);
}

#[test]
fn a_reset_forgets_prefixes_and_donors() {
    let mut world = World::new(config(200));
    world.add(first("doc", 32).build());
    world.run();
    world.scheduler.reset_prefix_cache();
    world.add(asking(2, "q").build());
    world.run();
    assert_eq!(last_usage(&world).span_tokens, 0);
    assert_eq!(world.scheduler.stats().num_donors, 1);
}

#[test]
fn a_stop_token_ends_an_answer_once_enough_was_said() {
    let mut world = World::new(config(20));
    let answer = {
        world.add(first("a", 9).max_tokens(12).build());
        world.run();
        world.output(1)
    };
    let stop = tokens::TokenId(answer[0]);
    let min_tokens = answer.iter().skip(1).position(|&token| token == stop.0).unwrap() as u32 + 1;
    for (id, min_tokens, expected_len) in [(2, 0, 1), (3, min_tokens, min_tokens as usize + 1)] {
        let stops = |sampling: &mut engine::SamplingParams| {
            sampling.stop_token_ids = vec![stop];
            sampling.min_tokens = min_tokens;
        };
        world.add(RequestBuilder::new(id, &passage("a", 9)).max_tokens(12).sampling(stops).build());
        world.run();
        assert_eq!(world.output(id), answer[..expected_len]);
        let end = world.events.last();
        assert!(matches!(end, Some(EngineEvent::Finished { reason: FinishReason::Stop(token), .. }) if *token == stop));
    }
}

#[test]
fn the_model_length_ends_an_answer() {
    let mut world = World::new(engine::SchedulerConfig { max_model_len: 12, ..config(20) });
    world.add(first("a", 9).max_tokens(100).build());
    world.run();
    assert_eq!(world.output(1).len(), 3);
    let admitted = |event: &&EngineEvent| matches!(event, EngineEvent::Admitted { request_id: RequestId(1), .. });
    assert_eq!(world.events.iter().filter(admitted).count(), 1);
}

/// Computes a document of 48 tokens when a request in `scope` arrives with it after `num_before` other tokens. Rows of a step
/// take `row_micros`. Returns the span tokens that the second one gets, and the steps until it is admitted.
fn asks_during_prefill(scope: u64, num_before: usize, row_micros: u64) -> (u32, usize) {
    let mut world = World::new(engine::SchedulerConfig { max_num_batched_tokens: 32, ..config(400) });
    let tick = |world: &mut World| {
        let step = world.step();
        world.now.0 += std::time::Duration::from_micros(20 + step.num_scheduled_tokens() as u64 * row_micros);
    };
    world.add(RequestBuilder::new(0, &passage("warm", 90)).max_tokens(20).build());
    while world.scheduler.has_work() {
        tick(&mut world);
    }
    world.add(first("doc", 48).build());
    tick(&mut world);
    let prompt = [passage("before", num_before), passage("doc", 48), passage("end", 6)].concat();
    world.add(RequestBuilder::new(2, &prompt).sharing(SharingMode::Span).scope(scope).max_tokens(1).build());
    let admitted =
        |world: &World| world.events.iter().any(|event| matches!(event, EngineEvent::Admitted { request_id: RequestId(2), .. }));
    let mut num_steps = 0;
    while !admitted(&world) {
        tick(&mut world);
        num_steps += 1;
    }
    world.run();
    let spans = |event: &EngineEvent| match event {
        EngineEvent::Finished { request_id: RequestId(2), usage, .. } => Some(usage.span_tokens + usage.recomputed_tokens),
        _ => None,
    };
    (world.events.iter().find_map(spans).unwrap(), num_steps)
}

#[test]
fn a_span_that_somebody_else_is_about_to_have_computed_is_waited_for() {
    assert_eq!(asks_during_prefill(0, 200, 10), (48, 2));
}

#[test]
fn a_span_is_not_waited_for_across_scopes() {
    assert_eq!(asks_during_prefill(1, 200, 10), (0, 1));
}

#[test]
fn a_span_that_comes_too_late_is_computed_twice() {
    // A step takes more than a fifth of what the prompt takes; then more than the longest wait.
    assert_eq!(asks_during_prefill(0, 5, 10), (0, 1));
    assert_eq!(asks_during_prefill(0, 200, 2_000), (0, 1));
}

/// Runs two donors of one document after other texts, then the document after the first text backwards. Returns hits of the
/// donors, older first.
#[track_caller]
fn check_choice(mode: SharingMode, expected: [u64; 2]) {
    let mut world = World::new(config(400));
    let backwards: Vec<_> = passage("a", 40).into_iter().rev().collect();
    let prompts = [
        [passage("a", 40), passage("doc", 64), passage("end", 4)].concat(),
        [passage("b", 40), passage("doc", 64), passage("end", 4)].concat(),
        [passage("q", 4), backwards, passage("doc", 64), passage("r", 8)].concat(),
    ];
    for (id, prompt) in (1..).zip(&prompts) {
        // A request that reuses spans becomes no donor.
        let mode = if id == 3 { mode } else { SharingMode::Prefix };
        world.add(RequestBuilder::new(id, prompt).sharing(mode).max_tokens(1).segments(vec![4, 40, 44, 108]).build());
        world.run();
    }
    let hits: Vec<_> = world.scheduler.donors(None, 10).iter().map(|donor| donor.hits).take(2).collect();
    assert!(last_usage(&world).span_tokens > 40, "the document is reused");
    assert_eq!(hits, expected);
}

#[test]
fn the_donor_behind_the_most_similar_text_is_taken_if_that_is_asked_for() {
    check_choice(SharingMode::Span, [0, 1]);
    check_choice(SharingMode::Semantic, [1, 0]);
}

/// Runs a document, then a question about it under `repair`; with `others` decoding alongside it. Returns its usage, and the count
/// of `outcome`.
fn repaired(repair: Repair, outcome: SpanOutcome, others: u64) -> (KvUsage, u64) {
    let mut world = World::new(config(400));
    world.add(first("doc", 64).build());
    world.run();
    for other in 0..others {
        world.add(RequestBuilder::new(10 + other, &passage(&format!("other{other}"), 8)).max_tokens(60).build());
    }
    if others > 0 {
        (0..8).for_each(|_| drop(world.step()));
    }
    let question = [passage("q", 8), passage("doc", 64), passage("r", 8)].concat();
    let request = RequestBuilder::new(2, &question).sharing(SharingMode::Span).max_tokens(12).build();
    world.add(engine::Request { repair, ..request });
    world.run();
    let finished = world.events.iter().find_map(|event| match event {
        EngineEvent::Finished { request_id: RequestId(2), usage, .. } => Some(*usage),
        _ => None,
    });
    (finished.unwrap(), world.scheduler.stats().span_lookups.get(outcome))
}

const REPAIR: Repair = Repair { policy: RepairPolicy::Impact, ratio: 0.2, ..Repair::structural() };

#[test]
fn what_is_beyond_repair_is_computed() {
    let (kept, gave_up) = repaired(REPAIR, SpanOutcome::BailedOut, 0);
    assert_eq!((kept.span_tokens > 0, gave_up), (true, 0));
    let (computed, gave_up) = repaired(Repair { bail_out: 1e-6, ..REPAIR }, SpanOutcome::BailedOut, 0);
    assert_eq!((computed.span_tokens, computed.deviation, gave_up), (0, Some(0.0), 1));
}

#[test]
fn a_close_first_token_doubles_the_budget_once() {
    let (before, taken_back) = repaired(REPAIR, SpanOutcome::LowMargin, 0);
    assert_eq!(taken_back, 0);
    let (after, taken_back) = repaired(Repair { min_margin: f32::MAX, ..REPAIR }, SpanOutcome::LowMargin, 0);
    assert_eq!(taken_back, 1);
    assert!(after.recomputed_tokens >= before.recomputed_tokens + 8, "{before:?} {after:?}");
}

#[test]
fn repair_in_decode_takes_only_the_rows_it_may() {
    let decode = |max_batch_rows| Repair { decode: Some(DecodeRepair { tokens: 2, every: 1, max_batch_rows }), ..REPAIR };
    let span_tokens = |repair, others| repaired(repair, SpanOutcome::Reused, others).0.span_tokens;
    let without = span_tokens(REPAIR, 0);
    // Eleven steps follow the first token.
    assert_eq!(span_tokens(decode(0), 0), without - 22);
    assert_eq!(span_tokens(decode(1), 0), without - 22, "alone, there is slack");
    assert_eq!(span_tokens(decode(1), 1), without, "beside another sequence there is none");
    assert_eq!(span_tokens(decode(0), 1), without - 22);
}
