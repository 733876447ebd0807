//! Format specifications of a value: width, precision and type.

use crate::budget::{Budget, Builder};
use crate::error::{Error, Result};
use crate::text::Text;
use crate::value::{Number, Value, float_repr, to_text};

/// `[[fill]align][sign][#][0][width][,][.precision][type]`.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    fill: char,
    align: Option<char>,
    sign: char,
    alternate: bool,
    pub(super) width: usize,
    grouping: Option<char>,
    pub(super) precision: Option<usize>,
    kind: Option<char>,
}

/// Maximum precision: more digits than any number has.
const MAX_PRECISION: usize = 400;

impl Spec {
    /// Returns the default spec of a `%` conversion, which aligns to the right.
    pub(super) fn for_percent() -> Self {
        Self { fill: ' ', align: Some('>'), sign: '-', alternate: false, width: 0, grouping: None, precision: None, kind: None }
    }

    pub(super) fn percent_flag(&mut self, flag: char) {
        match flag {
            '-' => (self.align, self.fill) = (Some('<'), ' '),
            '0' if self.align != Some('<') => (self.align, self.fill) = (Some('='), '0'),
            '+' => self.sign = '+',
            ' ' if self.sign != '+' => self.sign = ' ',
            '#' => self.alternate = true,
            _ => {}
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let mut spec = Self { align: None, ..Self::for_percent() };
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        let is_align = |c: Option<&char>| matches!(c, Some('<' | '>' | '=' | '^'));
        if is_align(chars.get(1)) {
            (spec.fill, spec.align, at) = (chars[0], Some(chars[1]), 2);
        } else if is_align(chars.first()) {
            (spec.align, at) = (Some(chars[0]), 1);
        }
        if let Some(&sign @ ('+' | '-' | ' ')) = chars.get(at) {
            (spec.sign, at) = (sign, at + 1);
        }
        if chars.get(at) == Some(&'#') {
            (spec.alternate, at) = (true, at + 1);
        }
        if chars.get(at) == Some(&'0') {
            if spec.align.is_none() {
                (spec.fill, spec.align) = ('0', Some('='));
            }
            at += 1;
        }
        (spec.width, at) = digits(&chars, at)?.map_or((0, at), |found| found);
        if let Some(&grouping @ (',' | '_')) = chars.get(at) {
            (spec.grouping, at) = (Some(grouping), at + 1);
        }
        if chars.get(at) == Some(&'.') {
            let (precision, end) = digits(&chars, at + 1)?.ok_or_else(|| Error::render("Format specifier missing precision"))?;
            (spec.precision, at) = (Some(precision), end);
        }
        spec.kind = chars.get(at).copied();
        if chars.len() > at + usize::from(spec.kind.is_some()) {
            return Err(Error::render("Invalid format specifier"));
        }
        Ok(spec)
    }
}

/// Parses the number at `at`, and returns its end.
fn digits(chars: &[char], at: usize) -> Result<Option<(usize, usize)>> {
    let len = chars[at.min(chars.len())..].iter().take_while(|c| c.is_ascii_digit()).count();
    if len == 0 {
        return Ok(None);
    }
    let number: String = chars[at..at + len].iter().collect();
    Ok(Some((number.parse().map_err(|_| Error::render("Too many decimal digits in format string"))?, at + len)))
}

/// Appends `format(value, spec)`.
pub(super) fn format_value(value: &Value, spec: &str, out: &mut Builder<'_>, budget: &Budget) -> Result<()> {
    if spec.is_empty() {
        return out.push(&to_text(value, budget)?);
    }
    let unsupported = || Error::render(format!("unsupported format string passed to {}.__format__", value.type_name()));
    let parsed = Spec::parse(spec)?;
    match value {
        Value::Str(text) => match parsed.kind {
            None | Some('s') => pad(text, &parsed, '<', out),
            Some(kind) => Err(Error::render(format!("Unknown format code '{kind}' for object of type 'str'"))),
        },
        Value::Bool(_) if parsed.kind.is_none() => pad(&to_text(value, budget)?, &parsed, '<', out),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            let number = value.number().ok_or_else(unsupported)?;
            let unknown =
                |kind: char| Error::render(format!("Unknown format code '{kind}' for object of type '{}'", value.type_name()));
            let (digits, prefix) = match (number, parsed.kind) {
                (Number::Int(int), None | Some('d' | 'n')) => (grouped(int.unsigned_abs().to_string(), parsed.grouping), ""),
                (Number::Int(int), Some('x')) => (format!("{:x}", int.unsigned_abs()), "0x"),
                (Number::Int(int), Some('X')) => (format!("{:X}", int.unsigned_abs()), "0X"),
                (Number::Int(int), Some('o')) => (format!("{:o}", int.unsigned_abs()), "0o"),
                (Number::Int(int), Some('b')) => (format!("{:b}", int.unsigned_abs()), "0b"),
                (number, kind) => (float_digits(number.float(), kind, &parsed).ok_or_else(|| unknown(kind.unwrap_or('g')))?, ""),
            };
            let is_negative = match number {
                Number::Int(int) => int < 0,
                Number::Float(float) => float.is_sign_negative(),
            };
            write_number(is_negative, if parsed.alternate { prefix } else { "" }, &digits, &parsed, out)
        }
        _ => Err(unsupported()),
    }
}

