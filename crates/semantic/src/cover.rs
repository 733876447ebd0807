//! Which match serves which part of a target: weighted interval scheduling in which a match may be cut.
//!
//! The target falls into sections at the ends of all matches, so that inside a section the same matches are at hand.
//! A table of sections and matches holds the best worth of a cover that ends with that match in that section.

use std::cmp::Reverse;
use std::collections::HashMap;

use tokens::{DonorId, TokenRange};

use crate::SpanMatch;
use crate::edits::EditedRuns;

/// Matches looked at: the longest. The table grows with its square, and a text that repeats itself has one match per repetition.
const MAX_CANDIDATES: usize = 256;

/// Lost for each change of donor. Small, so that it decides between equals only.
const DONOR_COST: i64 = 1;

/// The rows that may be copied.
pub(crate) struct Rows {
    /// Sorted, disjoint.
    allowed: Vec<TokenRange>,
    /// Allowed rows left of each of `allowed`.
    num_before: Vec<u32>,
    head_tokens: u32,
}

impl Rows {
    /// `allowed` must be sorted and disjoint.
    pub(crate) fn new(allowed: Vec<TokenRange>, head_tokens: u32) -> Self {
        let counts = allowed.iter().scan(0, |sum, range| {
            let before = *sum;
            *sum += range.len();
            Some(before)
        });
        let num_before = counts.collect();
        Self { allowed, num_before, head_tokens }
    }

    /// The rows of `found` that may be copied, ascending.
    pub(crate) fn pieces(&self, found: &SpanMatch) -> impl Iterator<Item = TokenRange> {
        let usable = TokenRange::new(self.head_end(found), found.target_range().end);
        let first = self.allowed.partition_point(|range| range.end <= usable.start);
        let pieces = self.allowed[first..].iter().map(move |range| range.intersect(usable));
        pieces.take_while(|piece| !piece.is_empty())
    }

    /// How many rows of `found` may be copied in `section`, which must lie inside it.
    fn count(&self, found: &SpanMatch, section: TokenRange) -> u32 {
        let start = section.start.max(self.head_end(found));
        self.rank(section.end).saturating_sub(self.rank(start))
    }

    /// Allowed rows left of `pos`.
    fn rank(&self, pos: u32) -> u32 {
        match self.allowed.partition_point(|range| range.start < pos) {
            0 => 0,
            n => self.num_before[n - 1] + pos.min(self.allowed[n - 1].end) - self.allowed[n - 1].start,
        }
    }

    /// First row of `found` that is not head; not left of its start.
    fn head_end(&self, found: &SpanMatch) -> u32 {
        if found.has_same_past() {
            return found.target_pos;
        }
        found.target_pos.max(found.run_start() + self.head_tokens)
    }
}

/// A match that may be chosen.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) found: SpanMatch,
    /// Decides between candidates of equal worth: more is better.
    pub(crate) preference: f32,
}

impl Candidate {
    /// The part at target positions `range`; `None` if that is empty.
    pub(crate) fn within_target(&self, range: TokenRange) -> Option<Self> {
        self.found.within_target(range).map(|found| Self { found, ..*self })
    }

    /// The part left of `end` that is not downstream of an edit.
    pub(crate) fn behind(&self, edited: &EditedRuns, end: u32) -> Option<Self> {
        self.within_target(TokenRange::new(edited.end_in(&self.found), end))
    }
}

/// A match that ends the best cover up to some section.
#[derive(Clone, Copy)]
struct Cell {
    candidate: usize,
    section: TokenRange,
    worth: i64,
    before: Option<usize>,
}

/// A match and the part of it that was chosen.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) whole: SpanMatch,
    pub(crate) part: SpanMatch,
}

/// Parts of `candidates`, by ascending target position and disjoint, with the most rows to copy.
///
/// Each part brings at least `min_gain` rows more than doing without it.
pub(crate) fn choose_matches(candidates: &[Candidate], rows: &Rows, min_gain: u32) -> Vec<Choice> {
    let candidates = in_order_of_preference(candidates);
    let mut table = Table::new(&candidates, rows, min_gain);
    for section in sections(&candidates) {
        table.add_section(section);
    }
    table.best_cover()
}

