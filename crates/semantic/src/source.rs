//! Sources of donor candidates.
//!
//! A source proposes donors with a score. It decides nothing: comparing ids with [`SpanIndex::find`](crate::SpanIndex::find) or
//! [`SpanIndex::find_in`](crate::SpanIndex::find_in) determines the spans of a proposed donor.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tokens::{DonorId, Scope, TokenId, TokenRange};

use crate::{EmbeddingIndex, SpanIndex};

/// A prompt that needs donors.
#[derive(Clone, Copy, Debug)]
pub struct DonorQuery<'a> {
    /// Scope of the proposed donors.
    pub scope: Scope,
    /// All tokens of the prompt.
    pub tokens: &'a [TokenId],
    /// End of its prefix hit.
    pub from: u32,
    /// Embedding of the prompt, if it is known by now.
    pub embedding: Option<&'a [f32]>,
}

/// A donor that may be worth comparing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    /// Proposed donor.
    pub donor: DonorId,
    /// Score, at most 1. Scores of different sources are not comparable.
    pub score: f32,
}

/// A source of donor candidates.
pub trait DonorSource {
    /// Proposes at most `max` donors for `query`, the highest score first, among equals the youngest.
    fn propose(&self, query: &DonorQuery<'_>, max: usize) -> Vec<Proposal>;
}

/// Scores a donor by the share of the tokens right of the prefix hit that it has in equal spans.
impl DonorSource for SpanIndex {
    fn propose(&self, query: &DonorQuery<'_>, max: usize) -> Vec<Proposal> {
        let mut covered: BTreeMap<DonorId, (u32, u32)> = BTreeMap::new();
        for found in self.find(query.scope, query.tokens, query.from) {
            let (num_tokens, end) = covered.entry(found.donor).or_default();
            let range = found.target_range();
            *num_tokens += TokenRange::new(range.start.max(*end), range.end).len();
            *end = range.end.max(*end);
        }
        let num_wanted = (query.tokens.len() as f32 - query.from as f32).max(1.0);
        let share = |(donor, (num_tokens, _))| Proposal { donor, score: num_tokens as f32 / num_wanted };
        best_of(covered.into_iter().map(share).collect(), max)
    }
}

/// Scores a donor by the cosine of its nearest vector. Proposes nothing for a query without an embedding.
impl DonorSource for EmbeddingIndex {
    fn propose(&self, query: &DonorQuery<'_>, max: usize) -> Vec<Proposal> {
        let Some(embedding) = query.embedding else { return Vec::new() };
        let mut nearest: BTreeMap<DonorId, f32> = BTreeMap::new();
        for similar in self.nearest(query.scope, embedding, max) {
            let score = nearest.entry(similar.donor).or_insert(similar.cosine);
            *score = score.max(similar.cosine);
        }
        best_of(nearest.into_iter().map(|(donor, score)| Proposal { donor, score }).collect(), max)
    }
}

fn best_of(mut proposals: Vec<Proposal>, max: usize) -> Vec<Proposal> {
    proposals.sort_by(|a, b| b.score.total_cmp(&a.score).then(Reverse(a.donor).cmp(&Reverse(b.donor))));
    proposals.truncate(max);
    proposals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use crate::{EmbeddingIndexConfig, SpanIndexConfig};

    const SCOPE: Scope = Scope(1);

    #[track_caller]
    fn check(source: &impl DonorSource, query: DonorQuery<'_>, max: usize, expected: &[(u64, f32)]) {
        let proposals = source.propose(&query, max);
        let found: Vec<_> =
            proposals.iter().map(|proposal| (proposal.donor.0, (proposal.score * 100.0).round() / 100.0)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn spans_propose_whoever_covers_most() {
        let mut random = Random(1);
        let mut index = SpanIndex::new(SpanIndexConfig::default());
        let texts = [0, 1, 2].map(|_| random.tokens(200, 50_000));
        index.insert(SCOPE, DonorId(1), texts[0].as_slice().into());
        index.insert(SCOPE, DonorId(2), [texts[2].clone(), texts[1].clone()].concat().into());
        index.insert(Scope(2), DonorId(3), texts.concat().into());
        let target = [texts[0].clone(), texts[1].clone(), texts[2][..100].to_vec()].concat();
        let query = DonorQuery { scope: SCOPE, tokens: &target, from: 0, embedding: None };
        check(&index, query, 9, &[(2, 0.6), (1, 0.4)]);
        check(&index, DonorQuery { from: 100, ..query }, 1, &[(2, 0.75)]);
    }

    #[test]
    fn embeddings_propose_whoever_is_nearest() {
        let mut index = EmbeddingIndex::new(EmbeddingIndexConfig { min_cosine: 0.5, ..EmbeddingIndexConfig::new(2) });
        index.insert(SCOPE, DonorId(1), &[&[1.0, 0.0], &[0.0, 1.0]]);
        index.insert(SCOPE, DonorId(2), &[&[1.0, 1.0]]);
        let query = DonorQuery { scope: SCOPE, tokens: &[], from: 0, embedding: Some(&[3.0, 0.0]) };
        check(&index, query, 9, &[(1, 1.0), (2, 0.71)]);
        check(&index, DonorQuery { embedding: None, ..query }, 9, &[]);
        check(&index, DonorQuery { scope: Scope(2), ..query }, 9, &[]);
    }
}
