//! State of a request in the scheduler.
//!
//! There is no prefill phase and no decode phase: a sequence has known tokens and a frontier, and each step moves the frontier.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use semantic::{DecodeRepair, Drift, Repair, TokenDeviation, TrafficClass, follow_drift, select_rows};
use tokens::{
    BlockHash, BlockSize, ContentHashes, RequestId, SharingMode, Timestamp, TokenId, TokenRange, complement, hash_next_block,
};

use crate::arrival::ArrivalKey;
use crate::continuations::Continued;
use crate::donors::PlannedSpans;
use crate::{FinishReason, KvUsage, Request, Row, SamplingParams, SpanOutcome, TokenLogProbs};

/// One request in the engine.
///
/// Invariant: `num_computed_tokens <= num_tokens()`. Only [`Sequence::advance`] moves it forward, only [`Sequence::reset`] back.
pub(crate) struct Sequence {
    pub(crate) request_id: RequestId,
    pub(crate) request: Request,
    pub(crate) sampling: Arc<SamplingParams>,
    /// Order among all requests, also after a preemption.
    pub(crate) arrival: ArrivalKey,
    /// Prompt and output.
    token_ids: Vec<TokenId>,
    /// Hashes of the full blocks of `token_ids`.
    block_hashes: Vec<BlockHash>,
    /// Hashes of the full blocks of the prompt, in the further scopes it may read.
    readable: Vec<kv::ReadableScope>,
    /// The frontier: KV of all positions before it is in the pool.
    num_computed_tokens: u32,
    /// Positions copied from donors, before or after the frontier. Sorted, disjoint.
    reused: Vec<TokenRange>,
    /// Measured deviations of the spans, until the first token is sampled; empty if they are not needed later.
    measured: Vec<TokenDeviation>,
    /// Deep probe of the remaining reused tokens, to run before anything else is computed.
    pub(crate) deep_probe: Option<semantic::Probe>,
    /// Measured difference of each reused token's V from a fresh one, in their order; empty unless repair goes on in decode.
    residual: Vec<f32>,
    /// Reused tokens to recompute with the next row. Ascending.
    due: Vec<u32>,
    /// Spans as they were moved.
    moved: Vec<TokenRange>,
    /// Repair of the spans, if any.
    repair: Option<Repair>,
    /// Set if some KV before `prefix_end` is approximate.
    continued: Option<Continued>,
    /// Owners of the KV that was copied into it, each once.
    sources: Vec<kv::BlockOwner>,
    /// False if some of these were erased: its KV is then not kept.
    pub(crate) may_be_continued: bool,
    /// End of the prefix hit of the current admission.
    prefix_end: u32,
    pub(crate) lease: kv::BlockLease,
    /// Usage as reported, once admitted.
    pub(crate) usage: Option<KvUsage>,
    /// Spans that it was predicted to receive when it was added.
    pub(crate) expected_spans: Option<ExpectedSpans>,
    /// Donors with similar embeddings, as found when it was added.
    pub(crate) similar: Vec<tokens::DonorId>,
    /// Shingles of its prompt, from the first search for spans to admission.
    pub(crate) sketch: Option<semantic::Sketch>,
    /// The last plan of its spans, until it is admitted.
    pub(crate) planned: Option<Planned>,
    /// Time from which on it goes first.
    pub(crate) deadline: Timestamp,
    /// State that decides about its seat.
    pub(crate) seat_term: SeatTerm,
    pub(crate) span_wait: SpanWait,
    /// Its arrival on the clock of [`crate::ageing`].
    pub(crate) arrived_micros: u64,
    /// True if the runner keeps state for it.
    pub(crate) known_to_runner: bool,
    /// True if its prompt's end was reached before, perhaps before a preemption.
    prompt_was_computed: bool,
    prompt_logprobs: Vec<Option<TokenLogProbs>>,
    /// Recorded log probabilities of its answer, if that is to be verified.
    pub(crate) recorded_logprobs: Option<Vec<TokenLogProbs>>,
    /// Traffic class of the spans it reuses or could reuse, in mode `auto`.
    pub(crate) traffic: Option<TrafficClass>,
    /// Skipped reuse, if it is to be tried when the answer is known.
    pub(crate) shadow: Option<Shadow>,
    /// Set if it is such a trial itself.
    pub(crate) trial: Option<Trial>,
}

