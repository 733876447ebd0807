//! An executor whose memory records the writer and the past of each slot.
//!
//! It refuses to read slots that were never written, that belong to another sequence's text or position, that have anything in
//! their past from a scope the reader may not read, and, for sequences that are to be exact, that were computed on top of another
//! past. It refuses to write a block of another tenant before it was zeroed, and to bring anything but whole exact blocks to the
//! host. So any error of the scheduler with blocks fails a test.

use std::collections::{HashMap, HashSet};

use engine::{
    BlockEntry, BlockFetch, BlockOffload, Executor, ExecutorError, ExecutorLimits, LogProb, ModelRunnerOutput, ProbedSequence,
    ProbedSpans, Readers, RejectedSpan, Request, SampledToken, ScheduledSequence, SchedulerOutput, SpanCopy, TokenDeviation,
    TokenLogProbs, Transfer, WatchedSpans,
};
use tokens::{BlockId, HostBlockId, RequestId, Scope, SessionId, SharingMode, TenantId, TokenId};

use crate::random::{Random, mix};

/// Sampled tokens lie below this.
pub(crate) const VOCAB_SIZE: u64 = 4;

/// One position's KV.
#[derive(Clone, Copy)]
struct Slot {
    token: TokenId,
    position: u32,
    /// Scopes of everything read to compute it and of everything it was computed for, one bit each.
    labels: u64,
    /// Hash of all tokens up to this one, if it was computed from exactly those.
    past: Option<u64>,
    writer: RequestId,
}

struct Known {
    tokens: Vec<TokenId>,
    scope: u64,
    /// Scopes it may read, one bit each.
    clearance: u64,
    owner: Owner,
    /// Number of erasures before it first ran.
    era: Option<usize>,
    sharing: SharingMode,
    prompt_logprobs: bool,
    /// True if it samples: a request may ask for log probabilities of its prompt only.
    samples: bool,
}

/// Owner of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) tenant: TenantId,
    pub(crate) session: Option<SessionId>,
}

pub(crate) struct Memory {
    block_size: usize,
    slots: Vec<Option<Slot>>,
    /// Tenant that wrote each block since it was last zeroed.
    tenants: Vec<Option<TenantId>>,
    /// Blocks in the host tier, each with its tenant.
    host: HashMap<HostBlockId, (Vec<Option<Slot>>, Option<TenantId>)>,
    /// Erasure that removed the traces of each request.
    erased: HashMap<RequestId, usize>,
    num_erasures: usize,
    /// Blocks zeroed so far.
    pub(crate) num_zeroed: u64,
    /// Tokens so far that were found in another scope than the reader's own.
    pub(crate) num_public_tokens: u64,
    known: HashMap<RequestId, Known>,
    announced: HashSet<RequestId>,
    /// Mean number of span copies per random rejection; never rejects if `None`.
    pub(crate) reject_one_in: Option<u64>,
    /// Reported transfer of the next step's fetches.
    pub(crate) transfer: Option<Transfer>,
    random: Random,
}

/// State of a request's past at its end; decides the next token.
fn past_of(scope: u64, tokens: &[TokenId]) -> u64 {
    tokens.iter().fold(mix(scope), |past, token| mix(past ^ u64::from(token.0)))
}

/// Returns the model's next token after `tokens`.
pub(crate) fn next_token(scope: u64, tokens: &[TokenId]) -> TokenId {
    TokenId((past_of(scope, tokens) % VOCAB_SIZE) as u32)
}

