//! Methods that return a changed string.

use std::rc::Rc;

use crate::arguments::{Arguments, int_argument, string_argument};
use crate::budget::{Budget, Builder};
use crate::error::{Error, Result};
use crate::text::Text;
use crate::value::Value;

pub(super) fn call(text: &Rc<Text>, name: &str, args: Arguments, budget: &Budget) -> Result<Value> {
    match name {
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (old, new) = (string_argument(name, old)?, string_argument(name, new)?);
            return replace(text, &old, &new, int_argument(name, count)?.unwrap_or(-1), budget).map(Value::text);
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"])?;
            let fill = fill.map_or_else(|| Ok(Rc::new(Text::literal(" "))), |fill| string_argument(name, Some(fill)))?;
            if fill.as_str().chars().count() != 1 {
                return Err(Error::render("The fill character must be exactly one character long"));
            }
            let missing = missing(text, int_argument(name, width)?);
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                _ => left_of_center(text, missing),
            };
            return padded(text, &fill, left, missing - left, budget).map(Value::text);
        }
        "zfill" => {
            let [width] = args.bind(name, ["width"])?;
            let signs = usize::from(text.as_str().starts_with(['+', '-']));
            let mut out = Builder::new(budget);
            out.push_range(text, 0..signs)?;
            out.repeat(&Text::literal("0"), missing(text, int_argument(name, width)?))?;
            out.push_range(text, signs..text.len())?;
            return Ok(Value::text(out.finish()));
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"])?;
            return expand_tabs(text, int_argument(name, size)?.unwrap_or(8), budget).map(Value::text);
        }
        "translate" => {
            let [table] = args.bind(name, ["table"])?;
            return translate(text, &table.unwrap_or(Value::None), budget).map(Value::text);
        }
        _ => {}
    }
    let [] = args.bind(name, [])?;
    budget.write(text.len())?;
    Ok(Value::text(match name {
        "lower" | "casefold" => lower(text),
        "upper" => text.map_chars(char::to_uppercase),
        "capitalize" => capitalize(text),
        "title" => title(text, |c| c.is_alphabetic()),
        _ => swap_case(text),
    }))
}

/// Returns the number of characters that `text` lacks to `width`.
fn missing(text: &Text, width: Option<i128>) -> usize {
    let width = width.map_or(0, |width| usize::try_from(width.max(0)).unwrap_or(usize::MAX));
    width.saturating_sub(text.as_str().chars().count())
}

/// Returns the number of `missing` characters that `str.center` puts to the left.
fn left_of_center(text: &Text, missing: usize) -> usize {
    let width = missing.saturating_add(text.as_str().chars().count());
    missing / 2 + (missing & width & 1)
}

/// Centers `text` in `width` characters, like `str.center`.
pub(crate) fn center(text: &Text, width: i128, budget: &Budget) -> Result<Text> {
    let missing = missing(text, Some(width));
    let left = left_of_center(text, missing);
    padded(text, &Text::literal(" "), left, missing - left, budget)
}

fn padded(text: &Text, fill: &Text, left: usize, right: usize, budget: &Budget) -> Result<Text> {
    let mut out = Builder::new(budget);
    out.repeat(fill, left)?;
    out.push(text)?;
    out.repeat(fill, right)?;
    Ok(out.finish())
}

/// Lowers `text`. A sigma at the end of a word depends on its neighbours, so a string that contains one is mapped as a whole.
fn lower(text: &Text) -> Text {
    if !text.as_str().contains('Σ') {
        return text.map_chars(char::to_lowercase);
    }
    let lowered = text.as_str().to_lowercase();
    let mut chars = lowered.chars();
    text.map_chars(|c| chars.by_ref().take(c.to_lowercase().count()).collect::<Vec<_>>())
}

/// Capitalizes the first letter and lowers the others.
pub(crate) fn capitalize(text: &Text) -> Text {
    let mut is_first = true;
    text.map_chars(|c| {
        let mapped: Vec<char> = if is_first { c.to_uppercase().collect() } else { c.to_lowercase().collect() };
        is_first = false;
        mapped
    })
}

/// Capitalizes the start of each word, which extends while `goes_on` is true, and lowers the other letters.
pub(crate) fn title(text: &Text, goes_on: impl Fn(char) -> bool) -> Text {
    let mut in_word = false;
    text.map_chars(|c| {
        let mapped: Vec<char> = if in_word { c.to_lowercase().collect() } else { c.to_uppercase().collect() };
        in_word = goes_on(c);
        mapped
    })
}

/// Swaps the case of letters.
fn swap_case(text: &Text) -> Text {
    text.map_chars(|c| -> Vec<char> {
        match c {
            c if c.is_uppercase() => c.to_lowercase().collect(),
            c if c.is_lowercase() => c.to_uppercase().collect(),
            c => vec![c],
        }
    })
}

/// Implements `str.replace`; a negative `count` replaces all.
pub(crate) fn replace(text: &Text, old: &Text, new: &Text, count: i128, budget: &Budget) -> Result<Text> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let string = text.as_str();
    let mut out = Builder::new(budget);
    let mut start = 0;
    for (at, _) in string.match_indices(old.as_str()).take(count) {
        budget.step(1)?;
        out.push_range(text, start..at)?;
        out.push(new)?;
        start = at + old.len();
    }
    out.push_range(text, start..string.len())?;
    Ok(out.finish())
}

fn expand_tabs(text: &Text, size: i128, budget: &Budget) -> Result<Text> {
    let size = usize::try_from(size).unwrap_or(0);
    let mut out = Builder::new(budget);
    let mut column = 0;
    for (at, c) in text.as_str().char_indices() {
        match c {
            '\t' => {
                let width = if size == 0 { 0 } else { size - column % size };
                out.repeat(&Text::literal(" "), width)?;
                column += width;
            }
            c => {
                out.push_range(text, at..at + c.len_utf8())?;
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(out.finish())
}

/// Implements `str.translate` with a dictionary of code points.
fn translate(text: &Text, table: &Value, budget: &Budget) -> Result<Text> {
    let Value::Dict(table) = table else { return Err(Error::render("translate() takes a dictionary")) };
    let mut out = Builder::new(budget);
    for (at, c) in text.as_str().char_indices() {
        match table.get(&Value::Int(i128::from(u32::from(c))))? {
            None => out.push_range(text, at..at + c.len_utf8())?,
            Some(Value::None) => {}
            Some(Value::Str(new)) => out.push(new)?,
            Some(Value::Int(code)) => {
                let c = u32::try_from(*code).ok().and_then(char::from_u32);
                let c = c.ok_or_else(|| Error::render("character mapping must be in range(0x110000)"))?;
                out.push_str(c.encode_utf8(&mut [0; 4]))?;
            }
            Some(_) => return Err(Error::render("character mapping must return integer, None or str")),
        }
    }
    Ok(out.finish())
}
