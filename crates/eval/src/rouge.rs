//! ROUGE-L: share of one text's words that another has in the same order (Lin 2004, "ROUGE: a package for automatic evaluation of
//! summaries", section 3.1), as F1 over lower-case words.

/// Splits into runs of letters and digits, in lower case.
pub fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Computes F1 of the longest common subsequence of words: 1 for equal texts, 0 for texts without a common word.
///
/// Two texts without any word are equal.
pub fn rouge_l(candidate: &str, reference: &str) -> f64 {
    let (candidate, reference) = (words(candidate), words(reference));
    if candidate.is_empty() && reference.is_empty() {
        return 1.0;
    }
    // With P = lcs/m and R = lcs/n, 2PR / (P + R) is 2 lcs / (m + n).
    2.0 * lcs_len(&candidate, &reference) as f64 / (candidate.len() + reference.len()) as f64
}

/// Returns the share of the reference's words that the candidate has in the same order; 1 for a reference without words.
pub fn recall(candidate: &str, reference: &str) -> f64 {
    let reference = words(reference);
    if reference.is_empty() {
        return 1.0;
    }
    lcs_len(&words(candidate), &reference) as f64 / reference.len() as f64
}

/// Computes the length of the longest common subsequence, one row of the table at a time.
fn lcs_len<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(candidate: &str, reference: &str, expected: f64) {
        let score = rouge_l(candidate, reference);
        assert!((score - expected).abs() < 1e-9, "{score}");
        assert!((rouge_l(reference, candidate) - expected).abs() < 1e-9, "F1 is symmetric");
    }

    #[test]
    fn equal_words_score_one_whatever_their_case_and_punctuation() {
        check("The cat, sat.", "the CAT sat", 1.0);
        check("", "...", 1.0);
    }

    #[test]
    fn disjoint_texts_score_zero() {
        check("a b c", "d e", 0.0);
        check("", "d e", 0.0);
    }

    #[test]
    fn the_papers_example_scores_three_quarters() {
        // Lin 2004, section 3.1: S1 "police killed the gunman", S2 "police kill the gunman".
        check("police kill the gunman", "police killed the gunman", 0.75);
        check("the gunman kill police", "police killed the gunman", 0.5);
    }

    #[test]
    fn recall_does_not_mind_what_else_is_said() {
        assert_eq!(recall("It was, I think, in season five of the show.", "Season Five"), 1.0);
        assert_eq!(recall("season six", "season five"), 0.5);
    }

    /// Finds the longest common subsequence by trying all subsets of the shorter text.
    fn naive_lcs(a: &[u8], b: &[u8]) -> usize {
        let is_subsequence = |picked: &[u8]| {
            let mut rest = b.iter();
            picked.iter().all(|x| rest.any(|y| x == y))
        };
        let subsets =
            (0_u32..1 << a.len()).map(|set| (0..a.len()).filter(|i| set >> i & 1 == 1).map(|i| a[i]).collect::<Vec<_>>());
        subsets.filter(|picked| is_subsequence(picked)).map(|picked| picked.len()).max().unwrap_or(0)
    }

    #[test]
    fn lcs_agrees_with_trying_all_subsets() {
        let mut state = 1_u32;
        let mut next = |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % n
        };
        for _ in 0..200 {
            let (len_a, len_b) = (next(9), next(12));
            let a: Vec<u8> = (0..len_a).map(|_| next(3) as u8).collect();
            let b: Vec<u8> = (0..len_b).map(|_| next(3) as u8).collect();
            assert_eq!(lcs_len(&a, &b), naive_lcs(&a, &b), "{a:?} {b:?}");
        }
    }
}
