//! The rows of one step in the device's order: single-row sequences first, then all others in tiles.

use kernels::cuda::{Tile, TileSequence, tiles};
use tokens::BlockSize;

use super::activations::MAX_LOGIT_ROWS;
use crate::{InputBatch, InputSequence};

/// Slots per block.
pub(super) const BLOCK: usize = BlockSize::DEFAULT.as_usize();

/// Maximum number of rows of a recorded step. Chosen: with more rows, launch overhead is hidden by kernel time.
pub(super) const MAX_RECORDED_ROWS: usize = 256;

/// Rows of a step in the device's order, on the host.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Step {
    pub(super) token_ids: Vec<u32>,
    pub(super) positions: Vec<u32>,
    pub(super) slots: Vec<u32>,
    /// `[sequences, max_blocks]`
    pub(super) tables: Vec<u32>,
    /// Blocks in the longest sequence.
    pub(super) max_blocks: usize,
    /// Number of single-row sequences, which are rows `0..num_single`; row `i` has table `i`.
    pub(super) num_single: usize,
    /// Device row of each row of the batch.
    pub(super) places: Vec<u32>,
    /// Rows whose logits may be requested, if few: only these are computed past the last layer's attention.
    pub(super) wanted: Option<Vec<u32>>,
    /// Kept rows to resume from, if the step does not begin at the first layer.
    pub(super) resumed: Option<Resumed>,
    /// Table of each sequence of the batch.
    pub(super) table_of: Vec<u32>,
    /// Sequences of several rows: first row, number of rows, table.
    pub(super) runs: Vec<Run>,
}

/// Rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first_row: usize,
    pub(super) num_rows: usize,
    pub(super) table: usize,
}

/// Rows and layer from which a step resumes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resumed {
    pub(super) layer: usize,
    /// Kept row of each row of the step.
    pub(super) rows: Vec<u32>,
}

impl Step {
    /// Orders the rows of `batch`: single-row sequences first.
    pub(super) fn new(batch: &InputBatch) -> Self {
        Self::with_single(batch, |sequence| sequence.num_rows == 1)
    }

    /// Keeps the rows of `batch` in their order, all of them in tiles.
    pub(super) fn of_runs(batch: &InputBatch) -> Self {
        Self::with_single(batch, |_| false)
    }

    fn with_single(batch: &InputBatch, is_single: impl Fn(&InputSequence) -> bool) -> Self {
        let sequences = batch.sequences.iter().enumerate();
        let (single, several): (Vec<_>, Vec<_>) = sequences.partition(|(_, sequence)| is_single(sequence));
        let max_blocks = batch.sequences.iter().map(|sequence| sequence.block_table.len()).max().unwrap_or(0);
        let mut step = Self {
            max_blocks,
            num_single: single.len(),
            places: vec![0; batch.num_rows()],
            table_of: vec![0; batch.sequences.len()],
            ..Self::default()
        };
        for (idx, sequence) in single {
            step.push(batch, idx, sequence);
        }
        for (idx, sequence) in several {
            let run = Run { first_row: step.num_rows(), num_rows: sequence.num_rows, table: step.table_of_next() };
            step.push(batch, idx, sequence);
            step.runs.push(run);
        }
        step
    }

    fn table_of_next(&self) -> usize {
        self.tables.len() / self.max_blocks.max(1)
    }

    fn push(&mut self, batch: &InputBatch, idx: usize, sequence: &InputSequence) {
        let (first_row, rows) = (self.token_ids.len(), sequence.first_row..sequence.first_row + sequence.num_rows);
        let table = self.table_of_next();
        for (i, row) in rows.clone().enumerate() {
            self.places[row] = (first_row + i) as u32;
        }
        self.token_ids.extend(&batch.token_ids[rows.clone()]);
        self.positions.extend(&batch.positions[rows.clone()]);
        self.slots.extend(&batch.slot_mapping[rows]);
        self.tables.extend(&sequence.block_table);
        self.tables.resize((table + 1) * self.max_blocks, 0);
        self.table_of[idx] = table as u32;
    }

    /// Sets the rows whose logits may be requested, if that saves work.
    pub(super) fn restrict_logits(&mut self, logit_rows: &[usize]) {
        if logit_rows.len() <= MAX_LOGIT_ROWS && 2 * logit_rows.len() <= self.num_rows() {
            let mut wanted: Vec<u32> = logit_rows.iter().map(|row| self.places[*row]).collect();
            wanted.sort_unstable();
            self.wanted = Some(wanted);
        }
    }

