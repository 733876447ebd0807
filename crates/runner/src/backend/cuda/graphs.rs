//! Graphs of decode steps, one for each bucket of batch size and context length.

use std::collections::HashMap;

use kernels::cuda::Graph;

use super::step::{MAX_RECORDED_ROWS, Step};

/// Blocks of the smallest context bucket. Chosen: below, attention is no part of a step's time.
const MIN_BLOCKS: usize = 16;

/// Number of rows and blocks that a graph has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    pub(super) rows: usize,
    pub(super) blocks: usize,
}

impl Bucket {
    /// Returns the smallest bucket that holds `rows` rows of up to `blocks` blocks.
    pub(super) fn of(rows: usize, blocks: usize) -> Self {
        let rows = if rows <= 4 { rows.next_power_of_two() } else { rows.next_multiple_of(8) };
        Self { rows, blocks: blocks.next_power_of_two().max(MIN_BLOCKS) }
    }

    /// Returns the row counts of all buckets.
    pub(super) fn all_rows() -> impl Iterator<Item = usize> {
        [1, 2, 4].into_iter().chain((8..=MAX_RECORDED_ROWS).step_by(8))
    }
}

/// Graphs recorded so far.
pub(super) struct DecodeGraphs {
    /// `None` for a bucket that was run once: its products have their algorithms from then on, and it can be recorded.
    pub(super) recorded: HashMap<Bucket, Option<Graph>>,
    max_rows: usize,
}

impl DecodeGraphs {
    pub(super) fn new(max_rows: usize) -> Self {
        Self { recorded: HashMap::new(), max_rows: max_rows.min(MAX_RECORDED_ROWS) }
    }

    /// Returns true if a step has one row per sequence and a number of rows that is recorded.
    pub(super) fn fits(&self, step: &Step) -> bool {
        step.runs.is_empty() && step.num_rows() > 0 && step.num_rows() <= self.max_rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_they_are_chosen_for() {
        for rows in 1..=MAX_RECORDED_ROWS {
            for blocks in [1, 15, 16, 17, 1000] {
                let bucket = Bucket::of(rows, blocks);
                assert!(bucket.rows >= rows && bucket.blocks >= blocks && Bucket::all_rows().any(|known| known == bucket.rows));
                assert!(bucket.rows < rows + 8 && bucket.blocks < (2 * blocks).max(MIN_BLOCKS + 1));
            }
        }
    }
}
