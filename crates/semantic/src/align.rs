//! Edit script of a donor and a target: kept, substituted, inserted, deleted and moved tokens.
//!
//! Maximal equal runs are chained with the least gaps, then the gaps are searched again with shorter runs. A gap of `t` target and `d`
//! donor tokens counts max(t, d): as many substitutions as fit, insertions or deletions for the rest. With runs of any length and without
//! repeated tokens that is the edit distance (Levenshtein 1966); otherwise an upper bound, as short runs are searched only in small gaps.
//! Remaining target tokens that occur elsewhere in the donor are moves.
//!
//! The planner needs no script, it compares the left context of each run; the script explains its plans.

use std::cmp::Reverse;

use tokens::{TokenId, TokenRange};

use crate::runs::{Run, maximal_runs};

/// Most runs that are chained: the longest ones. Chaining is quadratic in their number.
const MAX_RUNS: usize = 512;
/// Long runs come first; shorter ones are searched in the gaps between them.
const LEVELS: [Level; 3] = [
    Level { min_tokens: 16, max_area: usize::MAX },
    Level { min_tokens: 4, max_area: 1 << 24 },
    Level { min_tokens: 1, max_area: 1 << 16 },
];
/// Least tokens of a move.
const MIN_MOVE_TOKENS: usize = 16;

/// Runs that are searched together.
struct Level {
    /// Least length of a run.
    min_tokens: usize,
    /// Most target tokens times donor tokens of a gap in which they are searched.
    max_area: usize,
}

/// An edit operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EditOp {
    /// Kind of the operation.
    pub kind: EditKind,
    /// Positions in the target. Those of all operations follow each other without gaps.
    pub target: TokenRange,
    /// Positions in the donor. Those of all operations but moves follow each other without gaps.
    pub donor: TokenRange,
}

/// Kind of an edit operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EditKind {
    /// Equal tokens, in the same order as all other kept ones.
    Keep,
    /// Different tokens, equally many on both sides.
    Substitute,
    /// Tokens that the donor does not have here.
    Insert,
    /// Tokens that the target does not have here.
    Delete,
    /// Equal tokens from elsewhere in the donor, which may be used there too.
    Move,
}

impl EditKind {
    /// Returns its name in answers.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Substitute => "substitute",
            Self::Insert => "insert",
            Self::Delete => "delete",
            Self::Move => "move",
        }
    }
}

/// Edit operations that make a target of a donor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EditScript {
    ops: Vec<EditOp>,
}

impl EditScript {
    /// Returns the operations, by ascending target position.
    #[must_use]
    pub fn ops(&self) -> &[EditOp] {
        &self.ops
    }

    /// Returns the number of equal target tokens, kept or moved.
    #[must_use]
    pub fn num_equal(&self) -> u32 {
        let equal = self.ops.iter().filter(|op| matches!(op.kind, EditKind::Keep | EditKind::Move));
        equal.map(|op| op.target.len()).sum()
    }

    /// Returns the number of substitutions, insertions and deletions if moves were not allowed.
    #[must_use]
    pub fn distance(&self) -> u32 {
        let gaps = self.ops.split(|op| op.kind == EditKind::Keep);
        gaps.map(|gap| {
            let in_place = gap.iter().filter(|op| op.kind != EditKind::Move);
            let in_donor: u32 = in_place.map(|op| op.donor.len()).sum();
            gap.iter().map(|op| op.target.len()).sum::<u32>().max(in_donor)
        })
        .sum()
    }

    fn push(&mut self, kind: EditKind, target: TokenRange, donor: TokenRange) {
        if !target.is_empty() || !donor.is_empty() {
            self.ops.push(EditOp { kind, target, donor });
        }
    }

