//! In-process engine, driven request by request or step by step, with random prompts: no HTTP, no text.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use engine::{EngineCore, EngineEvent, EngineStats, KvUsage, Repair, Request, SamplingParams, SchedulerConfig};
use runner::{ModelRunner, StepTimings};
use tokens::{RequestId, Scope, SharingMode, TenantId, Timestamp, TokenId};

/// Engine with counters of requests and texts.
pub(crate) struct Driver {
    engine: EngineCore<ModelRunner>,
    vocab_size: u32,
    started: Instant,
    num_requests: u64,
    num_texts: u64,
}

/// Request for one prompt.
#[derive(Clone, Debug)]
pub(crate) struct BenchRequest {
    /// Prompt.
    pub(crate) tokens: Vec<TokenId>,
    /// Starts of the segments, whose text does not depend on what precedes them.
    pub(crate) segments: Vec<u32>,
    /// Tokens to generate.
    pub(crate) max_tokens: u32,
    /// KV that may be reused.
    pub(crate) sharing: SharingMode,
    /// Policy that selects the rows to recompute.
    pub(crate) repair: Repair,
    /// True if later prompts may use its KV.
    pub(crate) store: bool,
}

/// Measurements of a request that ran alone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestTimes {
    /// Time from submission to the first token.
    pub(crate) ttft: Duration,
    /// Time from the first token to the last.
    pub(crate) decode: Duration,
    /// Executor's time by phase until the first token.
    pub(crate) timings: StepTimings,
    /// Sources of the prompt's KV.
    pub(crate) usage: KvUsage,
}

/// One engine step as seen from outside.
#[derive(Debug)]
pub(crate) struct Step {
    /// Duration.
    pub(crate) time: Duration,
    /// Events of the step.
    pub(crate) events: Vec<EngineEvent>,
}

impl BenchRequest {
    /// Requests full computation, and stores no KV.
    pub(crate) fn exact(tokens: Vec<TokenId>, max_tokens: u32) -> Self {
        let (segments, repair) = (Vec::new(), Repair::structural());
        Self { tokens, segments, max_tokens, sharing: SharingMode::Off, repair, store: false }
    }

    /// Requests full computation, and stores the KV for later prompts.
    pub(crate) fn stored(tokens: Vec<TokenId>) -> Self {
        Self { store: true, ..Self::exact(tokens, 1) }
    }
}

impl Driver {
    /// Starts an idle engine over a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    /// If `config` contradicts itself.
    pub(crate) fn new(config: SchedulerConfig, runner: ModelRunner, vocab_size: u32) -> anyhow::Result<Self> {
        let engine = EngineCore::new(config, runner).context("starting the engine")?;
        Ok(Self { engine, vocab_size, started: Instant::now(), num_requests: 0, num_texts: 0 })
    }

    /// Returns the engine's settings.
    pub(crate) fn config(&self) -> &SchedulerConfig {
        self.engine.config()
    }

    /// Returns the engine's state.
    pub(crate) fn stats(&self) -> EngineStats {
        self.engine.stats()
    }

    /// Returns tokens that look random, different ones at each call.
    pub(crate) fn text(&mut self, len: u32) -> Vec<TokenId> {
        self.num_texts += 1;
        random_text(self.num_texts, len, self.vocab_size)
    }

    /// Checks that `num_seqs` sequences of `num_tokens` tokens each have room beside `num_others` other blocks.
    ///
    /// # Errors
    /// If there is no room; names the room there is.
    pub(crate) fn check_room(&self, num_seqs: usize, num_tokens: u32, num_others: usize) -> anyhow::Result<()> {
        let SchedulerConfig { block_size, num_blocks, max_model_len, .. } = *self.config();
        if num_tokens > max_model_len {
            bail!(
                "{num_tokens} tokens of prompt and answer exceed the {max_model_len} that fit: raise --kv-cache-memory or --max-model-len"
            );
        }
        // One block more for each: a fully cached prompt copies its last block before writing to it.
        let needed = num_seqs * (block_size.blocks_for(num_tokens as usize) + 1) + num_others;
        if needed > num_blocks {
            bail!("{num_seqs} sequences of {num_tokens} tokens need {needed} KV blocks of {num_blocks}: raise --kv-cache-memory");
        }
        Ok(())
    }

