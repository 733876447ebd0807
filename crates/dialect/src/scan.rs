//! Text that has arrived and is not yet understood.

use std::ops::Range;

/// A position in pending text at which one of several markers begins or may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The marker with this index, and its bytes.
    Marker(usize, Range<usize>),
    /// From this byte on, the text may become a marker.
    Perhaps(usize),
    /// No marker begins in it.
    Nowhere,
}

/// Finds the first of `markers` in `text`; the longest where several begin at the same byte.
pub(crate) fn find(text: &str, markers: &[&str]) -> Found {
    let position = |(index, marker): (usize, &&str)| text.find(marker).map(|at| (at, usize::MAX - marker.len(), index));
    match markers.iter().enumerate().filter_map(position).min() {
        Some((at, _, index)) => Found::Marker(index, at..at + markers[index].len()),
        None => tail(text, markers).map_or(Found::Nowhere, Found::Perhaps),
    }
}

/// Returns the first byte of the longest end of `text` that begins a marker.
fn tail(text: &str, markers: &[&str]) -> Option<usize> {
    let longest = markers.iter().map(|marker| marker.len()).max().unwrap_or(0);
    let from = text.len().saturating_sub(longest.saturating_sub(1));
    text.char_indices()
        .map(|(at, _)| at)
        .filter(|at| *at >= from)
        .find(|&at| markers.iter().any(|marker| marker.starts_with(&text[at..])))
}

/// Takes the first `len` bytes of `text`.
pub(crate) fn take(text: &mut String, len: usize) -> String {
    let rest = text.split_off(len);
    std::mem::replace(text, rest)
}

/// Removes blanks at the start of `text`.
pub(crate) fn skip_blanks(text: &mut String) {
    let blanks = text.len() - text.trim_start().len();
    text.drain(..blanks);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_marker_is_found_and_the_longest_of_those() {
        assert_eq!(find("ab<x>c", &["<y>", "<x>"]), Found::Marker(1, 2..5));
        assert_eq!(find("<x><y>", &["<y>", "<x>"]), Found::Marker(1, 0..3));
        assert_eq!(find("a<x>b", &["<x", "<x>b"]), Found::Marker(1, 1..5));
    }

    #[test]
    fn an_end_that_may_become_a_marker_is_held_back() {
        assert_eq!(find("ab<too", &["<tool>"]), Found::Perhaps(2));
        assert_eq!(find("ab<top", &["<tool>"]), Found::Nowhere);
        assert_eq!(find("a<<", &["<<x"]), Found::Perhaps(1));
        assert_eq!(find("é", &["<x"]), Found::Nowhere);
    }
}
