//! A request with everything the scheduler knows about it.
//!
//! There is no prefill phase and no decode phase: a sequence has known tokens and a frontier, and each step moves the frontier.

use std::sync::Arc;

use tokens::{BlockHash, BlockSize, RequestId, Timestamp, TokenId, TokenRange, complement, hash_full_blocks, hash_next_block};

use crate::queue::ArrivalKey;
use crate::{FinishReason, KvSharingMode, KvUsage, Request, Row, SamplingParams, TokenLogProbs};

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
    /// The frontier: KV of all positions before it is in the pool.
    num_computed_tokens: u32,
    /// Copied from donors, beyond or behind the frontier. Sorted, disjoint.
    reused: Vec<TokenRange>,
    /// Where the prefix hit of the current admission ends.
    prefix_end: u32,
    pub(crate) lease: kv::BlockLease,
    /// As announced, once admitted.
    pub(crate) usage: Option<KvUsage>,
    /// Spans that it was expected to receive when it was added.
    pub(crate) expected_spans: Option<ExpectedSpans>,
    /// From then on it goes first.
    pub(crate) deadline: Timestamp,
    pub(crate) span_wait: SpanWait,
    /// Its arrival on the clock of [`crate::ageing`].
    pub(crate) arrived_micros: u64,
    /// Whether the runner keeps state for it.
    pub(crate) known_to_runner: bool,
    /// Whether its prompt's end was reached before, perhaps before a preemption.
    prompt_was_computed: bool,
    prompt_logprobs: Vec<Option<TokenLogProbs>>,
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

impl Sequence {
    pub(crate) fn new(request: Request, arrival: ArrivalKey, block_size: BlockSize) -> Self {
        let token_ids = request.prompt_token_ids.to_vec();
        let wants_logprobs = request.sampling.prompt_logprobs.is_some();
        Self {
            request_id: request.request_id,
            sampling: Arc::new(request.sampling.clone()),
            arrival,
            block_hashes: hash_full_blocks(request.cache_salt, &token_ids, block_size),
            num_computed_tokens: 0,
            reused: Vec::new(),
            prefix_end: 0,
            lease: kv::BlockLease::default(),
            usage: None,
            expected_spans: None,
            deadline: Timestamp::default(),
            span_wait: SpanWait::default(),
            arrived_micros: 0,
            known_to_runner: false,
            prompt_was_computed: false,
            prompt_logprobs: if wants_logprobs { vec![None; token_ids.len() - 1] } else { Vec::new() },
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
        kv::HashedTokens { salt: self.request.cache_salt, tokens: &self.token_ids, hashes: &self.block_hashes }
    }

    /// The same together with the lease, which the pool changes.
    pub(crate) fn hashed_and_lease(&mut self) -> (kv::HashedTokens<'_>, &mut kv::BlockLease) {
        let hashed = kv::HashedTokens { salt: self.request.cache_salt, tokens: &self.token_ids, hashes: &self.block_hashes };
        (hashed, &mut self.lease)
    }

    /// What it may reuse. Log probabilities of the prompt need every row, so nothing then.
    pub(crate) fn sharing(&self) -> KvSharingMode {
        match self.sampling.prompt_logprobs {
            Some(_) => KvSharingMode::Off,
            None => self.request.sharing,
        }
    }

    /// Whether every KV of it was computed from exactly the tokens before.
    pub(crate) fn is_exact(&self) -> bool {
        self.reused.is_empty()
    }

    /// Positions whose KV came from donors.
    pub(crate) fn reused(&self) -> &[TokenRange] {
        &self.reused
    }

    /// Computes `selected` after all; parts of what was reused. Returns how many tokens they are.
    pub(crate) fn recompute(&mut self, selected: &[TokenRange]) -> u32 {
        debug_assert_eq!(self.num_computed_tokens, self.prefix_end, "tokens are chosen before anything is computed");
        let num_before: u32 = self.reused.iter().map(|range| range.len()).sum();
        self.reused = self.reused.iter().flat_map(|&range| complement(range, selected)).collect();
        num_before - self.reused.iter().map(|range| range.len()).sum::<u32>()
    }

    /// Starts behind a prefix hit of `prefix_end` tokens, with `reused` ranges copied from donors.
    pub(crate) fn start(&mut self, lease: kv::BlockLease, prefix_end: u32, reused: Vec<TokenRange>) {
        debug_assert!(self.lease.is_empty() && prefix_end < self.num_tokens(), "the last token is always computed");
        self.lease = lease;
        self.prefix_end = prefix_end;
        self.num_computed_tokens = prefix_end;
        self.reused = reused;
    }

    /// Forgets all KV: what was computed is lost. Returns the blocks.
    pub(crate) fn reset(&mut self) -> kv::BlockLease {
        self.num_computed_tokens = 0;
        self.reused.clear();
        std::mem::take(&mut self.lease)
    }

    /// Forgets what donors gave: everything behind the prefix hit is to be computed.
    pub(crate) fn drop_spans(&mut self) {
        debug_assert_eq!(self.num_computed_tokens, self.prefix_end, "spans are checked in the step that copies them");
        self.reused.clear();
    }

    /// The next rows to compute, at most `max_rows`.
    pub(crate) fn next_rows(&self, max_rows: usize) -> Vec<Row> {
        let rest = complement(TokenRange::new(self.num_computed_tokens, self.num_tokens()), &self.reused);
        let positions = rest.into_iter().flat_map(TokenRange::positions).take(max_rows);
        positions.map(|position| Row { token: self.token_ids[position as usize], position }).collect()
    }

    /// How many rows are left to compute until its newest token.
    pub(crate) fn num_rows_left(&self) -> u32 {
        let rest = complement(TokenRange::new(self.num_computed_tokens, self.num_tokens()), &self.reused);
        rest.into_iter().map(TokenRange::len).sum()
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
            let hash = hash_next_block(self.request.cache_salt, self.block_hashes.last().copied(), block);
            self.block_hashes.push(hash);
        }
    }

    /// Why it ends with its newest token, if it does.
    pub(crate) fn finish_reason(&self, max_model_len: u32) -> Option<FinishReason> {
        let newest = *self.token_ids.last().expect("a prompt is never empty");
        let (num_output, sampling) = (self.num_output_tokens(), &self.sampling);
        if num_output > sampling.min_tokens && sampling.stop_token_ids.contains(&newest) {
            Some(FinishReason::Stop(newest))
        } else if num_output >= sampling.max_tokens || self.num_tokens() >= max_model_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Keeps log probabilities of prompt tokens, each with its position.
    pub(crate) fn keep_prompt_logprobs(&mut self, logprobs: Vec<(u32, TokenLogProbs)>) {
        for (position, logprobs) in logprobs {
            let kept = (position as usize).checked_sub(1).and_then(|idx| self.prompt_logprobs.get_mut(idx));
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