    /// Appends the operations that replace donor tokens `donor` by target tokens `target`, some of them `moved`.
    fn push_gap(&mut self, target: TokenRange, mut donor: TokenRange, moved: &[Run]) {
        let mut at = target.start;
        let ends = moved.iter().map(|run| (run.target_pos, Some(run))).chain([(target.end, None)]);
        for (end, run) in ends {
            let num_replaced = donor.len().min(end - at);
            let (replacing, replaced) =
                (TokenRange::new(at, at + num_replaced), TokenRange::new(donor.start, donor.start + num_replaced));
            donor.start = replaced.end;
            self.push(EditKind::Substitute, replacing, replaced);
            self.push(EditKind::Insert, TokenRange::new(replacing.end, end), TokenRange::new(donor.start, donor.start));
            at = end;
            if let Some(run) = run {
                self.push(EditKind::Move, run.target_range(), TokenRange::new(run.donor_pos, run.donor_end()));
                at = run.target_end();
            }
        }
        self.push(EditKind::Delete, TokenRange::new(target.end, target.end), donor);
    }
}

/// Returns a script that makes `target` of `donor`. Tokens that differ are never kept.
#[must_use]
pub fn align(target: &[TokenId], donor: &[TokenId]) -> EditScript {
    let whole = Gap { target: TokenRange::new(0, target.len() as u32), donor: TokenRange::new(0, donor.len() as u32) };
    let mut kept = Vec::new();
    chain_within(target, donor, whole, &LEVELS, &mut kept);
    let elsewhere = maximal_runs(target, donor, MIN_MOVE_TOKENS);
    let mut script = EditScript::default();
    for (gap, run) in gaps(whole, &kept) {
        script.push_gap(gap.target, gap.donor, &moves(gap.target, &elsewhere));
        if let Some(run) = run {
            script.push(EditKind::Keep, run.target_range(), TokenRange::new(run.donor_pos, run.donor_end()));
        }
    }
    script
}

/// Tokens between two runs.
#[derive(Clone, Copy)]
struct Gap {
    target: TokenRange,
    donor: TokenRange,
}

impl Gap {
    fn area(&self) -> usize {
        self.target.len() as usize * self.donor.len() as usize
    }
}

/// Returns the gap before each run of `kept` with that run, and the gap after the last.
fn gaps(whole: Gap, kept: &[Run]) -> Vec<(Gap, Option<Run>)> {
    let mut at = (whole.target.start, whole.donor.start);
    let mut gaps = Vec::with_capacity(kept.len() + 1);
    for &run in kept {
        let gap = Gap { target: TokenRange::new(at.0, run.target_pos), donor: TokenRange::new(at.1, run.donor_pos) };
        gaps.push((gap, Some(run)));
        at = (run.target_end(), run.donor_end());
    }
    let rest = Gap { target: TokenRange::new(at.0, whole.target.end), donor: TokenRange::new(at.1, whole.donor.end) };
    gaps.push((rest, None));
    gaps
}

/// Appends the runs to keep within `gap`: those of the first level, and within the remaining gaps those of the next ones.
fn chain_within(target: &[TokenId], donor: &[TokenId], gap: Gap, levels: &[Level], kept: &mut Vec<Run>) {
    // If the shortest runs are affordable, longer ones need not come first.
    let is_last = |level: &Level| level.min_tokens == 1 && gap.area() <= level.max_area;
    let first = levels.iter().position(is_last).unwrap_or(0);
    let Some(level) = levels.get(first).filter(|level| (1..=level.max_area).contains(&gap.area())) else { return };
    let mut runs = maximal_runs(&target[gap.target.as_usize()], &donor[gap.donor.as_usize()], level.min_tokens);
    for run in &mut runs {
        run.target_pos += gap.target.start;
        run.donor_pos += gap.donor.start;
    }
    for (gap, run) in gaps(gap, &cheapest_chain(gap, runs)) {
        chain_within(target, donor, gap, &levels[first + 1..], kept);
        kept.extend(run);
    }
}

/// Best chain that ends with a run.
#[derive(Clone, Copy)]
struct Link {
    /// Tokens in gaps, then tokens not kept: less is better.
    cost: (u32, Reverse<u32>),
    before: Option<usize>,
    /// Tokens at the start of the run that overlap the run before it.
    num_skipped: u32,
}

