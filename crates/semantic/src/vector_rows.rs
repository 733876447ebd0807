//! Vectors of donors in rows, and the full scan over them.
//!
//! The scan reads a byte per dimension and adds integers. It is exact but for the rounding, needs no building, and a row is removed at once.
//! Of most vectors only the first half is read: with `q = (q1, q2)` and `v = (v1, v2)`, `q v <= q1 v1 + |q2| |v2|` (Cauchy and Schwarz); if
//! that is below the floor, the second half cannot lift it.

use std::cmp::Ordering;

use tokens::DonorId;

use crate::quantised::Quantised;

/// Margin added to a bound before the comparison, as both sides were rounded.
const ROUNDING: f32 = 1e-4;

/// A vector near a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Similar {
    /// Donor of the vector.
    pub(crate) donor: DonorId,
    /// Cosine of the angle between both, right to about .01.
    pub(crate) cosine: f32,
}

impl Similar {
    /// Compares by rank: the nearer comes first, among equals the younger donor.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        other.cosine.total_cmp(&self.cosine).then(other.donor.cmp(&self.donor))
    }
}

/// The vectors of one scope, in rows without gaps.
#[derive(Default)]
pub(crate) struct VectorRows {
    /// First halves, `[num_rows, num_dimensions.div_ceil(2)]`.
    heads: Vec<i8>,
    /// Second halves, `[num_rows, num_dimensions / 2]`.
    tails: Vec<i8>,
    /// Factor of each row's codes.
    scales: Vec<f32>,
    /// Length of each row's second half.
    tail_lengths: Vec<f32>,
    /// Donor of each row.
    donors: Vec<DonorId>,
}

impl VectorRows {
    pub(crate) fn is_empty(&self) -> bool {
        self.donors.is_empty()
    }

    /// Adds a row and returns its index.
    pub(crate) fn push(&mut self, donor: DonorId, vector: &Quantised) -> u32 {
        self.heads.extend(vector.head.iter().map(|&code| code as i8));
        self.tails.extend(vector.tail.iter().map(|&code| code as i8));
        self.scales.push(vector.scale);
        self.tail_lengths.push(vector.tail_length);
        self.donors.push(donor);
        u32::try_from(self.donors.len() - 1).expect("fewer than 2^32 vectors fit into memory")
    }

    /// Removes `row` and moves the last row into its place. Returns the donor of the moved row, unless it was `row` itself.
    pub(crate) fn swap_remove(&mut self, row: u32) -> Option<DonorId> {
        let row = row as usize;
        let num_rows = self.donors.len();
        for codes in [&mut self.heads, &mut self.tails] {
            let num_codes = codes.len() / num_rows;
            let last = codes.len() - num_codes;
            codes.copy_within(last.., row * num_codes);
            codes.truncate(last);
        }
        self.scales.swap_remove(row);
        self.tail_lengths.swap_remove(row);
        self.donors.swap_remove(row);
        self.donors.get(row).copied()
    }

    /// Returns the `max` donors nearest to `query` with at least `min_cosine`, the nearest first, among equals the youngest.
    pub(crate) fn nearest(&self, query: &Quantised, min_cosine: f32, max: usize) -> Vec<Similar> {
        let mut floor = min_cosine;
        let mut best: Vec<Similar> = Vec::with_capacity(max.min(self.donors.len()) + 1);
        let heads = self.heads.chunks_exact(query.head.len()).zip(&self.scales).zip(&self.tail_lengths);
        for (row, ((head, scale), tail_length)) in heads.enumerate() {
            let scale = scale * query.scale;
            let in_head = dot(&query.head, head);
            if in_head as f32 * scale + query.tail_length * tail_length + ROUNDING < floor {
                continue;
            }
            let tail = &self.tails[row * query.tail.len()..][..query.tail.len()];
            let cosine = (in_head + dot(&query.tail, tail)) as f32 * scale;
            if cosine >= floor {
                insert_sorted(&mut best, Similar { donor: self.donors[row], cosine }, max);
            }
            if best.len() == max {
                floor = best.last().map_or(floor, |last| last.cosine.max(floor));
            }
        }
        best
    }
}

fn dot(query: &[i16], codes: &[i8]) -> i32 {
    query.iter().zip(codes).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
}

/// Inserts into `best`, which stays sorted and at most `max` long.
fn insert_sorted(best: &mut Vec<Similar>, similar: Similar, max: usize) {
    let at = best.partition_point(|other| other.compare(&similar).is_lt());
    if at < max {
        best.insert(at, similar);
        best.truncate(max);
    }
}
