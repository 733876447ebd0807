//! A scheduler with a checking memory, and a protocol of one line per step.

use std::fmt::Write;

use engine::{
    EngineEvent, Erase, ErasedCounts, Executor, ModelRunnerOutput, Request, Row, Scheduler, SchedulerConfig, SchedulerOutput,
    SpanConfig,
};
use tokens::{BlockSize, RequestId, SharingMode, Timestamp};

use crate::memory::{Memory, Owner};

/// Blocks of 4 tokens, 16 rows a step, short spans.
pub(crate) fn config(num_blocks: usize) -> SchedulerConfig {
    SchedulerConfig {
        block_size: BlockSize::new(4).unwrap(),
        max_num_batched_tokens: 16,
        max_num_seqs: 4,
        // Most tests use made-up time; the gate has tests of its own.
        gate: semantic::Gate::open(),
        spans: SpanConfig {
            min_span_tokens: 16,
            head_tokens: 2,
            tail_tokens: 2,
            min_prompt_tokens: 20,
            min_piece_tokens: 2,
            ..SpanConfig::default()
        },
        ..SchedulerConfig::new(num_blocks, 512)
    }
}

pub(crate) struct World {
    pub(crate) scheduler: Scheduler,
    pub(crate) memory: Memory,
    pub(crate) events: Vec<EngineEvent>,
    pub(crate) now: Timestamp,
    pub(crate) log: String,
    /// True to schedule steps ahead where possible.
    pub(crate) overlaps: bool,
    ahead: Option<(SchedulerOutput, ModelRunnerOutput)>,
    pub(crate) num_ahead: u64,
}

impl World {
    pub(crate) fn new(config: SchedulerConfig) -> Self {
        let memory = Memory::new(config.num_blocks, config.block_size.as_usize());
        let scheduler = Scheduler::try_new(config).unwrap();
        Self {
            scheduler,
            memory,
            events: Vec::new(),
            now: Timestamp::default(),
            log: String::new(),
            overlaps: false,
            ahead: None,
            num_ahead: 0,
        }
    }

    pub(crate) fn add(&mut self, request: Request) {
        self.memory.expect(&request);
        self.scheduler.add_request(request, self.now);
    }

    pub(crate) fn abort(&mut self, id: u64) {
        let was_here = self.scheduler.abort(RequestId(id));
        writeln!(self.log, "abort r{id} {}", if was_here { "" } else { "(unknown)" }).unwrap();
    }

    pub(crate) fn erase(&mut self, what: Erase) -> ErasedCounts {
        let donors = self.scheduler.donors(None, usize::MAX);
        let erased = self.scheduler.erase(what);
        self.scheduler.check_invariants();
        let left = self.scheduler.donors(None, usize::MAX);
        assert_eq!(donors.len() - left.len(), erased.donors, "{what:?}");
        match what {
            Erase::Donor(_) => {} // The erasure does not report the request.
            Erase::Session(tenant, session) => self.memory.erase(|_, owner| owner == Owner { tenant, session: Some(session) }),
            Erase::Tenant(tenant) => self.memory.erase(|_, owner| owner.tenant == tenant),
            Erase::All => self.memory.erase(|_, _| true),
        }
        erased
    }

    pub(crate) fn step(&mut self) -> SchedulerOutput {
        let (step, output) = self.take_step();
        self.choose_ahead(&step, &output);
        let rejected: Vec<_> = output.rejected_spans.iter().map(|span| (span.request_id, span.donor)).collect();
        let events = self.scheduler.update_from_output(&step, output);
        self.scheduler.check_invariants();
        let mut line = describe(&step, &events);
        rejected.into_iter().for_each(|(receiver, donor)| write!(line, "; {donor} rejected for {receiver}").unwrap());
        let stats = self.scheduler.stats();
        let waiting = if stats.num_waiting > 0 { format!(" wait {}", stats.num_waiting) } else { String::new() };
        let blocks = stats.blocks;
        let (free, cached) = (blocks.free, blocks.cached);
        writeln!(self.log, "{line} | rows {} free {free}+{cached}{waiting}", step.num_scheduled_tokens()).unwrap();
        self.events.extend(events);
        step
    }

