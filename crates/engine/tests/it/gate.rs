//! Spans are copied only where that saves time, once steps have shown what work costs.

use std::time::Duration;

use engine::{EngineCore, KvSharingMode, RejectReason, SchedulerConfig, SpanOutcome};
use testkit::{EchoExecutor, Reply, RequestBuilder};
use tokens::{Timestamp, TokenId};

fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.map(|id| TokenId(1000 + id)).collect()
}

/// What becomes of the spans of a request on a machine that takes `micros_per_row`.
fn outcome(micros_per_row: u64, gate: semantic::Gate) -> SpanOutcome {
    let config = SchedulerConfig { gate, ..SchedulerConfig::new(512, 4096) };
    let executor = EchoExecutor::new(Reply::Prompt, config.block_size.as_usize());
    let mut core = EngineCore::new(config, executor).unwrap();
    let mut now = Timestamp::default();
    let document = tokens(0..600);
    let prompts = [document.clone(), tokens(2000..2500), tokens(3000..3200), [tokens(4000..4040), document].concat()];
    for (id, prompt) in (0..).zip(&prompts) {
        core.add_request(RequestBuilder::new(id, prompt).max_tokens(12).sharing(KvSharingMode::Span).build(), now);
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
