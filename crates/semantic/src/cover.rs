//! Chooses the match for each part of a target: weighted interval scheduling in which a match may be cut.
//!
//! The ends of all matches divide the target into sections, so the same matches cover all of a section. A table of sections and matches
//! holds the best value of a cover that ends with that match in that section. At most [`MAX_COVER`] matches cover a section, so the table
//! grows with the target.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use tokens::TokenRange;

use crate::edits::EditedRuns;
use crate::{SpanMatch, Steps};

/// Most matches that cover any position of the target. More than a search finds at one position, except in repetitive text. Chosen.
const MAX_COVER: usize = 16;

/// Divisor of the length of a short run that gives its head. Chosen: 16 tokens of 64.
const HEAD_DIVISOR: u32 = 4;

/// Factor of the head of a run downstream of an edit. Measured: with 8 tokens there, 2 of 16 answers to a question about a changed "not"
/// were those of the donor, with 16 none.
const EDITED_HEAD_FACTOR: u32 = 2;

/// Cost of each change of donor. Small, so that it decides between equals only.
const DONOR_COST: i64 = 1;

/// Rows that may be copied.
pub(crate) struct Rows<'a> {
    /// Sorted, disjoint.
    allowed: Vec<TokenRange>,
    /// Allowed rows left of each range of `allowed`.
    num_before: Vec<u32>,
    head_tokens: u32,
    edited: &'a EditedRuns,
}

impl<'a> Rows<'a> {
    /// Creates the rows of `allowed`, which must be sorted and disjoint.
    pub(crate) fn new(allowed: Vec<TokenRange>, head_tokens: u32, edited: &'a EditedRuns) -> Self {
        let counts = allowed.iter().scan(0, |sum, range| {
            let before = *sum;
            *sum += range.len();
            Some(before)
        });
        let num_before = counts.collect();
        Self { allowed, num_before, head_tokens, edited }
    }

    /// Returns the rows of `found` that may be copied, ascending.
    pub(crate) fn pieces(&self, found: &SpanMatch) -> impl Iterator<Item = TokenRange> {
        let usable = TokenRange::new(self.head_end(found), found.target_range().end);
        let first = self.allowed.partition_point(|range| range.end <= usable.start);
        let pieces = self.allowed[first..].iter().map(move |range| range.intersect(usable));
        pieces.take_while(|piece| !piece.is_empty())
    }

    /// Returns the number of allowed rows left of `pos`.
    fn rank(&self, pos: u32) -> u32 {
        match self.allowed.partition_point(|range| range.start < pos) {
            0 => 0,
            n => self.num_before[n - 1] + pos.min(self.allowed[n - 1].end) - self.allowed[n - 1].start,
        }
    }

    /// Returns the first row of `found` after the head; not left of its start.
    fn head_end(&self, found: &SpanMatch) -> u32 {
        if found.has_same_past() {
            return found.target_pos;
        }
        let run_tokens = found.left_context + found.num_tokens;
        let factor = if self.edited.follows_edit(found) { EDITED_HEAD_FACTOR } else { 1 };
        found.target_pos.max(found.run_start() + (factor * self.head_tokens).min(run_tokens / HEAD_DIVISOR))
    }
}

/// A match that may be chosen.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) found: SpanMatch,
    /// Tie-break between candidates of equal value: more is better.
    pub(crate) preference: f32,
}

/// Returns parts of `matches` by ascending target position, of which at most [`MAX_COVER`] cover any token: a token with more keeps those
/// that begin first, and where one of these ends, those that reach furthest.
pub(crate) fn thin_out(mut matches: Vec<SpanMatch>, steps: &mut Steps) -> Vec<SpanMatch> {
    let by_start = |found: &SpanMatch| (found.target_pos, Reverse(found.num_tokens), Reverse(found.donor), found.donor_pos);
    matches.sort_unstable_by_key(by_start);
    steps.cells += matches.len() as u64;
    let mut kept = Vec::with_capacity(matches.len());
    let mut ends: BinaryHeap<Reverse<u32>> = BinaryHeap::new();
    // Matches without a place, the furthest end on top.
    let mut waiting: BinaryHeap<(u32, usize)> = BinaryHeap::new();
    let mut next = 0;
    while next < matches.len() || !waiting.is_empty() {
        let start = matches.get(next).map_or(u32::MAX, |found| found.target_pos);
        match ends.peek() {
            Some(&Reverse(end)) if end <= start => {
                ends.pop();
                let rest = waiting.pop().and_then(|(furthest, nth)| matches[nth].within_target(TokenRange::new(end, furthest)));
                match rest {
                    Some(rest) => {
                        kept.push(rest);
                        ends.push(Reverse(rest.target_range().end));
                    }
                    // None of the others reaches further.
                    None => waiting.clear(),
                }
            }
            _ => {
                let end = matches[next].target_range().end;
                if ends.len() < MAX_COVER {
                    kept.push(matches[next]);
                    ends.push(Reverse(end));
                } else {
                    waiting.push((end, next));
                }
                next += 1;
            }
        }
    }
    kept.sort_by_key(by_start);
    kept
}

