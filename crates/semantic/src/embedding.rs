//! Finds donors of similar meaning by a full scan of int8 vectors.
//!
//! Vectors are scaled to length one and rounded to 8 bits with a scale of their own, so the scan reads a byte per dimension and adds
//! integers. A full scan is exact but for the rounding, needs no building, and removes a donor at once.
//! Of most vectors only the first half is read: with `q = (q1, q2)` and `v = (v1, v2)`, `q v <= q1 v1 + |q2| |v2|` (Cauchy and Schwarz); if
//! that is below the floor, the second half cannot lift it.
//! The result only ranks donors; comparing ids decides what may be reused.

use std::collections::BTreeMap;

use tokens::{DonorId, Scope, TenantId};

use crate::fair_lru::{FairLru, Load, LruEntry};

/// Largest code: symmetric, so that a code and its negative are equally far from 0.
const MAX_CODE: f32 = 127.0;

/// Settings of an index of embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingIndexConfig {
    /// Elements of a vector. At least 1.
    pub num_dimensions: usize,
    /// Most vectors of all scopes together. A donor has one for its prompt and any number for segments.
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

/// A vector near a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Similar {
    /// Donor of the vector.
    pub donor: DonorId,
    /// Index among the donor's vectors, in order of insertion.
    pub part: u32,
    /// Cosine of the angle between both, right to about .01.
    pub cosine: f32,
}

/// Vectors of donors, by scope.
pub struct EmbeddingIndex {
    config: EmbeddingIndexConfig,
    by_scope: BTreeMap<Scope, ScopeVectors>,
    donors: BTreeMap<DonorId, Entry>,
    /// Donors in eviction order; an entry weighs its vectors.
    lru: FairLru<DonorId>,
    num_vectors: usize,
}

/// The vectors of one scope, in rows without gaps.
#[derive(Default)]
struct ScopeVectors {
    /// First halves, `[num_rows, num_dimensions.div_ceil(2)]`.
    heads: Vec<i8>,
    /// Second halves, `[num_rows, num_dimensions / 2]`.
    tails: Vec<i8>,
    /// Factor of each row's codes.
    scales: Vec<f32>,
    /// Length of each row's second half.
    tail_lengths: Vec<f32>,
    /// Donor and part of each row.
    owners: Vec<(DonorId, u32)>,
}

/// Index entry of a donor.
struct Entry {
    scope: Scope,
    /// Row of each part.
    rows: Vec<u32>,
    lru_entry: LruEntry<DonorId>,
}

/// A vector in 8 bits, stored in 16, so that the scan need not widen the query again for each row.
struct Quantised {
    head: Vec<i16>,
    tail: Vec<i16>,
    scale: f32,
    tail_length: f32,
}

/// Margin added to a bound before the comparison, as both sides were rounded.
const ROUNDING: f32 = 1e-4;

impl EmbeddingIndex {
    /// Creates an empty index.
    ///
    /// # Panics
    /// If `config` has no dimensions.
    #[must_use]
    pub fn new(config: EmbeddingIndexConfig) -> Self {
        assert!(config.num_dimensions > 0, "a vector has at least one dimension");
        let (by_scope, donors, lru) = Default::default();
        Self { config, by_scope, donors, lru, num_vectors: 0 }
    }

