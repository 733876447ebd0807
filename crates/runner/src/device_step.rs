//! A step as a device is asked for it, and its results.

use engine::{BlockCopy, BlockFetch, BlockOffload, ProbedSequence, ProbedSpans, RejectedSpan, SpanCopy, TokenLogProbs, Transfer};
use tokens::{BlockId, RequestId};
use tracing::warn;

use crate::{InputBatch, SampleRow, Sampled, ScoreRow, StepTimings};

/// Work of one step, in the order in which a device does it.
#[derive(Clone, Debug, Default)]
pub struct DeviceStep<'a> {
    /// Whole blocks to copy to the host tier in all layers. The copies may overlap with later work: the device orders writes to
    /// their sources after them, layer by layer.
    pub offloads: &'a [BlockOffload],
    /// Blocks to fill with zeros in all layers, so that their next owner does not see their old content.
    pub zeros: &'a [BlockId],
    /// Whole blocks to copy from the host tier in all layers. The copies may overlap with later work: the device orders reads of their
    /// targets after them, layer by layer.
    pub fetches: &'a [BlockFetch],
    /// Blocks whose first slots are copied in all layers.
    pub copies: &'a [BlockCopy],
    /// Spans to copy to their new positions in all layers, with their keys rotated. No slot is both a source and a destination.
    ///
    /// Each is then compared with a fresh computation of layer 0. K and V of layer 0 depend on token and position alone, so they prove ids,
    /// positions, rotation and weights, independent of the donor's left context.
    pub spans: &'a [SpanCopy],
    /// Sequences whose moved spans are measured. Computes all rows up to the keys and values of the check layer and leaves them in the pool;
    /// with [`engine::Readers::FreshRowsAllLayers`], first computes the fresh rows through all layers.
    pub probes: &'a [ProbedSequence],
    /// Rows to run through all layers, which writes their K and V to the pool. Rows of requests with a rejected span do not run.
    pub batch: InputBatch,
    /// Rows of the batch that score a known token, ascending.
    ///
    /// There may be as many as a prompt has tokens, so a device holds logits of some of them at a time.
    pub scored: Vec<ScoreRow>,
    /// Rows of the batch that a token is sampled from, ascending.
    pub sampled: Vec<SampleRow>,
}

/// Results of one step.
#[derive(Debug, Default)]
pub struct DeviceOutput {
    /// Size and duration of fetches that have ended since the last step, those of this step among them if they have ended.
    pub transfer: Option<Transfer>,
    /// For each span the largest difference between its K or V and a fresh computation, relative to the norm of the fresh one, over its
    /// tokens.
    pub span_deviations: Vec<f32>,
    /// Spans whose deviation rounding does not explain.
    pub rejected_spans: Vec<RejectedSpan>,
    /// For each probe one entry for each measured token, in the order of positions.
    pub probed: Vec<ProbedSpans>,
    /// For each watched sequence that ran, the attention that its last row paid to positions `0..`, averaged over heads and layers.
    pub attention: Vec<Vec<f32>>,
    /// Log probabilities of the scored rows that ran.
    pub scores: Vec<TokenLogProbs>,
    /// Tokens of the sampled rows that ran.
    pub sampled: Vec<Sampled>,
    /// Time spent in each phase.
    pub timings: StepTimings,
}

impl DeviceStep<'_> {
    /// Drops the rows of requests with a span whose deviation is above `max`, and returns these spans.
    pub(crate) fn reject(&mut self, deviations: &[f32], max: f32) -> Vec<RejectedSpan> {
        let mut rejected = Vec::new();
        for (span, &deviation) in self.spans.iter().zip(deviations) {
            if deviation.is_nan() || deviation > max {
                warn!(request_id = %span.request_id, donor = %span.donor, deviation, "a donor's KV disagrees with layer 0");
                rejected.push(RejectedSpan { request_id: span.request_id, donor: span.donor, max_relative_error: deviation });
            }
        }
        if !rejected.is_empty() {
            self.drop_rows(|request_id| rejected.iter().any(|span| span.request_id == request_id));
        }
        rejected
    }

    fn drop_rows(&mut self, is_dropped: impl Fn(RequestId) -> bool) {
        let new_rows = self.batch.retain(|sequence| !sequence.request_id.is_some_and(&is_dropped));
        let follow = |row: &mut usize| new_rows[*row].map(|new| *row = new).is_some();
        self.scored.retain_mut(|scored| follow(&mut scored.row));
        self.sampled.retain_mut(|sampled| follow(&mut sampled.row));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::Row;
    use kernels::cpu::Distribution;
    use tokens::{BlockSize, DonorId, TokenId};

    use super::*;

    fn span(request_id: u64) -> SpanCopy {
        SpanCopy {
            request_id: RequestId(request_id),
            donor: DonorId(request_id),
            src_blocks: Vec::new(),
            src_pos: 0,
            dst_blocks: Vec::new(),
            dst_pos: 0,
            token_ids: Vec::new(),
        }
    }

    #[test]
    fn rows_of_a_rejected_span_are_dropped_and_others_keep_what_they_are_for() {
        let mut batch = InputBatch::default();
        for (request_id, num_rows) in [(7, 2), (8, 3), (9, 2)] {
            let rows = |position| Row { token: TokenId(10 * request_id + position), position };
            batch.push(&(0..num_rows).map(rows).collect::<Vec<_>>(), vec![request_id], BlockSize::DEFAULT);
            batch.sequences.last_mut().unwrap().request_id = Some(RequestId(request_id.into()));
        }
        batch.logit_rows = Some(vec![1, 2, 4, 5, 6]);
        let scored = [0, 2, 5].map(|row| ScoreRow { row, token: TokenId(1), top: 0 });
        let distribution = Distribution { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        let sampled =
            |row| SampleRow { row, adjustments: Arc::default(), distribution, uniform: 0.0, logprobs: None, mask: None };
        let spans = [7, 8, 9].map(span);
        let (scored, sampled) = (scored.to_vec(), [1, 4, 6].map(sampled).to_vec());
        let mut step = DeviceStep { spans: &spans, batch, scored, sampled, ..DeviceStep::default() };
        assert_eq!(step.reject(&[0.0, 0.5, 0.1], 0.5), []);
        assert_eq!(step.batch.num_rows(), 7);
        let rejected = step.reject(&[0.0, f32::NAN, 0.1], 0.5);
        assert_eq!(rejected.iter().map(|span| span.donor.0).collect::<Vec<_>>(), [8]);
        assert_eq!(step.batch.token_ids, [70, 71, 90, 91]);
        assert_eq!(step.batch.sequences.iter().map(|sequence| sequence.first_row).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(step.batch.logit_rows, Some(vec![1, 2, 3]));
        assert_eq!(step.scored.iter().map(|scored| scored.row).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(step.sampled.iter().map(|sampled| sampled.row).collect::<Vec<_>>(), [1, 3]);
    }
}
