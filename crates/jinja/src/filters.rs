//! Jinja's filters, and transformers' `tojson`.

mod collections;
mod pick;
mod text;

use std::rc::Rc;

use crate::arguments::Arguments;
use crate::error::{Error, Result};
use crate::interpreter::Interpreter;
use crate::json::{JsonOptions, to_json};
use crate::text::Text;
use crate::value::{Value, to_text};

impl Interpreter<'_> {
    /// Applies the filter `name`.
    pub(crate) fn filter(&self, name: &str, value: Value, args: Arguments) -> Result<Value> {
        self.budget.step(1)?;
        match name {
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => self.pick(name, &value, args),
            "tojson" => self.tojson(&value, args),
            "default" | "d" => {
                let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
                let is_missing = match boolean.is_some_and(|boolean| boolean.is_true()) {
                    true => !value.is_true(),
                    false => matches!(value, Value::Undefined(_)),
                };
                Ok(if is_missing { default.unwrap_or_else(|| Value::literal("")) } else { value })
            }
            "abs" | "round" | "int" | "float" => self.number_filter(name, &value, args),
            "attr" => {
                let [attribute] = args.bind(name, ["name"])?;
                let attribute = self.soft_text(&attribute.unwrap_or(Value::None))?;
                match &value {
                    // An attribute only: elements are not searched.
                    Value::Dict(_) => match crate::methods::exists(&value, attribute.as_str()) {
                        true => self.attribute(&value, attribute.as_str()),
                        false => Ok(Value::undefined(format!("'dict object' has no attribute '{}'", attribute.as_str()))),
                    },
                    _ => self.attribute(&value, attribute.as_str()),
                }
            }
            "batch" | "count" | "dictsort" | "first" | "groupby" | "items" | "join" | "last" | "length" | "list" | "max"
            | "min" | "reverse" | "slice" | "sort" | "sum" | "unique" => self.collection_filter(name, &value, args),
            _ => self.text_filter(name, &value, args),
        }
    }

    /// Returns `str(value)` without copying strings.
    pub(crate) fn soft_text(&self, value: &Value) -> Result<Rc<Text>> {
        match value {
            Value::Str(text) => Ok(Rc::clone(text)),
            other => to_text(other, &self.budget).map(Rc::new),
        }
    }

    fn tojson(&self, value: &Value, args: Arguments) -> Result<Value> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        let [ensure_ascii, indent, separators, sort_keys] = args.bind("tojson", names)?;
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Str(text)) => Some((*text).clone()),
            Some(value) => {
                let width = value.int().ok_or_else(|| Error::render("tojson: indent is a number or a string"))?;
                let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
                self.budget.write(width)?;
                Some(Text::literal(" ".repeat(width)))
            }
        };
        let (item_separator, key_separator) = match separators {
            None | Some(Value::None) => (Text::literal(if indent.is_some() { "," } else { ", " }), Text::literal(": ")),
            Some(separators) => match &separators.elements(&self.budget)?[..] {
                [Value::Str(item), Value::Str(key)] => ((**item).clone(), (**key).clone()),
                _ => return Err(Error::render("tojson: separators are two strings")),
            },
        };
        let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
        let options = JsonOptions {
            ensure_ascii: is_set(ensure_ascii),
            indent,
            item_separator,
            key_separator,
            sort_keys: is_set(sort_keys),
        };
        to_json(value, &options, &self.budget).map(Value::text)
    }

    fn number_filter(&self, name: &str, value: &Value, args: Arguments) -> Result<Value> {
        value.defined()?;
        match name {
            "abs" => {
                let [] = args.bind(name, [])?;
                match value {
                    Value::Float(number) => Ok(Value::Float(number.abs())),
                    _ => match value.int() {
                        Some(int) => Ok(Value::Int(int.saturating_abs())),
                        None => Err(Error::render(format!("bad operand type for abs(): '{}'", value.type_name()))),
                    },
                }
            }
            "round" => {
                let [precision, method] = args.bind(name, ["precision", "method"])?;
                let method = method.map_or_else(|| Ok(Rc::new(Text::literal("common"))), |method| self.soft_text(&method))?;
                round(value, precision.and_then(|precision| precision.int()).unwrap_or(0), method.as_str())
            }
            "int" => {
                let [default, base] = args.bind(name, ["default", "base"])?;
                let base = base.and_then(|base| base.int()).unwrap_or(10);
                Ok(to_int(value, base).map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
            }
            _ => {
                let [default] = args.bind(name, ["default"])?;
                let found = match value {
                    Value::Str(text) => parse_float(text.as_str()),
                    _ => value.number().map(crate::value::Number::float),
                };
                Ok(found.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
            }
        }
    }
}

fn round(value: &Value, precision: i128, method: &str) -> Result<Value> {
    if !matches!(method, "common" | "ceil" | "floor") {
        return Err(Error::render("method must be common, ceil or floor"));
    }
    let Some(number) = value.number() else {
        return Err(Error::render(format!("type {} doesn't define __round__ method", value.type_name())));
    };
    if let (Some(int), "common") = (value.int(), method) {
        return Ok(Value::Int(round_int(int, precision)));
    }
    let precision = i32::try_from(precision.clamp(-400, 400)).expect("clamped");
    let (number, scale) = (number.float(), 10f64.powi(precision));
    let rounded = match method {
        "ceil" => (number * scale).ceil() / scale,
        "floor" => (number * scale).floor() / scale,
        // Rounds to the nearest number with the given decimals, like Python's `round`.
        _ if precision >= 0 => {
            let text = format!("{number:.0$}", usize::try_from(precision).unwrap_or(0));
            text.parse().unwrap_or(number)
        }
        _ => (number * scale).round_ties_even() / scale,
    };
    Ok(Value::Float(rounded))
}

/// Rounds a whole number like Python's `round`: half goes to even.
fn round_int(int: i128, precision: i128) -> i128 {
    let power = u32::try_from(precision.saturating_neg()).unwrap_or(0);
    if power == 0 {
        return int;
    }
    let Some(unit) = 10i128.checked_pow(power) else { return 0 };
    let (low, rest) = (int.div_euclid(unit), int.rem_euclid(unit));
    let rounds_up = rest > unit - rest || (rest == unit - rest && low % 2 != 0);
    (low + i128::from(rounds_up)).saturating_mul(unit)
}

fn to_int(value: &Value, base: i128) -> Option<i128> {
    match value {
        Value::Str(text) => {
            let digits = text.as_str().trim().replace('_', "");
            let radix = u32::try_from(base).ok().filter(|radix| (2..=36).contains(radix))?;
            let prefix = match radix {
                16 => "0x",
                8 => "0o",
                2 => "0b",
                _ => "",
            };
            let unprefixed = digits.strip_prefix(prefix).unwrap_or(&digits);
            i128::from_str_radix(unprefixed, radix).ok().or_else(|| parse_float(text.as_str()).and_then(truncated))
        }
        Value::Float(number) => truncated(*number),
        _ => value.int(),
    }
}

/// Truncates a number to a whole one, if its magnitude is below 1e38.
fn truncated(number: f64) -> Option<i128> {
    (number.is_finite() && number.abs() < 1e38).then_some(number.trunc() as i128)
}

/// Parses a number like Python's `float`.
fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim();
    let is_number = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_'));
    if is_number { text.replace('_', "").parse().ok() } else { None }
}
