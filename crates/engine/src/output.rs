//! The one value that travels down to the device each step, and the one that comes back.

use std::sync::Arc;

use kv::{BlockFetch, BlockOffload};
use semantic::{Drift, Probe, TokenDeviation};
use tokens::{BlockId, DonorId, RequestId, TokenId, TokenRange, complement};

use crate::SamplingParams;

/// The work of one step. Everything a runner needs: it asks nobody back.
#[derive(Clone, Debug, Default)]
pub struct SchedulerOutput {
    /// Counts the steps of one engine.
    pub step: u64,
    /// Requests scheduled for the first time. The runner keeps their sampling state until `finished` names them.
    pub new_requests: Vec<NewRequest>,
    /// Requests the runner may forget.
    pub finished: Vec<RequestId>,
    /// Blocks to copy to the host tier before anything else: this step writes over them.
    pub offloads: Vec<BlockOffload>,
    /// Blocks to zero next: what another tenant left in them must not reach those who hold them now.
    pub block_zeroes: Vec<BlockId>,
    /// Blocks to copy from the host tier then, before anything is read from them; some were just zeroed.
    pub fetches: Vec<BlockFetch>,
    /// Whole or partial blocks to copy next (copy on write).
    pub block_copies: Vec<BlockCopy>,
    /// Spans to copy and re-rotate then, each checked at layer 0 before anything is computed from it.
    pub span_copies: Vec<SpanCopy>,
    /// Sequences whose moved spans are to be measured then. They are in `sequences` only after tokens to recompute were chosen.
    pub probes: Vec<ProbedSequence>,
    /// Requests whose last sample is void: they will say something else in its place.
    pub retracted: Vec<RequestId>,
    /// Sequences to compute, in the order of their batch. Each request occurs at most once.
    pub sequences: Vec<ScheduledSequence>,
}

impl SchedulerOutput {
    /// Rows of all sequences.
    #[must_use]
    pub fn num_scheduled_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.rows.len()).sum()
    }

    /// Whether there is nothing to execute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let computes_nothing = self.sequences.is_empty() && self.probes.is_empty();
        let moves_nothing = self.offloads.is_empty() && self.fetches.is_empty() && self.block_zeroes.is_empty();
        computes_nothing && moves_nothing && self.finished.is_empty()
    }
}

/// Static part of a request, sent once.
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// Its name.
    pub request_id: RequestId,
    /// Its prompt: penalties and `echo` need it.
    pub prompt_token_ids: Arc<[TokenId]>,
    /// How to sample.
    pub sampling: Arc<SamplingParams>,
}

/// Rows of one sequence to compute in this step.
///
/// All positions that are neither in `rows` nor after the last row are already in the pool:
/// prefill, chunked prefill, decode and selective recompute are one thing.
#[derive(Clone, Debug)]
pub struct ScheduledSequence {
    /// Its request.
    pub request_id: RequestId,
    /// Tokens to compute, by ascending position. May have gaps.
    pub rows: Vec<Row>,
    /// Physical block of positions `i * block_size ..`, covering every row.
    pub block_table: Vec<BlockId>,
    /// Whether the last row reaches the end of the known tokens, so that a token is to be sampled from it.
    pub sample: bool,
    /// Positions whose attention from the last row is to be reported. Sorted, disjoint; mostly none.
    pub watch: Vec<TokenRange>,
    /// Moved tokens that follow rows of this step, in each layer before anything is read from it.
    pub drift: Vec<Drift>,
}

/// One token to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What.
    pub token: TokenId,
    /// Where in its sequence. It attends to positions `0..=position`.
    pub position: u32,
}

/// Copy the first `num_tokens` slots of block `src` to block `dst`, all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// From.
    pub src: BlockId,
    /// To.
    pub dst: BlockId,
    /// How many leading slots.
    pub num_tokens: u32,
}

/// Copy K and V of `token_ids` from a donor, rotating keys by `dst_pos - src_pos`.
#[derive(Clone, Debug)]
pub struct SpanCopy {
    /// Sequence that receives them.
    pub request_id: RequestId,
    /// Donor that gives them.
    pub donor: DonorId,
    /// The donor's blocks from the one that holds `src_pos` on, covering the span.
    pub src_blocks: Vec<BlockId>,
    /// Position of the span's first token in the donor.
    pub src_pos: u32,
    /// The receiver's blocks from the one that holds `dst_pos` on, covering the span.
    pub dst_blocks: Vec<BlockId>,
    /// Position of the span's first token in the receiver.
    pub dst_pos: u32,
    /// The span's tokens, equal in donor and receiver.
    pub token_ids: Vec<TokenId>,
}

