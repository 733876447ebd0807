//! A request with everything the scheduler knows about it.
//!
//! There is no prefill phase and no decode phase: a sequence has known tokens and a frontier, and each step moves the frontier.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use semantic::{DecodeRepair, Drift, Repair, TokenDeviation, TrafficClass, follow_drift, select_rows};
use tokens::{BlockHash, BlockSize, ContentHashes, RequestId, Timestamp, TokenId, TokenRange, complement, hash_next_block};

use crate::continuations::Continued;
use crate::donors::PlannedSpans;
use crate::queue::ArrivalKey;
use crate::{FinishReason, KvSharingMode, KvUsage, Request, Row, SamplingParams, SpanOutcome, TokenLogProbs};

/// One request in the engine.
///
/// Invariant: `num_computed_tokens <= num_tokens()`. Only [`Sequence::advance`] moves it forward, only [`Sequence::reset`] back.
pub(crate) struct Sequence {
    pub(crate) request_id: RequestId,
    pub(crate) request: Request,
    pub(crate) sampling: Arc<SamplingParams>,
    /// Its place among all requests, also after a preemption.
    pub(crate) arrival: ArrivalKey,
    /// Prompt and output.
    token_ids: Vec<TokenId>,
    /// Of the full blocks of `token_ids`.
    block_hashes: Vec<BlockHash>,
    /// Of the full blocks of the prompt, in the further scopes it may read.
    readable: Vec<kv::ReadableScope>,
    /// The frontier: KV of all positions before it is in the pool.
    num_computed_tokens: u32,
    /// Copied from donors, beyond or behind the frontier. Sorted, disjoint.
    reused: Vec<TokenRange>,
    /// What was measured of the spans, until the first token is said; empty if nobody will ask for more.
    measured: Vec<TokenDeviation>,
    /// A second look at what stays as donors had it, to be taken before anything else is computed.
    pub(crate) deep_probe: Option<semantic::Probe>,
    /// How far each reused token's V was found to be from a fresh one, in their order; empty unless repair goes on in decode.
    residual: Vec<f32>,
    /// Reused tokens to be recomputed with the next row. Ascending.
    due: Vec<u32>,
    /// Spans as they were moved.
    moved: Vec<TokenRange>,
    /// Their repair, if there are some.
    repair: Option<Repair>,
    /// Set if some KV before `prefix_end` is approximate.
    continued: Option<Continued>,
    /// Owners of the KV that was copied into it, each once.
    sources: Vec<kv::BlockOwner>,
    /// False if some of these were erased: then nothing of it stays.
    pub(crate) may_be_continued: bool,
    /// Where the prefix hit of the current admission ends.
    prefix_end: u32,
    pub(crate) lease: kv::BlockLease,
    /// As announced, once admitted.
    pub(crate) usage: Option<KvUsage>,
    /// Spans that it was expected to receive when it was added.
    pub(crate) expected_spans: Option<ExpectedSpans>,
    /// Donors that mean something similar, as found when it was added.
    pub(crate) similar: Vec<tokens::DonorId>,
    /// The shingles of its prompt, once its spans were looked for; until it is admitted.
    pub(crate) sketch: Option<semantic::Sketch>,
    /// The last plan of its spans, until it is admitted.
    pub(crate) planned: Option<Planned>,
    /// From then on it goes first.
    pub(crate) deadline: Timestamp,
    /// State that decides about its seat.
    pub(crate) tenure: Tenure,
    pub(crate) span_wait: SpanWait,
    /// Its arrival on the clock of [`crate::ageing`].
    pub(crate) arrived_micros: u64,
    /// Whether the runner keeps state for it.
    pub(crate) known_to_runner: bool,
    /// Whether its prompt's end was reached before, perhaps before a preemption.
    prompt_was_computed: bool,
    prompt_logprobs: Vec<Option<TokenLogProbs>>,
    /// What it says, while that is to be verified.
    pub(crate) said: Option<Vec<TokenLogProbs>>,
    /// In mode `auto`, the class of what it reuses or could reuse.
    pub(crate) traffic: Option<TrafficClass>,
    /// Reuse that was not made, if it is to be tried when the answer is known.
    pub(crate) shadow: Option<Shadow>,
    /// Set if it is such a trial itself.
    pub(crate) trial: Option<Trial>,
}

