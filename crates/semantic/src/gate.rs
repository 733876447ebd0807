//! Gate on the predicted gain of a plan.
//!
//! Reuse takes time for copies, measurements and a second look, and its result is approximate. The gate rejects plans that save too little.

use crate::{Estimate, RejectReason, ReusePlan};

/// Least gain that reuse must predict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// Least saving in milliseconds.
    pub min_saved_ms: f64,
    /// Least saving as a share of full computation.
    pub min_saved_ratio: f64,
}

impl Default for Gate {
    fn default() -> Self {
        Self { min_saved_ms: 5.0, min_saved_ratio: 0.15 }
    }
}

impl Gate {
    /// Creates a gate that accepts every plan.
    #[must_use]
    pub const fn open() -> Self {
        Self { min_saved_ms: f64::NEG_INFINITY, min_saved_ratio: f64::NEG_INFINITY }
    }

    /// Returns `plan` with its estimate. Removes its spans if they save less time than the gate requires.
    #[must_use]
    pub fn apply(self, plan: ReusePlan, estimate: Estimate) -> ReusePlan {
        let plan = ReusePlan { estimate: Some(estimate), ..plan };
        let pays = estimate.saved_ms() >= self.min_saved_ms.max(self.min_saved_ratio * estimate.full_ms);
        if pays || plan.spans.is_empty() {
            return plan;
        }
        ReusePlan { spans: Vec::new(), recomputed_tokens: 0, rejected: Some(RejectReason::NotWorthIt), ..plan }
    }
}

#[cfg(test)]
mod tests {
    use tokens::DonorId;

    use super::*;
    use crate::{MatchClass, ReuseSpan};

    #[track_caller]
    fn check(gate: Gate, full_ms: f64, reuse_ms: f64, expected: Option<RejectReason>) {
        let span = ReuseSpan { donor: DonorId(1), donor_pos: 0, target_pos: 9, num_tokens: 90, class: MatchClass::Composition };
        let plan = ReusePlan { spans: vec![span], recomputed_tokens: 16, ..ReusePlan::default() };
        let estimate = Estimate { full_ms, reuse_ms };
        let gated = gate.apply(plan.clone(), estimate);
        assert_eq!((gated.rejected, gated.estimate), (expected, Some(estimate)));
        let kept = if expected.is_none() { (plan.spans, 16) } else { (Vec::new(), 0) };
        assert_eq!((gated.spans, gated.recomputed_tokens), kept);
    }

    #[test]
    fn both_bounds_count() {
        check(Gate::default(), 100.0, 80.0, None);
        check(Gate::default(), 100.0, 86.0, Some(RejectReason::NotWorthIt));
        check(Gate::default(), 10.0, 4.0, None);
        check(Gate::default(), 10.0, 6.0, Some(RejectReason::NotWorthIt));
        check(Gate::default(), 10.0, 20.0, Some(RejectReason::NotWorthIt));
    }

    #[test]
    fn an_open_gate_asks_for_nothing() {
        check(Gate::open(), 10.0, 20.0, None);
    }

    #[test]
    fn what_was_rejected_before_keeps_its_reason() {
        let plan = ReusePlan { rejected: Some(RejectReason::NoDonor), ..ReusePlan::default() };
        let gated = Gate::default().apply(plan, Estimate { full_ms: 9.0, reuse_ms: 9.0 });
        assert_eq!(gated.rejected, Some(RejectReason::NoDonor));
    }
}
