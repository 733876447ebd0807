//! SplitMix64: a bijection of 64 bits in which each bit of the result depends on all bits of the argument.

/// Distance of a generator's states: 2^64 by the golden ratio, and odd.
pub const SPLITMIX64_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Next value after state `x` of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", fig. 19).
#[must_use]
pub const fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(SPLITMIX64_STEP);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Inverse of [`splitmix64`]: each of its steps can be undone (the factors are inverses modulo 2^64).
pub(crate) const fn unsplitmix64(x: u64) -> u64 {
    let x = (x ^ (x >> 31) ^ (x >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let x = (x ^ (x >> 27) ^ (x >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    (x ^ (x >> 30) ^ (x >> 60)).wrapping_sub(SPLITMIX64_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first values of a generator that starts in state 0, as its authors' reference implementation prints them.
    #[test]
    fn values_are_those_of_the_reference() {
        let values = [0, SPLITMIX64_STEP, SPLITMIX64_STEP.wrapping_mul(2)].map(splitmix64);
        assert_eq!(values, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }

    #[test]
    fn each_step_is_undone() {
        for x in [0, 1, 77, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(unsplitmix64(splitmix64(x)), x);
        }
    }
}
