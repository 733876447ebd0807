//! Python's representation of values.

use std::sync::LazyLock;

use regex::Regex;

use super::{Dict, Object, Value};
use crate::budget::{Budget, Builder};
use crate::error::Result;
use crate::text::Text;

/// Returns Python's `str(value)`.
pub(crate) fn to_text(value: &Value, budget: &Budget) -> Result<Text> {
    if let Value::Str(text) = value {
        budget.write(text.len())?;
        return Ok((**text).clone());
    }
    let mut out = Builder::new(budget);
    write_str(value, &mut out, budget)?;
    Ok(out.finish())
}

/// Returns Python's `repr(value)`.
pub(crate) fn repr(value: &Value, budget: &Budget) -> Result<Text> {
    let mut out = Builder::new(budget);
    write_repr(value, &mut out, budget)?;
    Ok(out.finish())
}

/// Appends `str(value)`.
pub(crate) fn write_str(value: &Value, out: &mut Builder<'_>, budget: &Budget) -> Result<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) => out.push(text),
        _ => write_repr(value, out, budget),
    }
}

fn write_repr(value: &Value, out: &mut Builder<'_>, budget: &Budget) -> Result<()> {
    budget.step(1)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(number) => out.push_str(&number.to_string()),
        Value::Float(number) => out.push_str(&float_repr(*number)),
        Value::Str(text) => write_quoted(text, out),
        Value::List(items) => write_items("[", items, "]", out, budget),
        Value::Tuple(items) => write_items("(", items, if items.len() == 1 { ",)" } else { ")" }, out, budget),
        Value::Dict(dict) => write_dict(dict, out, budget),
        Value::Object(object) => write_object(value, object, out, budget),
    }
}

fn write_object(value: &Value, object: &Object, out: &mut Builder<'_>, budget: &Budget) -> Result<()> {
    match object {
        Object::View(name, items) => {
            out.push_str(name)?;
            write_items("([", items, "])", out, budget)
        }
        Object::Group(items) => write_items("(", items, ")", out, budget),
        Object::Macro(definition, _) => out.push_str(&format!("<Macro '{}'>", definition.name)),
        Object::Loop(state) => out.push_str(&format!("<LoopContext {}/{}>", state.index(), state.len())),
        _ => out.push_str(&format!("<{} object>", value.type_name())),
    }
}

fn write_items(open: &str, items: &[Value], close: &str, out: &mut Builder<'_>, budget: &Budget) -> Result<()> {
    out.push_str(open)?;
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ")?;
        }
        write_repr(item, out, budget)?;
    }
    out.push_str(close)
}

fn write_dict(dict: &Dict, out: &mut Builder<'_>, budget: &Budget) -> Result<()> {
    out.push_str("{")?;
    for (index, (key, value)) in dict.entries().iter().enumerate() {
        if index > 0 {
            out.push_str(", ")?;
        }
        write_repr(key, out, budget)?;
        out.push_str(": ")?;
        write_repr(value, out, budget)?;
    }
    out.push_str("}")
}

/// Characters that Python escapes: those of the categories C and Z, except the space.
static NOT_PRINTABLE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[\p{C}\p{Z}&&[^ ]]$").expect("the expression is a constant"));

pub(crate) fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~') || !NOT_PRINTABLE.is_match(c.encode_utf8(&mut [0; 4]))
}

fn write_quoted(text: &Text, out: &mut Builder<'_>) -> Result<()> {
    let string = text.as_str();
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    let quote_text = quote.to_string();
    out.push_str(&quote_text)?;
    let mut plain_start = 0;
    for (at, c) in string.char_indices() {
        let escaped = match c {
            '\\' => "\\\\".to_owned(),
            '\n' => "\\n".to_owned(),
            '\r' => "\\r".to_owned(),
            '\t' => "\\t".to_owned(),
            c if c == quote => format!("\\{c}"),
            c if is_printable(c) => continue,
            c if u32::from(c) < 0x100 => format!("\\x{:02x}", u32::from(c)),
            c if u32::from(c) < 0x1_0000 => format!("\\u{:04x}", u32::from(c)),
            c => format!("\\U{:08x}", u32::from(c)),
        };
        out.push_range(text, plain_start..at)?;
        out.push_from(&escaped, text.origin_at(at))?;
        plain_start = at + c.len_utf8();
    }
    out.push_range(text, plain_start..string.len())?;
    out.push_str(&quote_text)
}

/// Returns Python's `repr` of a float: the shortest digits that round-trip, with an exponent below 1e-4 and from 1e16 on.
pub(crate) fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`e` formats with an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    if (-4..16).contains(&exponent) || number == 0.0 {
        let plain = format!("{number}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_spelled_as_python_spells_them() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (9_007_199_254_740_992.0, "9007199254740992.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
        ];
        for (number, expected) in cases {
            assert_eq!(float_repr(number), expected);
        }
    }
}
