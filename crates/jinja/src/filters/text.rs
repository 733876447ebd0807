//! Filters of strings.

use std::rc::Rc;

use crate::arguments::Arguments;
use crate::budget::Builder;
use crate::error::{Error, Result};
use crate::format::percent;
use crate::interpreter::Interpreter;
use crate::lexer::is_space;
use crate::strings::{self, Side, capitalize, center, replace, split_lines, strip, title};
use crate::text::Text;
use crate::value::{Dict, Value};

impl Interpreter<'_> {
    pub(super) fn text_filter(&self, name: &str, value: &Value, args: Arguments) -> Result<Value> {
        if !matches!(
            name,
            "capitalize"
                | "center"
                | "e"
                | "escape"
                | "forceescape"
                | "format"
                | "indent"
                | "lower"
                | "replace"
                | "safe"
                | "string"
                | "title"
                | "trim"
                | "truncate"
                | "upper"
                | "urlencode"
                | "wordcount"
        ) {
            return Err(Error::render(format!("No filter named '{name}'.")));
        }
        let text = self.soft_text(value)?;
        match name {
            "format" => {
                let args = match args.keyword.is_empty() {
                    true => Value::tuple(args.positional)?,
                    false => keywords(args)?,
                };
                return percent(&text, &args, self).map(Value::text);
            }
            "trim" => {
                let [characters] = args.bind(name, ["chars"])?;
                let characters = match characters {
                    None | Some(Value::None) => None,
                    Some(characters) => Some(self.soft_text(&characters)?),
                };
                let range = strip(text.as_str(), characters.as_deref().map(Text::as_str), Side::Both);
                self.budget.write(range.len())?;
                return Ok(Value::text(text.slice(range)));
            }
            "replace" => {
                let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
                let (old, new) = (self.soft_text(&old.unwrap_or(Value::None))?, self.soft_text(&new.unwrap_or(Value::None))?);
                let count = count.and_then(|count| count.int()).unwrap_or(-1);
                return replace(&text, &old, &new, count, &self.budget).map(Value::text);
            }
            "indent" => return self.indent(&text, args),
            "truncate" => return self.truncate(&text, args),
            "center" => {
                let [width] = args.bind(name, ["width"])?;
                return center(&text, width.and_then(|width| width.int()).unwrap_or(80), &self.budget).map(Value::text);
            }
            _ => {}
        }
        let [] = args.bind(name, [])?;
        self.budget.write(text.len())?;
        Ok(match name {
            "safe" | "string" => Value::Str(text),
            "lower" | "upper" => return strings::call(self, &text, name, Arguments::default()),
            "capitalize" => Value::text(capitalize(&text)),
            "title" => Value::text(title(&text, |c| !matches!(c, '-' | '(' | '{' | '[' | '<') && !is_space(c))),
            "wordcount" => Value::Int(count_words(text.as_str())),
            "urlencode" => Value::text(url_encode(&text)),
            _ => Value::text(escape(&text)),
        })
    }

    fn indent(&self, text: &Text, args: Arguments) -> Result<Value> {
        let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
        let indention = match width {
            None => Rc::new(Text::literal("    ")),
            Some(Value::Str(text)) => text,
            Some(width) => {
                let width = width.int().ok_or_else(|| Error::render("indent takes a number or a string"))?;
                let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
                self.budget.write(width)?;
                Rc::new(Text::literal(" ".repeat(width)))
            }
        };
        let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
        let (first, blank) = (is_set(first), is_set(blank));
        let mut out = Builder::new(&self.budget);
        if first {
            out.push(&indention)?;
        }
        // Jinja adds a line break before splitting, so that one at the end makes an empty line.
        let mut lines = split_lines(text.as_str(), false);
        if text.len() == 0 || text.as_str().ends_with(['\n', '\r', '\x0b', '\x0c', '\u{85}', '\u{2028}', '\u{2029}']) {
            lines.push(text.len()..text.len());
        }
        for (index, line) in lines.into_iter().enumerate() {
            self.budget.step(1)?;
            if index > 0 {
                out.push_str("\n")?;
                if blank || !line.is_empty() {
                    out.push(&indention)?;
                }
            }
            out.push_range(text, line)?;
        }
        Ok(Value::text(out.finish()))
    }

    fn truncate(&self, text: &Text, args: Arguments) -> Result<Value> {
        let [length, kill_words, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
        let size = |value: Option<Value>, default: usize| {
            value.and_then(|value| value.int()).map_or(default, |int| usize::try_from(int).unwrap_or(0))
        };
        let (length, leeway) = (size(length, 255), size(leeway, 5));
        let end = end.map_or_else(|| Ok(Rc::new(Text::literal("..."))), |end| self.soft_text(&end))?;
        let string = text.as_str();
        let mut out = Builder::new(&self.budget);
        if string.chars().count() <= length.saturating_add(leeway) {
            out.push(text)?;
            return Ok(Value::text(out.finish()));
        }
        let kept = length.saturating_sub(end.as_str().chars().count());
        let cut = string.char_indices().nth(kept).map_or(string.len(), |(at, _)| at);
        let cut = match kill_words.is_some_and(|kill| kill.is_true()) {
            true => cut,
            false => string[..cut].rfind(' ').unwrap_or(cut),
        };
        out.push_range(text, 0..cut)?;
        out.push(&end)?;
        Ok(Value::text(out.finish()))
    }
}

fn keywords(args: Arguments) -> Result<Value> {
    let mut dict = Dict::default();
    for (name, value) in args.keyword {
        dict.insert(Value::literal(&name), value)?;
    }
    Ok(Value::Dict(Rc::new(dict)))
}

fn count_words(text: &str) -> i128 {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty()).count() as i128
}

fn escape(text: &Text) -> Text {
    text.map_chars(|c| match c {
        '&' => "&amp;".chars().collect(),
        '<' => "&lt;".chars().collect(),
        '>' => "&gt;".chars().collect(),
        '\'' => "&#39;".chars().collect(),
        '"' => "&#34;".chars().collect::<Vec<_>>(),
        c => vec![c],
    })
}

fn url_encode(text: &Text) -> Text {
    text.map_chars(|c| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '~' | '/') => vec![c],
        c => c.encode_utf8(&mut [0; 4]).bytes().flat_map(|byte| format!("%{byte:02X}").chars().collect::<Vec<_>>()).collect(),
    })
}
