//! Engine that runs one request at a time.

use std::time::{Duration, Instant};

use anyhow::Context;
use engine::{EngineCore, EngineEvent, Executor, KvUsage, LogProb, Repair, Request, SamplingParams};
use tokens::{RequestId, Scope, SharingMode, TenantId, Timestamp, TokenId};

use super::forced::{Choice, Forced};
use super::prompt::Prompt;

/// Engine with counters of requests and scopes.
pub(crate) struct SingleRequestEngine<E> {
    engine: EngineCore<Forced<E>>,
    started: Instant,
    num_requests: u64,
    num_scopes: u64,
}

/// Reuse of KV by a request, and storage of its own KV.
#[derive(Clone, Copy)]
pub(crate) struct Reuse {
    /// Scope of lookups.
    pub(crate) scope: CaseScope,
    /// KV that may be reused.
    pub(crate) sharing: SharingMode,
    /// Policy that selects the rows to recompute.
    pub(crate) repair: Repair,
    /// True if later requests of the scope find its KV.
    pub(crate) store: bool,
}

/// Sharing scope: requests of one scope may share, those of two cannot.
#[derive(Clone, Copy)]
pub(crate) struct CaseScope {
    tenant: TenantId,
    scope: Scope,
}

/// Answer to a request, and sources of its prompt's KV.
pub(crate) struct RequestOutput {
    /// Answer, including a stop token.
    pub(crate) tokens: Vec<TokenId>,
    /// Most likely tokens at each position, if requested.
    pub(crate) top: Vec<Vec<LogProb>>,
    /// Usage as planned at admission.
    pub(crate) announced: KvUsage,
    /// Final usage.
    pub(crate) usage: KvUsage,
    /// Time from submission to the first token.
    pub(crate) ttft: Duration,
}

impl<E: Executor> SingleRequestEngine<E> {
    /// Wraps an engine without requests.
    pub(crate) fn new(engine: EngineCore<Forced<E>>) -> Self {
        Self { engine, started: Instant::now(), num_requests: 0, num_scopes: 0 }
    }

    /// Returns the block size in tokens.
    pub(crate) fn block_size(&self) -> usize {
        self.engine.config().block_size.as_usize()
    }

    /// Drops all cached KV.
    pub(crate) fn forget(&mut self) {
        self.engine.reset_prefix_cache();
    }

    /// Creates a scope without cached KV.
    pub(crate) fn new_scope(&mut self) -> CaseScope {
        self.num_scopes += 1;
        let tenant = TenantId(u32::try_from(self.num_scopes).expect("a run has fewer than four billion scopes"));
        CaseScope { tenant, scope: Scope(self.num_scopes) }
    }

    /// Runs a request to its end.
    ///
    /// # Errors
    /// If it does not fit, or the model fails.
    pub(crate) fn generate(&mut self, prompt: &Prompt, sampling: SamplingParams, reuse: Reuse) -> anyhow::Result<RequestOutput> {
        let request = self.request(prompt, sampling, reuse);
        self.run(request)
    }

    /// Forces a request along `answer`; also returns its own choice at each position.
    ///
    /// # Errors
    /// As [`SingleRequestEngine::generate`].
    pub(crate) fn follow(
        &mut self,
        prompt: &Prompt,
        answer: &[TokenId],
        num_top: u32,
        reuse: Reuse,
    ) -> anyhow::Result<(RequestOutput, Vec<Choice>)> {
        let num_tokens = u32::try_from(answer.len()).context("an answer's length")?;
        let sampling = SamplingParams { logprobs: Some(num_top), ..SamplingParams::greedy(num_tokens) };
        let request = self.request(prompt, sampling, reuse);
        let request_id = request.request_id;
        self.engine.executor_mut().force(request_id, answer.to_vec());
        let output = self.run(request)?;
        let choices = self.engine.executor_mut().take(request_id).expect("the request was forced above");
        Ok((output, choices))
    }

    fn request(&mut self, prompt: &Prompt, sampling: SamplingParams, reuse: Reuse) -> Request {
        self.num_requests += 1;
        Request {
            request_id: RequestId(self.num_requests),
            prompt_token_ids: prompt.token_ids.as_slice().into(),
            sampling,
            tenant: reuse.scope.tenant,
            session: None,
            scope: reuse.scope.scope,
            readable: Vec::new(),
            sharing: reuse.sharing,
            repair: reuse.repair,
            store: reuse.store,
            template: prompt.template.clone(),
            borders: prompt.borders.clone(),
            embedding: None,
            arrival: self.now(),
        }
    }

