//! `tojson` in the format of Python's `json.dumps`, which models were trained on.

use crate::budget::{Budget, Builder};
use crate::error::{Error, Result};
use crate::order::{less, sorted};
use crate::text::Text;
use crate::value::{Value, float_repr};

/// Options of `json.dumps`.
pub(crate) struct JsonOptions {
    pub(crate) ensure_ascii: bool,
    /// Indentation per level; `None` writes one line.
    pub(crate) indent: Option<Text>,
    pub(crate) item_separator: Text,
    pub(crate) key_separator: Text,
    pub(crate) sort_keys: bool,
}

/// Serializes `value` as JSON.
pub(crate) fn to_json(value: &Value, options: &JsonOptions, budget: &Budget) -> Result<Text> {
    let mut writer = Writer { out: Builder::new(budget), options, budget };
    writer.value(value, 0)?;
    Ok(writer.out.finish())
}

struct Writer<'b> {
    out: Builder<'b>,
    options: &'b JsonOptions,
    budget: &'b Budget,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, level: usize) -> Result<()> {
        self.budget.step(1)?;
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(true) => self.out.push_str("true"),
            Value::Bool(false) => self.out.push_str("false"),
            Value::Int(number) => self.out.push_str(&number.to_string()),
            Value::Float(number) => self.out.push_str(&json_float(*number)),
            Value::Str(text) => self.string(text),
            Value::List(items) | Value::Tuple(items) => {
                self.container(["[", "]"], items.len(), level, |writer, index| writer.value(&items[index], level + 1))
            }
            Value::Dict(dict) => {
                let entries: Vec<&(Value, Value)> = dict.entries().iter().collect();
                let entries = match self.options.sort_keys {
                    true => sorted(entries, |(a, _), (b, _)| less(a, b))?,
                    false => entries,
                };
                self.container(["{", "}"], entries.len(), level, |writer, index| {
                    let (key, value) = entries[index];
                    writer.key(key)?;
                    let separator = &writer.options.key_separator;
                    writer.out.push(separator)?;
                    writer.value(value, level + 1)
                })
            }
            other => Err(Error::render(format!("Object of type {} is not JSON serializable", other.type_name()))),
        }
    }

    fn container(
        &mut self,
        [open, close]: [&str; 2],
        len: usize,
        level: usize,
        mut write: impl FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<()> {
        self.out.push_str(open)?;
        for index in 0..len {
            if index > 0 {
                self.out.push(&self.options.item_separator)?;
            }
            self.line_break(level + 1)?;
            write(self, index)?;
        }
        if len > 0 {
            self.line_break(level)?;
        }
        self.out.push_str(close)
    }

    fn line_break(&mut self, level: usize) -> Result<()> {
        match &self.options.indent {
            None => Ok(()),
            Some(indent) => {
                self.out.push_str("\n")?;
                self.out.repeat(indent, level)
            }
        }
    }

    fn key(&mut self, key: &Value) -> Result<()> {
        let printed = match key {
            Value::Str(text) => return self.string(text),
            Value::None => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(number) => number.to_string(),
            Value::Float(number) => json_float(*number),
            other => {
                let reason = format!("keys must be str, int, float, bool or None, not {}", other.type_name());
                return Err(Error::render(reason));
            }
        };
        self.string(&Text::literal(printed))
    }

    fn string(&mut self, text: &Text) -> Result<()> {
        self.out.push_str("\"")?;
        let string = text.as_str();
        let mut plain_start = 0;
        for (at, c) in string.char_indices() {
            let escaped = match c {
                '"' => "\\\"".to_owned(),
                '\\' => "\\\\".to_owned(),
                '\n' => "\\n".to_owned(),
                '\r' => "\\r".to_owned(),
                '\t' => "\\t".to_owned(),
                '\x08' => "\\b".to_owned(),
                '\x0c' => "\\f".to_owned(),
                '\0'..='\x1f' => format!("\\u{:04x}", u32::from(c)),
                c if self.options.ensure_ascii && (!c.is_ascii() || c == '\x7f') => escape_non_ascii(c),
                _ => continue,
            };
            self.out.push_range(text, plain_start..at)?;
            self.out.push_from(&escaped, text.origin_at(at))?;
            plain_start = at + c.len_utf8();
        }
        self.out.push_range(text, plain_start..string.len())?;
        self.out.push_str("\"")
    }
}

/// Escapes each UTF-16 unit as `\uXXXX`. Python leaves U+007F unescaped.
fn escape_non_ascii(c: char) -> String {
    if c == '\x7f' {
        return c.to_string();
    }
    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

fn json_float(number: f64) -> String {
    match number {
        _ if number.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => float_repr(number),
    }
}
