//! `"%s" % value` and `"{}".format(value)`.

mod spec;

use std::rc::Rc;

use crate::arguments::Arguments;
use crate::budget::{Budget, Builder};
use crate::error::{Error, Result};
use crate::interpreter::Interpreter;
use crate::text::Text;
use crate::value::{Value, repr, to_text};

use spec::{Spec, ascii, format_value, pad, percent_number};

/// Evaluates `format % args`.
pub(crate) fn percent(format: &Text, args: &Value, interpreter: &Interpreter<'_>) -> Result<Text> {
    let budget = &interpreter.budget;
    let mut out = Builder::new(budget);
    let mut values = PercentArgs::new(args);
    let string = format.as_str();
    let mut start = 0;
    while let Some(found) = string[start..].find('%') {
        budget.step(1)?;
        out.push_range(format, start..start + found)?;
        let mut cursor = Cursor { string, at: start + found + 1 };
        percent_one(&mut cursor, &mut values, &mut out, budget)?;
        start = cursor.at;
    }
    out.push_range(format, start..string.len())?;
    values.check_all_used()?;
    Ok(out.finish())
}

struct Cursor<'s> {
    string: &'s str,
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<char> {
        self.string[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }
}

/// Values that remain to be formatted.
struct PercentArgs<'v> {
    args: &'v Value,
    next: usize,
    by_name: bool,
}

impl<'v> PercentArgs<'v> {
    fn new(args: &'v Value) -> Self {
        Self { args, next: 0, by_name: false }
    }

    fn next(&mut self) -> Result<Value> {
        let value = match self.args {
            Value::Tuple(items) => items.get(self.next).cloned(),
            single if self.next == 0 => Some(single.clone()),
            _ => None,
        };
        self.next += 1;
        value.ok_or_else(|| Error::render("not enough arguments for format string"))
    }

    fn named(&mut self, name: &str) -> Result<Value> {
        self.by_name = true;
        let Value::Dict(dict) = self.args else { return Err(Error::render("format requires a mapping")) };
        dict.get_str(name).cloned().ok_or_else(|| Error::render(format!("'{name}'")))
    }

    fn check_all_used(&self) -> Result<()> {
        let is_left = match self.args {
            Value::Tuple(items) => self.next < items.len(),
            Value::Dict(_) | Value::List(_) => false,
            _ => self.next == 0 && !self.by_name,
        };
        if is_left { Err(Error::render("not all arguments converted during string formatting")) } else { Ok(()) }
    }
}

fn percent_one(cursor: &mut Cursor<'_>, values: &mut PercentArgs<'_>, out: &mut Builder<'_>, budget: &Budget) -> Result<()> {
    let incomplete = || Error::render("incomplete format");
    let mut named = None;
    if cursor.skip('(') {
        let end = cursor.string[cursor.at..].find(')').ok_or_else(|| Error::render("incomplete format key"))?;
        named = Some(&cursor.string[cursor.at..cursor.at + end]);
        cursor.at += end + 1;
    }
    let mut spec = Spec::for_percent();
    while let Some(flag @ ('-' | '+' | ' ' | '#' | '0')) = cursor.peek() {
        cursor.next();
        spec.percent_flag(flag);
    }
    spec.width = percent_size(cursor, values)?.unwrap_or(0);
    if cursor.skip('.') {
        spec.precision = Some(percent_size(cursor, values)?.unwrap_or(0));
    }
    while matches!(cursor.peek(), Some('h' | 'l' | 'L')) {
        cursor.next();
    }
    let kind = cursor.next().ok_or_else(incomplete)?;
    if kind == '%' {
        return out.push_str("%");
    }
    let value = match named {
        Some(name) => values.named(name)?,
        None => values.next()?,
    };
    match kind {
        's' | 'r' | 'a' => {
            let text = match kind {
                's' => to_text(&value, budget)?,
                'r' => repr(&value, budget)?,
                _ => ascii(&repr(&value, budget)?),
            };
            pad(&text, &spec, '<', out)
        }
        'c' => {
            let text = match &value {
                Value::Int(code) => {
                    let c = u32::try_from(*code).ok().and_then(char::from_u32);
                    Text::literal(c.ok_or_else(|| Error::render("%c arg not in range(0x110000)"))?)
                }
                Value::Str(text) if text.as_str().chars().count() == 1 => (**text).clone(),
                _ => return Err(Error::render("%c requires int or char")),
            };
            spec.precision = None;
            pad(&text, &spec, '<', out)
        }
        _ => percent_number(&value, kind, &spec, out),
    }
}

/// Parses a width or precision: digits, or `*` for an argument.
fn percent_size(cursor: &mut Cursor<'_>, values: &mut PercentArgs<'_>) -> Result<Option<usize>> {
    if cursor.skip('*') {
        let value = values.next()?.int().ok_or_else(|| Error::render("* wants int"))?;
        return Ok(Some(usize::try_from(value).unwrap_or(0)));
    }
    let digits = cursor.string[cursor.at..].bytes().take_while(u8::is_ascii_digit).count();
    let text = &cursor.string[cursor.at..cursor.at + digits];
    cursor.at += digits;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Error::render("width too big"))
}