/// Returns parts of `runs` with the least gaps, in the order of both sequences; among equals the most tokens.
fn cheapest_chain(within: Gap, mut runs: Vec<Run>) -> Vec<Run> {
    if runs.len() > MAX_RUNS {
        runs.sort_unstable_by_key(|run| (Reverse(run.num_tokens), run.target_pos, run.donor_pos));
        runs.truncate(MAX_RUNS);
        runs.sort_unstable_by_key(|run| (run.target_pos, run.donor_pos));
    }
    let mut links: Vec<Link> = Vec::with_capacity(runs.len());
    for (i, run) in runs.iter().enumerate() {
        let first = (run.target_pos - within.target.start).max(run.donor_pos - within.donor.start);
        let first = Link { cost: (first, Reverse(run.num_tokens)), before: None, num_skipped: 0 };
        let others = (0..i).filter_map(|before| append_run(&runs[before], links[before], before, run));
        let best = others.fold(first, |best, link| if link.cost < best.cost { link } else { best });
        links.push(best);
    }
    let rest = |run: &Run| (within.target.end - run.target_end()).max(within.donor.end - run.donor_end());
    let total = |i: &usize| (links[*i].cost.0 + rest(&runs[*i]), links[*i].cost.1);
    let nothing = (within.target.len().max(within.donor.len()), Reverse(0));
    let mut at = (0..runs.len()).min_by_key(total).filter(|last| total(last) < nothing);
    let mut chain = Vec::new();
    while let Some(i) = at {
        chain.push(runs[i].without_first(links[i].num_skipped));
        at = links[i].before;
    }
    chain.reverse();
    chain
}

/// Appends `run` to the chain that ends with `earlier`, which is not shortened; returns `None` if nothing of `run` is left.
fn append_run(earlier: &Run, link: Link, before: usize, run: &Run) -> Option<Link> {
    let (target_end, donor_end) = (earlier.target_end(), earlier.donor_end());
    let num_skipped = target_end.saturating_sub(run.target_pos).max(donor_end.saturating_sub(run.donor_pos));
    (num_skipped < run.num_tokens).then(|| {
        let gap = (run.target_pos + num_skipped - target_end).max(run.donor_pos + num_skipped - donor_end);
        let (gaps, Reverse(kept)) = link.cost;
        let cost = (gaps + gap, Reverse(kept + run.num_tokens - num_skipped));
        Link { cost, before: Some(before), num_skipped }
    })
}

