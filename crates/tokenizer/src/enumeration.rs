//! Enumeration labels: `[3] `, `3. `, `Document 3:`, `<doc id="3">`, `c) `, `IV. `.
//!
//! Such a label belongs to its position and not to the text after it: the same texts in another order get other labels. So the text after
//! a label is a segment of its own. No word list is used: a label has the same form as its siblings, except for a number that increments
//! from line to line. A number with a meaning (an amount, a year, a time) is not a label where it does not increment.

use std::collections::HashMap;
use std::ops::Range;

/// Maximum bytes of a line before its number.
const MAX_BEFORE: usize = 48;
/// Maximum bytes of a bracketed remark between a number and the mark that ends its label.
const MAX_REMARK: usize = 48;
/// Exclusive upper bound of label numbers: years are not labels.
const END_OF_NUMBERS: u32 = 1000;
/// Minimum lines of an enumeration that does not begin at the first number.
const LEAST_WITHOUT_FIRST: usize = 3;

/// A line that may begin with a label.
struct Candidate<'a> {
    /// Bytes from the start of the line to the text after the label.
    range: Range<usize>,
    value: u32,
    key: Key<'a>,
}

/// Form of a label, equal for siblings.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key<'a> {
    before: &'a str,
    /// Text after the number, with each further number replaced by a digit.
    after: String,
    script: Script,
}

/// Script of the number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Script {
    Digits,
    Lower,
    Upper,
    LowerRoman,
    UpperRoman,
}

/// Returns the ranges of the enumeration labels in `text`, ascending and disjoint. `messages` are the ascending starts of messages.
pub(crate) fn labels(text: &str, messages: &[usize]) -> Vec<Range<usize>> {
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    let mut offset = 0;
    let mut messages = messages.iter().copied().filter(|&start| text.is_char_boundary(start)).peekable();
    for line in text.split_inclusive('\n') {
        let end = offset + line.len();
        while let Some(message) = messages.next_if(|&start| start < end) {
            candidates.extend(candidates_of(text, offset, &text[offset..message]));
            offset = message;
        }
        candidates.extend(candidates_of(text, offset, &text[offset..end]));
        offset = end;
    }
    let mut found: Vec<Range<usize>> = counting(&candidates).map(|index| candidates[index].range.clone()).collect();
    found.sort_unstable_by_key(|range| range.start);
    found.dedup_by_key(|range| range.start);
    found
}