    /// Returns the step that was scheduled ahead, or a new one, with its output.
    fn take_step(&mut self) -> (SchedulerOutput, ModelRunnerOutput) {
        if let Some((step, output)) = self.ahead.take() {
            self.scheduler.begin_ahead(&step, self.now);
            return (step, output);
        }
        let step = self.scheduler.schedule(self.now);
        let output = self.memory.execute_model(&step).unwrap();
        (step, output)
    }

    /// Runs the step after `step` before the result of that is processed, as a device that is never idle does.
    fn choose_ahead(&mut self, step: &SchedulerOutput, output: &ModelRunnerOutput) {
        let next = if self.overlaps { self.scheduler.schedule_ahead(step) } else { None };
        self.ahead = next.map(|mut next| {
            assert!(next.sequences.iter().all(|sequence| sequence.rows.len() == 1 && sequence.sample), "{next:?}");
            self.scheduler.complete_ahead(&mut next, &output.sampled);
            self.num_ahead += 1;
            let output = self.memory.execute_model(&next).unwrap();
            (next, output)
        });
    }

    /// True if there is something to do.
    pub(crate) fn has_work(&self) -> bool {
        self.scheduler.has_work() || self.ahead.is_some()
    }

    pub(crate) fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.has_work() {
                return;
            }
            self.step();
        }
        panic!("10000 steps and no end");
    }

    /// Returns the generated tokens of a request.
    pub(crate) fn output(&self, id: u64) -> Vec<u32> {
        let of = |event: &EngineEvent| match event {
            EngineEvent::Token { request_id, token, .. } if request_id.0 == id => Some(token.0),
            _ => None,
        };
        self.events.iter().filter_map(of).collect()
    }
}

/// `admit r1 prefix=8 spans=20; run r1 8..12 r2 7; done r2`
fn describe(step: &SchedulerOutput, events: &[EngineEvent]) -> String {
    let mut parts = Vec::new();
    for event in events {
        match event {
            EngineEvent::Admitted { request_id, usage, .. } => {
                let continued = match usage.continued_tokens {
                    0 => String::new(),
                    num_tokens => format!(" continued={num_tokens}"),
                };
                let spans = match usage.donors {
                    0 => String::new(),
                    _ => format!(" spans={} recompute={}", usage.span_tokens, usage.recomputed_tokens),
                };
                parts.push(format!("admit {request_id} prefix={}{continued}{spans}", usage.prefix_tokens));
            }
            EngineEvent::PromptLogProbs { request_id, logprobs } => parts.push(format!("score {request_id} {}", logprobs.len())),
            EngineEvent::Token { .. } | EngineEvent::Finished { .. } => {}
        }
    }
    for copy in &step.block_copies {
        parts.push(format!("copy {} of b{} to b{}", copy.num_tokens, copy.src.0, copy.dst.0));
    }
    let rows = step.sequences.iter().map(|sequence| {
        let sampled = if sequence.sample { "*" } else { "" };
        format!(" {} {}{sampled}", sequence.request_id, ranges(&sequence.rows))
    });
    parts.push(format!("run{}", rows.collect::<String>()));
    for event in events {
        if let EngineEvent::Finished { request_id, reason, .. } = event {
            parts.push(format!("{request_id} {reason:?}"));
        }
    }
    parts.join("; ")
}

/// `0..4,9..12`
fn ranges(rows: &[Row]) -> String {
    let runs = rows.chunk_by(|a, b| a.position + 1 == b.position);
    runs.map(|run| format!("{}..{}", run[0].position, run[run.len() - 1].position + 1)).collect::<Vec<_>>().join(",")
}

/// All modes.
pub(crate) const ALL_MODES: [SharingMode; 6] =
    [SharingMode::Off, SharingMode::Prefix, SharingMode::Span, SharingMode::Semantic, SharingMode::Auto, SharingMode::Shadow];

/// Modes for random requests.
pub(crate) const MODES: [SharingMode; 3] = [SharingMode::Off, SharingMode::Prefix, SharingMode::Span];