/// Appends the `%` conversion of a number.
pub(super) fn percent_number(value: &Value, kind: char, spec: &Spec, out: &mut Builder<'_>) -> Result<()> {
    let number = match value.defined()?.number() {
        Some(number) => number,
        None if matches!(kind, 'd' | 'i' | 'u' | 'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G') => {
            return Err(Error::render(format!("%{kind} format: a real number is required, not {}", value.type_name())));
        }
        None => return Err(Error::render(format!("unsupported format character '{kind}'"))),
    };
    let (is_negative, digits, prefix) = match (kind, number) {
        ('d' | 'i' | 'u', Number::Float(float)) => (float < 0.0, format!("{}", float.abs().trunc()), ""),
        ('d' | 'i' | 'u', Number::Int(int)) => (int < 0, int.unsigned_abs().to_string(), ""),
        ('x', Number::Int(int)) => (int < 0, format!("{:x}", int.unsigned_abs()), "0x"),
        ('X', Number::Int(int)) => (int < 0, format!("{:X}", int.unsigned_abs()), "0X"),
        ('o', Number::Int(int)) => (int < 0, format!("{:o}", int.unsigned_abs()), "0o"),
        ('e' | 'E' | 'f' | 'F' | 'g' | 'G', number) => {
            let float = number.float();
            let spec = Spec { precision: Some(spec.precision.unwrap_or(6)), ..*spec };
            let digits = float_digits(float, Some(kind), &spec).unwrap_or_default();
            (float.is_sign_negative(), digits, "")
        }
        _ => return Err(Error::render(format!("unsupported format character '{kind}'"))),
    };
    let wanted = match kind {
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => spec.precision.unwrap_or(0).min(MAX_PRECISION),
        _ => 0,
    };
    let digits = format!("{}{digits}", "0".repeat(wanted.saturating_sub(digits.len())));
    write_number(is_negative, if spec.alternate { prefix } else { "" }, &digits, spec, out)
}

fn write_number(is_negative: bool, prefix: &str, digits: &str, spec: &Spec, out: &mut Builder<'_>) -> Result<()> {
    let sign = match (is_negative, spec.sign) {
        (true, _) => "-",
        (false, '+') => "+",
        (false, ' ') => " ",
        _ => "",
    };
    if spec.align == Some('=') {
        let len = sign.len() + prefix.len() + digits.chars().count();
        out.push_str(&format!("{sign}{prefix}"))?;
        out.repeat(&Text::literal(spec.fill), spec.width.saturating_sub(len))?;
        return out.push_str(digits);
    }
    pad(&Text::literal(format!("{sign}{prefix}{digits}")), &Spec { precision: None, ..*spec }, '>', out)
}

/// Appends `text`, truncated to the precision and padded to the width.
pub(super) fn pad(text: &Text, spec: &Spec, default_align: char, out: &mut Builder<'_>) -> Result<()> {
    let string = text.as_str();
    let end = spec.precision.and_then(|precision| string.char_indices().nth(precision)).map_or(string.len(), |(at, _)| at);
    let missing = spec.width.saturating_sub(string[..end].chars().count());
    let left = match spec.align.unwrap_or(default_align) {
        '>' | '=' => missing,
        '^' => missing / 2,
        _ => 0,
    };
    let fill = Text::literal(if spec.align == Some('=') { ' ' } else { spec.fill });
    out.repeat(&fill, left)?;
    out.push_range(text, 0..end)?;
    out.repeat(&fill, missing - left)
}

/// Groups the digits of `|number|` by threes.
fn grouped(digits: String, grouping: Option<char>) -> String {
    let Some(separator) = grouping else { return digits };
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut out = String::new();
    for (index, c) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(separator);
        }
        out.push(c);
    }
    out + rest
}

/// Formats the digits of `|number|`; `None` for a type that does not apply to numbers.
fn float_digits(number: f64, kind: Option<char>, spec: &Spec) -> Option<String> {
    let absolute = number.abs();
    if !absolute.is_finite() {
        let name = if absolute.is_nan() { "nan" } else { "inf" };
        return Some(if kind.is_some_and(char::is_uppercase) { name.to_uppercase() } else { name.to_owned() });
    }
    let precision = spec.precision.unwrap_or(6).min(MAX_PRECISION);
    let digits = match kind {
        None if spec.precision.is_none() => float_repr(absolute),
        None => {
            let general = general(absolute, precision, false);
            if general.contains(['.', 'e']) { general } else { general + ".0" }
        }
        Some('f' | 'F') => format!("{absolute:.precision$}"),
        Some('e') => exponent(absolute, precision),
        Some('E') => exponent(absolute, precision).to_uppercase(),
        Some('g' | 'n') => general(absolute, precision, spec.alternate),
        Some('G') => general(absolute, precision, spec.alternate).to_uppercase(),
        Some('%') => format!("{:.precision$}%", absolute * 100.0),
        Some(_) => return None,
    };
    Some(grouped(digits, spec.grouping))
}

fn exponent(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').expect("`e` formats with an exponent");
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// Returns the shorter notation with `precision` digits (C's `%g`).
fn general(number: f64, precision: usize, keeps_zeros: bool) -> String {
    let precision = precision.max(1);
    let scientific = exponent(number, precision - 1);
    let (digits, power) = scientific.split_once('e').expect("an exponent was written");
    let power: i32 = power.parse().expect("an exponent is a number");
    let trim = |digits: &str| match digits.contains('.') && !keeps_zeros {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        return format!("{}e{}", trim(digits), &scientific[digits.len() + 1..]);
    }
    let decimals = usize::try_from(precision as i32 - 1 - power).unwrap_or(0);
    trim(&format!("{number:.decimals$}"))
}

/// Implements `ascii()`: escapes characters that are not ASCII.
pub(super) fn ascii(text: &Text) -> Text {
    text.map_chars(|c| match u32::from(c) {
        0..0x80 => vec![c],
        code @ 0x80..0x100 => format!("\\x{code:02x}").chars().collect(),
        code @ 0x100..0x1_0000 => format!("\\u{code:04x}").chars().collect(),
        code => format!("\\U{code:08x}").chars().collect(),
    })
}
