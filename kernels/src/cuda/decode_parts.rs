//! How the rows of a decode step are dealt to blocks of threads.

use std::cmp::Reverse;

use cudarc::driver::DeviceRepr;

use super::paged::BLOCK;

/// One of the parts into which the keys of a row are divided evenly; parts of a row follow each other.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodePart {
    /// Row of the batch, or [`DecodePart::NONE`]'s.
    pub row: u32,
    /// Index of the row's first part.
    pub first_part: u32,
    /// Parts the row has.
    pub num_parts: u32,
}

// SAFETY: three u32 in C's order, no padding.
unsafe impl DeviceRepr for DecodePart {}

/// Position of a row without a sequence, as rows beyond the batch in a captured graph.
pub const NO_SEQUENCE: u32 = u32::MAX;

/// Most parts of a row, `MAX_PARTS` of `decode_attention.cu`.
const MAX_PARTS: usize = 128;
/// Times the mean length that a part may have: the rest of the batch should not wait for one long row. Chosen.
const LONG_ROW: usize = 2;
/// Blocks of 32 keys that pay for a part. Measured by the example `paged_attention_speed`: at batch 1 and 1024 positions.
const MIN_BLOCKS: usize = 2;

impl DecodePart {
    /// Computes nothing: fills the list of a captured graph.
    pub const NONE: Self = Self { row: u32::MAX, first_part: 0, num_parts: 0 };

    /// Most parts that [`decode_parts`] makes: so long is the list of a captured graph.
    #[must_use]
    pub fn most(num_rows: usize, num_kv_heads: usize, num_multiprocessors: usize) -> usize {
        num_rows + num_multiprocessors.div_ceil(num_kv_heads).max(num_rows.div_ceil(LONG_ROW))
    }
}

/// Divides rows so that every multiprocessor has a part if the rows are few, and no part is much longer than a row of the mean length.
///
/// Longer rows come first. The list is right for all later positions of the same rows too, only less even.
/// A row without a sequence has one part.
#[must_use]
pub fn decode_parts(positions: &[u32], num_kv_heads: usize, num_multiprocessors: usize) -> Vec<DecodePart> {
    let blocks = |row: usize| if positions[row] == NO_SEQUENCE { 0 } else { positions[row] as usize / BLOCK + 1 };
    let total: usize = (0..positions.len()).map(blocks).sum();
    let filling = total.div_ceil(num_multiprocessors.div_ceil(num_kv_heads));
    let share = filling.min((LONG_ROW * total).div_ceil(positions.len().max(1))).max(MIN_BLOCKS);
    let mut rows: Vec<usize> = (0..positions.len()).collect();
    rows.sort_by_key(|row| Reverse(blocks(*row)));
    let mut parts = Vec::new();
    for row in rows {
        let (first_part, num_parts) = (parts.len() as u32, blocks(row).div_ceil(share).clamp(1, MAX_PARTS));
        parts.extend((0..num_parts).map(|_| DecodePart { row: row as u32, first_part, num_parts: num_parts as u32 }));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows and their numbers of parts, in order.
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
        check(&[100], &[(0, 2)]);
        check(&[1], &[(0, 1)]);
    }

    #[test]
    fn a_long_row_among_short_ones_is_divided() {
        check(&[32, 4096, 64], &[(1, 32), (2, 1), (0, 1)]);
    }

    #[test]
    fn many_rows_stay_whole_but_for_a_long_one() {
        check(&[&[1024; 255][..], &[8192]].concat(), &[&[(255, 4)], &*(0..255).map(|row| (row, 1)).collect::<Vec<_>>()].concat());
        check(&[1024; 64], &(0..64).map(|row| (row, 1)).collect::<Vec<_>>());
    }

    #[test]
    fn a_row_without_a_sequence_has_a_part_that_writes_zeros() {
        check(&[0, 64], &[(1, 1), (0, 1)]);
    }
}
