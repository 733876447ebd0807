//! The engine copies spans only where that saves time, once the step costs are fitted.

use std::time::Duration;

use engine::{EngineCore, EngineEvent, RejectReason, Repair, SchedulerConfig, SchedulerOutput, SpanOutcome};
use testkit::{EchoExecutor, Reply, RequestBuilder};
use tokens::{SharingMode, Timestamp, TokenId};

fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.map(|id| TokenId(1000 + id)).collect()
}

/// Returns the outcome for the spans of a request on a machine that takes `micros_per_row`.
fn outcome(micros_per_row: u64, gate: semantic::Gate) -> SpanOutcome {
    let config = SchedulerConfig { gate, ..SchedulerConfig::new(512, 4096) };
    let executor = EchoExecutor::new(Reply::Prompt, config.block_size.as_usize());
    let mut core = EngineCore::new(config, executor).unwrap();
    let mut now = Timestamp::default();
    let document = tokens(0..600);
    let prompts = [document.clone(), tokens(2000..2500), tokens(3000..3200), [tokens(4000..4040), document].concat()];
    for (id, prompt) in (0..).zip(&prompts) {
        core.add_request(RequestBuilder::new(id, prompt).max_tokens(12).sharing(SharingMode::Span).build(), now);
        while core.has_work() {
            core.step(now).unwrap();
            let num_rows = core.last_step().num_scheduled_tokens() as u64;
            now = Timestamp(now.0 + Duration::from_micros(num_rows * micros_per_row));
        }
    }
    let lookups = core.stats().span_lookups;
    let found: Vec<_> = lookups.iter().filter(|(outcome, count)| *count > 0 && *outcome != NO_DONOR).collect();
    let [(outcome, 1)] = found[..] else { panic!("one request has a donor: {found:?}") };
    outcome
}

const NO_DONOR: SpanOutcome = SpanOutcome::Rejected(RejectReason::NoDonor);

#[test]
fn spans_are_copied_where_computing_takes_long() {
    assert_eq!(outcome(1000, semantic::Gate::default()), SpanOutcome::Reused);
}

#[test]
fn spans_are_left_where_they_save_too_little() {
    let second = semantic::Gate { min_saved_ms: 1000.0, min_saved_ratio: 0.0 };
    assert_eq!(outcome(1000, second), SpanOutcome::Rejected(RejectReason::NotWorthIt));
    assert_eq!(outcome(10_000, second), SpanOutcome::Reused);
    let nearly_all = semantic::Gate { min_saved_ms: 0.0, min_saved_ratio: 0.99 };
    assert_eq!(outcome(1000, nearly_all), SpanOutcome::Rejected(RejectReason::NotWorthIt));
    assert_eq!(outcome(1000, semantic::Gate::open()), SpanOutcome::Reused);
}

#[test]
fn what_work_costs_has_to_be_known_first() {
    let never = semantic::Gate { min_saved_ms: f64::INFINITY, min_saved_ratio: 0.0 };
    assert_eq!(outcome(0, never), SpanOutcome::Reused);
}

/// Returns the microseconds of a step on a GPU that computes a small model: launches take longer than most rows.
fn small_model_micros(step: &SchedulerOutput) -> u64 {
    let num_probed: u64 = step.probes.iter().map(|probe| probe.token_ids.len() as u64).sum();
    let probing = if step.probes.is_empty() { 0 } else { 1500 + num_probed / 10 };
    let computing = match step.sequences.iter().map(|scheduled| scheduled.rows.len()).max() {
        None => 0,
        Some(1) => 1200,
        Some(_) => 2200 + step.num_scheduled_tokens() as u64 * 2 / 5,
    };
    probing + computing
}

/// Serves `request` on an idle engine; returns the microseconds to its first token.
fn serve(core: &mut EngineCore<EchoExecutor>, now: &mut Timestamp, request: engine::Request) -> u64 {
    let (arrival, mut first_token) = (*now, None);
    core.add_request(request, arrival);
    while core.has_work() {
        let events = core.step(*now).unwrap();
        *now = Timestamp(now.0 + Duration::from_micros(small_model_micros(core.last_step())));
        if events.iter().any(|event| matches!(event, EngineEvent::Token { .. })) {
            first_token = first_token.or(Some(*now));
        }
    }
    first_token.expect("every request is answered").since(arrival).as_micros() as u64
}

/// Serves prompts of `num_tokens` whose halves were in an earlier one in another order; returns the total microseconds to their
/// first tokens, and the number of them that took spans. Omits the first ones, from which the step costs are fitted.
fn first_tokens(mode: SharingMode, num_tokens: u32) -> (u64, u64) {
    let gate = semantic::Gate { min_saved_ms: 0.0, ..semantic::Gate::default() };
    let config = SchedulerConfig { gate, max_num_batched_tokens: 8192, ..SchedulerConfig::new(4096, 32_768) };
    let executor = EchoExecutor::new(Reply::Prompt, config.block_size.as_usize());
    let mut core = EngineCore::new(config, executor).unwrap();
    let halves = [tokens(0..num_tokens / 2), tokens(num_tokens / 2..num_tokens)];
    let build = |id: u64, prompt: &[TokenId]| {
        let request = RequestBuilder::new(id, prompt).max_tokens(64).sharing(mode).store(id == 0);
        engine::Request { repair: Repair::recommended(), ..request.build() }
    };
    let mut now = Timestamp::default();
    serve(&mut core, &mut now, build(0, &halves.concat()));
    let (mut micros, mut reused_before) = (0, 0);
    for id in 1..=40u32 {
        let header = tokens(100_000 + 40 * id..100_000 + 40 * id + 40);
        let prompt = [header, halves[1].clone(), halves[0].clone()].concat();
        let one = serve(&mut core, &mut now, build(id.into(), &prompt));
        match id {
            ..=20 => reused_before = num_reused(&core),
            _ => micros += one,
        }
    }
    (micros, num_reused(&core) - reused_before)
}

fn num_reused(core: &EngineCore<EchoExecutor>) -> u64 {
    let lookups = core.stats().span_lookups;
    lookups.iter().find(|(outcome, _)| *outcome == SpanOutcome::Reused).map_or(0, |(_, count)| count)
}

#[test]
fn short_prompts_whose_probe_costs_more_than_it_saves_are_computed() {
    for num_tokens in [1000, 2000, 6000] {
        let ((prefix, _), (span, num_reused)) =
            (first_tokens(SharingMode::Prefix, num_tokens), first_tokens(SharingMode::Span, num_tokens));
        assert!(span * 100 <= prefix * 102, "{num_tokens} tokens, {num_reused} reused: {span} µs by spans, {prefix} by prefixes");
    }
}

#[test]
fn long_prompts_of_the_same_model_are_reused() {
    let ((prefix, _), (span, num_reused)) = (first_tokens(SharingMode::Prefix, 24_000), first_tokens(SharingMode::Span, 24_000));
    assert_eq!(num_reused, 20);
    assert!(span * 10 <= prefix * 8, "{span} µs by spans, {prefix} by prefixes");
}