/// Returns the indices of the candidates that belong to an enumeration.
fn counting<'a>(candidates: &'a [Candidate<'_>]) -> impl Iterator<Item = usize> + 'a {
    let mut chains: Vec<Vec<usize>> = Vec::new();
    // Chains by their last value, the newest last, since lists of the same form may be nested.
    let mut open: HashMap<(&Key<'_>, u32), Vec<usize>> = HashMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let before = candidate.value.checked_sub(1).and_then(|value| open.get_mut(&(&candidate.key, value))?.pop());
        let chain = before.unwrap_or_else(|| {
            chains.push(Vec::new());
            chains.len() - 1
        });
        chains[chain].push(index);
        open.entry((&candidate.key, candidate.value)).or_default().push(chain);
    }
    let counts = |chain: &Vec<usize>| {
        let first = &candidates[chain[0]];
        match first.key.script {
            Script::Digits => first.value <= 1 || chain.len() >= LEAST_WITHOUT_FIRST,
            // A single letter may be a word or an initial.
            _ => first.value == 1 && chain.len() > 1,
        }
    };
    chains.into_iter().filter(counts).flatten()
}

/// Returns the labels that the line at `offset` may begin with: one of digits, or of letters, which may have two scripts.
fn candidates_of<'a>(text: &'a str, offset: usize, line: &'a str) -> Vec<Candidate<'a>> {
    let body = line.trim_start_matches([' ', '\t']);
    let start = offset + line.len() - body.len();
    let digits = body.find(|c: char| c.is_ascii_digit()).filter(|&at| at <= MAX_BEFORE);
    let numbers = digits.into_iter().filter_map(|at| {
        let len = body[at..].bytes().take_while(u8::is_ascii_digit).count();
        let value = body[at..at + len].parse().ok().filter(|value| *value < END_OF_NUMBERS)?;
        let is_apart = !body[..at].ends_with(['.', ',', ':', '-', '+', '$', '€', '£']);
        is_apart.then_some((at..at + len, value, Script::Digits))
    });
    let letters = body.find(|c: char| c.is_ascii_alphabetic()).filter(|&at| at <= 1 + usize::from(body.starts_with("**")));
    let letters = letters.into_iter().flat_map(|at| {
        let len = body[at..].bytes().take_while(u8::is_ascii_alphabetic).count();
        lettered(&body[at..at + len]).map(move |(value, script)| (at..at + len, value, script))
    });
    let candidate = |(number, value, script): (Range<usize>, u32, Script)| {
        let (end, after) = end_of_label(&body[number.end..], number.start > 0)?;
        let key = Key { before: &body[..number.start], after, script };
        // The range extends up to the text, even if that begins on another line.
        let label_end = start + number.end + end;
        let gap = text[label_end..].find(char::is_alphanumeric).unwrap_or(text.len() - label_end);
        Some(Candidate { range: offset..label_end + gap, value, key })
    };
    numbers.chain(letters).filter_map(candidate).collect()
}

/// Returns the values of `word` as a letter and as a roman numeral.
fn lettered(word: &str) -> impl Iterator<Item = (u32, Script)> {
    let is_upper = word.bytes().all(|byte| byte.is_ascii_uppercase());
    let is_lower = word.bytes().all(|byte| byte.is_ascii_lowercase());
    let letter = (word.len() == 1).then(|| u32::from(word.as_bytes()[0].to_ascii_lowercase() - b'a') + 1);
    let (plain, roman) = if is_upper { (Script::Upper, Script::UpperRoman) } else { (Script::Lower, Script::LowerRoman) };
    let letter = letter.map(|value| (value, plain));
    let numeral = (is_upper || is_lower).then(|| roman_value(&word.to_ascii_uppercase())).flatten().map(|value| (value, roman));
    letter.into_iter().chain(numeral)
}

/// Returns the value of I to XXXIX.
fn roman_value(numeral: &str) -> Option<u32> {
    const ONES: [&str; 10] = ["", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"];
    let ones = numeral.trim_start_matches('X');
    let tens = numeral.len() - ones.len();
    // The X of IX follows its I, so it is not trimmed.
    let value = tens * 10 + ONES.iter().position(|one| *one == ones)?;
    (tens <= 3 && value > 0).then_some(value as u32)
}

/// Returns the end of the label in `rest`, the text after its number, and the text between, with a digit for each number. `None` if no
/// mark ends it; a line break does if a word precedes the number.
fn end_of_label(rest: &str, has_word: bool) -> Option<(usize, String)> {
    let mut at = 0;
    // `3/10`, and in scripts without spaces a counter: one letter after the number.
    if let Some(total) = rest.strip_prefix('/') {
        at += 1 + total.bytes().take_while(u8::is_ascii_digit).count();
    }
    if let Some(counter) = rest[at..].chars().next().filter(|c| !c.is_ascii() && c.is_alphanumeric()) {
        at += counter.len_utf8();
    }
    let spaces = |at: usize| rest[at..].len() - rest[at..].trim_start_matches(' ').len();
    if let Some((inner, close)) = [('(', ')'), ('[', ']')]
        .iter()
        .find_map(|(open, close)| Some((at + spaces(at), *close)).filter(|(inner, _)| rest[*inner..].starts_with(*open)))
        && let Some(len) = rest[inner..].find(close).filter(|&len| len <= MAX_REMARK)
        && !rest[inner..inner + len].contains(|c: char| c == '\n' || c.is_uppercase())
    {
        at = inner + len + 1;
    }
    let marks = rest[at..].len() - rest[at..].trim_start_matches(|c: char| !c.is_alphanumeric() && c != '\n').len();
    let mark = &rest[at..at + marks];
    let next = rest[at + marks..].chars().next();
    let is_line_end = next.is_none_or(|c| c == '\n');
    let has_mark = mark.contains(|c: char| !c.is_whitespace());
    // `1.5`, `12:30` and `3-year` continue directly after the mark.
    let goes_on = mark.ends_with(['.', ':', ',', '-', '/', '%', '\'']) && !is_line_end;
    let ends = if is_line_end { has_mark || has_word } else { has_mark && !goes_on };
    ends.then(|| (at + marks, masked(&rest[..at + marks])))
}

/// Replaces each number in `text` by one `0`, and trims trailing white space.
fn masked(text: &str) -> String {
    let mut masked = String::new();
    for c in text.trim_end().chars() {
        match c.is_ascii_digit() {
            true if masked.ends_with('0') => {}
            true => masked.push('0'),
            false => masked.push(c),
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks labels by braces in `expected`.
    #[track_caller]
    fn check(expected: &str) {
        let text = expected.replace(['{', '}'], "");
        let mut shown = text.clone();
        for range in labels(&text, &[]).into_iter().rev() {
            shown.insert(range.end, '}');
            shown.insert(range.start, '{');
        }
        assert_eq!(shown, expected);
    }

    #[test]
    fn siblings_that_count_are_labelled() {
        check("{[1] }The cat\n\n{[2] }A dog");
        check("{1. }The cat\n{2. }A dog\nsleeps\n{3. }Fish");
        check("{Document 1:\n}The cat\n{Document 2:\n}A dog");
        check("{### Document 1\n\n}The cat\n\n{### Document 2\n\n}A dog");
        check("{- (1) }The cat\n{- (2) }A dog");
        check("{**1.** }The cat\n{**2.** }A dog");
        check("x\n{Chunk 1/9 - }The cat\n{Chunk 2/9 - }A dog");
        check("{Document [1](}Title: Cats) They sleep\n{Document [2](}Title: Dogs) They bark");
    }

    #[test]
    fn scores_behind_a_number_belong_to_its_label() {
        check("{Document 1 (score: 0.93):\n}The cat\n{Document 2 (score: 0.5):\n}A dog");
    }

    #[test]
    fn letters_and_roman_numerals_count() {
        check("{a) }The cat\n{b) }A dog");
        check("{I. }The cat\n{II. }A dog\n{III. }A fish\n{IV. }A bird");
        check("{第1段：}猫\n{第2段：}犬");
    }

    #[test]
    fn lists_lie_within_lists() {
        check("{1. }Pets\n{ 1. }The cat\n{ 2. }A dog\n{2. }Fish");
        check("{1. }Pets\n{1. }The cat\n{2. }A dog\n{2. }Fish");
    }

    #[test]
    fn a_list_may_begin_later_or_have_one_entry() {
        check("{[11] }a\n{[12] }b\n{[13] }c");
        check("[11] a\n[12] b\n");
        check("{[1] }The cat");
    }

    #[test]
    fn what_does_not_count_is_no_label() {
        check("[7] a\n[3] b\n[9] c");
        check("2021: up\n2022: down\n2023: up");
        check("1.5 million\n2.5 million");
        check("12:30 tea\n13:30 cake");
        check("1 cup\n2 eggs\n3 spoons");
        check("A cat\nB sides");
        check("Alice: yes\nBob: no");
        check("price 1 euro\nprice 2 euros");
    }

    #[test]
    fn a_message_begins_a_line() {
        let text = "<user>[1] a\n[2] b<user>[3] c";
        assert_eq!(labels(text, &[6, 23]), [6..10, 12..16, 23..27]);
    }

    #[test]
    fn siblings_have_the_same_words() {
        check("{Document 1: }a\nPassage 2: b");
    }
}
