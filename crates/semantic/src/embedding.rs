//! Finds donors of similar meaning by a full scan of int8 vectors.
//!
//! The result only ranks donors; comparing ids decides what may be reused.

use std::collections::{BTreeMap, HashMap};

use tokens::{DonorId, Scope};

use crate::quantised::Quantised;
use crate::vector_rows::{Similar, VectorRows};

/// Settings of the vectors of donors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingIndexConfig {
    /// Elements of a vector. At least 1.
    pub num_dimensions: usize,
    /// Most vectors of all scopes together. A donor has one or none.
    pub max_vectors: usize,
    /// Least cosine of a returned vector.
    pub min_cosine: f32,
}

impl EmbeddingIndexConfig {
    /// Creates a configuration of 50,000 vectors of `num_dimensions`, where a cosine of .8 or more counts as similar.
    #[must_use]
    pub fn new(num_dimensions: usize) -> Self {
        Self { num_dimensions, max_vectors: 50_000, min_cosine: 0.8 }
    }
}

/// Vectors of donors, by scope. The caller makes room before it adds one.
pub(crate) struct EmbeddingIndex {
    config: EmbeddingIndexConfig,
    by_scope: BTreeMap<Scope, VectorRows>,
    /// Scope and row of each donor's vector.
    places: HashMap<DonorId, (Scope, u32)>,
}

impl EmbeddingIndex {
    /// Creates an empty index.
    ///
    /// # Panics
    /// If `config` has no dimensions.
    pub(crate) fn new(config: EmbeddingIndexConfig) -> Self {
        assert!(config.num_dimensions > 0, "a vector has at least one dimension");
        Self { config, by_scope: BTreeMap::new(), places: HashMap::new() }
    }

    /// True if there is no room for one more vector.
    pub(crate) fn is_full(&self) -> bool {
        self.places.len() >= self.config.max_vectors
    }

    /// Returns `vector` as it is kept; `None` if it has no direction.
    ///
    /// # Panics
    /// If `vector` has another number of dimensions than the index.
    pub(crate) fn quantised(&self, vector: &[f32]) -> Option<Quantised> {
        assert_eq!(vector.len(), self.config.num_dimensions, "vectors of one embedder have one number of dimensions");
        Quantised::of(vector)
    }

    /// Keeps the vector of a donor that has none.
    pub(crate) fn insert(&mut self, scope: Scope, donor: DonorId, vector: &Quantised) {
        let row = self.by_scope.entry(scope).or_default().push(donor, vector);
        let before = self.places.insert(donor, (scope, row));
        debug_assert!(before.is_none(), "{donor} has one vector");
    }

    /// Removes the vector of `donor`. Returns true if it had one.
    pub(crate) fn remove(&mut self, donor: DonorId) -> bool {
        let Some((scope, row)) = self.places.remove(&donor) else { return false };
        let rows = self.by_scope.get_mut(&scope).expect("a donor's scope has vectors");
        if let Some(moved) = rows.swap_remove(row) {
            self.places.insert(moved, (scope, row));
        }
        if rows.is_empty() {
            self.by_scope.remove(&scope);
        }
        true
    }

    /// Removes all vectors.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.config);
    }

    /// Returns the `max` donors of `scope` nearest to `query`, of any length greater than 0, and not below the least cosine; the nearest
    /// first, among equals the youngest. Returns none for a query without a direction.
    ///
    /// # Panics
    /// If `query` has another number of dimensions than the index.
    pub(crate) fn nearest(&self, scope: Scope, query: &[f32], max: usize) -> Vec<Similar> {
        let (Some(rows), Some(query)) = (self.by_scope.get(&scope), self.quantised(query)) else { return Vec::new() };
        rows.nearest(&query, self.config.min_cosine, max)
    }
}

#[cfg(test)]
impl EmbeddingIndex {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn contains(&self, donor: DonorId) -> bool {
        self.places.contains_key(&donor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const A: Scope = Scope(1);
    const B: Scope = Scope(2);

    fn insert(index: &mut EmbeddingIndex, scope: Scope, donor: u64, vector: &[f32]) {
        let vector = index.quantised(vector).expect("it has a direction");
        index.insert(scope, DonorId(donor), &vector);
    }

    fn vector(random: &mut Random, num_dimensions: usize) -> Vec<f32> {
        (0..num_dimensions).map(|_| random.below(2001) as f32 / 1000.0 - 1.0).collect()
    }

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32
    }

