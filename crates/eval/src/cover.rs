//! Share of a prompt that another prompt has: the upper bound of any span search.

use std::collections::HashSet;

use tokens::TokenId;

/// Equal tokens in a row that count. As in the span index: shorter runs occur by chance.
const RUN_TOKENS: usize = 16;

/// Returns the share of `prompt`'s tokens in runs of 16 tokens that `donor` has anywhere.
pub(crate) fn covered_share(prompt: &[TokenId], donor: &[TokenId]) -> f64 {
    let runs: HashSet<_> = donor.windows(RUN_TOKENS).collect();
    let mut is_covered = vec![false; prompt.len()];
    for (start, run) in prompt.windows(RUN_TOKENS).enumerate() {
        if runs.contains(run) {
            is_covered[start..start + RUN_TOKENS].fill(true);
        }
    }
    is_covered.iter().filter(|covered| **covered).count() as f64 / prompt.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(prompt: impl Iterator<Item = u32>, donor: impl Iterator<Item = u32>, expected: f64) {
        let (prompt, donor): (Vec<_>, Vec<_>) = (prompt.map(TokenId).collect(), donor.map(TokenId).collect());
        assert_eq!(covered_share(&prompt, &donor), expected);
    }

    #[test]
    fn only_runs_of_sixteen_count_wherever_they_stand() {
        check((0..16).chain(900..916), (500..600).chain(0..16), 0.5);
        check((0..15).chain(900..915), (500..600).chain(0..15), 0.0);
        check(0..40, 0..40, 1.0);
        check(0..0, 0..40, 0.0);
    }
}
