//! Cost model of a step on a device.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time of a step: a constant, and a share for each piece of its work.
///
/// `t = step + prefill_token * P + attention_pair * A + decode_row * D + decode_context_token * C + copied_token * S`
/// with the counts of [`StepWork`]. The part in `A` grows with the square of a prompt's length.
///
/// The defaults are chosen, not measured: the arithmetic of an 8B model with grouped-query attention (16 GFLOP a token, 0.5 MFLOP a
/// pair, 16 GB of weights, 128 KiB of KV a token) spread over four devices that reach 400 TFLOP/s and 3 TB/s each, and 2 ms of overhead
/// a step. For another machine, fit them to timed steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CostModel {
    /// Cost of each step, however small: reading the weights, launching, scheduling.
    pub step_us: f64,
    /// Cost of each computed prompt token: its share of the matrix products.
    pub prefill_token_us: f64,
    /// Cost of each pair of a computed prompt token and a position it attends to.
    pub attention_pair_ns: f64,
    /// Cost of each generated token that is fed back.
    pub decode_row_us: f64,
    /// Cost of each position such a token attends to: reading its KV.
    pub decode_context_token_ns: f64,
    /// Cost of each token whose KV is copied: read once, written once.
    pub copied_token_ns: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        Self {
            step_us: 3_300.0,
            prefill_token_us: 10.0,
            attention_pair_ns: 0.33,
            decode_row_us: 10.0,
            decode_context_token_ns: 11.0,
            copied_token_ns: 22.0,
        }
    }
}

/// Work of one step, as far as it has a cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepWork {
    /// Prompt tokens computed.
    pub prefill_tokens: u64,
    /// Positions these attend to, together.
    pub attention_pairs: u64,
    /// Generated tokens fed back.
    pub decode_rows: u64,
    /// Positions these attend to, together.
    pub decode_context_tokens: u64,
    /// Tokens whose KV is copied, from donors and between blocks.
    pub copied_tokens: u64,
}

impl CostModel {
    /// Returns the time that `work` takes.
    #[must_use]
    pub fn step_time(&self, work: &StepWork) -> Duration {
        let us = self.step_us
            + self.prefill_token_us * work.prefill_tokens as f64
            + self.attention_pair_ns * 1e-3 * work.attention_pairs as f64
            + self.decode_row_us * work.decode_rows as f64
            + self.decode_context_token_ns * 1e-3 * work.decode_context_tokens as f64
            + self.copied_token_ns * 1e-3 * work.copied_tokens as f64;
        Duration::from_secs_f64(us * 1e-6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: CostModel = CostModel {
        step_us: 1.0,
        prefill_token_us: 10.0,
        attention_pair_ns: 1000.0,
        decode_row_us: 100.0,
        decode_context_token_ns: 2000.0,
        copied_token_ns: 3000.0,
    };

    #[track_caller]
    fn check(work: StepWork, expected_us: u64) {
        assert_eq!(UNIT.step_time(&work), Duration::from_micros(expected_us));
    }

    #[test]
    fn every_piece_of_work_has_its_price() {
        check(StepWork::default(), 1);
        check(StepWork { prefill_tokens: 3, ..StepWork::default() }, 31);
        check(StepWork { attention_pairs: 3, ..StepWork::default() }, 4);
        check(StepWork { decode_rows: 3, ..StepWork::default() }, 301);
        check(StepWork { decode_context_tokens: 3, ..StepWork::default() }, 7);
        check(StepWork { copied_tokens: 3, ..StepWork::default() }, 10);
    }
}