    /// Submits a request.
    ///
    /// # Errors
    /// If it can never run.
    pub(crate) fn add(&mut self, request: BenchRequest) -> anyhow::Result<RequestId> {
        self.num_requests += 1;
        let request = Request {
            request_id: RequestId(self.num_requests),
            prompt_token_ids: request.tokens.into(),
            sampling: SamplingParams::greedy(request.max_tokens),
            tenant: TenantId::default(),
            session: None,
            scope: Scope::default(),
            readable: Vec::new(),
            sharing: request.sharing,
            repair: request.repair,
            embedding: None,
            store: request.store,
            template: Vec::new(),
            borders: request.segments.into(),
            arrival: self.now(),
        };
        let request_id = request.request_id;
        self.engine.fits(&request).context("the request does not fit")?;
        let now = self.now();
        self.engine.add_request(request, now);
        Ok(request_id)
    }

    /// Runs one engine step.
    ///
    /// # Errors
    /// If the model fails.
    pub(crate) fn step(&mut self) -> anyhow::Result<Step> {
        let began = Instant::now();
        let now = self.now();
        let events = self.engine.step(now).context("running the model")?;
        Ok(Step { time: began.elapsed(), events })
    }

    /// Returns the executor's time of the last step, by phase.
    pub(crate) fn timings(&self) -> StepTimings {
        self.engine.executor().timings()
    }

    /// Runs a request to its end, alone.
    ///
    /// # Errors
    /// If it cannot run, or the model fails.
    pub(crate) fn run(&mut self, request: BenchRequest) -> anyhow::Result<RequestTimes> {
        let mut times = RequestTimes::default();
        let mut first = None;
        let sent = Instant::now();
        self.add(request)?;
        loop {
            let step = self.step()?;
            if first.is_none() {
                times.timings += self.timings();
            }
            if first.is_none() && step.num_tokens() > 0 {
                first = Some(Instant::now());
            }
            if let Some(usage) = step.final_usage() {
                times.usage = usage;
                break;
            }
        }
        let first = first.context("the request ended without a token")?;
        times.ttft = first - sent;
        times.decode = first.elapsed();
        self.flush()?;
        Ok(times)
    }

    /// Aborts `requests`, and runs the engine until they are gone, outside of measured times.
    ///
    /// # Errors
    /// If the model fails.
    pub(crate) fn abort_all(&mut self, requests: &[RequestId]) -> anyhow::Result<()> {
        for &request_id in requests {
            self.engine.abort(request_id);
        }
        self.flush()
    }

    /// Calls `what`; if that fails, aborts all requests it left, so that other measurements can follow.
    ///
    /// # Errors
    /// Those of `what`.
    pub(crate) fn attempt<T>(&mut self, what: impl FnOnce(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        what(self).map_err(|error| {
            let left: Vec<_> = (0..=self.num_requests).map(RequestId).collect();
            match self.abort_all(&left) {
                Ok(()) => error,
                Err(worse) => error.context(format!("and taking it back: {worse:#}")),
            }
        })
    }

    /// Drops all cached KV.
    pub(crate) fn forget(&mut self) {
        self.engine.reset_prefix_cache();
    }

    /// Steps until the engine has no work.
    fn flush(&mut self) -> anyhow::Result<()> {
        while self.engine.has_work() {
            self.step()?;
        }
        Ok(())
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.started.elapsed())
    }
}

impl Step {
    /// Counts tokens generated in the step.
    pub(crate) fn num_tokens(&self) -> usize {
        self.tokens_of().count()
    }