/// A match that ends the best cover up to some section.
#[derive(Clone, Copy)]
struct Cell {
    candidate: usize,
    section: TokenRange,
    worth: i64,
    before: Option<usize>,
}

/// A match and its chosen part.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) whole: SpanMatch,
    pub(crate) part: SpanMatch,
}

/// Chooses parts of `candidates`, which come by ascending target position, disjoint and in the same order, with the most rows to copy.
///
/// Each part adds at least `min_gain` rows. Counts its work in `steps`.
pub(crate) fn choose_matches(candidates: &[Candidate], rows: &Rows<'_>, min_gain: u32, steps: &mut Steps) -> Vec<Choice> {
    let mut table = Table::new(in_order_of_preference(candidates), rows, min_gain);
    let mut starting: Vec<usize> = (0..table.candidates.len()).collect();
    starting.sort_unstable_by_key(|&candidate| Reverse((table.candidates[candidate].target_pos, candidate)));
    for section in sections(&table.candidates) {
        table.close(section.start);
        while let Some(candidate) = starting.pop_if(|candidate| table.candidates[*candidate].target_pos == section.start) {
            table.open(candidate);
        }
        table.add_section(section);
    }
    steps.cells += (table.candidates.len() + table.cells.len()) as u64;
    table.best_cover()
}

/// Orders candidates by preference, then youngest donor: among equals, the table keeps the first.
fn in_order_of_preference(candidates: &[Candidate]) -> Vec<SpanMatch> {
    let mut candidates = candidates.to_vec();
    candidates.sort_unstable_by(|a, b| {
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
    candidates: Vec<SpanMatch>,
    /// Donor of each candidate, numbered.
    donors: Vec<usize>,
    /// Allowed rows left of the first row after the head of each candidate.
    ranks: Vec<u32>,
    rows: &'a Rows<'a>,
    /// Cost of each part.
    part_cost: i64,
    /// Candidates that cover the current section, ascending.
    open: Vec<usize>,
    cells: Vec<Cell>,
    /// Last cell of each candidate.
    last: Vec<Option<usize>>,
    /// Best cell so far that ends with each donor.
    best_of_donor: Vec<Option<usize>>,
    /// Best cell so far.
    best: Option<usize>,
}

impl<'a> Table<'a> {
    fn new(candidates: Vec<SpanMatch>, rows: &'a Rows, min_gain: u32) -> Self {
        let mut numbers = HashMap::new();
        let number = |found: &SpanMatch| {
            let next = numbers.len();
            *numbers.entry(found.donor).or_insert(next)
        };
        Self {
            donors: candidates.iter().map(number).collect(),
            ranks: candidates.iter().map(|found| rows.rank(rows.head_end(found))).collect(),
            rows,
            part_cost: i64::from(min_gain) - 1,
            open: Vec::new(),
            cells: Vec::new(),
            last: vec![None; candidates.len()],
            best_of_donor: vec![None; numbers.len()],
            best: None,
            candidates,
        }
    }

    /// Closes the candidates that end at `pos`.
    fn close(&mut self, pos: u32) {
        let candidates = &self.candidates;
        self.open.retain(|&candidate| candidates[candidate].target_range().end > pos);
    }

    fn open(&mut self, candidate: usize) {
        let at = self.open.partition_point(|&other| other < candidate);
        self.open.insert(at, candidate);
    }

    fn add_section(&mut self, section: TokenRange) {
        let first_new = self.cells.len();
        let (start, end) = (self.rows.rank(section.start), self.rows.rank(section.end));
        for at in 0..self.open.len() {
            let candidate = self.open[at];
            let (before, worth) = self.best_way_into(candidate, section);
            let num_rows = end.saturating_sub(start.max(self.ranks[candidate]));
            self.cells.push(Cell { candidate, section, worth: worth + i64::from(num_rows), before });
        }
        for cell_idx in first_new..self.cells.len() {
            self.record(cell_idx);
        }
    }

    /// Returns the cell before a new one for `candidate` in `section`, and the value with which the new one starts.
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
        consider(self.best_of_donor[self.donors[candidate]], self.part_cost);
        consider(self.best, self.part_cost + DONOR_COST);
        way
    }

    fn record(&mut self, cell_idx: usize) {
        let Cell { candidate, worth, .. } = self.cells[cell_idx];
        self.last[candidate] = Some(cell_idx);
        let is_better = |best: Option<usize>| best.is_none_or(|best| worth > self.cells[best].worth);
        let donor = self.donors[candidate];
        if is_better(self.best_of_donor[donor]) {
            self.best_of_donor[donor] = Some(cell_idx);
        }
        if is_better(self.best) {
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
