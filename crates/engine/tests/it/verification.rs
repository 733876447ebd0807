//! Answers over reused KV are compared with full computation, in time that nobody else wants.

use engine::{
    EngineCore, EngineEvent, Executor, ExecutorError, GuardConfig, KvSharingMode, LogProb, MatchClass, ModelRunnerOutput,
    SchedulerConfig, SchedulerOutput, SpanOutcome,
};
use testkit::{EchoExecutor, Reply, RequestBuilder};
use tokens::{RequestId, TenantId, Timestamp, TokenId};

/// A model that is certain of another token wherever it reads copied KV.
struct Shaken {
    inner: EchoExecutor,
    is_shaken: bool,
    /// Requests that read copied KV.
    over_spans: Vec<RequestId>,
}

impl Executor for Shaken {
    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        self.over_spans.extend(step.span_copies.iter().map(|copy| copy.request_id));
        let mut output = self.inner.execute_model(step)?;
        for sampled in output.sampled.iter_mut().filter(|sampled| self.is_shaken && self.over_spans.contains(&sampled.request_id))
        {
            let certain = LogProb { token: TokenId(7), logprob: 0.0, rank: 1 };
            if let Some(logprobs) = &mut sampled.logprobs {
                logprobs.top = vec![certain; logprobs.top.len()];
            }
        }
        Ok(output)
    }
}

struct World {
    core: EngineCore<Shaken>,
    next_id: u64,
}

fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.map(|id| TokenId(1000 + id)).collect()
}

impl World {
    fn new(verify_share: f64, is_shaken: bool) -> Self {
        Self::with_quota(verify_share, is_shaken, usize::MAX)
    }

    /// The document is of tenant 0, all other requests of tenant 1, which has a quota.
    fn with_quota(verify_share: f64, is_shaken: bool, quota: usize) -> Self {
        let quotas = [(TenantId(1), quota)].into();
        let guard = GuardConfig { min_samples: 3, first_pause: 2, ..GuardConfig::default() };
        let config =
            SchedulerConfig { verify_share, guard, quotas, max_num_batched_tokens: 96, ..SchedulerConfig::new(256, 4096) };
        let inner = EchoExecutor::new(Reply::Prompt, config.block_size.as_usize());
        let core = EngineCore::new(config, Shaken { inner, is_shaken, over_spans: Vec::new() }).unwrap();
        let mut world = Self { core, next_id: 0 };
        world.answer(&tokens(0..300), KvSharingMode::Prefix, None);
        world
    }

    /// Adds a request; its events until the engine has nothing left to do, comparisons included.
    fn answer(&mut self, prompt: &[TokenId], sharing: KvSharingMode, logprobs: Option<u32>) -> Vec<EngineEvent> {
        let id = self.next_id;
        self.next_id += 1;
        let request = RequestBuilder::new(id, prompt)
            .sharing(sharing)
            .store(id == 0)
            .tenant(u32::from(id > 0))
            .sampling(|s| s.logprobs = logprobs)
            .build();
        self.core.add_request(request, Timestamp::default());
        let mut events = Vec::new();
        while self.core.has_work() {
            events.extend(self.core.step(Timestamp::default()).unwrap());
        }
        assert!(events.iter().all(|event| event.request_id() == RequestId(id)), "comparisons are nobody else's news");
        events
    }

    /// The document behind something new.
    fn recipient(&mut self, logprobs: Option<u32>) -> Vec<EngineEvent> {
        let first = 10_000 + self.next_id as u32 * 100;
        self.answer(&[tokens(first..first + 40), tokens(50..300)].concat(), KvSharingMode::Span, logprobs)
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
        world.answer(&prompt, KvSharingMode::Span, None);
        let reused = world.core.stats().span_lookups.get(SpanOutcome::Reused);
        assert_eq!((reused, world.num_verified()), (1, expected), "{num_tokens}");
    }
}

#[test]
fn an_erased_answer_is_not_verified() {
    let mut world = World::new(1.0, false);
    let request =
        RequestBuilder::new(1, &[tokens(20_000..20_040), tokens(50..300)].concat()).sharing(KvSharingMode::Span).build();
    world.core.add_request(request, Timestamp::default());
    while !world.core.step(Timestamp::default()).unwrap().iter().any(|event| matches!(event, EngineEvent::Finished { .. })) {}
    assert!(world.core.has_work(), "the answer waits to be compared");
    world.core.erase(engine::Erase::Tenant(TenantId::default()));
    while world.core.has_work() {
        world.core.step(Timestamp::default()).unwrap();
    }
    assert_eq!(world.num_verified(), 0);
}

#[test]
fn equal_answers_do_not_diverge() {
    let mut world = World::new(1.0, false);
    (0..5).for_each(|_| drop(world.recipient(None)));
    let [(class, quality)] = world.core.stats().quality[..] else { panic!("one class was reused") };
    assert_eq!((class, quality.top1, quality.is_off), (MatchClass::Composition, 1.0, false));
    assert!(quality.mean_kl.abs() < 1e-6, "{quality:?}");
}

#[test]
fn a_class_that_answers_wrongly_is_switched_off_and_tried_again() {
    let mut world = World::new(1.0, true);
    (0..3).for_each(|_| drop(world.recipient(None)));
    assert!(world.core.stats().quality[0].1.is_off);
    (0..2).for_each(|_| drop(world.recipient(None)));
    let lookups = world.core.stats().span_lookups;
    assert_eq!((lookups.get(SpanOutcome::Reused), lookups.get(SpanOutcome::SwitchedOff)), (3, 2));
    (0..3).for_each(|_| drop(world.recipient(None)));
    assert_eq!(world.core.stats().span_lookups.get(SpanOutcome::Reused), 6, "the pause is over");
    assert!(world.core.stats().quality[0].1.is_off, "and it failed again");
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
    let mut world = World::new(1.0, false);
    let request = |id: u64, prompt: &[TokenId]| RequestBuilder::new(id, prompt).sharing(KvSharingMode::Span).store(false).build();
    world.core.add_request(request(1, &[tokens(20_000..20_040), tokens(50..300)].concat()), Timestamp::default());
    let mut is_over = false;
    while !is_over {
        let events = world.core.step(Timestamp::default()).unwrap();
        is_over = events.iter().any(|event| matches!(event, EngineEvent::Finished { .. }));
    }
    assert!(world.core.has_work(), "the answer waits to be compared");
    world.core.step(Timestamp::default()).unwrap();
    assert_eq!((world.core.stats().num_running, world.num_verified()), (1, 0), "the comparison has begun");
    world.core.add_request(request(2, &tokens(30_000..30_040)), Timestamp::default());
    let mut finished = Vec::new();
    while world.core.has_work() {
        let events = world.core.step(Timestamp::default()).unwrap();
        finished.extend(events.iter().filter(|event| matches!(event, EngineEvent::Finished { .. })).map(EngineEvent::request_id));
    }
    assert_eq!((finished, world.num_verified()), (vec![RequestId(2)], 1));
}
