//! The maximal equal runs of two sequences.

use std::collections::HashMap;

use tokens::{TokenId, TokenRange};

/// Most positions in the donor at which one piece of text is looked up. Bounds the work for repetitive text.
const MAX_PLACES: usize = 32;

/// Equal tokens of a target and a donor that cannot be extended to either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) target_pos: u32,
    pub(crate) donor_pos: u32,
    pub(crate) num_tokens: u32,
}

impl Run {
    pub(crate) fn target_end(&self) -> u32 {
        self.target_pos + self.num_tokens
    }

    pub(crate) fn donor_end(&self) -> u32 {
        self.donor_pos + self.num_tokens
    }

    pub(crate) fn target_range(&self) -> TokenRange {
        TokenRange::new(self.target_pos, self.target_end())
    }

    /// Returns the run without its first `num_tokens` tokens, fewer than it has.
    pub(crate) fn without_first(&self, num_tokens: u32) -> Self {
        Self {
            target_pos: self.target_pos + num_tokens,
            donor_pos: self.donor_pos + num_tokens,
            num_tokens: self.num_tokens - num_tokens,
        }
    }
}

/// Returns all maximal equal runs of at least `min_tokens` tokens, at least 1, in `target` and `donor`, by target position, then donor
/// position.
///
/// Complete but for pieces of `min_tokens` tokens that the donor has more than 32 times: only the first 32 are examined.
pub(crate) fn maximal_runs(target: &[TokenId], donor: &[TokenId], min_tokens: usize) -> Vec<Run> {
    let mut places: HashMap<&[TokenId], Vec<usize>> = HashMap::new();
    for (donor_pos, piece) in donor.windows(min_tokens).enumerate() {
        let places = places.entry(piece).or_default();
        if places.len() < MAX_PLACES {
            places.push(donor_pos);
        }
    }
    let mut runs = Vec::new();
    // End of the last run on each diagonal, a diagonal being the places with one offset.
    let mut run_ends = vec![0; target.len() + donor.len()];
    for (target_pos, piece) in target.windows(min_tokens).enumerate() {
        for &donor_pos in places.get(piece).map_or(&[][..], Vec::as_slice) {
            let run_end = &mut run_ends[target_pos + donor.len() - donor_pos];
            if target_pos >= *run_end {
                let left = common_suffix(&donor[..donor_pos], &target[..target_pos]);
                let right = common_prefix(&donor[donor_pos..], &target[target_pos..]);
                *run_end = target_pos + right as usize;
                let (target_pos, donor_pos) = (target_pos as u32 - left, donor_pos as u32 - left);
                runs.push(Run { target_pos, donor_pos, num_tokens: left + right });
            }
        }
    }
    runs.sort_unstable_by_key(|run| (run.target_pos, run.donor_pos));
    runs
}

/// Tokens compared at once while all are equal: a cache line.
const STRIDE: usize = 16;

/// Returns the number of equal tokens at the beginnings of `a` and `b`.
pub(crate) fn common_prefix(a: &[TokenId], b: &[TokenId]) -> u32 {
    let strides = a.as_chunks::<STRIDE>().0.iter().zip(b.as_chunks::<STRIDE>().0);
    let equal = STRIDE * strides.take_while(|(a, b)| a == b).count();
    let rest = a[equal..].iter().zip(&b[equal..]).take_while(|(a, b)| a == b);
    (equal + rest.count()) as u32
}

/// Returns the number of equal tokens at the ends of `a` and `b`.
pub(crate) fn common_suffix(a: &[TokenId], b: &[TokenId]) -> u32 {
    let strides = a.as_rchunks::<STRIDE>().1.iter().rev().zip(b.as_rchunks::<STRIDE>().1.iter().rev());
    let equal = STRIDE * strides.take_while(|(a, b)| a == b).count();
    let rest = a[..a.len() - equal].iter().rev().zip(b[..b.len() - equal].iter().rev()).take_while(|(a, b)| a == b);
    (equal + rest.count()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Returns all maximal runs, by comparing all pairs of positions.
    fn naive(target: &[TokenId], donor: &[TokenId], min_tokens: usize) -> Vec<Run> {
        let mut runs = Vec::new();
        for target_pos in 0..target.len() {
            for donor_pos in 0..donor.len() {
                let begins = target_pos == 0 || donor_pos == 0 || target[target_pos - 1] != donor[donor_pos - 1];
                let len = target[target_pos..].iter().zip(&donor[donor_pos..]).take_while(|(a, b)| a == b).count();
                if begins && len >= min_tokens {
                    let [target_pos, donor_pos, num_tokens] = [target_pos, donor_pos, len].map(|n| n as u32);
                    runs.push(Run { target_pos, donor_pos, num_tokens });
                }
            }
        }
        runs
    }

    #[test]
    fn runs_are_all_maximal_ones() {
        let mut random = Random(1);
        for _ in 0..300 {
            let alphabet = 3 + random.below(9);
            let (target_len, donor_len) = (random.below(60), random.below(60));
            let (target, donor) = (random.tokens(target_len, alphabet), random.tokens(donor_len, alphabet));
            let min_tokens = 1 + random.below(4);
            assert_eq!(maximal_runs(&target, &donor, min_tokens), naive(&target, &donor, min_tokens));
        }
    }

    #[test]
    fn text_that_repeats_itself_has_a_bounded_number_of_runs() {
        let text = vec![TokenId(1); 5000];
        assert!(maximal_runs(&text, &text, 16).len() <= 5000 + MAX_PLACES);
    }
}
