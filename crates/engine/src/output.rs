//! The value that travels to the device each step, and the one that comes back.

use std::sync::Arc;

use kv::{BlockEntry, BlockFetch, BlockOffload};
use semantic::{Drift, Probe, TokenDeviation};
use tokens::{BlockId, DonorId, RequestId, TokenId, TokenRange, complement};

use crate::SamplingParams;

/// Work of one step. Holds everything the runner needs, so that it never queries the scheduler.
#[derive(Clone, Debug, Default)]
pub struct SchedulerOutput {
    /// Sequence number of the step in its engine.
    pub step: u64,
    /// Requests scheduled for the first time. The runner keeps their sampling state until `finished` names them.
    pub new_requests: Vec<NewRequest>,
    /// Requests that the runner may drop.
    pub finished: Vec<RequestId>,
    /// Blocks to copy to the host tier before anything else: this step overwrites them.
    pub offloads: Vec<BlockOffload>,
    /// Blocks to zero next: data of another tenant must not reach their new owners.
    pub block_zeroes: Vec<BlockId>,
    /// Blocks to copy from the host tier after zeroing, before anything is read from them; some were just zeroed.
    pub fetches: Vec<BlockFetch>,
    /// Whole or partial blocks to copy next (copy on write).
    pub block_copies: Vec<BlockCopy>,
    /// Spans to copy and re-rotate after that, each checked at layer 0 before anything is computed from it.
    pub span_copies: Vec<SpanCopy>,
    /// Sequences whose moved spans are measured after that. They enter `sequences` only after tokens to recompute were selected.
    pub probes: Vec<ProbedSequence>,
    /// Requests whose last sample is void: they will sample another token in its place.
    pub retracted: Vec<RequestId>,
    /// Sequences to compute, in the order of their batch. Each request occurs at most once.
    pub sequences: Vec<ScheduledSequence>,
}

impl SchedulerOutput {
    /// Returns the number of rows of all sequences.
    #[must_use]
    pub fn num_scheduled_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.rows.len()).sum()
    }

    /// True if there is nothing to execute.
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
    /// Request ID.
    pub request_id: RequestId,
    /// Prompt tokens: penalties and `echo` need them.
    pub prompt_token_ids: Arc<[TokenId]>,
    /// Sampling parameters.
    pub sampling: Arc<SamplingParams>,
}

/// Rows of one sequence to compute in this step.
///
/// All positions that are neither in `rows` nor after the last row are already in the pool: prefill, chunked prefill, decode and
/// selective recompute take the same form.
#[derive(Clone, Debug)]
pub struct ScheduledSequence {
    /// Request ID.
    pub request_id: RequestId,
    /// Tokens to compute, by ascending position. May have gaps.
    pub rows: Vec<Row>,
    /// Blocks by ascending position, covering every row and every position that one reads.
    pub block_table: Vec<BlockEntry>,
    /// True if the last row reaches the end of the known tokens, so that the runner samples a token from it.
    pub sample: bool,
    /// Positions for which the attention of the last row is reported. Sorted, disjoint; mostly none.
    pub watch: Vec<TokenRange>,
    /// Moved tokens that follow the drift of rows of this step, in each layer before anything is read from it.
    pub drift: Vec<Drift>,
}

/// One token to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Token ID.
    pub token: TokenId,
    /// Position in its sequence. It attends to positions `0..=position`.
    pub position: u32,
}

/// Copy the first `num_tokens` slots of block `src` to block `dst`, all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Source block.
    pub src: BlockId,
    /// Destination block.
    pub dst: BlockId,
    /// Number of leading slots.
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

/// A sequence whose moved spans are compared with a fresh computation of the first layers, with the readers to use.
///
/// The runner may overwrite moved K and V with fresh ones, in the layers that it computes, and those of fresh rows in all layers:
/// all of them will be recomputed before anything is read from them, or are exact for their layer.
#[derive(Clone, Debug)]
pub struct ProbedSequence {
    /// Request ID.
    pub request_id: RequestId,
    /// Prompt tokens from the end of the prefix hit on; the first one is at `first_position`.
    pub token_ids: Vec<TokenId>,
    /// End of the prefix hit.
    pub first_position: u32,
    /// Positions with moved KV, which are measured. Sorted, disjoint.
    pub reused: Vec<TokenRange>,
    /// Blocks by ascending position, covering the prompt.
    pub block_table: Vec<BlockEntry>,
    /// Measurement to make.
    pub probe: Probe,
}