/// Reuse that was not made.
#[derive(Clone, Debug)]
pub(crate) struct Shadow {
    /// End of the exact prefix before it.
    pub(crate) prefix_end: u32,
    pub(crate) spans: PlannedSpans,
}

/// A computation of what an answer would have been over reused KV.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    pub(crate) shadow: Shadow,
    /// Length of the prompt: its answer follows.
    pub(crate) num_prompt_tokens: u32,
}

/// The time a sequence has had its seat, and the time it may keep it. Steps are counted as [`crate::SchedulerOutput::step`] does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tenure {
    /// Step of its last admission.
    pub(crate) since: u64,
    /// Until it has computed so many tokens, others find another sequence to preempt.
    pub(crate) protected_until: u32,
    /// Tokens it had computed when it was preempted, until it is admitted again.
    pub(crate) lost: Option<u32>,
    /// Step since which it is refused for want of blocks.
    pub(crate) short_since: Option<u64>,
    /// It claimed blocks to compute so many tokens.
    pub(crate) claimed_until: u32,
}

/// Tokens of an answer that a trial computes at most. Chosen: the first ones say as much as all.
const MAX_TRIED_TOKENS: usize = 64;

/// Tokens that a preempted sequence gains before it is preempted again, at least. Chosen: a step of each of them costs about as much as
/// its readmission.
const MIN_GAIN: u32 = 16;

impl Tenure {
    /// A seat is taken in `step`, behind a prefix hit that ends at `prefix_end`. What was preempted before gains as much as it lost.
    pub(crate) fn begin(&mut self, step: u64, prefix_end: u32) {
        self.since = step;
        self.short_since = None;
        let gain = |lost: u32| lost + lost.saturating_sub(prefix_end).max(MIN_GAIN);
        self.protected_until = self.lost.take().map_or(0, gain).max(std::mem::take(&mut self.claimed_until));
    }
}

