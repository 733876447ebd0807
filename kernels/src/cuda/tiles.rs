//! Assignment of query tokens to thread blocks by prefill attention.

use std::cmp::Reverse;

use cudarc::driver::DeviceRepr;

use super::upload::Words;

/// Some query tokens of one sequence, as a kernel reads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Row of the first token in the batch.
    pub first_row: u32,
    /// Number of tokens; their rows are consecutive.
    pub num_rows: u32,
    /// Row of the block tables.
    pub table: u32,
    /// Number of keys that the last token sees: its position plus one.
    pub kv_len: u32,
}

impl Tile {
    /// Returns its memory representation.
    #[must_use]
    pub const fn words(self) -> [u32; 4] {
        [self.first_row, self.num_rows, self.table, self.kv_len]
    }
}

// SAFETY: four words, any of which may be anything.
unsafe impl Words for Tile {
    const COUNT: usize = 4;
}

// SAFETY: four words, no padding.
unsafe impl DeviceRepr for Tile {}

/// Query tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct TileSequence<'a> {
    /// Row of the first token in the batch; the others follow.
    pub first_row: usize,
    /// Position of each token, ascending, gaps allowed.
    pub positions: &'a [u32],
    /// Row of the block tables.
    pub table: usize,
}

/// Returns tiles of up to `tile_tokens` tokens that cover all sequences. Those with the most keys come first, so that the last ones to
/// finish are short.
#[must_use]
pub fn tiles(sequences: &[TileSequence<'_>], tile_tokens: usize) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for sequence in sequences {
        debug_assert!(sequence.positions.is_sorted(), "positions ascend");
        for (i, positions) in sequence.positions.chunks(tile_tokens).enumerate() {
            let last = *positions.last().expect("a chunk is not empty");
            tiles.push(Tile {
                first_row: (sequence.first_row + i * tile_tokens) as u32,
                num_rows: positions.len() as u32,
                table: sequence.table as u32,
                kv_len: last + 1,
            });
        }
    }
    tiles.sort_by_key(|tile| Reverse(tile.kv_len));
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_token_once_and_the_longest_come_first() {
        let sequences = [
            TileSequence { first_row: 0, positions: &[4, 5, 9], table: 3 },
            TileSequence { first_row: 3, positions: &[], table: 0 },
            TileSequence { first_row: 3, positions: &[7], table: 1 },
        ];
        let tile = |first_row, num_rows, table, kv_len| Tile { first_row, num_rows, table, kv_len };
        assert_eq!(tiles(&sequences, 2), [tile(2, 1, 3, 10), tile(3, 1, 1, 8), tile(0, 2, 3, 6)]);
    }
}