    /// Counts requests that finished in the step.
    pub(crate) fn num_finished(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, EngineEvent::Finished { .. })).count()
    }

    /// Returns requests that got a token.
    pub(crate) fn tokens_of(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.events.iter().filter_map(|event| match event {
            EngineEvent::Token { request_id, .. } => Some(*request_id),
            _ => None,
        })
    }

    /// Returns the final usage of a request that finished in the step.
    fn final_usage(&self) -> Option<KvUsage> {
        self.events.iter().find_map(|event| match event {
            EngineEvent::Finished { usage, .. } => Some(*usage),
            _ => None,
        })
    }
}

/// Converts to milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns tokens that look random, another sequence for each `seed` (a linear congruential generator, its high bits).
fn random_text(seed: u64, len: u32, vocab_size: u32) -> Vec<TokenId> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(vocab_size)) as u32
    };
    (0..len).map(|_| TokenId(next())).collect()
}

/// Starts a driver of a tiny random model.
#[cfg(test)]
pub(super) fn tiny_driver(num_blocks: usize) -> Driver {
    tiny_driver_with_host_tier(num_blocks, 0)
}

/// Starts the same driver for `max_num_seqs` sequences at once.
#[cfg(test)]
pub(super) fn tiny_driver_for(num_blocks: usize, max_num_seqs: usize) -> Driver {
    tiny(num_blocks, 0, max_num_seqs)
}

/// Starts the same driver with a host tier.
#[cfg(test)]
pub(super) fn tiny_driver_with_host_tier(num_blocks: usize, num_host_blocks: u32) -> Driver {
    tiny(num_blocks, num_host_blocks, 64)
}

#[cfg(test)]
fn tiny(num_blocks: usize, num_host_blocks: u32, max_num_seqs: usize) -> Driver {
    use engine::HostConfig;
    use runner::testing::{tiny_backend, tiny_config};
    use runner::{Architecture, KvDtype, RopeLayout};

    let model = tiny_config(Architecture::Qwen2, RopeLayout::Half);
    // A tiny model computes faster than any gate asks for.
    let gate = semantic::Gate::open();
    let host = HostConfig { num_blocks: num_host_blocks, ..HostConfig::default() };
    let max_num_batched_tokens = max_num_seqs.max(128);
    let config = SchedulerConfig { max_num_batched_tokens, max_num_seqs, gate, host, ..SchedulerConfig::new(num_blocks, 2048) };
    let backend = tiny_backend(&model, 42, KvDtype::F16, num_blocks).with_host_tier(num_host_blocks as usize);
    Driver::new(config, ModelRunner::new(Box::new(backend), tokens::BlockSize::DEFAULT), 97).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_in_the_vocabulary_and_differ() {
        let (a, b) = (random_text(1, 200, 50), random_text(2, 200, 50));
        assert!(a.iter().all(|token| token.0 < 50));
        assert_eq!(a, random_text(1, 200, 50));
        assert_ne!(a, b);
    }

    #[test]
    fn what_was_stored_is_a_hit_until_it_is_forgotten() {
        let mut driver = tiny_driver(64);
        let text = driver.text(300);
        let prefix_tokens = |driver: &mut Driver| {
            let request = BenchRequest { sharing: SharingMode::Prefix, ..BenchRequest::exact(text.clone(), 2) };
            let times = driver.run(request).unwrap();
            assert!(times.ttft >= times.timings.total() && times.decode > Duration::ZERO);
            times.usage.prefix_tokens
        };
        assert_eq!(prefix_tokens(&mut driver), 0);
        driver.run(BenchRequest::stored(text.clone())).unwrap();
        assert!(prefix_tokens(&mut driver) >= 288);
        driver.forget();
        assert_eq!(prefix_tokens(&mut driver), 0);
    }

    #[track_caller]
    fn check_room(num_seqs: usize, num_tokens: u32, expected: Result<(), &str>) {
        let room = tiny_driver(64).check_room(num_seqs, num_tokens, 10);
        match (room, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (room, _) => panic!("{room:?}"),
        }
    }

    #[test]
    fn what_has_no_room_is_refused_before_it_runs() {
        check_room(6, 256, Ok(()));
        check_room(7, 256, Err("need 73 KV blocks of 64"));
        check_room(1, 2049, Err("exceed the 2048 that fit"));
    }
}