/// The longest candidates, the preferred and then the youngest donor first: among equals, the table keeps the first.
fn in_order_of_preference(candidates: &[Candidate]) -> Vec<SpanMatch> {
    let mut candidates = candidates.to_vec();
    if candidates.len() > MAX_CANDIDATES {
        candidates.sort_by_key(|Candidate { found, .. }| {
            (Reverse(found.num_tokens), Reverse(found.donor), found.target_pos, found.donor_pos)
        });
        candidates.truncate(MAX_CANDIDATES);
    }
    candidates.sort_by(|a, b| {
        let key = |found: &SpanMatch| (Reverse(found.donor), found.target_pos, found.donor_pos);
        b.preference.total_cmp(&a.preference).then_with(|| key(&a.found).cmp(&key(&b.found)))
    });
    candidates.into_iter().map(|candidate| candidate.found).collect()
}

fn sections(candidates: &[SpanMatch]) -> Vec<TokenRange> {
    let ends = candidates.iter().map(SpanMatch::target_range);
    let mut cuts: Vec<_> = ends.flat_map(|range| [range.start, range.end]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| TokenRange::new(pair[0], pair[1])).collect()
}

struct Table<'a> {
    candidates: &'a [SpanMatch],
    rows: &'a Rows,
    /// Lost for each part.
    part_cost: i64,
    cells: Vec<Cell>,
    /// Last cell of each candidate.
    last: Vec<Option<usize>>,
    /// Best cell so far that ends with this donor.
    best_of_donor: HashMap<DonorId, usize>,
    /// Best cell so far.
    best: Option<usize>,
}

impl<'a> Table<'a> {
    fn new(candidates: &'a [SpanMatch], rows: &'a Rows, min_gain: u32) -> Self {
        Self {
            candidates,
            rows,
            part_cost: i64::from(min_gain) - 1,
            cells: Vec::new(),
            last: vec![None; candidates.len()],
            best_of_donor: HashMap::new(),
            best: None,
        }
    }

    fn add_section(&mut self, section: TokenRange) {
        let first_new = self.cells.len();
        for (candidate, found) in self.candidates.iter().enumerate() {
            if found.target_range().contains(section.start) {
                let (before, worth) = self.best_way_into(candidate, section);
                let worth = worth + i64::from(self.rows.count(found, section));
                self.cells.push(Cell { candidate, section, worth, before });
            }
        }
        for cell_idx in first_new..self.cells.len() {
            self.note(cell_idx);
        }
    }

    /// The cell before a new one for `candidate` in `section`, and the worth the new one starts with.
    fn best_way_into(&self, candidate: usize, section: TokenRange) -> (Option<usize>, i64) {
        let worth_of = |cell_idx: usize| self.cells[cell_idx].worth;
        let mut way = (None, -self.part_cost);
        let mut consider = |before: Option<usize>, cost: i64| {
            if let Some(before) = before
                && worth_of(before) - cost > way.1
            {
                way = (Some(before), worth_of(before) - cost);
            }
        };
        let continued = self.last[candidate].filter(|&cell_idx| self.cells[cell_idx].section.end == section.start);
        consider(continued, 0);
        consider(self.best_of_donor.get(&self.candidates[candidate].donor).copied(), self.part_cost);
        consider(self.best, self.part_cost + DONOR_COST);
        way
    }

    fn note(&mut self, cell_idx: usize) {
        let Cell { candidate, worth, .. } = self.cells[cell_idx];
        self.last[candidate] = Some(cell_idx);
        let best_of_donor = self.best_of_donor.entry(self.candidates[candidate].donor).or_insert(cell_idx);
        if worth > self.cells[*best_of_donor].worth {
            *best_of_donor = cell_idx;
        }
        if self.best.is_none_or(|best| worth > self.cells[best].worth) {
            self.best = Some(cell_idx);
        }
    }

    fn best_cover(&self) -> Vec<Choice> {
        let mut cover: Vec<(usize, TokenRange)> = Vec::new();
        let mut at = self.best.filter(|&best| self.cells[best].worth > 0);
        while let Some(cell_idx) = at {
            let Cell { candidate, section, before, .. } = self.cells[cell_idx];
            match cover.last_mut() {
                Some((later, range)) if *later == candidate && range.start == section.end => range.start = section.start,
                _ => cover.push((candidate, section)),
            }
            at = before;
        }
        cover.into_iter().rev().map(|(candidate, range)| self.choice(candidate, range)).collect()
    }

    fn choice(&self, candidate: usize, range: TokenRange) -> Choice {
        let whole = self.candidates[candidate];
        Choice { whole, part: whole.within_target(range).expect("sections lie inside their match") }
    }
}