/// Evaluates `format.format(*args, **kwargs)`.
pub(crate) fn format_method(format: &Rc<Text>, args: &Arguments, interpreter: &Interpreter<'_>) -> Result<Text> {
    let mut formatter = Formatter { args, interpreter, next: 0 };
    formatter.format(format, 2)
}

struct Formatter<'f, 'c> {
    args: &'f Arguments,
    interpreter: &'f Interpreter<'c>,
    next: usize,
}

impl Formatter<'_, '_> {
    /// Fills in the fields of `format`, with nested fields up to `depth`.
    fn format(&mut self, format: &Text, depth: u32) -> Result<Text> {
        let budget = &self.interpreter.budget;
        let mut out = Builder::new(budget);
        let string = format.as_str();
        let mut at = 0;
        while let Some(found) = string[at..].find(['{', '}']) {
            budget.step(1)?;
            out.push_range(format, at..at + found)?;
            at += found;
            let brace = &string[at..at + 1];
            if string[at + 1..].starts_with(brace) {
                out.push_range(format, at..at + 1)?;
                at += 2;
            } else if brace == "{" {
                let len = field_len(&string[at + 1..]).ok_or_else(|| Error::render("expected '}' before end of string"))?;
                self.field(&format.slice(at + 1..at + 1 + len), depth, &mut out)?;
                at += len + 2;
            } else {
                return Err(Error::render("Single '}' encountered in format string"));
            }
        }
        out.push_range(format, at..string.len())?;
        Ok(out.finish())
    }

    fn field(&mut self, field: &Text, depth: u32, out: &mut Builder<'_>) -> Result<()> {
        let string = field.as_str();
        let name_len = field_name_len(string);
        let (name, mut rest) = (&string[..name_len], name_len);
        let mut conversion = None;
        if string[rest..].starts_with('!') {
            conversion = string[rest + 1..].chars().next();
            rest += 1 + conversion.map_or(0, char::len_utf8);
        }
        let spec = match string[rest..].strip_prefix(':') {
            Some(_) if depth == 0 => return Err(Error::render("Max string recursion exceeded")),
            Some(_) => {
                let spec = field.slice(rest + 1..field.len());
                let value = self.lookup(name)?;
                let spec = self.format(&spec, depth - 1)?;
                return self.write(value, conversion, spec.as_str(), out);
            }
            None if rest < string.len() => return Err(Error::render("expected ':' after conversion specifier")),
            None => "",
        };
        let value = self.lookup(name)?;
        self.write(value, conversion, spec, out)
    }

    fn write(&self, value: Value, conversion: Option<char>, spec: &str, out: &mut Builder<'_>) -> Result<()> {
        let budget = &self.interpreter.budget;
        let value = match conversion {
            None => value,
            Some('s') => Value::text(to_text(&value, budget)?),
            Some('r') => Value::text(repr(&value, budget)?),
            Some('a') => Value::text(ascii(&repr(&value, budget)?)),
            Some(other) => return Err(Error::render(format!("Unknown conversion specifier {other}"))),
        };
        format_value(&value, spec, out, budget)
    }

    /// Evaluates a field such as `0.name[key]`.
    fn lookup(&mut self, field: &str) -> Result<Value> {
        let first_len = field.find(['.', '[']).unwrap_or(field.len());
        let (first, mut rest) = field.split_at(first_len);
        let mut value = self.argument(first)?;
        while !rest.is_empty() {
            let key;
            if let Some(after) = rest.strip_prefix('.') {
                let len = after.find(['.', '[']).unwrap_or(after.len());
                (key, rest) = after.split_at(len);
                value = self.interpreter.attribute(&value, key)?;
            } else {
                let after =
                    rest.strip_prefix('[').ok_or_else(|| Error::render("Only '.' or '[' may follow ']' in format field"))?;
                let len = after.find(']').ok_or_else(|| Error::render("Missing ']' in format string"))?;
                (key, rest) = (&after[..len], &after[len + 1..]);
                let index = key.parse().map_or_else(|_| Value::literal(key), Value::Int);
                value = self.interpreter.item(&value, &index)?;
            }
            value.defined()?;
        }
        Ok(value)
    }

    fn argument(&mut self, name: &str) -> Result<Value> {
        let index = match name {
            "" => {
                self.next += 1;
                Some(self.next - 1)
            }
            _ => name.parse().ok(),
        };
        match index {
            Some(index) => self
                .args
                .positional
                .get(index)
                .cloned()
                .ok_or_else(|| Error::render(format!("Replacement index {index} out of range for positional args tuple"))),
            None => {
                let named = self.args.keyword.iter().find(|(known, _)| &**known == name).map(|(_, value)| value.clone());
                named.ok_or_else(|| Error::render(format!("'{name}'")))
            }
        }
    }
}

/// Returns the bytes up to the brace that closes a field.
fn field_len(string: &str) -> Option<usize> {
    let mut open = 0usize;
    for (at, c) in string.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

/// Returns the bytes of a field's name before `!` and `:`, which may occur in brackets.
fn field_name_len(string: &str) -> usize {
    let mut in_brackets = false;
    for (at, c) in string.char_indices() {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            '!' | ':' if !in_brackets => return at,
            _ => {}
        }
    }
    string.len()
}
