//! Reproducible random values.

/// SplitMix64 (Steele, Lea, Flood 2014, fig. 19).
pub(crate) struct Random(pub(crate) u64);

pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let answer = mix(self.0) % bound;
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        answer
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Returns an exponentially distributed value with mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        let uniform = (self.below(1 << 53) + 1) as f64 / (1_u64 << 53) as f64;
        -uniform.ln()
    }
}
