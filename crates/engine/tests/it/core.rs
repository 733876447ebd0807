//! The engine from its callers' view.

use engine::{EngineCore, EngineEvent, FinishReason, RequestError, SchedulerConfig};
use testkit::{EchoExecutor, Reply, RequestBuilder, passage, prompt};
use tokens::{RequestId, Timestamp, TokenId};

fn core(num_blocks: usize) -> EngineCore<EchoExecutor> {
    let config = SchedulerConfig::new(num_blocks, 256);
    let executor = EchoExecutor::new(Reply::Successor { vocab_size: 100 }, config.block_size.as_usize());
    EngineCore::new(config, executor).unwrap()
}

/// As [`core`], with an asynchronous device.
fn overlapping_core(run_ahead: bool) -> EngineCore<EchoExecutor> {
    let config = SchedulerConfig { run_ahead, ..SchedulerConfig::new(32, 256) };
    let executor = EchoExecutor::new(Reply::Successor { vocab_size: 100 }, config.block_size.as_usize()).overlapping();
    EngineCore::new(config, executor).unwrap()
}

fn now() -> Timestamp {
    Timestamp::default()
}

#[test]
fn news_of_a_request_come_in_order() {
    let mut core = core(8);
    core.add_request(RequestBuilder::new(1, &prompt("5 6 7")).max_tokens(2).build(), now());
    let mut names = Vec::new();
    while core.has_work() {
        for event in core.step(now()).unwrap() {
            names.push(match event {
                EngineEvent::Admitted { .. } => "admitted".to_owned(),
                EngineEvent::PromptLogProbs { .. } => "scored".to_owned(),
                EngineEvent::Token { token, .. } => token.0.to_string(),
                EngineEvent::Finished { reason, .. } => format!("{reason:?}"),
            });
        }
    }
    assert_eq!(names, ["admitted", "8", "9", "Length"]);
}

#[test]
fn an_abort_frees_blocks_at_once_and_is_reported() {
    let mut core = core(8);
    core.add_request(RequestBuilder::new(1, &passage("a", 100)).build(), now());
    core.step(now()).unwrap();
    assert_eq!(core.stats().blocks.active, 4);
    assert!(core.abort(RequestId(1)));
    assert_eq!(core.stats().blocks.active, 0);
    let events = core.step(now()).unwrap();
    assert!(matches!(events[..], [EngineEvent::Finished { reason: FinishReason::Aborted, .. }]));
    assert_eq!(core.executor().num_known_requests(), 0);
    assert!(!core.has_work());
}

#[test]
fn an_aborted_request_that_never_ran_is_reported_without_a_step_of_the_model() {
    let mut core = core(8);
    core.add_request(RequestBuilder::new(1, &passage("a", 100)).build(), now());
    assert!(core.abort(RequestId(1)));
    assert!(core.has_work());
    assert_eq!(core.step(now()).unwrap().len(), 1);
    assert_eq!(core.executor().steps().len(), 0);
    assert!(!core.has_work());
}

#[test]
fn an_engine_can_be_dropped_while_requests_run() {
    let mut core = core(8);
    core.add_request(RequestBuilder::new(1, &passage("a", 100)).build(), now());
    core.step(now()).unwrap();
    drop(core);
}

#[test]
fn stats_count_who_runs_and_who_waits() {
    let mut core = core(4);
    for id in 1..4 {
        let request = RequestBuilder::new(id, &passage(&id.to_string(), 70)).arrival_micros(id);
        core.add_request(request.build(), Timestamp::from_micros(9));
    }
    core.step(now()).unwrap();
    let stats = core.stats();
    assert_eq!((stats.num_running, stats.num_waiting), (1, 2));
    assert_eq!(stats.oldest_waiting_arrival, Some(Timestamp::from_micros(2)));
    assert_eq!((stats.blocks.active, stats.blocks.total, stats.last_scheduled_tokens), (3, 4, 70));
}

/// Returns a pool of 4 blocks of 32 tokens and a model of 256 positions.
#[track_caller]
fn check_fits(num_prompt_tokens: usize, max_tokens: u32, expected: Result<(), RequestError>) {
    let request = RequestBuilder::new(1, &passage("a", num_prompt_tokens)).max_tokens(max_tokens).build();
    let mut core = core(4);
    assert_eq!(core.fits(&request), expected);
    if expected.is_ok() {
        core.add_request(request, now());
        let is_end = |event: &EngineEvent| matches!(event, EngineEvent::Finished { .. });
        let ended = (0..300).any(|_| core.step(now()).unwrap().iter().any(is_end));
        assert!(ended, "it fits and does not end");
    }
}