    #[test]
    fn the_nearest_are_those_of_the_exact_cosines() {
        let mut random = Random(1);
        let mut index = EmbeddingIndex::new(EmbeddingIndexConfig { min_cosine: 0.1, ..EmbeddingIndexConfig::new(50) });
        let vectors: Vec<_> = (0..500).map(|_| vector(&mut random, 50)).collect();
        for (id, vector) in (0..).zip(&vectors) {
            insert(&mut index, A, id, vector);
        }
        for _ in 0..50 {
            let query = vector(&mut random, 50);
            let found = index.nearest(A, &query, 10);
            let mut exact: Vec<_> = vectors.iter().map(|vector| cosine(vector, &query)).collect();
            exact.sort_by(|a, b| b.total_cmp(a));
            for (similar, expected) in found.iter().zip(exact.iter().filter(|cosine| **cosine > 0.11)) {
                assert!((similar.cosine - expected).abs() < 0.01);
                assert!((similar.cosine - cosine(&vectors[similar.donor.0 as usize], &query)).abs() < 0.01);
            }
            assert!(found.len() >= exact.iter().filter(|cosine| **cosine > 0.11).count().min(10));
            assert!(found.iter().all(|similar| similar.cosine >= 0.1));
        }
    }

    #[test]
    fn nothing_is_found_in_another_scope() {
        let mut index = EmbeddingIndex::new(EmbeddingIndexConfig::new(3));
        insert(&mut index, A, 1, &[1.0, 2.0, 3.0]);
        assert_eq!(index.nearest(B, &[1.0, 2.0, 3.0], 5), []);
        assert_eq!(index.nearest(A, &[1.0, 2.0, 3.0], 5).len(), 1);
        assert_eq!(index.nearest(A, &[0.0, 0.0, 0.0], 5), [], "it has no direction");
    }

    #[test]
    fn equals_come_youngest_first() {
        let mut index = EmbeddingIndex::new(EmbeddingIndexConfig::new(2));
        for (donor, vector) in [(3, [1.0, 0.0]), (1, [2.0, 0.0]), (2, [0.0, 1.0]), (4, [1.0, 0.0])] {
            insert(&mut index, A, donor, &vector);
        }
        let donors = |max| index.nearest(A, &[5.0, 0.0], max).iter().map(|similar| similar.donor.0).collect::<Vec<_>>();
        assert_eq!(donors(9), [4, 3, 1]);
        assert_eq!(donors(2), [4, 3]);
        assert_eq!(donors(0), [] as [u64; 0]);
    }

    /// After any walk, the index finds the same as an index of only the kept vectors.
    #[test]
    fn what_left_leaves_no_trace() {
        let mut random = Random(3);
        let config = EmbeddingIndexConfig { max_vectors: 9, min_cosine: -1.0, ..EmbeddingIndexConfig::new(4) };
        let mut index = EmbeddingIndex::new(config);
        let mut kept: BTreeMap<u64, (Scope, Vec<f32>)> = BTreeMap::new();
        for _ in 0..2000 {
            let donor = random.below(9) as u64;
            assert_eq!(index.remove(DonorId(donor)), kept.remove(&donor).is_some());
            if random.below(3) > 0 {
                let (scope, vector) = ([A, B][random.below(2)], vector(&mut random, 4));
                insert(&mut index, scope, donor, &vector);
                kept.insert(donor, (scope, vector));
            }
            let mut fresh = EmbeddingIndex::new(config);
            kept.iter().for_each(|(&donor, (scope, vector))| insert(&mut fresh, *scope, donor, vector));
            let query = vector(&mut random, 4);
            assert_eq!((index.len(), index.is_full()), (kept.len(), kept.len() == 9));
            assert_eq!(
                [A, B].map(|scope| index.nearest(scope, &query, 20)),
                [A, B].map(|scope| fresh.nearest(scope, &query, 20))
            );
        }
    }
}
