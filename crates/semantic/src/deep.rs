//! A second look at moved KV, deeper in the model, before it is trusted.
//!
//! The deviation at an early layer ranks the tokens to recompute, but hardly predicts the answer. Errors of earlier layers add up, so the
//! deviation at a quarter of the depth predicts much better how far an answer is from that of full computation
//! (`benches/quality/formats.md`). It costs more, so it is measured only where the early layer shows that much deviation is left.

use crate::deviation::{Deviation, unit_of};
use crate::{Depth, Probe, Readers, Repair, TokenDeviation};

/// Factor of the bound on the early deviation above which a second look is taken. Chosen: only a long prompt whose budget is spent is that
/// far above it.
const SUSPICIOUS: f32 = 4.0;

/// Stride of the second look: one of this many moved neighbours is measured.
const STRIDE: u32 = 64;

impl Repair {
    /// Returns the second probe of the tokens that stay as donors had them, whose first probe found `deviation`; `None` if none is needed.
    /// Without a bound on the deviation, it is always needed.
    #[must_use]
    pub fn deep_probe(&self, deviation: f32) -> Option<Probe> {
        let is_needed = self.deep_bail_out > 0.0 && (self.max_deviation == 0.0 || deviation > SUSPICIOUS * self.max_deviation);
        is_needed.then_some(Probe { depth: Depth::Quarter, readers: Readers::None, stride: STRIDE })
    }
}

/// Returns the deviation of all tokens that stay, `‖ΔV‖₂²` in units of the mean `‖V‖₂²`, per token of a prompt of `prompt_len` tokens.
/// `measured` has one entry for each token that stays. Infinite if a measurement is not a finite number.
#[must_use]
pub fn deep_deviation(prompt_len: u32, measured: &[TokenDeviation]) -> f32 {
    let sum: Deviation = measured.iter().map(Deviation::of).sum();
    sum.in_units(unit_of(measured)) / prompt_len.max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_that_is_left_is_looked_at_again() {
        let looks = |repair: Repair, deviation| repair.deep_probe(deviation).is_some();
        assert!(looks(Repair::recommended(), 0.5) && !looks(Repair::recommended(), 0.4));
        assert!(looks(Repair::recommended(), f32::INFINITY));
        assert!(looks(Repair { max_deviation: 0.0, ..Repair::recommended() }, 0.0));
        assert!(!looks(Repair::structural(), 9.0), "nobody asked for it");
    }

    #[test]
    fn the_deviation_is_that_of_a_token_of_the_prompt() {
        let found = |value_l2| TokenDeviation { value_l2, value_norm: 2.0, ..TokenDeviation::default() };
        assert_eq!(deep_deviation(10, &[found(2.0), found(0.0), found(1.0)]), 0.125);
        assert_eq!(deep_deviation(10, &[]), 0.0);
        assert_eq!(deep_deviation(10, &[found(f32::NAN)]), f32::INFINITY);
    }
}