/// Returns parts of `elsewhere` within `gap`, preferring the longest; by ascending target position, disjoint.
fn moves(gap: TokenRange, elsewhere: &[Run]) -> Vec<Run> {
    let parts = elsewhere.iter().filter_map(|run| {
        let part = run.target_range().intersect(gap);
        let num_skipped = part.start - run.target_pos.min(part.start);
        (part.len() >= MIN_MOVE_TOKENS as u32).then(|| Run { num_tokens: part.len(), ..run.without_first(num_skipped) })
    });
    let mut parts: Vec<_> = parts.collect();
    parts.sort_by_key(|part| Reverse(part.num_tokens));
    let mut chosen: Vec<Run> = Vec::new();
    for part in parts {
        if chosen.iter().all(|other| other.target_range().intersect(part.target_range()).is_empty()) {
            chosen.push(part);
        }
    }
    chosen.sort_unstable_by_key(|part| part.target_pos);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Returns Levenshtein's distance, from its recurrence.
    fn edit_distance(target: &[TokenId], donor: &[TokenId]) -> u32 {
        let mut row: Vec<u32> = (0..=donor.len() as u32).collect();
        for token in target {
            let mut diagonal = std::mem::replace(&mut row[0], 0);
            row[0] = diagonal + 1;
            for (i, other) in donor.iter().enumerate() {
                let substituted = diagonal + u32::from(token != other);
                diagonal = row[i + 1];
                row[i + 1] = substituted.min(row[i] + 1).min(diagonal + 1);
            }
        }
        row[donor.len()]
    }

    /// Checks that the operations cover both sequences and yield the target, kept and moved tokens taken from the donor.
    #[track_caller]
    fn check_script(target: &[TokenId], donor: &[TokenId]) -> EditScript {
        let script = align(target, donor);
        let (mut made, mut donor_end) = (Vec::new(), 0);
        for op in script.ops() {
            assert_eq!(op.target.start as usize, made.len());
            let (in_target, in_donor) = (op.target.len(), op.donor.len());
            let lengths_fit = match op.kind {
                EditKind::Keep | EditKind::Substitute | EditKind::Move => in_target == in_donor && in_target > 0,
                EditKind::Insert => in_target > 0 && in_donor == 0,
                EditKind::Delete => in_target == 0 && in_donor > 0,
            };
            assert!(lengths_fit, "{op:?}");
            match op.kind {
                EditKind::Keep | EditKind::Move => made.extend_from_slice(&donor[op.donor.as_usize()]),
                _ => made.extend_from_slice(&target[op.target.as_usize()]),
            }
            if op.kind != EditKind::Move {
                assert_eq!(op.donor.start, donor_end);
                donor_end = op.donor.end;
            }
        }
        assert_eq!((made.as_slice(), donor_end as usize), (target, donor.len()));
        script
    }

    /// Returns `text` with `num_edits` random insertions, deletions and substitutions of new tokens, from `new_from` on.
    fn edited(random: &mut Random, text: &[TokenId], num_edits: usize, new_from: usize) -> Vec<TokenId> {
        let mut text = text.to_vec();
        for i in 0..num_edits {
            let (at, len) = (random.below(text.len() + 1), random.below(25));
            let end = (at + random.below(25)).min(text.len());
            let new = (0..len).map(|j| TokenId((new_from + i * 100 + j) as u32));
            text.splice(at..end, new);
        }
        text
    }

    #[test]
    fn of_random_pairs_the_script_yields_the_target_at_no_less_than_the_edit_distance() {
        let mut random = Random(1);
        for _ in 0..600 {
            let alphabet = 2 + random.below(30);
            let (target_len, donor_len) = (random.below(120), random.below(120));
            let (target, donor) = (random.tokens(target_len, alphabet), random.tokens(donor_len, alphabet));
            assert!(check_script(&target, &donor).distance() >= edit_distance(&target, &donor));
        }
    }

    #[test]
    fn of_texts_without_repeated_tokens_the_script_is_the_shortest() {
        let mut random = Random(2);
        let text: Vec<_> = (0..200).map(TokenId).collect();
        for num_edits in 0..12 {
            for _ in 0..40 {
                let target = edited(&mut random, &text, num_edits, 1000);
                assert_eq!(check_script(&target, &text).distance(), edit_distance(&target, &text));
            }
        }
    }

    #[test]
    fn edits_of_a_long_text_are_found() {
        let mut random = Random(3);
        for seed in 0..20 {
            let text = random.tokens(3000, 500);
            let target = edited(&mut random, &text, 8, 1000);
            let (found, least) = (check_script(&target, &text).distance(), edit_distance(&target, &text));
            assert!(found >= least && found <= least + 8, "{found} for {least}, seed {seed}");
        }
    }

    /// Checks the operations, written as `keep 0..5 of 0..5`.
    #[track_caller]
    fn check(target: &[u32], donor: &[u32], expected: &[&str]) {
        let tokens = |ids: &[u32]| ids.iter().copied().map(TokenId).collect::<Vec<_>>();
        let script = check_script(&tokens(target), &tokens(donor));
        let print = |op: &EditOp| format!("{} {:?} of {:?}", op.kind.label(), op.target, op.donor);
        assert_eq!(script.ops().iter().map(print).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn each_operation_has_its_name() {
        check(
            &[1, 2, 9, 3, 4, 5, 8],
            &[1, 2, 7, 3, 4, 6, 6, 5],
            &[
                "keep 0..2 of 0..2",
                "substitute 2..3 of 2..3",
                "keep 3..5 of 3..5",
                "delete 5..5 of 5..7",
                "keep 5..6 of 7..8",
                "insert 6..7 of 8..8",
            ],
        );
        check(&[], &[], &[]);
    }

    #[test]
    fn the_shorter_of_two_exchanged_passages_was_moved() {
        let (a, b): (Vec<_>, Vec<_>) = ((0..20).collect(), (100..150).collect());
        check(
            &[b.clone(), a.clone()].concat(),
            &[a, b].concat(),
            &["delete 0..0 of 0..20", "keep 0..50 of 20..70", "move 50..70 of 0..20"],
        );
    }
}