/// A request waits at most once for spans that somebody else is computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SpanWait {
    /// Nobody looked yet.
    #[default]
    Possible,
    /// For the prompt of `owner`, at the longest until then.
    For {
        /// Who computes them.
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

/// A plan of spans, and what it depends on besides the residency of its donors.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// End of the prefix hit before them.
    pub(crate) prefix_end: u32,
    /// Of the donors of all scopes that the request may read.
    pub(crate) version: u64,
    /// The plan, or why there is none.
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
            tenure: Tenure::default(),
            span_wait: SpanWait::default(),
            arrived_micros: 0,
            known_to_runner: false,
            prompt_was_computed: false,
            prompt_logprobs: vec![None; num_scored],
            said: None,
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

    /// Tokens, hashes and scope, for the pool.
    pub(crate) fn hashed(&self) -> kv::HashedTokens<'_> {
        let Self { token_ids, block_hashes, readable, .. } = self;
        kv::HashedTokens { scope: self.request.scope, tokens: token_ids, hashes: block_hashes, readable }
    }

    /// The same together with the lease, which the pool changes.
    pub(crate) fn hashed_and_lease(&mut self) -> (kv::HashedTokens<'_>, &mut kv::BlockLease) {
        let Self { token_ids, block_hashes, readable, lease, .. } = self;
        let hashed = kv::HashedTokens { scope: self.request.scope, tokens: token_ids, hashes: block_hashes, readable };
        (hashed, lease)
    }

    /// What it may reuse. Scored tokens of the prompt need their rows, exactly.
    pub(crate) fn sharing(&self) -> KvSharingMode {
        match self.request.sharing {
            KvSharingMode::Off => KvSharingMode::Off,
            _ if self.trial.is_some() => KvSharingMode::Span,
            _ if self.max_prefix_tokens() == 0 => KvSharingMode::Off,
            _ if self.sampling.prompt_logprobs.is_some() => KvSharingMode::Prefix,
            sharing => sharing,
        }
    }

    /// Leading tokens that need not be computed: at least the last token has to be, since there are no cached logits, and with it
    /// every row that a log probability comes from.
    pub(crate) fn max_prefix_tokens(&self) -> u32 {
        let most = self.first_scored().unwrap_or(self.num_tokens() - 1);
        self.trial.as_ref().map_or(most, |trial| trial.shadow.prefix_end.min(most))
    }

    /// The first position whose row says how likely the prompt's next token was.
    pub(crate) fn first_scored(&self) -> Option<u32> {
        self.sampling.prompt_logprobs.map(|_| self.sampling.prompt_logprobs_from.max(1) - 1)
    }

    /// Length of the prompt that spans are planned for.
    pub(crate) fn num_planned_tokens(&self) -> u32 {
        self.trial.as_ref().map_or(self.num_prompt_tokens(), |trial| trial.num_prompt_tokens)
    }

    /// The class of traffic it belongs to if it copies the spans of `plan`.
    pub(crate) fn traffic_of(&self, plan: &semantic::ReusePlan) -> Option<TrafficClass> {
        let Request { tenant, scope, template, repair, .. } = &self.request;
        let policy = BuildHasherDefault::<DefaultHasher>::default().hash_one(repair.to_string());
        TrafficClass::of((*tenant, *scope), plan, self.num_planned_tokens(), template.len(), policy)
    }

    /// True if the row at `position` says how likely the prompt's next token was.
    pub(crate) fn scores_at(&self, position: u32) -> bool {
        let is_scored = self.first_scored().is_some_and(|first| position >= first);
        is_scored && position + 1 < self.num_prompt_tokens()
    }

    /// Tokens chosen to be recomputed with the next row.
    pub(crate) fn num_due(&self) -> usize {
        self.due.len()
    }

    /// Whether every KV of it was computed from exactly the tokens before.
    pub(crate) fn is_exact(&self) -> bool {
        self.reused.is_empty() && self.continued.is_none()
    }

    /// The conversation whose approximate KV it continues, if it does.
    pub(crate) fn continued(&self) -> Option<Continued> {
        self.continued
    }

    /// The repair of its spans.
    pub(crate) fn repair(&self) -> Repair {
        self.repair.unwrap_or(self.request.repair)
    }

    /// Sets the repair of its spans.
    pub(crate) fn repair_by(&mut self, repair: Repair) {
        self.repair = Some(repair);
    }

    /// Spans as they were moved.
    pub(crate) fn moved(&self) -> &[TokenRange] {
        &self.moved
    }

    /// Owners of the KV that was copied into it.
    pub(crate) fn sources(&self) -> &[kv::BlockOwner] {
        &self.sources
    }

    /// Notes that KV of `owners` was copied into it.
    pub(crate) fn add_sources(&mut self, owners: impl IntoIterator<Item = kv::BlockOwner>) {
        for owner in owners {
            if !self.sources.contains(&owner) {
                self.sources.push(owner);
            }
        }
    }

    /// Notes that it continues approximate KV of its conversation.
    pub(crate) fn go_on(&mut self, continued: Continued) {
        self.continued = Some(continued);
    }

    /// Positions whose KV came from donors.
    pub(crate) fn reused(&self) -> &[TokenRange] {
        &self.reused
    }

    /// How moved tokens behind the frontier follow the next rows, which end with `last_position`.
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

    /// Positions of which the row that samples the next token should say how much they matter to it.
    pub(crate) fn watched(&self) -> &[TokenRange] {
        let is_time = |decode: DecodeRepair| self.num_output_tokens().is_multiple_of(decode.every.max(1));
        match self.request.repair.decode.is_some_and(is_time) && !self.residual.is_empty() {
            true => &self.reused,
            false => &[],
        }
    }

    /// Keeps what was measured of reused tokens that were not selected, for repair in decode.
    pub(crate) fn keep_residual(&mut self, before: &[TokenRange], measured: &[TokenDeviation]) {
        if self.request.repair.decode.is_some() {
            let positions = before.iter().flat_map(|range| range.positions());
            let stays = |position: u32| covers(&self.reused, position);
            self.residual =
                positions.zip(measured).filter(|(position, _)| stays(*position)).map(|(_, found)| found.value_l2).collect();
        }
    }

    /// Chooses what to recompute with the next row by the attention that the newest one paid: DHD's decode stage.
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

    /// Rows that are due, at most `max_rows`: their tokens are reused no longer.
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

    /// Keeps what was measured in case the first token turns out to be a close call.
    pub(crate) fn keep_measured(&mut self, measured: &[TokenDeviation]) {
        if self.request.repair.min_margin > 0.0 && !self.is_exact() {
            self.measured = measured.to_vec();
        }
    }

    /// Chooses anew with twice the budget if the first token was a close call. Once; `None` if that changes nothing.
    pub(crate) fn reconsider(&mut self, margin: f32) -> Option<Vec<TokenRange>> {
        let measured = std::mem::take(&mut self.measured);
        let repair = self.repair();
        let is_close = margin < repair.min_margin && !measured.is_empty();
        if !is_close || self.usage.is_none_or(|usage| usage.deviation <= repair.max_deviation / 2.0) {
            return None;
        }
        let twice = Repair { ratio: 2.0 * repair.ratio, max_deviation: repair.max_deviation / 2.0, ..repair };
        let selected = select_rows(twice, self.num_prompt_tokens(), &self.moved, &measured);
        let is_reused = |range: TokenRange| first_after(&self.reused, range.start).is_some_and(|reused| reused.start < range.end);
        let first = selected.ranges.iter().find(|range| is_reused(**range))?;
        self.num_computed_tokens = self.num_computed_tokens.min(first.start).max(self.prefix_end);
        Some(selected.ranges)
    }

    /// Computes `selected` after all; parts of what was reused. Returns how many tokens they are.
    pub(crate) fn recompute(&mut self, selected: &[TokenRange]) -> u32 {
        let num_before: u32 = self.reused.iter().map(|range| range.len()).sum();
        let mut positions = self.reused.iter().flat_map(|range| range.positions());
        self.residual.retain(|_| !positions.next().is_some_and(|position| covers(selected, position)));
        self.due.clear();
        self.reused = self.reused.iter().flat_map(|&range| complement(range, overlapping(selected, range))).collect();
        num_before - self.reused.iter().map(|range| range.len()).sum::<u32>()
    }

    /// Starts behind a prefix hit of `prefix_end` tokens, with `reused` ranges copied from donors.
    pub(crate) fn start(&mut self, lease: kv::BlockLease, prefix_end: u32, reused: Vec<TokenRange>) {
        debug_assert!(self.lease.is_empty() && prefix_end < self.num_tokens(), "the last token is always computed");
        self.lease = lease;
        self.prefix_end = prefix_end;
        self.num_computed_tokens = prefix_end;
        self.moved.clone_from(&reused);
        self.reused = reused;
    }

    /// Forgets all KV: what was computed is lost. Returns the blocks.
    pub(crate) fn reset(&mut self) -> kv::BlockLease {
        self.num_computed_tokens = 0;
        self.forget_reused();
        self.continued = None;
        self.sources.clear();
        self.may_be_continued = true;
        self.said = None;
        self.shadow = None;
        std::mem::take(&mut self.lease)
    }

    /// Forgets what donors gave: everything behind the prefix hit is to be computed.
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

    /// The next rows to compute, at most `max_rows`.
    pub(crate) fn next_rows(&self, max_rows: usize) -> Vec<Row> {
        let positions = self.left_to_compute().into_iter().flat_map(TokenRange::positions).take(max_rows);
        positions.map(|position| Row { token: self.token_ids[position as usize], position }).collect()
    }

    /// How many rows are left to compute until its newest token.
    pub(crate) fn num_rows_left(&self) -> u32 {
        self.left_to_compute().into_iter().map(TokenRange::len).sum()
    }

    /// Positions from the frontier to its newest token that no donor gave. Ranges of the past are not gone through.
    fn left_to_compute(&self) -> Vec<TokenRange> {
        let rest = TokenRange::new(self.num_computed_tokens, self.num_tokens());
        complement(rest, overlapping(&self.reused, rest))
    }

    /// Whether a token is to be sampled behind a row at `position`.
    pub(crate) fn samples_at(&self, position: u32) -> bool {
        position + 1 == self.num_tokens() && self.sampling.max_tokens > 0
    }

    /// Moves the frontier behind the last computed row. Whether the prompt's end was reached for the first time.
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

    /// Prompt and output.
    pub(crate) fn token_ids(&self) -> &[TokenId] {
        &self.token_ids
    }

    /// Records what was said of the newest token if that is to be verified; returns what the caller asked for of it.
    pub(crate) fn note(&mut self, logprobs: Option<TokenLogProbs>) -> Option<TokenLogProbs> {
        let is_shadow = self.shadow.is_some();
        let Some(said) = &mut self.said else { return logprobs };
        let asked = self.request.sampling.logprobs.zip(logprobs.as_ref());
        let reported = asked.map(|(num_top, all)| {
            let top = all.top.iter().take(num_top as usize).copied().collect();
            TokenLogProbs { chosen: all.chosen, top }
        });
        if !is_shadow || said.len() < MAX_TRIED_TOKENS {
            said.extend(logprobs);
        }
        reported
    }

    /// Why it ends with its newest token, if it does.
    pub(crate) fn finish_reason(&self, max_model_len: u32) -> Option<FinishReason> {
        let newest = *self.token_ids.last().expect("a prompt is never empty");
        if self.is_stop(newest, self.num_output_tokens()) {
            Some(FinishReason::Stop(newest))
        } else if self.num_output_tokens() >= self.sampling.max_tokens || self.num_tokens() >= max_model_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Whether `token` as its output number `num_output`, counted from 1, ends it.
    fn is_stop(&self, token: TokenId, num_output: u32) -> bool {
        num_output > self.sampling.min_tokens && self.sampling.stop_token_ids.contains(&token)
    }

    /// Whether `token` would stop it as the next one.
    pub(crate) fn stops_with(&self, token: TokenId) -> bool {
        self.is_stop(token, self.num_output_tokens() + 1)
    }

    /// Whether it ends with its next token, whatever that is.
    pub(crate) fn is_at_last_token(&self, max_model_len: u32) -> bool {
        self.num_output_tokens() + 1 >= self.sampling.max_tokens || self.num_tokens() + 1 >= max_model_len
    }

    /// Whether nothing of its KV will be chosen to be computed anew.
    pub(crate) fn is_settled(&self) -> bool {
        self.measured.is_empty() && self.residual.is_empty() && self.due.is_empty()
    }

    /// The row of its next token, which is not known yet.
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

    /// All of them, once the prompt is computed; `None` if they were not asked for.
    ///
    /// # Panics
    /// If the executor left one out.
    pub(crate) fn take_prompt_logprobs(&mut self) -> Option<Vec<TokenLogProbs>> {
        self.sampling.prompt_logprobs?;
        let all = std::mem::take(&mut self.prompt_logprobs);
        Some(all.into_iter().map(|kept| kept.expect("the executor reports every computed prompt row")).collect())
    }
}

/// Recomputes what is not a number before anything else.
fn worst_if_nan(score: f32) -> f32 {
    if score.is_nan() { f32::INFINITY } else { score }
}

/// The first of `ranges`, which are sorted and disjoint, that ends after `pos`.
fn first_after(ranges: &[TokenRange], pos: u32) -> Option<&TokenRange> {
    ranges.get(ranges.partition_point(|range| range.end <= pos))
}

/// True if one of `ranges`, which are sorted and disjoint, holds `pos`.
pub(crate) fn covers(ranges: &[TokenRange], pos: u32) -> bool {
    first_after(ranges, pos).is_some_and(|range| range.start <= pos)
}

/// Those of `ranges`, which are sorted and disjoint, that share a position with `range`.
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