/// A sequence whose moved spans are compared with a fresh computation of the first layers, and whose readers are asked.
///
/// The runner may write fresh K and V over what was moved, in the layers that it computes, and of fresh rows in all layers: all of
/// them will be computed again before anything is read from them, or are exact for their layer.
#[derive(Clone, Debug)]
pub struct ProbedSequence {
    /// Its request.
    pub request_id: RequestId,
    /// Its prompt from the end of the prefix hit on; the first one stands at `first_position`.
    pub token_ids: Vec<TokenId>,
    /// Where the prefix hit ends.
    pub first_position: u32,
    /// Positions whose KV was moved there: what is measured. Sorted, disjoint.
    pub reused: Vec<TokenRange>,
    /// Physical block of positions `i * block_size ..`, covering the prompt.
    pub block_table: Vec<BlockId>,
    /// What to measure.
    pub probe: Probe,
}

impl ProbedSequence {
    /// Moved positions that are measured, ascending.
    pub fn measured(&self) -> impl Iterator<Item = u32> + '_ {
        semantic::sampled_positions(&self.reused, self.probe.stride)
    }

    /// Positions that were not moved. Sorted, disjoint.
    #[must_use]
    pub fn fresh(&self) -> Vec<TokenRange> {
        let end = self.first_position + self.token_ids.len() as u32;
        complement(TokenRange::new(self.first_position, end), &self.reused)
    }

    /// Positions that are computed up to the check layer: those that are measured, and all that were not moved. Ascending.
    #[must_use]
    pub fn rows(&self) -> Vec<u32> {
        let mut rows: Vec<_> = self.fresh().into_iter().flat_map(TokenRange::positions).chain(self.measured()).collect();
        rows.sort_unstable();
        rows
    }

    /// Number of [`rows`](Self::rows).
    #[must_use]
    pub fn num_rows(&self) -> usize {
        let num_reused: u32 = self.reused.iter().map(|range| range.len()).sum();
        self.token_ids.len() - num_reused as usize + self.measured().count()
    }
}

/// What came back from one step.
#[derive(Clone, Debug, Default)]
pub struct ModelRunnerOutput {
    /// One token for each sequence with `sample`, in their order; none for a request named in `rejected_spans` or `faulty`.
    pub sampled: Vec<SampledToken>,
    /// Requests of which a row of logits holds what is no number. What was computed for them in this step is void, and nothing was sampled.
    pub faulty: Vec<RequestId>,
    /// Donors that failed the layer-0 check. What was computed for these requests in this step is void.
    pub rejected_spans: Vec<RejectedSpan>,
    /// One for each of `probes`, in their order; none for a request named in `rejected_spans`.
    pub probed: Vec<ProbedSpans>,
    /// One for each sequence with `watch`, in their order.
    pub watched: Vec<WatchedSpans>,
    /// Log probabilities of prompt tokens at the rows computed in this step, for requests that asked.
    ///
    /// The entry for the token at position `p` (`p >= 1`) comes from the row at `p - 1`.
    pub prompt_logprobs: Vec<(RequestId, Vec<(u32, TokenLogProbs)>)>,
    /// Fetches from the host tier that ended since the last report, if they were timed.
    pub transfer: Option<Transfer>,
}

/// What a copy from the host to the device took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// How much it was.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbedSpans {
    /// Whose.
    pub request_id: RequestId,
    /// One for each reused token, in the order of positions.
    pub deviations: Vec<TokenDeviation>,
}

/// How much attention the last row of a sequence paid to positions it asked about.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchedSpans {
    /// Whose.
    pub request_id: RequestId,
    /// Averaged over heads and layers, one for each watched position in their order.
    pub attention: Vec<f32>,
}

/// A token chosen for a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Its request.
    pub request_id: RequestId,
    /// The choice.
    pub token: TokenId,
    /// By how much the largest logit exceeds the second largest, before temperature and truncation.
    pub margin: f32,
    /// If the request asked.
    pub logprobs: Option<TokenLogProbs>,
}

/// A donor whose KV disagrees with a fresh computation of layer 0.
#[derive(Clone, Debug, PartialEq)]
pub struct RejectedSpan {
    /// Who was to receive it.
    pub request_id: RequestId,
    /// Whose it was.
    pub donor: DonorId,
    /// Largest relative difference found.
    pub max_relative_error: f32,
}

/// Log probabilities at one position, before temperature and truncation, after penalties and bias.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProbs {
    /// Of the token that stands there.
    pub chosen: LogProb,
    /// Of the likeliest tokens, descending; as many as were asked for.
    pub top: Vec<LogProb>,
}

/// A token and its natural log probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogProb {
    /// Which.
    pub token: TokenId,
    /// Natural logarithm, at most 0.
    pub logprob: f32,
    /// Rank in the distribution, 1 is the likeliest.
    pub rank: u32,
}
