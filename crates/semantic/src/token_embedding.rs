//! Embeds a prompt as the weighted mean of the served model's own input embeddings.
//!
//! No other model is needed and word order is lost. Frequent tokens carry little meaning, so each weighs `a / (a + p)`, where `p` is its
//! frequency; and the component common to all texts is subtracted from the mean (Arora, Liang, Ma, "A Simple but Tough-to-Beat Baseline for
//! Sentence Embeddings", ICLR 2017, algorithm 1, which removes the first principal component instead of the mean).
//!
//! Frequencies are not counted: otherwise the embedding of a prompt would change over time, and one tenant's texts would move another's
//! vectors. Merges of a vocabulary are listed by frequency, so `p` follows from the id by Zipf's law.

use std::collections::BTreeMap;

use tokens::TokenId;

/// `a` of the weights, as in the paper.
const SMOOTHING: f32 = 1e-3;

/// Ids below this are single bytes and special tokens, in byte-level vocabularies and in those with byte fallback: the most frequent.
const NUM_BYTE_IDS: u32 = 256;

/// Table rows averaged for the common component. Chosen: the most frequent ones, which make up most of any text.
const NUM_COMMON: u32 = 8192;

/// Input embeddings of a model.
pub trait TokenVectors {
    /// Returns the number of tokens; ids are below it.
    fn num_tokens(&self) -> usize;

    /// Returns the elements of a row.
    fn num_dimensions(&self) -> usize;

    /// Writes the row of `token`, below [`num_tokens`](Self::num_tokens), to `row`.
    fn read(&self, token: TokenId, row: &mut [f32]);
}

/// Embedder by means of token embeddings.
pub struct TokenEmbedder<V> {
    vectors: V,
    /// Mean of a text with average token frequencies.
    common: Vec<f32>,
}

impl<V: TokenVectors> TokenEmbedder<V> {
    /// Creates an embedder; reads some thousand rows of `vectors`.
    #[must_use]
    pub fn new(vectors: V) -> Self {
        let num_common = NUM_COMMON.min(u32::try_from(vectors.num_tokens()).unwrap_or(NUM_COMMON));
        let frequencies = (0..num_common).map(|id| (TokenId(id), frequency(TokenId(id), vectors.num_tokens())));
        let common = weighted_mean(&vectors, frequencies).unwrap_or_else(|| vec![0.0; vectors.num_dimensions()]);
        Self { vectors, common }
    }

    /// Returns the elements of an embedding.
    #[must_use]
    pub fn num_dimensions(&self) -> usize {
        self.vectors.num_dimensions()
    }

    /// Returns the embedding of `tokens`, of length 1. `None` if it has no direction: no known tokens, or only the common component.
    ///
    /// Reads each distinct token once, so the time grows with the vocabulary of a text rather than with its length.
    #[must_use]
    pub fn embed(&self, tokens: &[TokenId]) -> Option<Vec<f32>> {
        let mut counts: BTreeMap<TokenId, f32> = BTreeMap::new();
        for &token in tokens.iter().filter(|token| (token.0 as usize) < self.vectors.num_tokens()) {
            *counts.entry(token).or_default() += 1.0;
        }
        let mut mean = weighted_mean(&self.vectors, counts.into_iter())?;
        mean.iter_mut().zip(&self.common).for_each(|(x, common)| *x -= common);
        unit(mean)
    }
}

/// Scales `vector` to length 1; `None` if it has no direction.
#[must_use]
pub fn unit(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if !length.is_normal() {
        return None;
    }
    vector.iter_mut().for_each(|x| *x /= length);
    Some(vector)
}

/// Returns the mean of the rows of tokens with their counts, each weighted by its rarity. `None` if all weights are 0.
fn weighted_mean(vectors: &impl TokenVectors, counts: impl Iterator<Item = (TokenId, f32)>) -> Option<Vec<f32>> {
    let mut row = vec![0.0; vectors.num_dimensions()];
    let mut mean = vec![0.0; vectors.num_dimensions()];
    let mut total = 0.0;
    for (token, count) in counts {
        let weight = count * SMOOTHING / (SMOOTHING + frequency(token, vectors.num_tokens()));
        vectors.read(token, &mut row);
        mean.iter_mut().zip(&row).for_each(|(mean, x)| *mean += weight * x);
        total += weight;
    }
    mean.iter_mut().for_each(|x| *x /= total);
    (total > 0.0).then_some(mean)
}

/// Returns the expected share of `token` in a text: Zipf's law, `1 / (rank * (ln n + .577))`, with the order of merges as rank.
fn frequency(token: TokenId, num_tokens: usize) -> f32 {
    let rank = token.0.saturating_sub(NUM_BYTE_IDS) + 1;
    1.0 / (rank as f32 * ((num_tokens as f32).ln() + 0.577))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Random rows around a common one.
    struct Table(Vec<Vec<f32>>);

    impl Table {
        fn new(seed: u64) -> Self {
            let mut random = Random(seed);
            let mut number = || random.below(2001) as f32 / 1000.0 - 1.0;
            Self((0..2000).map(|_| (0..32).map(|_| 3.0 + number()).collect()).collect())
        }
    }

    impl TokenVectors for Table {
        fn num_tokens(&self) -> usize {
            self.0.len()
        }

        fn num_dimensions(&self) -> usize {
            self.0[0].len()
        }

        fn read(&self, token: TokenId, row: &mut [f32]) {
            row.copy_from_slice(&self.0[token.0 as usize]);
        }
    }

    fn cosine(a: &[TokenId], b: &[TokenId]) -> f32 {
        let embedder = TokenEmbedder::new(Table::new(1));
        let (a, b) = (embedder.embed(a).unwrap(), embedder.embed(b).unwrap());
        a.iter().zip(&b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn the_same_words_in_another_order_mean_the_same() {
        let words = Random(2).tokens(100, 2000);
        let reversed: Vec<_> = words.iter().rev().copied().collect();
        assert!(cosine(&words, &reversed) > 0.9999);
    }

    #[test]
    fn different_words_mean_something_else_although_all_rows_are_alike() {
        let (a, b) = (Random(3).tokens(60, 2000), Random(4).tokens(60, 2000));
        assert!(cosine(&a, &b) < 0.5, "{}", cosine(&a, &b));
        assert!(cosine(&a, &[&a[..], &b[..10]].concat()) > 0.8);
    }

    #[test]
    fn frequent_tokens_say_little() {
        let words: Vec<_> = (0..40).map(|i| TokenId(1000 + i)).collect();
        let with = |id| [&words[..], &[TokenId(id); 40]].concat();
        assert!(cosine(&words, &with(10)) > cosine(&words, &with(1900)) + 0.2);
    }

    #[test]
    fn what_has_no_known_token_has_no_embedding() {
        let embedder = TokenEmbedder::new(Table::new(1));
        assert_eq!(embedder.embed(&[]), None);
        assert_eq!(embedder.embed(&[TokenId(2000), TokenId(u32::MAX)]), None);
    }
}