#[test]
fn what_fits_runs_to_its_end_alone() {
    check_fits(100, 29, Ok(()));
    check_fits(128, 1, Ok(()));
}

#[test]
fn what_can_never_run_is_refused() {
    check_fits(0, 1, Err(RequestError::EmptyPrompt));
    check_fits(5, 0, Err(RequestError::NothingToDo));
    check_fits(256, 1, Err(RequestError::PromptTooLong { num_prompt_tokens: 256, max_model_len: 256 }));
    check_fits(100, 30, Err(RequestError::PoolTooSmall { num_tokens: 130, needed: 5, num_blocks: 4 }));
}

#[test]
fn inconsistent_settings_are_refused() {
    let refuse = |config: SchedulerConfig| config.validated().unwrap_err().to_string();
    let base = || SchedulerConfig::new(4, 256);
    assert_eq!(refuse(SchedulerConfig { max_num_seqs: 0, ..base() }), "max_num_seqs is 0");
    let narrow = SchedulerConfig { max_num_batched_tokens: 3, max_num_seqs: 4, ..base() };
    assert_eq!(refuse(narrow), "max_num_batched_tokens 3 is below max_num_seqs 4");
    assert!(refuse(SchedulerConfig::new(4, 1)).starts_with("max_model_len is 1"));
    let spans = engine::SpanConfig { tail_tokens: 0, ..engine::SpanConfig::default() };
    assert!(refuse(SchedulerConfig { spans, ..base() }).starts_with("span reuse: tail_tokens"));
    let executor = EchoExecutor::new(Reply::Prompt, 32);
    assert!(EngineCore::new(SchedulerConfig::new(0, 256), executor).is_err());
}

/// Returns the output of two requests, the second one stopped by token 13 unless that is too early, and the numbers of steps that
/// were prepared while another one ran.
#[track_caller]
fn check_ahead(run_ahead: bool, expected_prepared: &[u64], expected_rows: &[usize]) {
    let mut core = overlapping_core(run_ahead);
    core.add_request(RequestBuilder::new(1, &prompt("5 6 7")).max_tokens(5).build(), now());
    let stops = RequestBuilder::new(2, &prompt("8 10")).max_tokens(50).sampling(|s| s.stop_token_ids = vec![TokenId(13)]);
    core.add_request(stops.build(), now());
    let mut said = [Vec::new(), Vec::new()];
    let mut reasons = Vec::new();
    while core.has_work() {
        for event in core.step(now()).unwrap() {
            match event {
                EngineEvent::Token { request_id, token, .. } => said[request_id.0 as usize - 1].push(token.0),
                EngineEvent::Finished { request_id, reason, .. } => reasons.push((request_id.0, reason)),
                _ => {}
            }
        }
    }
    assert_eq!(said, [vec![8, 9, 10, 11, 12], vec![11, 12, 13]]);
    assert_eq!(reasons, [(2, FinishReason::Stop(TokenId(13))), (1, FinishReason::Length)]);
    let rows: Vec<_> = core.executor().steps().iter().map(engine::SchedulerOutput::num_scheduled_tokens).collect();
    assert_eq!((core.executor().prepared(), &rows[..]), (expected_prepared, expected_rows));
    assert_eq!((core.executor().num_known_requests(), core.stats().blocks.active), (0, 0));
}

#[test]
fn a_step_is_made_ready_while_the_one_before_runs() {
    check_ahead(false, &[], &[5, 2, 2, 1, 1, 0]);
    // The second request has ended in the third step: its row in the fourth is void.
    check_ahead(true, &[1, 2, 3, 4], &[5, 2, 2, 2, 1, 0]);
}

#[test]
fn no_step_runs_of_void_rows_alone() {
    let mut core = overlapping_core(true);
    let stops = RequestBuilder::new(1, &prompt("8 10")).max_tokens(50).sampling(|s| s.stop_token_ids = vec![TokenId(12)]);
    core.add_request(stops.build(), now());
    while core.has_work() {
        core.step(now()).unwrap();
    }
    let rows: Vec<_> = core.executor().steps().iter().map(engine::SchedulerOutput::num_scheduled_tokens).collect();
    assert_eq!(rows, [2, 1, 0]);
}