/// Skipped reuse.
#[derive(Clone, Debug)]
pub(crate) struct Shadow {
    /// End of the exact prefix before it.
    pub(crate) prefix_end: u32,
    pub(crate) spans: PlannedSpans,
}

/// A scoring of an exact answer over reused KV.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    pub(crate) shadow: Shadow,
    /// Length of the prompt: its answer follows.
    pub(crate) num_prompt_tokens: u32,
}

/// Admissions and preemptions of a sequence, and its protection from preemption. Steps are numbered as in
/// [`crate::SchedulerOutput::step`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SeatTerm {
    /// Step of its last admission.
    pub(crate) since: u64,
    /// Number of computed tokens until which the scheduler does not preempt it.
    pub(crate) protected_until: u32,
    /// Number of tokens it had computed when it was preempted; `None` once it is admitted again.
    pub(crate) lost: Option<u32>,
    /// First step since its last admission in which it was refused for lack of blocks; `None` if there was none.
    pub(crate) short_since: Option<u64>,
    /// Number of computed tokens until which its claim of blocks protects it once it is admitted; 0 without a claim.
    pub(crate) claimed_until: u32,
}

/// Maximum tokens of an answer that a trial computes. Chosen: the first tokens show the quality of the whole answer.
const MAX_TRIED_TOKENS: usize = 64;

/// Minimum tokens that a preempted sequence gains before it is preempted again. Chosen: a step of each of them costs about as
/// much as its readmission.
const MIN_GAIN: u32 = 16;

impl SeatTerm {
    /// Takes a seat in `step`, after a prefix hit that ends at `prefix_end`. A sequence preempted before is protected until it
    /// gains as much as it lost.
    pub(crate) fn begin(&mut self, step: u64, prefix_end: u32) {
        self.since = step;
        self.short_since = None;
        let gain = |lost: u32| lost + lost.saturating_sub(prefix_end).max(MIN_GAIN);
        self.protected_until = self.lost.take().map_or(0, gain).max(std::mem::take(&mut self.claimed_until));
    }
}

/// State of a request's wait for spans that another one is computing: it waits at most once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SpanWait {
    /// Not searched yet.
    #[default]
    Possible,
    /// Waits for the prompt of `owner`, at the longest until `until`.
    For {
        /// Request that computes them.
        owner: RequestId,
        /// End of the wait.
        until: Timestamp,
    },
    /// There was nothing to wait for, or it has waited.
    Over,
}

/// A prediction of what donors give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExpectedSpans {
    /// End of the prefix hit before them.
    pub(crate) prefix_end: u32,
    /// Tokens copied.
    pub(crate) num_tokens: u32,
}

/// A plan of spans, and its dependencies besides the residency of its donors.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// End of the prefix hit before them.
    pub(crate) prefix_end: u32,
    /// Version of the donors of all scopes that the request may read.
    pub(crate) version: u64,
    /// The plan, or the reason why there is none.
    pub(crate) spans: Result<PlannedSpans, SpanOutcome>,
}

impl Sequence {
    pub(crate) fn new(request: Request, arrival: ArrivalKey, block_size: BlockSize) -> Self {
        let token_ids = request.prompt_token_ids.to_vec();
        let content = ContentHashes::of(&token_ids, block_size);
        let num_scored = match request.sampling.prompt_logprobs {
            Some(_) => token_ids.len() - request.sampling.prompt_logprobs_from.max(1) as usize,
            None => 0,
        };
        Self {
            request_id: request.request_id,
            sampling: Arc::new(request.sampling.clone()),
            arrival,
            block_hashes: content.in_scope(request.scope),
            readable: readable_scopes(&request, &content),
            num_computed_tokens: 0,
            reused: Vec::new(),
            measured: Vec::new(),
            deep_probe: None,
            residual: Vec::new(),
            moved: Vec::new(),
            due: Vec::new(),
            repair: None,
            continued: None,
            sources: Vec::new(),
            may_be_continued: true,
            prefix_end: 0,
            lease: kv::BlockLease::default(),
            usage: None,
            expected_spans: None,
            similar: Vec::new(),
            sketch: None,
            planned: None,
            deadline: Timestamp::default(),
            seat_term: SeatTerm::default(),
            span_wait: SpanWait::default(),
            arrived_micros: 0,
            known_to_runner: false,
            prompt_was_computed: false,
            prompt_logprobs: vec![None; num_scored],
            recorded_logprobs: None,
            traffic: None,
            shadow: None,
            trial: None,
            token_ids,
            request,
        }
    }

