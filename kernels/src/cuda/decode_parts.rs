//! Assignment of the rows of a decode step to thread blocks.

use std::cmp::Reverse;

use cudarc::driver::DeviceRepr;

use super::paged::BLOCK;
use super::upload::Words;

/// One of the parts into which the keys of a row are divided evenly; parts of a row are consecutive.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodePart {
    /// Row of the batch, or that of [`DecodePart::NONE`].
    pub row: u32,
    /// Index of the row's first part.
    pub first_part: u32,
    /// Number of parts of the row.
    pub num_parts: u32,
}

// SAFETY: three words, any of which may be anything.
unsafe impl Words for DecodePart {
    const COUNT: usize = 3;
}

// SAFETY: three u32 in C's order, no padding.
unsafe impl DeviceRepr for DecodePart {}

/// Position of a row without a sequence, such as padding rows in a captured graph.
pub const NO_SEQUENCE: u32 = u32::MAX;

/// Maximum number of parts of a row, `MAX_PARTS` of `decode_attention.cu`.
const MAX_PARTS: usize = 128;
/// Maximum length of a part as a multiple of the mean row length: the rest of the batch should not wait for one long row. Chosen.
const LONG_ROW: usize = 2;
/// Number of parts that are added up in the time it takes to read one block of 32 keys. Measured by the example `paged_attention_speed`: at
/// batch 1 and 4096 positions 16 parts take no longer than 32.
const PARTS_A_BLOCK: usize = 4;

impl DecodePart {
    /// A part that computes nothing: pads the list of a captured graph.
    pub const NONE: Self = Self { row: u32::MAX, first_part: 0, num_parts: 0 };

    /// Returns its memory representation.
    #[must_use]
    pub const fn words(self) -> [u32; 3] {
        [self.row, self.first_part, self.num_parts]
    }

    /// Returns the maximum number of parts that [`decode_parts`] makes: the length of the list of a captured graph.
    #[must_use]
    pub fn most(num_rows: usize, num_kv_heads: usize, num_multiprocessors: usize) -> usize {
        num_rows + num_multiprocessors.div_ceil(num_kv_heads).max(num_rows.div_ceil(LONG_ROW))
    }
}

/// Divides rows so that every multiprocessor has a part if there are few rows, and no part is much longer than a row of the mean length.
///
/// Longer rows come first. The list also remains valid for all later positions of the same rows, only less even. A row without a sequence
/// has one part.
#[must_use]
pub fn decode_parts(positions: &[u32], num_kv_heads: usize, num_multiprocessors: usize) -> Vec<DecodePart> {
    let blocks = |row: usize| if positions[row] == NO_SEQUENCE { 0 } else { positions[row] as usize / BLOCK + 1 };
    let total: usize = (0..positions.len()).map(blocks).sum();
    let filling = total.div_ceil(num_multiprocessors.div_ceil(num_kv_heads));
    let share = filling.min((LONG_ROW * total).div_ceil(positions.len().max(1))).max(1);
    let mut rows: Vec<usize> = (0..positions.len()).collect();
    rows.sort_by_key(|row| Reverse(blocks(*row)));
    let mut parts = Vec::new();
    for row in rows {
        let (first_part, num_parts) = (parts.len() as u32, count(blocks(row), share));
        parts.extend((0..num_parts).map(|_| DecodePart { row: row as u32, first_part, num_parts: num_parts as u32 }));
    }
    parts
}

/// Returns the number of parts of a row of `blocks` blocks: the nearest to shares of `share`, but no more than pay. `blocks / n` blocks are
/// read while `n` parts wait to be added up; the sum is smallest at the root of `PARTS_A_BLOCK * blocks`.
fn count(blocks: usize, share: usize) -> usize {
    let paying = (PARTS_A_BLOCK * blocks).isqrt();
    ((2 * blocks + share) / (2 * share)).min(paying).clamp(1, MAX_PARTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the rows and their numbers of parts, in order.
    #[track_caller]
    fn check(lens: &[u32], expected: &[(u32, u32)]) {
        let positions: Vec<u32> = lens.iter().map(|len| len.wrapping_sub(1)).collect();
        let parts = decode_parts(&positions, 4, 132);
        assert!(parts.len() <= DecodePart::most(lens.len(), 4, 132));
        let firsts = parts.iter().enumerate().filter(|(i, part)| *i == part.first_part as usize);
        assert_eq!(firsts.map(|(_, part)| (part.row, part.num_parts)).collect::<Vec<_>>(), expected);
        assert!(parts.iter().all(|part| parts[part.first_part as usize] == *part), "parts of a row are equal");
        assert_eq!(parts.len() as u32, expected.iter().map(|(_, num_parts)| num_parts).sum::<u32>());
    }

    #[test]
    fn one_long_row_fills_the_gpu() {
        check(&[32768], &[(0, 32)]);
        check(&[100], &[(0, 4)]);
        check(&[4096], &[(0, 22)]);
        check(&[1], &[(0, 1)]);
    }

    #[test]
    fn a_long_row_among_short_ones_is_divided() {
        check(&[32, 4096, 64], &[(1, 22), (2, 1), (0, 1)]);
    }

    #[test]
    fn many_rows_stay_whole_but_for_a_long_one() {
        check(&[&[1024; 255][..], &[8192]].concat(), &[&[(255, 4)], &*(0..255).map(|row| (row, 1)).collect::<Vec<_>>()].concat());
        check(&[1024; 64], &(0..64).map(|row| (row, 1)).collect::<Vec<_>>());
    }

    #[test]
    fn a_row_without_a_sequence_has_a_part_that_writes_zeros() {
        check(&[0, 64], &[(1, 2), (0, 1)]);
    }
}