    /// Number of vectors kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.num_vectors
    }

    /// True if no vector is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.num_vectors == 0
    }

    /// Calls [`insert_of`](Self::insert_of) with the same tenant for all donors.
    ///
    /// # Panics
    /// As [`insert_of`](Self::insert_of).
    pub fn insert(&mut self, scope: Scope, donor: DonorId, vectors: &[&[f32]]) -> Vec<DonorId> {
        self.insert_of(TenantId::default(), scope, donor, vectors)
    }

    /// Keeps `vectors`, of any length greater than 0, as those of `donor`, replacing its earlier ones, and returns the evicted donors. If
    /// there is no room, the tenant with most vectors evicts its least recently used donor.
    ///
    /// Returns `donor` itself if it cannot be kept: no vectors, too many, or one without a direction (zero, not finite).
    ///
    /// # Panics
    /// If a vector has another number of dimensions than the index.
    pub fn insert_of(&mut self, tenant: TenantId, scope: Scope, donor: DonorId, vectors: &[&[f32]]) -> Vec<DonorId> {
        self.remove(donor);
        let quantised: Option<Vec<_>> = vectors.iter().map(|vector| self.quantised(vector)).collect();
        let Some(vectors) = quantised.filter(|vectors| (1..=self.config.max_vectors).contains(&vectors.len())) else {
            return vec![donor];
        };
        let mut evicted = Vec::new();
        while self.num_vectors + vectors.len() > self.config.max_vectors {
            let victim = self.lru.victim(Load::Weight, tenant, vectors.len()).expect("an empty index has room");
            self.remove(victim);
            evicted.push(victim);
        }
        let kept = self.by_scope.entry(scope).or_default();
        let rows: Vec<_> = (0..).zip(&vectors).map(|(part, vector)| kept.push((donor, part), vector)).collect();
        self.num_vectors += rows.len();
        let lru_entry = self.lru.insert(tenant, donor, rows.len());
        self.donors.insert(donor, Entry { scope, rows, lru_entry });
        evicted
    }

    /// Removes `donor`. Returns true if it was kept.
    pub fn remove(&mut self, donor: DonorId) -> bool {
        let Some(Entry { scope, mut rows, lru_entry }) = self.donors.remove(&donor) else { return false };
        self.lru.remove(lru_entry);
        self.num_vectors -= rows.len();
        let vectors = self.by_scope.get_mut(&scope).expect("a donor's scope has vectors");
        // From the last row on, so that no row still to be removed changes places.
        rows.sort_unstable();
        for row in rows.into_iter().rev() {
            if let Some((owner, part)) = vectors.swap_remove(row) {
                let owner = self.donors.get_mut(&owner).expect("a row of a removed donor is removed with it");
                owner.rows[part as usize] = row;
            }
        }
        if vectors.owners.is_empty() {
            self.by_scope.remove(&scope);
        }
        true
    }

    /// Removes all donors of `scope` and returns their number.
    pub fn remove_scope(&mut self, scope: Scope) -> usize {
        let gone: Vec<_> = self.donors.iter().filter(|(_, entry)| entry.scope == scope).map(|(&donor, _)| donor).collect();
        gone.iter().filter(|&&donor| self.remove(donor)).count()
    }

    /// Records a use of `donor`, so that others are evicted before it. Does nothing if it is not kept.
    pub fn touch(&mut self, donor: DonorId) {
        let Some(entry) = self.donors.get_mut(&donor) else { return };
        entry.lru_entry = self.lru.touch(entry.lru_entry);
    }

    /// Returns the `max` vectors of `scope` nearest to `query`, of any length greater than 0, and not below the least cosine; the nearest
    /// first, among equals the youngest donor's. Returns none for a query without a direction.
    ///
    /// # Panics
    /// If `query` has another number of dimensions than the index.
    #[must_use]
    pub fn nearest(&self, scope: Scope, query: &[f32], max: usize) -> Vec<Similar> {
        let (Some(vectors), Some(query)) = (self.by_scope.get(&scope), self.quantised(query)) else { return Vec::new() };
        let mut floor = self.config.min_cosine;
        let mut best: Vec<Similar> = Vec::with_capacity(max.min(vectors.owners.len()) + 1);
        let heads = vectors.heads.chunks_exact(query.head.len()).zip(&vectors.scales).zip(&vectors.tail_lengths);
        for (row, ((head, scale), tail_length)) in heads.enumerate() {
            let scale = scale * query.scale;
            let in_head = dot(&query.head, head);
            if in_head as f32 * scale + query.tail_length * tail_length + ROUNDING < floor {
                continue;
            }
            let tail = &vectors.tails[row * query.tail.len()..][..query.tail.len()];
            let cosine = (in_head + dot(&query.tail, tail)) as f32 * scale;
            if cosine >= floor {
                let (donor, part) = vectors.owners[row];
                insert_sorted(&mut best, Similar { donor, part, cosine }, max);
            }
            if best.len() == max {
                floor = best.last().map_or(floor, |last| last.cosine.max(floor));
            }
        }
        best
    }

    /// Returns `vector` scaled to length one; `None` if it has no direction.
    fn quantised(&self, vector: &[f32]) -> Option<Quantised> {
        assert_eq!(vector.len(), self.config.num_dimensions, "vectors of one embedder have one number of dimensions");
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        let largest = vector.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        if !length.is_normal() || !largest.is_normal() {
            return None;
        }
        let mut head: Vec<_> = vector.iter().map(|x| (x / largest * MAX_CODE).round() as i16).collect();
        let tail = head.split_off(head.len().div_ceil(2));
        let scale = largest / MAX_CODE / length;
        let tail_length = tail.iter().map(|&code| i32::from(code) * i32::from(code)).sum::<i32>() as f32;
        Some(Quantised { head, tail, scale, tail_length: tail_length.sqrt() * scale })
    }
}