impl ProbedSequence {
    /// Iterates over the moved positions that are measured, ascending.
    pub fn measured(&self) -> impl Iterator<Item = u32> + '_ {
        semantic::sampled_positions(&self.reused, self.probe.stride)
    }

    /// Returns the positions that were not moved. Sorted, disjoint.
    #[must_use]
    pub fn fresh(&self) -> Vec<TokenRange> {
        let end = self.first_position + self.token_ids.len() as u32;
        complement(TokenRange::new(self.first_position, end), &self.reused)
    }

    /// Returns the positions computed up to the check layer: those measured, and all that were not moved. Ascending.
    #[must_use]
    pub fn rows(&self) -> Vec<u32> {
        let mut rows: Vec<_> = self.fresh().into_iter().flat_map(TokenRange::positions).chain(self.measured()).collect();
        rows.sort_unstable();
        rows
    }

    /// Returns the number of [`rows`](Self::rows).
    #[must_use]
    pub fn num_rows(&self) -> usize {
        let num_reused: u32 = self.reused.iter().map(|range| range.len()).sum();
        self.token_ids.len() - num_reused as usize + self.measured().count()
    }
}

/// Result of one step.
#[derive(Clone, Debug, Default)]
pub struct ModelRunnerOutput {
    /// One token for each sequence with `sample`, in their order; none for a request named in `rejected_spans` or `faulty`.
    pub sampled: Vec<SampledToken>,
    /// Requests with a non-finite row of logits. Their results of this step are void, and no token was sampled.
    pub faulty: Vec<RequestId>,
    /// Donors that failed the layer-0 check. The results of these requests in this step are void.
    pub rejected_spans: Vec<RejectedSpan>,
    /// One for each of `probes`, in their order; none for a request named in `rejected_spans`.
    pub probed: Vec<ProbedSpans>,
    /// One for each sequence with `watch`, in their order.
    pub watched: Vec<WatchedSpans>,
    /// Log probabilities of prompt tokens at the rows computed in this step, for requests that asked for them.
    ///
    /// The entry for the token at position `p` (`p >= 1`) comes from the row at `p - 1`.
    pub prompt_logprobs: Vec<(RequestId, Vec<(u32, TokenLogProbs)>)>,
    /// Timed fetches from the host tier that ended since the last report, if any.
    pub transfer: Option<Transfer>,
}

/// Size and time of a copy from the host to the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// Bytes copied.
    pub bytes: u64,
    /// Seconds taken.
    pub seconds: f64,
}

/// Result of a probe.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbedSpans {
    /// Request ID.
    pub request_id: RequestId,
    /// One for each reused token, in the order of positions.
    pub deviations: Vec<TokenDeviation>,
}

/// Attention that the last row of a sequence paid to its watched positions.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchedSpans {
    /// Request ID.
    pub request_id: RequestId,
    /// Averaged over heads and layers, one for each watched position in their order.
    pub attention: Vec<f32>,
}

/// A token chosen for a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Request ID.
    pub request_id: RequestId,
    /// Sampled token.
    pub token: TokenId,
    /// Difference of the largest and the second largest logit, before temperature and truncation.
    pub margin: f32,
    /// Log probabilities, on request.
    pub logprobs: Option<TokenLogProbs>,
    /// True if the token completes the grammar of the request: nothing but the end may follow.
    pub completes: bool,
}

/// A donor whose KV disagrees with a fresh computation of layer 0.
#[derive(Clone, Debug, PartialEq)]
pub struct RejectedSpan {
    /// Request that was to receive the span.
    pub request_id: RequestId,
    /// Donor of the span.
    pub donor: DonorId,
    /// Largest relative difference found.
    pub max_relative_error: f32,
}

/// Log probabilities at one position, before temperature and truncation, after penalties and bias.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProbs {
    /// Log probability of the token at this position.
    pub chosen: LogProb,
    /// Log probabilities of the likeliest tokens, descending; as many as requested.
    pub top: Vec<LogProb>,
}

/// A token and its natural log probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogProb {
    /// Token ID.
    pub token: TokenId,
    /// Natural logarithm, at most 0.
    pub logprob: f32,
    /// Rank in the distribution, 1 is the likeliest.
    pub rank: u32,
}
