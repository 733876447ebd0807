//! Methods that search or inspect a string.

use std::ops::Range;

use crate::arguments::{Arguments, int_argument, string_argument};
use crate::error::{Error, Result};
use crate::lexer::is_space;
use crate::text::Text;
use crate::value::{Value, is_printable};

pub(super) fn call(text: &Text, name: &str, args: Arguments) -> Result<Value> {
    let [wanted, start, end] = args.bind(name, ["sub", "start", "end"])?;
    let (start, end) = (int_argument(name, start)?, int_argument(name, end)?);
    let range = char_range(text.as_str(), start, end);
    let within = range.clone().map_or("", |range| &text.as_str()[range]);
    if matches!(name, "startswith" | "endswith") {
        return affix(name, within, range.is_some(), wanted);
    }
    let wanted = string_argument(name, wanted)?;
    let wanted = wanted.as_str();
    if name == "count" {
        let count = if wanted.is_empty() { within.chars().count() + 1 } else { within.matches(wanted).count() };
        return Ok(Value::Int(if range.is_some() { count as i128 } else { 0 }));
    }
    let found = if name.starts_with('r') { within.rfind(wanted) } else { within.find(wanted) };
    match (found, range) {
        (Some(at), Some(range)) => Ok(Value::Int(text.as_str()[..range.start + at].chars().count() as i128)),
        _ if name.ends_with("index") => Err(Error::render("substring not found")),
        _ => Ok(Value::Int(-1)),
    }
}

fn affix(name: &str, within: &str, in_range: bool, wanted: Option<Value>) -> Result<Value> {
    let matches = |affix: &Text| {
        let affix = affix.as_str();
        in_range && if name == "startswith" { within.starts_with(affix) } else { within.ends_with(affix) }
    };
    match wanted {
        Some(Value::Tuple(affixes)) => {
            for affix in affixes.iter() {
                if matches(&*string_argument(name, Some(affix.clone()))?) {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        wanted => Ok(Value::Bool(matches(&*string_argument(name, wanted)?))),
    }
}

/// Returns the bytes between two character positions; `None` if the start is greater than the end.
fn char_range(string: &str, start: Option<i128>, end: Option<i128>) -> Option<Range<usize>> {
    if start.is_none() && end.is_none() {
        return Some(0..string.len());
    }
    let len = string.chars().count() as i128;
    let position = |bound: i128| (if bound < 0 { (bound + len).max(0) } else { bound }).min(len + 1);
    let (start, end) = (start.map_or(0, position), end.map_or(len, position).min(len));
    let byte = |position: i128| {
        let position = usize::try_from(position).expect("a position is at least 0");
        string.char_indices().nth(position).map_or(string.len(), |(at, _)| at)
    };
    (start <= end).then(|| byte(start)..byte(end))
}

/// Evaluates the methods `isalpha` and so on.
pub(super) fn is(name: &str, string: &str) -> bool {
    let all = |test: fn(char) -> bool| !string.is_empty() && string.chars().all(test);
    let is_cased = |c: char| c.is_lowercase() || c.is_uppercase();
    match name {
        "isascii" => string.is_ascii(),
        "isprintable" => string.chars().all(is_printable),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isdecimal" | "isdigit" => all(|c| c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric() && !c.is_alphabetic())),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "islower" => string.chars().any(is_cased) && !string.chars().any(char::is_uppercase),
        "isupper" => string.chars().any(is_cased) && !string.chars().any(char::is_lowercase),
        "isidentifier" => {
            let mut chars = string.chars();
            chars.next().is_some_and(|c| c == '_' || c.is_alphabetic()) && chars.all(|c| c == '_' || c.is_alphanumeric())
        }
        _ => is_title(string),
    }
}

fn is_title(string: &str) -> bool {
    let (mut after_cased, mut any) = (false, false);
    for c in string.chars() {
        let (upper, lower) = (c.is_uppercase(), c.is_lowercase());
        if (upper && after_cased) || (lower && !after_cased) {
            return false;
        }
        after_cased = upper || lower;
        any |= after_cased;
    }
    any
}