    /// Returns the device row that holds a row of the batch after the last layer.
    ///
    /// # Panics
    /// If its logits may not be requested.
    pub(super) fn place(&self, row: usize) -> u32 {
        let place = self.places[row];
        match &self.wanted {
            Some(wanted) => wanted.binary_search(&place).expect("the row was named before the step") as u32,
            None => place,
        }
    }

    /// Returns tiles of the wanted rows that are not single.
    pub(super) fn wanted_tiles(&self) -> Vec<Tile> {
        let of_row = |&row: &u32| {
            let run = self.runs.iter().find(|run| (run.first_row..run.first_row + run.num_rows).contains(&(row as usize)))?;
            let kv_len = self.positions[row as usize] + 1;
            Some(Tile { first_row: row, num_rows: 1, table: run.table as u32, kv_len })
        };
        self.wanted.iter().flatten().filter_map(of_row).collect()
    }

    pub(super) fn num_rows(&self) -> usize {
        self.token_ids.len()
    }

    /// Returns tiles of all runs, those with the longest context first.
    pub(super) fn tiles(&self, tile_tokens: usize) -> Vec<Tile> {
        let of_run = |run: &Run| {
            let positions = &self.positions[run.first_row..][..run.num_rows];
            TileSequence { first_row: run.first_row, positions, table: run.table }
        };
        tiles(&self.runs.iter().map(of_run).collect::<Vec<_>>(), tile_tokens)
    }

    /// Returns the slot of a position of a sequence.
    pub(super) fn slot(&self, table: u32, position: u32) -> u32 {
        let block = self.tables[table as usize * self.max_blocks + position as usize / BLOCK];
        block * BLOCK as u32 + position % BLOCK as u32
    }
}

#[cfg(test)]
mod tests {
    use engine::Row;
    use tokens::TokenId;

    use super::*;

    fn batch(sequences: &[(&[u32], &[u32])]) -> InputBatch {
        let mut batch = InputBatch::default();
        for (positions, table) in sequences {
            let rows: Vec<Row> = positions.iter().map(|&position| Row { token: TokenId(1000 + position), position }).collect();
            batch.push(&rows, table.to_vec(), BlockSize::DEFAULT);
        }
        batch
    }

    #[test]
    fn sequences_of_one_row_come_first_and_every_row_is_found_again() {
        let batch = batch(&[(&[31, 32, 40], &[5, 6]), (&[70], &[1, 2, 3]), (&[0, 1], &[9]), (&[3], &[4])]);
        let step = Step::new(&batch);
        assert_eq!((step.num_single, step.max_blocks, step.num_rows()), (2, 3, 7));
        for (row, place) in step.places.iter().enumerate() {
            assert_eq!(step.token_ids[*place as usize], batch.token_ids[row]);
            assert_eq!(step.slots[*place as usize], batch.slot_mapping[row]);
        }
        assert_eq!(step.positions[..2], [70, 3]);
        assert_eq!(step.table_of, [2, 0, 3, 1]);
        assert_eq!(step.tables, [1, 2, 3, 4, 0, 0, 5, 6, 0, 9, 0, 0]);
        assert_eq!(step.runs, [Run { first_row: 2, num_rows: 3, table: 2 }, Run { first_row: 5, num_rows: 2, table: 3 }]);
        assert_eq!((step.slot(2, 33), step.slot(0, 64)), (6 * 32 + 1, 3 * 32));
        assert_eq!(step.tiles(2).iter().map(|tile| tile.num_rows).sum::<u32>(), 5);
    }

    #[test]
    fn few_wanted_rows_are_packed_in_their_order() {
        let mut step = Step::new(&batch(&[(&[31, 32, 40], &[5, 6]), (&[70], &[1, 2, 3]), (&[0, 1], &[9])]));
        step.restrict_logits(&[2, 3]);
        assert_eq!(step.wanted, Some(vec![0, 3]));
        assert_eq!((step.place(3), step.place(2)), (0, 1));
        let tile = |tile: Tile| (tile.first_row, tile.num_rows, tile.table, tile.kv_len);
        assert_eq!(step.wanted_tiles().into_iter().map(tile).collect::<Vec<_>>(), [(3, 1, 1, 41)]);
        let mut all = Step::new(&batch(&[(&[31, 32, 40], &[5, 6])]));
        all.restrict_logits(&[0, 2]);
        assert_eq!((all.wanted.is_none(), all.place(2)), (true, 2));
    }

    #[test]
    fn all_rows_can_be_in_tiles() {
        let step = Step::of_runs(&batch(&[(&[31, 32, 40], &[5, 6]), (&[70], &[1, 2, 3])]));
        assert_eq!((step.num_single, step.places.clone(), step.runs.len()), (0, vec![0, 1, 2, 3], 2));
    }
}
