//! Ordering of blocks that are fetched after blocks that are offloaded.

use std::collections::HashMap;

use super::ends::BlockMove;

/// Returns `fetches`, each with the number of leading `offloads` that precede it, sorted by it: a fetch must wait if it writes a block that
/// an offload reads, or reads a place that an offload writes.
pub(super) fn in_turn(fetches: Vec<BlockMove>, offloads: &[BlockMove]) -> Vec<(usize, BlockMove)> {
    let (mut of_block, mut of_place) = (HashMap::new(), HashMap::new());
    for (offload, num) in offloads.iter().zip(1..) {
        of_block.insert(offload.block, num);
        of_place.insert(offload.place, num);
    }
    let before = |fetch: &BlockMove| *of_block.get(&fetch.block).max(of_place.get(&fetch.place)).unwrap_or(&0);
    let mut in_turn: Vec<(usize, BlockMove)> = fetches.into_iter().map(|fetch| (before(&fetch), fetch)).collect();
    in_turn.sort_by_key(|(num_before, _)| *num_before);
    in_turn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(u32, u32)]) -> Vec<BlockMove> {
        pairs.iter().map(|&(block, place)| BlockMove { block, place }).collect()
    }

    #[track_caller]
    fn check(fetches: &[(u32, u32)], offloads: &[(u32, u32)], expected: &[(usize, (u32, u32))]) {
        let found = in_turn(pairs(fetches), &pairs(offloads));
        let found: Vec<_> = found.into_iter().map(|(num_before, pair)| (num_before, (pair.block, pair.place))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn fetches_stand_behind_the_last_offload_of_their_block_or_place() {
        let offloads = [(7, 0), (3, 1), (5, 2)];
        check(
            &[(5, 9), (4, 8), (7, 1), (2, 0), (6, 6)],
            &offloads,
            &[(0, (4, 8)), (0, (6, 6)), (1, (2, 0)), (2, (7, 1)), (3, (5, 9))],
        );
        check(&[(5, 9), (4, 8)], &[], &[(0, (5, 9)), (0, (4, 8))]);
        // A place that is written twice is read after the second write.
        check(&[(1, 4)], &[(8, 4), (9, 5), (6, 4)], &[(3, (1, 4))]);
    }
}