impl ScopeVectors {
    fn push(&mut self, owner: (DonorId, u32), vector: &Quantised) -> u32 {
        self.heads.extend(vector.head.iter().map(|&code| code as i8));
        self.tails.extend(vector.tail.iter().map(|&code| code as i8));
        self.scales.push(vector.scale);
        self.tail_lengths.push(vector.tail_length);
        self.owners.push(owner);
        u32::try_from(self.owners.len() - 1).expect("fewer than 2^32 vectors fit into memory")
    }

    /// Removes `row` and moves the last row into its place. Returns the owner of the moved row, unless it was `row` itself.
    fn swap_remove(&mut self, row: u32) -> Option<(DonorId, u32)> {
        let row = row as usize;
        let num_rows = self.owners.len();
        for codes in [&mut self.heads, &mut self.tails] {
            let num_codes = codes.len() / num_rows;
            let last = codes.len() - num_codes;
            codes.copy_within(last.., row * num_codes);
            codes.truncate(last);
        }
        self.scales.swap_remove(row);
        self.tail_lengths.swap_remove(row);
        self.owners.swap_remove(row);
        self.owners.get(row).copied()
    }
}

fn dot(query: &[i16], codes: &[i8]) -> i32 {
    query.iter().zip(codes).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

/// Inserts into `best`, which stays sorted and at most `max` long.
fn insert_sorted(best: &mut Vec<Similar>, similar: Similar, max: usize) {
    let is_before = |other: &Similar| {
        let by_cosine = other.cosine.total_cmp(&similar.cosine);
        by_cosine.then(other.donor.cmp(&similar.donor)).then(similar.part.cmp(&other.part)).is_gt()
    };
    let at = best.partition_point(is_before);
    if at < max {
        best.insert(at, similar);
        best.truncate(max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const A: Scope = Scope(1);
    const B: Scope = Scope(2);

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
        for (id, vector) in vectors.iter().enumerate() {
            index.insert(A, DonorId(id as u64), &[vector]);
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
        index.insert(A, DonorId(1), &[&[1.0, 2.0, 3.0]]);
        assert_eq!(index.nearest(B, &[1.0, 2.0, 3.0], 5), []);
        assert_eq!(index.nearest(A, &[1.0, 2.0, 3.0], 5).len(), 1);
    }

    #[test]
    fn parts_keep_their_names_and_equals_come_youngest_first() {
        let mut index = EmbeddingIndex::new(EmbeddingIndexConfig::new(2));
        index.insert(A, DonorId(1), &[&[0.0, 1.0], &[2.0, 0.0]]);
        index.insert(A, DonorId(2), &[&[1.0, 0.0], &[1.0, 0.0]]);
        let names = |max| index.nearest(A, &[5.0, 0.0], max).iter().map(|s| (s.donor.0, s.part)).collect::<Vec<_>>();
        assert_eq!(names(9), [(2, 0), (2, 1), (1, 1)]);
        assert_eq!(names(2), [(2, 0), (2, 1)]);
        assert_eq!(names(0), []);
    }

    #[test]
    fn what_has_no_direction_is_not_kept() {
        let mut index = EmbeddingIndex::new(EmbeddingIndexConfig { max_vectors: 2, ..EmbeddingIndexConfig::new(2) });
        let some: &[f32] = &[1.0, 0.0];
        let (zero, nan, infinite): (&[f32], &[f32], &[f32]) = (&[0.0, 0.0], &[f32::NAN, 1.0], &[f32::INFINITY, 0.0]);
        for vectors in [&[][..], &[zero], &[some, nan], &[infinite], &[some, some, some]] {
            assert_eq!(index.insert(A, DonorId(1), vectors), [DonorId(1)]);
        }
        assert!(index.is_empty());
        assert_eq!(index.nearest(A, &[0.0, 0.0], 1), []);
    }

    #[test]
    fn the_least_recently_used_donors_go_first() {
        let mut index = EmbeddingIndex::new(EmbeddingIndexConfig { max_vectors: 4, ..EmbeddingIndexConfig::new(1) });
        for id in 1..=4 {
            assert_eq!(index.insert(A, DonorId(id), &[&[1.0]]), []);
        }
        index.touch(DonorId(1));
        assert_eq!(index.insert(B, DonorId(5), &[&[1.0], &[-1.0]]), [DonorId(2), DonorId(3)]);
        assert_eq!(index.len(), 4);
    }

    #[test]
    fn a_flood_of_one_tenant_forgets_its_own_vectors_first() {
        let mut index = EmbeddingIndex::new(EmbeddingIndexConfig { max_vectors: 30, ..EmbeddingIndexConfig::new(1) });
        for (tenant, num_donors) in [(1, 10), (2, 200), (3, 10)] {
            for id in 0..num_donors {
                index.insert_of(TenantId(tenant), Scope(tenant.into()), DonorId(u64::from(tenant) * 1000 + id), &[&[1.0]]);
            }
        }
        let kept = [1, 2, 3].map(|tenant| index.nearest(Scope(tenant), &[1.0], 99).len());
        assert_eq!(kept, [10, 10, 10]);
    }

    /// After any walk, the index finds the same as an index of only the kept donors.
    #[test]
    fn what_left_leaves_no_trace() {
        let mut random = Random(3);
        let config = EmbeddingIndexConfig { max_vectors: 12, min_cosine: -1.0, ..EmbeddingIndexConfig::new(4) };
        let mut index = EmbeddingIndex::new(config);
        let mut kept: BTreeMap<DonorId, (Scope, Vec<Vec<f32>>)> = BTreeMap::new();
        for _ in 0..2000 {
            let donor = DonorId(random.below(9) as u64);
            match random.below(8) {
                0 => assert_eq!(index.remove(donor), kept.remove(&donor).is_some()),
                1 => index.touch(donor),
                2 if random.below(8) == 0 => {
                    assert_eq!(index.remove_scope(A), kept.values().filter(|(scope, _)| *scope == A).count());
                    kept.retain(|_, (scope, _)| *scope != A);
                }
                _ => {
                    let vectors: Vec<_> = (0..=random.below(4)).map(|_| vector(&mut random, 4)).collect();
                    let scope = [A, B][random.below(2)];
                    let evicted = index.insert(scope, donor, &vectors.iter().map(Vec::as_slice).collect::<Vec<_>>());
                    evicted.iter().for_each(|gone| assert!(kept.remove(gone).is_some()));
                    kept.insert(donor, (scope, vectors));
                }
            }
            let mut fresh = EmbeddingIndex::new(config);
            for (&donor, (scope, vectors)) in &kept {
                fresh.insert(*scope, donor, &vectors.iter().map(Vec::as_slice).collect::<Vec<_>>());
            }
            let query = vector(&mut random, 4);
            assert_eq!(index.len(), fresh.len());
            assert_eq!(
                [A, B].map(|scope| index.nearest(scope, &query, 20)),
                [A, B].map(|scope| fresh.nearest(scope, &query, 20))
            );
        }
    }
}