impl Memory {
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        let (known, announced) = Default::default();
        Self {
            block_size,
            slots: vec![None; num_blocks * block_size],
            tenants: vec![None; num_blocks],
            host: HashMap::new(),
            erased: HashMap::new(),
            num_erasures: 0,
            num_zeroed: 0,
            num_public_tokens: 0,
            known,
            announced,
            reject_one_in: None,
            transfer: None,
            random: Random(99),
        }
    }

    /// Passes it what only the scheduler knows.
    pub(crate) fn expect(&mut self, request: &Request) {
        let known = Known {
            tokens: request.prompt_token_ids.to_vec(),
            scope: request.scope.0,
            clearance: request.readable.iter().fold(bit(request.scope), |all, &scope| all | bit(scope)),
            owner: Owner { tenant: request.tenant, session: request.session },
            era: None,
            sharing: if request.sampling.prompt_logprobs.is_some() { SharingMode::Off } else { request.sharing },
            prompt_logprobs: request.sampling.prompt_logprobs.is_some(),
            samples: request.sampling.max_tokens > 0,
        };
        self.known.insert(request.request_id, known);
    }

    /// Returns the slot of `position` by the block of `table` that says it holds it.
    fn slot_of(&self, table: &[BlockEntry], position: usize) -> usize {
        assert!(table.is_sorted_by(|a, b| a.position < b.position), "{table:?} does not ascend");
        let before = table.partition_point(|entry| entry.position as usize <= position);
        let entry = before.checked_sub(1).map(|idx| table[idx]).expect("some block begins before each position");
        let offset = position - entry.position as usize;
        assert!(offset < self.block_size, "no block holds position {position}");
        entry.block.0 as usize * self.block_size + offset
    }

    fn slot(&self, blocks: &[BlockId], position: usize) -> usize {
        blocks[position / self.block_size].0 as usize * self.block_size + position % self.block_size
    }

    /// Marks all writes of requests for which `is_erased` is true, earlier or later, as unreadable for others that first run
    /// later.
    pub(crate) fn erase(&mut self, is_erased: impl Fn(RequestId, Owner) -> bool) {
        self.num_erasures += 1;
        let erased = self.known.iter().filter(|&(&id, known)| is_erased(id, known.owner)).map(|(&id, _)| id);
        self.erased.extend(erased.map(|id| (id, self.num_erasures)));
    }

    fn offload_blocks(&mut self, step: &SchedulerOutput) {
        for &BlockOffload { src, dst } in &step.offloads {
            let start = src.0 as usize * self.block_size;
            let slots = self.slots[start..start + self.block_size].to_vec();
            let is_exact = |slot: &Option<Slot>| slot.is_some_and(|slot| slot.past.is_some());
            assert!(slots.iter().all(is_exact), "{src:?} goes to the host and is not a whole exact block");
            self.host.insert(dst, (slots, self.tenants[src.0 as usize]));
        }
    }

    fn fetch_blocks(&mut self, step: &SchedulerOutput) {
        for &BlockFetch { src, dst } in &step.fetches {
            let (slots, tenant) = self.host.remove(&src).expect("what is fetched was offloaded and not fetched since");
            let before = std::mem::replace(&mut self.tenants[dst.0 as usize], tenant);
            assert!(before.is_none() || before == tenant, "{dst:?} of {before:?} is fetched to for {tenant:?}");
            let start = dst.0 as usize * self.block_size;
            self.slots[start..start + self.block_size].copy_from_slice(&slots);
        }
    }

    fn zero_blocks(&mut self, step: &SchedulerOutput) {
        for block in &step.block_zeroes {
            let start = block.0 as usize * self.block_size;
            self.slots[start..start + self.block_size].fill(None);
            self.tenants[block.0 as usize] = None;
            self.num_zeroed += 1;
        }
    }

    fn write(&mut self, at: usize, slot: Option<Slot>, writer: RequestId) {
        let block = at / self.block_size;
        let tenant = self.known[&writer].owner.tenant;
        let before = self.tenants[block].replace(tenant);
        assert!(before.is_none_or(|before| before == tenant), "block {block} of {before:?} is written for {tenant:?}");
        self.slots[at] = slot;
    }

    fn copy_blocks(&mut self, step: &SchedulerOutput) {
        let tables = step.sequences.iter().map(|sequence| (sequence.request_id, &sequence.block_table));
        let probed = step.probes.iter().map(|probe| (probe.request_id, &probe.block_table));
        let tables: Vec<_> = tables.chain(probed).collect();
        for copy in &step.block_copies {
            let (receiver, _) = *tables
                .iter()
                .find(|(_, table)| table.iter().any(|entry| entry.block == copy.dst))
                .expect("a copy has a receiver");
            for i in 0..copy.num_tokens as usize {
                let src = self.slots[self.slot(&[copy.src], i)].expect("a copied slot was written");
                self.check_may_read(receiver, &src);
                let dst = self.slot(&[copy.dst], i);
                self.write(dst, Some(Slot { writer: receiver, ..src }), receiver);
            }
        }
    }

    /// Checks that no label of `slot` is outside the reader's clearance, and that its writer's traces were not erased before the
    /// reader began.
    fn check_may_read(&self, reader: RequestId, slot: &Slot) {
        let known = &self.known[&reader];
        assert_eq!(slot.labels & !known.clearance, 0, "{reader} reads what another scope has in its past");
        let erased = self.erased.get(&slot.writer).copied();
        let era = known.era.expect("a reader was announced");
        assert!(
            slot.writer == reader || erased.is_none_or(|erased| era < erased),
            "{reader} reads what was erased with {}",
            slot.writer
        );
    }

    /// Copies spans, and rejects some.
    fn copy_spans(&mut self, step: &SchedulerOutput) -> Vec<RejectedSpan> {
        let mut rejected = Vec::new();
        for copy in &step.span_copies {
            self.copy_span(copy);
            if self.reject_one_in.is_some_and(|n| self.random.one_in(n)) {
                let SpanCopy { request_id, donor, .. } = *copy;
                rejected.push(RejectedSpan { request_id, donor, max_relative_error: 1.0 });
            }
        }
        rejected
    }

    fn copy_span(&mut self, copy: &SpanCopy) {
        let known = &self.known[&copy.request_id];
        assert!(known.sharing.copies_spans(), "{} did not ask for spans", copy.request_id);
        let offset = |position: u32, i: usize| position as usize % self.block_size + i;
        let mut copied = Vec::new();
        for (i, &token) in copy.token_ids.iter().enumerate() {
            let src = self.slots[self.slot(&copy.src_blocks, offset(copy.src_pos, i))].expect("a donor's slot was written");
            assert_eq!((src.token, src.position), (token, copy.src_pos + i as u32), "a donor's block holds something else");
            self.check_may_read(copy.request_id, &src);
            assert!(src.past.is_some(), "a donor is exact");
            let position = copy.dst_pos + i as u32;
            assert_eq!(known.tokens[position as usize], token, "a span differs from its target");
            let slot = self.slot(&copy.dst_blocks, offset(copy.dst_pos, i));
            copied.push((slot, Slot { position, past: None, writer: copy.request_id, ..src }));
        }
        copied.into_iter().for_each(|(at, slot)| self.write(at, Some(slot), copy.request_id));
    }

    /// Computes the writes of the rows of `sequence`, after checking all their reads.
    fn compute(&mut self, sequence: &ScheduledSequence) -> Vec<(usize, Slot)> {
        let ScheduledSequence { request_id, ref rows, ref block_table, sample, watch: _, drift: _ } = *sequence;
        let known = &self.known[&request_id];
        let is_exact = !known.sharing.copies_spans();
        let last = rows.last().expect("a scheduled sequence has rows").position;
        assert_eq!(sample, last as usize + 1 == known.tokens.len() && known.samples, "{request_id} samples at {last}");
        assert_eq!(block_table.len(), (last as usize + 1).div_ceil(self.block_size), "block table of {request_id}");
        let mut rows = rows.iter().peekable();
        let mut written = Vec::new();
        let mut past = 0;
        let mut labels = 1 << known.scope;
        let mut num_public_tokens = 0;
        let mut all_exact = true;
        for position in 0..=last {
            let token = known.tokens[position as usize];
            let at = self.slot_of(block_table, position as usize);
            past = mix(past ^ u64::from(token.0));
            if let Some(row) = rows.next_if(|row| row.position == position) {
                assert_eq!(row.token, token, "row {position} of {request_id}");
                let past = all_exact.then_some(past);
                written.push((at, Slot { token, position, labels, past, writer: request_id }));
                continue;
            }
            let slot = self.slots[at].unwrap_or_else(|| panic!("{request_id} reads position {position}, never written"));
            assert_eq!((slot.token, slot.position), (token, position), "{request_id} reads something else at {position}");
            self.check_may_read(request_id, &slot);
            labels |= slot.labels;
            num_public_tokens += u64::from(slot.labels != 1 << known.scope && slot.writer != request_id);
            assert!(slot.past.is_none_or(|written| written == past), "{request_id} reads another past at {position}");
            all_exact &= slot.past.is_some();
            assert!(all_exact || !is_exact, "{request_id} reads approximate KV at {position}");
            let is_own = slot.writer == request_id;
            assert!(is_own || known.sharing != SharingMode::Off, "{request_id} reads KV of {} at {position}", slot.writer);
        }
        assert!(rows.next().is_none(), "rows of {request_id} ascend");
        self.num_public_tokens += num_public_tokens;
        written
    }

    /// Computes the writes of a probe: fresh rows, in all layers, if it asks for their readers. Checks its description of the
    /// sequence.
    fn probe(&self, probe: &ProbedSequence) -> Vec<(usize, Slot)> {
        let request_id = probe.request_id;
        let known = &self.known[&request_id];
        let prompt = &known.tokens[..probe.first_position as usize + probe.token_ids.len()];
        assert!(prompt.ends_with(&probe.token_ids), "{request_id} is probed with its prompt");
        assert!(!probe.reused.is_empty(), "{request_id} has something to probe");
        let mut written = Vec::new();
        let mut past = 0;
        let mut labels = 1 << known.scope;
        let mut all_exact = true;
        for (position, &token) in (0..).zip(prompt) {
            let at = self.slot_of(&probe.block_table, position as usize);
            past = mix(past ^ u64::from(token.0));
            let is_moved = probe.reused.iter().any(|range| range.contains(position));
            if position >= probe.first_position && !is_moved {
                let past = all_exact.then_some(past);
                written.push((at, Slot { token, position, labels, past, writer: request_id }));
                continue;
            }
            let slot =
                self.slots[at].unwrap_or_else(|| panic!("the probe of {request_id} reads position {position}, never written"));
            assert_eq!((slot.token, slot.position), (token, position), "{request_id} at {position}");
            self.check_may_read(request_id, &slot);
            labels |= slot.labels;
            assert_eq!(slot.past.is_none(), is_moved, "{request_id} reuses what it says at {position}");
            all_exact &= !is_moved;
        }
        if probe.probe.readers == Readers::FreshRowsAllLayers { written } else { Vec::new() }
    }

    fn measure(&mut self, probe: &ProbedSequence) -> ProbedSpans {
        let mut number = || self.random.below(1000) as f32 / 1000.0;
        let deviations = probe
            .measured()
            .map(|_| TokenDeviation { attention: number(), value_l2: number(), value_norm: 1.0, ..TokenDeviation::default() })
            .collect();
        ProbedSpans { request_id: probe.request_id, deviations }
    }

    fn watch(&mut self, sequence: &ScheduledSequence) -> WatchedSpans {
        let positions = sequence.watch.iter().flat_map(|range| range.positions());
        let attention = positions.map(|_| self.random.below(1000) as f32).collect();
        WatchedSpans { request_id: sequence.request_id, attention }
    }

    /// Checks that no block that is copied from is written: copies may happen in any order.
    fn check_sources(&self, step: &SchedulerOutput, writes: &[(RequestId, Vec<(usize, Slot)>)]) {
        let computed = writes.iter().flat_map(|(_, written)| written).map(|(at, _)| BlockId((at / self.block_size) as u32));
        let copied = step.block_copies.iter().map(|copy| copy.dst);
        let moved = step.span_copies.iter().flat_map(|copy| copy.dst_blocks.iter().copied());
        let written: HashSet<_> = computed.chain(copied).chain(moved).collect();
        assert!(step.fetches.iter().all(|fetch| !written.contains(&fetch.dst)), "a fetched block is written in the same step");
        let sources = step.span_copies.iter().flat_map(|copy| copy.src_blocks.iter().copied());
        for source in step.block_copies.iter().map(|copy| copy.src).chain(sources) {
            assert!(!written.contains(&source), "{source:?} is copied from and written in one step");
        }
    }

    /// Checks that no block is written by two sequences, or written by one and read by another.
    fn check_disjoint(&self, step: &SchedulerOutput, writes: &[(RequestId, Vec<(usize, Slot)>)]) {
        let mut writers: HashMap<u32, RequestId> = HashMap::new();
        for (request_id, written) in writes {
            for (at, _) in written {
                let block = (at / self.block_size) as u32;
                let writer = *writers.entry(block).or_insert(*request_id);
                assert_eq!(writer, *request_id, "block {block} is written by two");
            }
        }
        for sequence in &step.sequences {
            for BlockEntry { block, .. } in &sequence.block_table {
                let writer = writers.get(&block.0).copied().unwrap_or(sequence.request_id);
                assert_eq!(writer, sequence.request_id, "{block:?} is written by {writer} and shared");
            }
        }
    }

    fn take_over(&mut self, step: &SchedulerOutput) {
        for new in &step.new_requests {
            assert!(self.announced.insert(new.request_id), "{} is announced twice", new.request_id);
            self.known.get_mut(&new.request_id).expect("a request is added before it runs").era = Some(self.num_erasures);
        }
        for retracted in &step.retracted {
            self.known.get_mut(retracted).expect("only what was said is retracted").tokens.pop();
        }
        for finished in &step.finished {
            assert!(self.announced.remove(finished), "{finished} ends without having been announced");
        }
        let probed = step.probes.iter().map(|probe| probe.request_id);
        let scheduled: HashSet<_> = step.sequences.iter().map(|sequence| sequence.request_id).chain(probed).collect();
        assert_eq!(scheduled.len(), step.sequences.len() + step.probes.len(), "a request is scheduled twice");
        assert!(scheduled.is_subset(&self.announced), "a request is scheduled that was not announced");
    }
}

