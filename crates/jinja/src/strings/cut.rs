//! Methods that split or strip a string.

use std::ops::Range;
use std::rc::Rc;

use crate::arguments::{Arguments, int_argument, string_argument};
use crate::budget::Budget;
use crate::error::{Error, Result};
use crate::lexer::is_space;
use crate::text::Text;
use crate::value::Value;

/// Ends of a string to strip.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
    Both,
}

pub(super) fn call(text: &Rc<Text>, name: &str, args: Arguments, budget: &Budget) -> Result<Value> {
    let pieces = |ranges: Vec<Range<usize>>| {
        budget.step(ranges.len())?;
        budget.write(text.len())?;
        Ok(ranges.into_iter().map(|range| Value::text(text.slice(range))).collect::<Vec<_>>())
    };
    let one = |range: Range<usize>| {
        budget.write(range.len())?;
        Ok(Value::text(text.slice(range)))
    };
    match name {
        "split" | "rsplit" => {
            let [separator, max] = args.bind(name, ["sep", "maxsplit"])?;
            let max = int_argument(name, max)?.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
            let ranges = match separator {
                None | Some(Value::None) if name == "split" => split_white(text.as_str(), max),
                None | Some(Value::None) => rsplit_white(text.as_str(), max),
                separator => {
                    let separator = string_argument(name, separator)?;
                    if separator.len() == 0 {
                        return Err(Error::render("empty separator"));
                    }
                    split_by(text.as_str(), separator.as_str(), max, name == "rsplit")
                }
            };
            Value::list(pieces(ranges)?)
        }
        "splitlines" => {
            let [keep_ends] = args.bind(name, ["keepends"])?;
            Value::list(pieces(split_lines(text.as_str(), keep_ends.is_some_and(|keep| keep.is_true())))?)
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, ["sep"])?;
            let separator = string_argument(name, separator)?;
            if separator.len() == 0 {
                return Err(Error::render("empty separator"));
            }
            let (string, wanted) = (text.as_str(), separator.as_str());
            let found = if name == "partition" { string.find(wanted) } else { string.rfind(wanted) };
            let (end, len) = (string.len(), separator.len());
            let ranges = match found {
                Some(at) => [0..at, at..at + len, at + len..end],
                None if name == "partition" => [0..end, end..end, end..end],
                None => [0..0, 0..0, 0..end],
            };
            Value::tuple(pieces(ranges.into())?)
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(name, ["affix"])?;
            let affix = string_argument(name, affix)?;
            let (string, len) = (text.as_str(), affix.len());
            one(match name {
                "removeprefix" if string.starts_with(affix.as_str()) => len..string.len(),
                "removesuffix" if string.ends_with(affix.as_str()) => 0..string.len() - len,
                _ => 0..string.len(),
            })
        }
        _ => {
            let [characters] = args.bind(name, ["chars"])?;
            let characters = match characters {
                None | Some(Value::None) => None,
                given => Some(string_argument(name, given)?),
            };
            let side = match name {
                "lstrip" => Side::Left,
                "rstrip" => Side::Right,
                _ => Side::Both,
            };
            one(strip(text.as_str(), characters.as_deref().map(Text::as_str), side))
        }
    }
}

/// Removes `characters`, by default white space, from the ends of `string`.
pub(crate) fn strip(string: &str, characters: Option<&str>, side: Side) -> Range<usize> {
    let is_stripped = |c: char| characters.map_or_else(|| is_space(c), |characters| characters.contains(c));
    let start = match side {
        Side::Right => 0,
        Side::Left | Side::Both => string.len() - string.trim_start_matches(is_stripped).len(),
    };
    let end = match side {
        Side::Left => string.len(),
        Side::Right | Side::Both => string.trim_end_matches(is_stripped).len(),
    };
    start..end.max(start)
}

fn split_by(string: &str, separator: &str, max: usize, from_right: bool) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let matches: Vec<usize> = match from_right {
        false => string.match_indices(separator).map(|(at, _)| at).take(max).collect(),
        true => {
            let mut found: Vec<usize> = string.rmatch_indices(separator).map(|(at, _)| at).take(max).collect();
            found.reverse();
            found
        }
    };
    let mut start = 0;
    for at in matches {
        ranges.push(start..at);
        start = at + separator.len();
    }
    ranges.push(start..string.len());
    ranges
}

/// Splits into words; after `max` cuts the rest is one piece.
fn split_white(string: &str, max: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut at = string.len() - string.trim_start_matches(is_space).len();
    while at < string.len() {
        if ranges.len() == max {
            ranges.push(at..string.len());
            break;
        }
        let end = at + string[at..].find(is_space).unwrap_or(string.len() - at);
        ranges.push(at..end);
        at = string.len() - string[end..].trim_start_matches(is_space).len();
    }
    ranges
}

fn rsplit_white(string: &str, max: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut end = string.trim_end_matches(is_space).len();
    while end > 0 {
        if ranges.len() == max {
            ranges.push(0..end);
            break;
        }
        let start = string[..end].char_indices().rev().find(|&(_, c)| is_space(c)).map_or(0, |(at, c)| at + c.len_utf8());
        ranges.push(start..end);
        end = string[..start].trim_end_matches(is_space).len();
    }
    ranges.reverse();
    ranges
}

/// Splits into lines, with or without their ends.
pub(crate) fn split_lines(string: &str, keep_ends: bool) -> Vec<Range<usize>> {
    let is_break = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut ranges = Vec::new();
    let mut start = 0;
    while start < string.len() {
        let Some(found) = string[start..].find(is_break) else {
            ranges.push(start..string.len());
            break;
        };
        let end = start + found;
        let broken = &string[end..];
        let break_len = match broken.strip_prefix("\r\n") {
            Some(_) => 2,
            None => broken.chars().next().map_or(0, char::len_utf8),
        };
        ranges.push(start..if keep_ends { end + break_len } else { end });
        start = end + break_len;
    }
    ranges
}