    /// Steps until the engine has dropped `request`.
    fn run(&mut self, request: Request) -> anyhow::Result<RequestOutput> {
        self.engine.fits(&request).context("the request does not fit")?;
        let (tokens, top) = Default::default();
        let (announced, usage) = Default::default();
        let mut output = RequestOutput { tokens, top, announced, usage, ttft: Duration::ZERO };
        let sent = Instant::now();
        let now = self.now();
        self.engine.add_request(request, now);
        while self.engine.has_work() {
            let now = self.now();
            for event in self.engine.step(now).context("running the model")? {
                output.record(event, sent);
            }
        }
        Ok(output)
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.started.elapsed())
    }
}

impl RequestOutput {
    fn record(&mut self, event: EngineEvent, sent: Instant) {
        match event {
            EngineEvent::Admitted { usage, .. } => self.announced = usage,
            EngineEvent::Token { token, logprobs, .. } => {
                if self.tokens.is_empty() {
                    self.ttft = sent.elapsed();
                }
                self.tokens.push(token);
                self.top.extend(logprobs.map(|logprobs| logprobs.top));
            }
            EngineEvent::Finished { usage, .. } => self.usage = usage,
            EngineEvent::PromptLogProbs { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::SchedulerConfig;
    use testkit::{EchoExecutor, Reply};

    use super::*;

    fn prompt(tokens: impl Iterator<Item = u32>) -> Prompt {
        Prompt::plain(tokens.map(TokenId).collect())
    }

    fn engine() -> SingleRequestEngine<EchoExecutor> {
        let config = SchedulerConfig::new(64, 1024);
        let echo = EchoExecutor::new(Reply::Successor { vocab_size: 5000 }, config.block_size.as_usize());
        SingleRequestEngine::new(EngineCore::new(config, Forced::new(echo)).unwrap())
    }

    fn reuse(scope: CaseScope, sharing: SharingMode, store: bool) -> Reuse {
        Reuse { scope, sharing, repair: Repair::structural(), store }
    }

    /// Checks the span tokens of a prompt after its donor, in another scope or after a reset.
    #[track_caller]
    fn check(store: bool, in_scope: bool, forget: bool, is_hit: bool) {
        let mut engine = engine();
        let (donors, others) = (engine.new_scope(), engine.new_scope());
        let donor = reuse(donors, SharingMode::Prefix, store);
        engine.generate(&prompt(0..320), SamplingParams::greedy(1), donor).unwrap();
        if forget {
            engine.forget();
        }
        let scope = if in_scope { donors } else { others };
        let moved = prompt((2000..2040).chain(100..300).chain(3000..3040));
        let output = engine.generate(&moved, SamplingParams::greedy(1), reuse(scope, SharingMode::Span, false)).unwrap();
        assert_eq!(output.usage.span_tokens > 100, is_hit, "{:?}", output.usage);
        assert_eq!(output.announced, output.usage);
    }

    #[test]
    fn a_moved_span_is_found_where_it_was_stored_and_only_there() {
        check(true, true, false, true);
        check(true, false, false, false);
        check(false, true, false, false);
        check(true, true, true, false);
    }

    #[test]
    fn a_led_request_shows_what_it_would_have_said() {
        let mut engine = engine();
        let scope = engine.new_scope();
        let off = reuse(scope, SharingMode::Off, false);
        let (output, choices) = engine.follow(&prompt(0..40), &[TokenId(70), TokenId(71)], 2, off).unwrap();
        let would: Vec<_> = choices.iter().map(|choice| choice.token.0).collect();
        assert_eq!((output.tokens, would), (vec![TokenId(70), TokenId(71)], vec![40, 71]));
        assert!(output.ttft > Duration::ZERO);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut engine = engine();
        let scope = engine.new_scope();
        let output = engine.generate(&prompt(0..2000), SamplingParams::greedy(1), reuse(scope, SharingMode::Off, false));
        assert!(output.err().unwrap().to_string().contains("does not fit"));
    }
}