fn bit(scope: Scope) -> u64 {
    1 << scope.0
}

impl Executor for Memory {
    fn limits(&self) -> ExecutorLimits {
        ExecutorLimits::NONE
    }

    fn execute_model(&mut self, step: &SchedulerOutput) -> Result<ModelRunnerOutput, ExecutorError> {
        self.take_over(step);
        self.offload_blocks(step);
        self.zero_blocks(step);
        self.fetch_blocks(step);
        self.copy_blocks(step);
        let rejected_spans = self.copy_spans(step);
        let mut writes: Vec<_> = step.sequences.iter().map(|sequence| (sequence.request_id, self.compute(sequence))).collect();
        writes.extend(step.probes.iter().map(|probe| (probe.request_id, self.probe(probe))));
        self.check_disjoint(step, &writes);
        self.check_sources(step, &writes);
        let void: HashSet<_> = rejected_spans.iter().map(|rejected| rejected.request_id).collect();
        for (request_id, written) in writes {
            for (at, slot) in written {
                self.write(at, (!void.contains(&request_id)).then_some(slot), request_id);
            }
        }
        let probed = step.probes.iter().filter(|probe| !void.contains(&probe.request_id));
        let probed = probed.map(|probe| self.measure(probe)).collect();
        let watching =
            step.sequences.iter().filter(|sequence| !sequence.watch.is_empty() && !void.contains(&sequence.request_id));
        let watched = watching.map(|sequence| self.watch(sequence)).collect();
        let transfer = self.transfer.take();
        let mut output = ModelRunnerOutput { rejected_spans, probed, watched, transfer, ..ModelRunnerOutput::default() };
        for sequence in step.sequences.iter().filter(|sequence| !void.contains(&sequence.request_id)) {
            let request_id = sequence.request_id;
            let known = self.known.get_mut(&request_id).expect("checked before");
            if sequence.sample {
                let token = next_token(known.scope, &known.tokens);
                known.tokens.push(token);
                let margin = self.random.below(30) as f32 / 10.0;
                output.sampled.push(SampledToken { request_id, token, margin, logprobs: None, completes: false });
            }
            if known.prompt_logprobs {
                let following = sequence.rows.iter().map(|row| row.position + 1);
                let entry = |position: u32| Some((position, score(*known.tokens.get(position as usize)?)));
                output.prompt_logprobs.push((request_id, following.filter_map(entry).collect()));
            }
        }
        Ok(output)
    }
}

fn score(token: TokenId) -> TokenLogProbs {
    TokenLogProbs { chosen: LogProb { token, logprob: -1.0, rank: 1 }, top: Vec::new() }
}
