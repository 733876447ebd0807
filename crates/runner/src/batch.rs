//! One step as flat arrays for a device.

use engine::{BlockEntry, Drift, Row, ScheduledSequence};
use tokens::{BlockSize, RequestId};

/// All rows of a step, concatenated.
#[derive(Clone, Debug, Default)]
pub struct InputBatch {
    /// Token of each row.
    pub token_ids: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Slot of the pool that each row's K and V are written to: `block * block_size + offset`.
    pub slot_mapping: Vec<u32>,
    /// Sequences, in the order of their rows.
    pub sequences: Vec<InputSequence>,
    /// Rows whose logits may be requested, ascending; `None` means all. A device may leave the others unfinished: of their last layer, only
    /// K and V are needed.
    pub logit_rows: Option<Vec<usize>>,
}

/// The rows of one sequence.
#[derive(Clone, Debug, Default)]
pub struct InputSequence {
    /// Request that the rows belong to, if known.
    pub request_id: Option<RequestId>,
    /// First row in the batch.
    pub first_row: usize,
    /// Number of rows.
    pub num_rows: usize,
    /// Block of positions `i * block_size ..`.
    pub block_table: Vec<u32>,
    /// True if the attention of its last row is to be kept.
    pub watch: bool,
    /// Moved tokens that follow its rows.
    pub drift: Vec<Drift>,
}

impl InputBatch {
    /// Lays out `sequences`.
    #[must_use]
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a ScheduledSequence>, block_size: BlockSize) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            batch.push(&sequence.rows, dense_table(&sequence.block_table, block_size), block_size);
            let added = batch.sequences.last_mut().expect("it was just added");
            added.request_id = Some(sequence.request_id);
            added.watch = !sequence.watch.is_empty();
            added.drift = sequence.drift.clone();
        }
        batch
    }

    /// Sets the tokens of `sequences`, from which this batch was built.
    pub(crate) fn set_tokens<'a>(&mut self, sequences: impl IntoIterator<Item = &'a ScheduledSequence>) {
        let rows = sequences.into_iter().flat_map(|sequence| &sequence.rows);
        self.token_ids.iter_mut().zip(rows).for_each(|(to, row)| *to = row.token.0);
    }

    /// Adds a sequence of some rows, by ascending position.
    pub(crate) fn push(&mut self, rows: &[Row], block_table: Vec<u32>, block_size: BlockSize) {
        let first_row = self.token_ids.len();
        for row in rows {
            let (block, offset) = (row.position / block_size.get(), row.position % block_size.get());
            self.token_ids.push(row.token.0);
            self.positions.push(row.position);
            self.slot_mapping.push(block_table[block as usize] * block_size.get() + offset);
        }
        self.sequences.push(InputSequence { first_row, num_rows: rows.len(), block_table, ..InputSequence::default() });
    }

    /// Keeps some sequences and the rows of these. Returns the new row of each row, if it is kept.
    pub(crate) fn retain(&mut self, is_kept: impl Fn(&InputSequence) -> bool) -> Vec<Option<usize>> {
        let all = std::mem::take(self);
        let mut new_rows = vec![None; all.num_rows()];
        for sequence in all.sequences.into_iter().filter(is_kept) {
            let rows = sequence.first_row..sequence.first_row + sequence.num_rows;
            let first_row = self.num_rows();
            new_rows[rows.clone()].iter_mut().zip(first_row..).for_each(|(to, row)| *to = Some(row));
            self.token_ids.extend(&all.token_ids[rows.clone()]);
            self.positions.extend(&all.positions[rows.clone()]);
            self.slot_mapping.extend(&all.slot_mapping[rows]);
            self.sequences.push(InputSequence { first_row, ..sequence });
        }
        self.logit_rows = all.logit_rows.map(|rows| rows.into_iter().filter_map(|row| new_rows[row]).collect());
        new_rows
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.token_ids.len()
    }
}

/// Returns the blocks of `table`, of which block `i` holds positions `i * block_size ..`: kernels find a block by that.
pub(crate) fn dense_table(table: &[BlockEntry], block_size: BlockSize) -> Vec<u32> {
    let is_dense = || table.iter().zip((0..).step_by(block_size.as_usize())).all(|(entry, position)| entry.position == position);
    debug_assert!(is_dense(), "no kernel reads a table with holes");
    table.iter().map(|entry| entry.block.0).collect()
}
