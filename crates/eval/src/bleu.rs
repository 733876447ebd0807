//! BLEU of one text: share of its n-grams that another text has.

use std::collections::BTreeMap;

use super::rouge::words;

/// Longest n-grams counted.
const MAX_WORDS: usize = 4;

/// Computes BLEU-4 of one text against one reference, over lower-case words (Papineni et al. 2002, section 2), from 0 to 1.
///
/// `BP · exp(¼ Σ ln pₙ)` with clipped precisions and the brevity penalty `BP = min(1, exp(1 − |reference| / |candidate|))`.
/// Short texts would be 0 for one missing n-gram, so precisions above single words are smoothed as `(matches + 1) / (all + 1)`
/// (Lin and Och 2004, "ORANGE", section 4). Two texts without any word are equal.
pub(crate) fn bleu(candidate: &str, reference: &str) -> f64 {
    let (candidate, reference) = (words(candidate), words(reference));
    if candidate.is_empty() || reference.is_empty() {
        return f64::from(u8::from(candidate.len() == reference.len()));
    }
    let precision = |n| {
        let smoothing = f64::from(u8::from(n > 1));
        let all = (candidate.len() + 1).saturating_sub(n);
        (clipped_matches(&candidate, &reference, n) as f64 + smoothing) / (all as f64 + smoothing)
    };
    let log_mean = (1..=MAX_WORDS).map(|n| precision(n).ln()).sum::<f64>() / MAX_WORDS as f64;
    let brevity = (1.0 - reference.len() as f64 / candidate.len() as f64).min(0.0);
    (log_mean + brevity).exp()
}

/// Counts n-grams of the candidate that the reference has, each at most as often as there.
fn clipped_matches(candidate: &[String], reference: &[String], n: usize) -> usize {
    let mut left = BTreeMap::new();
    for sequence in reference.windows(n) {
        *left.entry(sequence).or_insert(0_usize) += 1;
    }
    let mut matches = 0;
    for sequence in candidate.windows(n) {
        if let Some(left) = left.get_mut(sequence).filter(|left| **left > 0) {
            *left -= 1;
            matches += 1;
        }
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(candidate: &str, reference: &str, expected: f64) {
        let score = bleu(candidate, reference);
        assert!((score - expected).abs() < 1e-9, "{score}");
    }

    #[test]
    fn equal_texts_score_one_however_short() {
        check("Yes.", "yes", 1.0);
        check("the cat sat on the mat", "The cat sat on the mat.", 1.0);
        check("", "...", 1.0);
    }

    #[test]
    fn texts_without_a_common_word_score_zero() {
        check("a b c", "d e f", 0.0);
        check("", "d", 0.0);
        check("d", "", 0.0);
    }

    #[test]
    fn matches_are_clipped() {
        // The example of Papineni et al. 2002, section 2.1: 2 of 7 words, no pair.
        let product: f64 = 2.0 / 7.0 * (1.0 / 7.0) * (1.0 / 6.0) * (1.0 / 5.0);
        check("the the the the the the the", "the cat is on the mat", product.powf(0.25));
    }

    #[test]
    fn a_short_candidate_is_penalised() {
        let product: f64 = 1.0;
        check("the cat", "the cat sat down", product * (1.0f64 - 2.0).exp());
    }
}