#[test]
fn whoever_arrives_is_admitted_behind_the_step_that_runs() {
    let mut core = overlapping_core(true);
    core.add_request(RequestBuilder::new(1, &prompt("5 6 7")).max_tokens(20).build(), now());
    (0..3).for_each(|_| drop(core.step(now()).unwrap()));
    core.add_request(RequestBuilder::new(2, &prompt("1 2")).max_tokens(1).build(), now());
    // One step has begun when it arrives; it is in the next one.
    let is_admitted = |event: &EngineEvent| matches!(event, EngineEvent::Admitted { .. });
    assert!(!core.step(now()).unwrap().iter().any(is_admitted));
    assert!(core.step(now()).unwrap().iter().any(is_admitted));
}

#[test]
fn an_abort_beside_a_step_that_has_begun_frees_its_blocks_at_once() {
    let mut core = overlapping_core(true);
    core.add_request(RequestBuilder::new(1, &passage("a", 100)).max_tokens(20).build(), now());
    core.step(now()).unwrap();
    assert!(core.abort(RequestId(1)));
    assert_eq!(core.stats().blocks.active, 0);
    let events = core.step(now()).unwrap();
    assert!(matches!(events[..], [EngineEvent::Finished { reason: FinishReason::Aborted, .. }]), "{events:?}");
    assert!(core.has_work(), "the executor is still to be told");
    assert!(core.step(now()).unwrap().is_empty());
    assert_eq!(core.executor().num_known_requests(), 0);
    assert!(!core.has_work());
}

#[test]
fn a_scored_prompt_whose_answer_is_cut_beside_a_step_that_has_begun_ends_alone() {
    let mut core = overlapping_core(true);
    let scored = RequestBuilder::new(1, &prompt("5 6 7")).max_tokens(20).sampling(|s| s.prompt_logprobs = Some(1));
    core.add_request(scored.build(), now());
    core.add_request(RequestBuilder::new(2, &prompt("1 2")).max_tokens(4).build(), now());
    core.step(now()).unwrap();
    assert!(core.abort(RequestId(1)));
    let mut said = Vec::new();
    while core.has_work() {
        said.extend(core.step(now()).unwrap().into_iter().filter_map(|event| match event {
            EngineEvent::Token { request_id, token, .. } => Some((request_id.0, token.0)),
            _ => None,
        }));
    }
    assert_eq!(said, [(2, 4), (2, 5), (2, 6)]);
}

/// Runs a request with non-finite logits between two others: returns output and finish reason of each, and what can be found
/// afterwards.
fn check_poisoned(overlaps: bool, max_step_tokens: usize) {
    let config = SchedulerConfig { max_num_batched_tokens: max_step_tokens, ..SchedulerConfig::new(64, 256) };
    let executor = EchoExecutor::new(Reply::Successor { vocab_size: 100 }, config.block_size.as_usize()).poisoned_by(TokenId(77));
    let executor = if overlaps { executor.overlapping() } else { executor };
    let mut core = EngineCore::new(config, executor).unwrap();
    let bad = [passage("bad", 70), vec![TokenId(77)]].concat();
    for (id, tokens) in [(1, passage("a", 40)), (2, bad.clone()), (3, passage("b", 40))] {
        core.add_request(RequestBuilder::new(id, &tokens).max_tokens(3).build(), now());
    }
    let mut ends = Vec::new();
    while core.has_work() {
        for event in core.step(now()).unwrap() {
            match event {
                EngineEvent::Finished { request_id, reason, .. } => ends.push((request_id.0, reason)),
                EngineEvent::Token { request_id, .. } => assert_ne!(request_id, RequestId(2)),
                _ => {}
            }
        }
    }
    ends.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(ends, [(1, FinishReason::Length), (2, FinishReason::Faulty), (3, FinishReason::Length)]);
    assert_eq!((core.stats().blocks.active, core.executor().num_known_requests()), (0, 0));
    let found = |tokens: &[TokenId]| core.explain(&RequestBuilder::new(9, tokens).build()).usage.prefix_tokens;
    assert_eq!(found(&bad), 0, "KV that may hold no numbers is found by nobody");
    assert!(found(&passage("a", 40)) > 0);
}

#[test]
fn a_request_whose_logits_are_no_numbers_ends_alone() {
    for overlaps in [false, true] {
        check_poisoned(overlaps, 512);
        check_poisoned(overlaps, 64);
    }
}