    pub(crate) fn num_tokens(&self) -> u32 {
        self.token_ids.len() as u32
    }

    pub(crate) fn num_prompt_tokens(&self) -> u32 {
        self.request.prompt_token_ids.len() as u32
    }

    pub(crate) fn num_output_tokens(&self) -> u32 {
        self.num_tokens() - self.num_prompt_tokens()
    }

    pub(crate) fn num_computed_tokens(&self) -> u32 {
        self.num_computed_tokens
    }

    pub(crate) fn prefix_end(&self) -> u32 {
        self.prefix_end
    }

    pub(crate) fn block_hashes(&self) -> &[BlockHash] {
        &self.block_hashes
    }

    /// Returns tokens, hashes and scope, for the pool.
    pub(crate) fn hashed(&self) -> kv::HashedTokens<'_> {
        let Self { token_ids, block_hashes, readable, .. } = self;
        kv::HashedTokens { scope: self.request.scope, tokens: token_ids, hashes: block_hashes, readable }
    }

    /// Returns the same together with the lease, which the pool changes.
    pub(crate) fn hashed_and_lease(&mut self) -> (kv::HashedTokens<'_>, &mut kv::BlockLease) {
        let Self { token_ids, block_hashes, readable, lease, .. } = self;
        let hashed = kv::HashedTokens { scope: self.request.scope, tokens: token_ids, hashes: block_hashes, readable };
        (hashed, lease)
    }

    /// Returns its effective sharing mode. Scored tokens of the prompt need their rows, exactly.
    pub(crate) fn sharing(&self) -> SharingMode {
        match self.request.sharing {
            SharingMode::Off => SharingMode::Off,
            _ if self.trial.is_some() => SharingMode::Span,
            _ if self.max_prefix_tokens() == 0 => SharingMode::Off,
            _ if self.sampling.prompt_logprobs.is_some() => SharingMode::Prefix,
            sharing => sharing,
        }
    }

    /// Returns the maximum leading tokens that need not be computed: at least the last token has to be, since there are no cached
    /// logits, and every row that a log probability comes from.
    pub(crate) fn max_prefix_tokens(&self) -> u32 {
        let most = self.first_scored().unwrap_or(self.num_tokens() - 1);
        self.trial.as_ref().map_or(most, |trial| trial.shadow.prefix_end.min(most))
    }

    /// Returns the first position whose row scores the prompt's next token.
    pub(crate) fn first_scored(&self) -> Option<u32> {
        self.sampling.prompt_logprobs.map(|_| self.sampling.prompt_logprobs_from.max(1) - 1)
    }

    /// Returns the length of the prompt that spans are planned for.
    pub(crate) fn num_planned_tokens(&self) -> u32 {
        self.trial.as_ref().map_or(self.num_prompt_tokens(), |trial| trial.num_prompt_tokens)
    }

    /// Returns the class of traffic it belongs to if it copies the spans of `plan`.
    pub(crate) fn traffic_of(&self, plan: &semantic::ReusePlan) -> Option<TrafficClass> {
        let Request { tenant, scope, template, repair, .. } = &self.request;
        let policy = BuildHasherDefault::<DefaultHasher>::default().hash_one(repair.to_string());
        TrafficClass::of((*tenant, *scope), plan, self.num_planned_tokens(), template.len(), policy)
    }

    /// True if the row at `position` scores the prompt's next token.
    pub(crate) fn scores_at(&self, position: u32) -> bool {
        let is_scored = self.first_scored().is_some_and(|first| position >= first);
        is_scored && position + 1 < self.num_prompt_tokens()
    }

    /// Returns the number of tokens to recompute with the next row.
    pub(crate) fn num_due(&self) -> usize {
        self.due.len()
    }

    /// True if all of its KV was computed from exactly the tokens before.
    pub(crate) fn is_exact(&self) -> bool {
        self.reused.is_empty() && self.continued.is_none()
    }

    /// Returns the conversation whose approximate KV it continues, if any.
    pub(crate) fn continued(&self) -> Option<Continued> {
        self.continued
    }

    /// Returns the repair of its spans.
    pub(crate) fn repair(&self) -> Repair {
        self.repair.unwrap_or(self.request.repair)
    }

    /// Sets the repair of its spans.
    pub(crate) fn repair_by(&mut self, repair: Repair) {
        self.repair = Some(repair);
    }

    /// Returns the spans as they were moved.
    pub(crate) fn moved(&self) -> &[TokenRange] {
        &self.moved
    }

    /// Returns the owners of the KV that was copied into it.
    pub(crate) fn sources(&self) -> &[kv::BlockOwner] {
        &self.sources
    }

    /// Records that KV of `owners` was copied into it.
    pub(crate) fn add_sources(&mut self, owners: impl IntoIterator<Item = kv::BlockOwner>) {
        for owner in owners {
            if !self.sources.contains(&owner) {
                self.sources.push(owner);
            }
        }
    }

    /// Records that it continues approximate KV of its conversation.
    pub(crate) fn go_on(&mut self, continued: Continued) {
        self.continued = Some(continued);
    }

    /// Returns the positions whose KV came from donors.
    pub(crate) fn reused(&self) -> &[TokenRange] {
        &self.reused
    }

    /// Returns the drift by which moved tokens after the frontier follow the next rows, which end with `last_position`.
    pub(crate) fn drift(&self, last_position: u32) -> Vec<Drift> {
        let is_prefill = self.num_computed_tokens < self.num_prompt_tokens();
        if !self.request.repair.drift || !is_prefill {
            return Vec::new();
        }
        let step = TokenRange::new(self.num_computed_tokens, last_position + 1);
        let recomputed = complement(step, overlapping(&self.reused, step));
        let spans = self.moved.iter().map(|span| span.intersect(step)).filter(|span| !span.is_empty());
        spans.flat_map(|span| follow_drift(span, &recomputed)).collect()
    }

    /// Returns the positions for which the row that samples the next token reports its attention.
    pub(crate) fn watched(&self) -> &[TokenRange] {
        let is_time = |decode: DecodeRepair| self.num_output_tokens().is_multiple_of(decode.every.max(1));
        match self.request.repair.decode.is_some_and(is_time) && !self.residual.is_empty() {
            true => &self.reused,
            false => &[],
        }
    }

    /// Keeps the measurements of reused tokens that were not selected, for repair in decode.
    pub(crate) fn keep_residual(&mut self, before: &[TokenRange], measured: &[TokenDeviation]) {
        if self.request.repair.decode.is_some() {
            let positions = before.iter().flat_map(|range| range.positions());
            let stays = |position: u32| covers(&self.reused, position);
            self.residual =
                positions.zip(measured).filter(|(position, _)| stays(*position)).map(|(_, found)| found.value_l2).collect();
        }
    }

    /// Selects the tokens to recompute with the next row by the attention of the newest one: DHD's decode stage.
    pub(crate) fn choose_due(&mut self, attention: &[f32]) {
        let Some(decode) = self.request.repair.decode else { return };
        debug_assert_eq!(attention.len(), self.residual.len(), "what is watched has a residual");
        let positions = self.reused.iter().flat_map(|range| range.positions());
        let mut scored: Vec<(f32, u32)> = positions
            .zip(attention.iter().zip(&self.residual))
            .map(|(position, (a, v))| (worst_if_nan(a * v), position))
            .collect();
        let num_due = scored.len().min(decode.tokens as usize);
        if num_due < scored.len() {
            scored.select_nth_unstable_by(num_due, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        }
        self.due = scored[..num_due].iter().map(|(_, position)| *position).collect();
        self.due.sort_unstable();
    }

    /// Takes the rows that are due, at most `max_rows`: their tokens are reused no longer.
    pub(crate) fn take_due(&mut self, max_rows: usize) -> Vec<Row> {
        let mut due = std::mem::take(&mut self.due);
        due.truncate(max_rows);
        if due.is_empty() {
            return Vec::new();
        }
        let taken: Vec<_> = due.iter().map(|&position| TokenRange::new(position, position + 1)).collect();
        self.recompute(&taken);
        due.into_iter().map(|position| Row { token: self.token_ids[position as usize], position }).collect()
    }

    /// Keeps the measurements in case the first token turns out to have a small margin.
    pub(crate) fn keep_measured(&mut self, measured: &[TokenDeviation]) {
        if self.request.repair.min_margin > 0.0 && !self.is_exact() {
            self.measured = measured.to_vec();
        }
    }

    /// True if what stays of its spans was measured to deviate by more than `bound`.
    fn deviates_by_more_than(&self, bound: f32) -> bool {
        self.usage.and_then(|usage| usage.deviation).is_some_and(|deviation| deviation > bound)
    }

    /// Selects again with twice the budget if the first token had a small margin. Once; `None` if that changes nothing.
    pub(crate) fn reselect_on_low_margin(&mut self, margin: f32) -> Option<Vec<TokenRange>> {
        let measured = std::mem::take(&mut self.measured);
        let repair = self.repair();
        let is_close = margin < repair.min_margin && !measured.is_empty();
        if !is_close || !self.deviates_by_more_than(repair.max_deviation / 2.0) {
            return None;
        }
        let twice = Repair { ratio: 2.0 * repair.ratio, max_deviation: repair.max_deviation / 2.0, ..repair };
        let selected = select_rows(twice, self.num_prompt_tokens(), &self.moved, &measured);
        let is_reused = |range: TokenRange| first_after(&self.reused, range.start).is_some_and(|reused| reused.start < range.end);
        let first = selected.ranges.iter().find(|range| is_reused(**range))?;
        self.num_computed_tokens = self.num_computed_tokens.min(first.start).max(self.prefix_end);
        Some(selected.ranges)
    }

    /// Recomputes `selected`, parts of the reused ranges. Returns the number of tokens.
    pub(crate) fn recompute(&mut self, selected: &[TokenRange]) -> u32 {
        let num_before: u32 = self.reused.iter().map(|range| range.len()).sum();
        let mut positions = self.reused.iter().flat_map(|range| range.positions());
        self.residual.retain(|_| !positions.next().is_some_and(|position| covers(selected, position)));
        self.due.clear();
        self.reused = self.reused.iter().flat_map(|&range| complement(range, overlapping(selected, range))).collect();
        num_before - self.reused.iter().map(|range| range.len()).sum::<u32>()
    }

    /// Starts after a prefix hit of `prefix_end` tokens, with `reused` ranges copied from donors.
    pub(crate) fn start(&mut self, lease: kv::BlockLease, prefix_end: u32, reused: Vec<TokenRange>) {
        debug_assert!(self.lease.is_empty() && prefix_end < self.num_tokens(), "the last token is always computed");
        self.lease = lease;
        self.prefix_end = prefix_end;
        self.num_computed_tokens = prefix_end;
        self.moved.clone_from(&reused);
        self.reused = reused;
    }

    /// Counts the blocks that its lease lacks to hold `num_tokens` tokens.
    pub(crate) fn num_missing_blocks(&self, num_tokens: u32, block_size: BlockSize) -> usize {
        block_size.blocks_for(num_tokens.saturating_sub(self.lease.end()) as usize)
    }

    /// Drops all KV and returns the blocks.
    pub(crate) fn reset(&mut self) -> kv::BlockLease {
        self.num_computed_tokens = 0;
        self.forget_reused();
        self.continued = None;
        self.sources.clear();
        self.may_be_continued = true;
        self.recorded_logprobs = None;
        self.shadow = None;
        std::mem::take(&mut self.lease)
    }

    /// Drops the spans of donors: everything after the prefix hit is to be computed.
    pub(crate) fn drop_spans(&mut self) {
        debug_assert!(
            self.reused.first().is_none_or(|first| self.num_computed_tokens <= first.start),
            "nothing was computed that depends on a span"
        );
        self.forget_reused();
    }

    fn forget_reused(&mut self) {
        self.reused.clear();
        self.measured.clear();
        self.deep_probe = None;
        self.residual.clear();
        self.due.clear();
        self.moved.clear();
        self.repair = None;
    }

    /// Returns the next rows to compute, at most `max_rows`.
    pub(crate) fn next_rows(&self, max_rows: usize) -> Vec<Row> {
        let positions = self.left_to_compute().into_iter().flat_map(TokenRange::positions).take(max_rows);
        positions.map(|position| Row { token: self.token_ids[position as usize], position }).collect()
    }

    /// Returns the number of rows left to compute until its newest token.
    pub(crate) fn num_rows_left(&self) -> u32 {
        self.left_to_compute().into_iter().map(TokenRange::len).sum()
    }

    /// Returns the positions from the frontier to its newest token that no donor gave. Skips ranges before the frontier.
    fn left_to_compute(&self) -> Vec<TokenRange> {
        let rest = TokenRange::new(self.num_computed_tokens, self.num_tokens());
        complement(rest, overlapping(&self.reused, rest))
    }

    /// True if a token is to be sampled after a row at `position`.
    pub(crate) fn samples_at(&self, position: u32) -> bool {
        position + 1 == self.num_tokens() && self.sampling.max_tokens > 0
    }

    /// Moves the frontier after the last computed row. Returns true if it reached the prompt's end for the first time.
    pub(crate) fn advance(&mut self, last_position: u32) -> bool {
        debug_assert!(self.num_computed_tokens <= last_position && last_position < self.num_tokens(), "rows ascend");
        self.num_computed_tokens = last_position + 1;
        let reaches_end = self.num_computed_tokens >= self.num_prompt_tokens();
        reaches_end && !std::mem::replace(&mut self.prompt_was_computed, true)
    }

    /// Adds a sampled token.
    pub(crate) fn append(&mut self, token: TokenId, block_size: BlockSize) {
        self.token_ids.push(token);
        if self.token_ids.len().is_multiple_of(block_size.as_usize()) {
            let block = &self.token_ids[self.token_ids.len() - block_size.as_usize()..];
            let hash = hash_next_block(self.request.scope, self.block_hashes.last().copied(), block);
            self.block_hashes.push(hash);
        }
    }

    /// Returns prompt and output tokens.
    pub(crate) fn token_ids(&self) -> &[TokenId] {
        &self.token_ids
    }

    /// Records the log probabilities of the newest token if the answer is to be verified; returns those that the caller asked
    /// for.
    pub(crate) fn record(&mut self, logprobs: Option<TokenLogProbs>) -> Option<TokenLogProbs> {
        let is_shadow = self.shadow.is_some();
        let Some(recorded) = &mut self.recorded_logprobs else { return logprobs };
        let asked = self.request.sampling.logprobs.zip(logprobs.as_ref());
        let reported = asked.map(|(num_top, all)| {
            let top = all.top.iter().take(num_top as usize).copied().collect();
            TokenLogProbs { chosen: all.chosen, top }
        });
        if !is_shadow || recorded.len() < MAX_TRIED_TOKENS {
            recorded.extend(logprobs);
        }
        reported
    }

    /// Returns the reason why it ends with its newest token, which may complete its grammar, if it does.
    pub(crate) fn finish_reason(&self, max_model_len: u32, is_complete: bool) -> Option<FinishReason> {
        let newest = *self.token_ids.last().expect("a prompt is never empty");
        if self.is_stop(newest, self.num_output_tokens()) {
            Some(FinishReason::Stop(newest))
        } else if is_complete {
            Some(FinishReason::Complete)
        } else if self.num_output_tokens() >= self.sampling.max_tokens || self.num_tokens() >= max_model_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// True if `token` as its output token `num_output`, counted from 1, ends it.
    fn is_stop(&self, token: TokenId, num_output: u32) -> bool {
        num_output > self.sampling.min_tokens && self.sampling.stop_token_ids.contains(&token)
    }

    /// True if `token` would stop it as the next one.
    pub(crate) fn stops_with(&self, token: TokenId) -> bool {
        self.is_stop(token, self.num_output_tokens() + 1)
    }

    /// True if it ends with its next token, whatever that is.
    pub(crate) fn is_at_last_token(&self, max_model_len: u32) -> bool {
        self.num_output_tokens() + 1 >= self.sampling.max_tokens || self.num_tokens() + 1 >= max_model_len
    }

    /// True if none of its KV will be selected for recomputing.
    pub(crate) fn is_settled(&self) -> bool {
        self.measured.is_empty() && self.residual.is_empty() && self.due.is_empty()
    }

    /// Returns the row of its next token, which is not known yet.
    pub(crate) fn row_ahead(&self) -> Row {
        Row { token: TokenId::default(), position: self.num_tokens() }
    }

    /// Keeps log probabilities of prompt tokens, each with its position.
    pub(crate) fn keep_prompt_logprobs(&mut self, logprobs: Vec<(u32, TokenLogProbs)>) {
        for (position, logprobs) in logprobs {
            let first = self.sampling.prompt_logprobs_from.max(1);
            let kept = position.checked_sub(first).and_then(|idx| self.prompt_logprobs.get_mut(idx as usize));
            if let Some(kept) = kept {
                *kept = Some(logprobs);
            }
        }
    }

    /// Takes all log probabilities of the prompt, once it is computed; `None` if the caller did not ask for them.
    ///
    /// # Panics
    /// If the executor left one out.
    pub(crate) fn take_prompt_logprobs(&mut self) -> Option<Vec<TokenLogProbs>> {
        self.sampling.prompt_logprobs?;
        let all = std::mem::take(&mut self.prompt_logprobs);
        Some(all.into_iter().map(|kept| kept.expect("the executor reports every computed prompt row")).collect())
    }
}

/// Ranks NaN first, so that such tokens are recomputed before any others.
fn worst_if_nan(score: f32) -> f32 {
    if score.is_nan() { f32::INFINITY } else { score }
}

/// Returns the first of `ranges`, which are sorted and disjoint, that ends after `pos`.
fn first_after(ranges: &[TokenRange], pos: u32) -> Option<&TokenRange> {
    ranges.get(ranges.partition_point(|range| range.end <= pos))
}

/// True if one of `ranges`, which are sorted and disjoint, holds `pos`.
pub(crate) fn covers(ranges: &[TokenRange], pos: u32) -> bool {
    first_after(ranges, pos).is_some_and(|range| range.start <= pos)
}

/// Returns those of `ranges`, which are sorted and disjoint, that share a position with `range`.
fn overlapping(ranges: &[TokenRange], range: TokenRange) -> &[TokenRange] {
    let ranges = &ranges[ranges.partition_point(|other| other.end <= range.start)..];
    &ranges[..ranges.partition_point(|other| other.start < range.end)]
}

fn readable_scopes(request: &Request, content: &ContentHashes) -> Vec<kv::ReadableScope> {
    let others = request.readable.iter().filter(|&&scope| scope != request.scope);
    others.map(|&scope| kv::ReadableScope { scope, hashes: content.in_scope(scope).into() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_in_sorted_ranges_find_what_looking_at_all_of_them_does() {
        let ranges: Vec<_> = [(0, 1), (3, 7), (7, 8), (12, 20), (21, 22)].map(|(start, end)| TokenRange::new(start, end)).into();
        for pos in 0..25 {
            assert_eq!(covers(&ranges, pos), ranges.iter().any(|range| range.contains(pos)), "{pos}");
            assert_eq!(first_after(&ranges, pos), ranges.iter().find(|range| range.end > pos), "{pos}");
            for end in pos + 1..25 {
                let wanted = TokenRange::new(pos, end);
                let expected: Vec<_> = ranges.iter().copied().filter(|range| !range.intersect(wanted).is_empty()).collect();
                assert_eq!(overlapping(&ranges, wanted), expected, "{wanted:?}");
            }
        }
        assert!(!covers(&[], 0) && overlapping(&[], TokenRange::new(0, 9)).is_empty());
    }
}
