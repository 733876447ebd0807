//! Values of the metadata.

use std::fmt;
use std::io::Read;

use crate::Error;
use crate::error::Shown;
use crate::source::Source;

/// A value of the metadata. Numeric types of all widths share one variant.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Integer that is not negative, or of an unsigned type.
    Unsigned(u64),
    /// Negative integer.
    Negative(i64),
    /// Floating-point number.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// String.
    String(String),
    /// Several values of one type.
    Array(Array),
}

/// Several values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Integers; unsigned 64-bit values above 2^63 - 1 are clamped to 2^63 - 1.
    Integers(Vec<i64>),
    /// Floating-point numbers.
    Floats(Vec<f64>),
    /// Booleans.
    Bools(Vec<bool>),
    /// Strings.
    Strings(Vec<String>),
}

/// Type ids in a file (`enum gguf_type`).
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

impl Value {
    pub(crate) fn read(source: &mut Source<impl Read>, key: &str) -> Result<Self, Error> {
        match source.u32("the type of a value")? {
            ARRAY => {
                let ty = source.u32("the type of an array")?;
                Array::read(source, key, ty).map(Self::Array)
            }
            ty => Self::scalar(source, key, ty),
        }
    }

    fn scalar(source: &mut Source<impl Read>, key: &str, ty: u32) -> Result<Self, Error> {
        let what = "a value";
        let signed = |number: i64| u64::try_from(number).map_or(Self::Negative(number), Self::Unsigned);
        Ok(match ty {
            0 => Self::Unsigned(u64::from(u8::from_le_bytes(source.bytes(what)?))),
            1 => signed(i64::from(i8::from_le_bytes(source.bytes(what)?))),
            2 => Self::Unsigned(u64::from(u16::from_le_bytes(source.bytes(what)?))),
            3 => signed(i64::from(i16::from_le_bytes(source.bytes(what)?))),
            4 => Self::Unsigned(u64::from(source.u32(what)?)),
            5 => signed(i64::from(i32::from_le_bytes(source.bytes(what)?))),
            6 => Self::Float(f64::from(f32::from_le_bytes(source.bytes(what)?))),
            BOOL => Self::Bool(source.bytes::<1>(what)? != [0]),
            STRING => Self::String(source.string(what)?),
            10 => Self::Unsigned(source.u64(what)?),
            11 => signed(i64::from_le_bytes(source.bytes(what)?)),
            12 => Self::Float(f64::from_le_bytes(source.bytes(what)?)),
            _ => return Err(Error::ValueType { key: key.to_owned(), ty }),
        })
    }

    /// Returns the string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// Returns the integer, if it is not negative.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        if let Self::Unsigned(number) = self { Some(*number) } else { None }
    }

    /// Returns the number, of any numeric variant.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Unsigned(number) => Some(*number as f64),
            Self::Negative(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }

    /// Returns the boolean.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(flag) = self { Some(*flag) } else { None }
    }
}

impl Array {
    fn read(source: &mut Source<impl Read>, key: &str, ty: u32) -> Result<Self, Error> {
        let min_bytes = match ty {
            0 | 1 | BOOL => 1,
            2 | 3 => 2,
            4..=6 => 4,
            // Lengths of strings have four bytes in version 1.
            STRING => 4,
            10..=12 => 8,
            ARRAY => return Err(Error::NestedArray { key: key.to_owned() }),
            _ => return Err(Error::ValueType { key: key.to_owned(), ty }),
        };
        let len = source.elements(min_bytes)?;
        let values = (0..len).map(|_| Value::scalar(source, key, ty));
        Ok(match ty {
            6 | 12 => Self::Floats(values.map(|value| Ok(value?.as_f64().unwrap_or(f64::NAN))).collect::<Result<_, Error>>()?),
            BOOL => Self::Bools(values.map(|value| Ok(value?.as_bool().unwrap_or(false))).collect::<Result<_, Error>>()?),
            STRING => {
                let text = |value| match value {
                    Ok(Value::String(text)) => Ok(text),
                    Ok(_) => Ok(String::new()),
                    Err(error) => Err(error),
                };
                Self::Strings(values.map(text).collect::<Result<_, Error>>()?)
            }
            _ => {
                let number = |value| match value {
                    Ok(Value::Unsigned(number)) => Ok(i64::try_from(number).unwrap_or(i64::MAX)),
                    Ok(Value::Negative(number)) => Ok(number),
                    Ok(_) => Ok(0),
                    Err(error) => Err(error),
                };
                Self::Integers(values.map(number).collect::<Result<_, Error>>()?)
            }
        })
    }

    /// Returns the number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Integers(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Bools(values) => values.len(),
            Self::Strings(values) => values.len(),
        }
    }

    /// Returns true if it has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(number) => write!(f, "{number}"),
            Self::Negative(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Bool(flag) => write!(f, "{flag}"),
            Self::String(text) => write!(f, "{}", Shown(text)),
            Self::Array(array) => write!(f, "an array of {} elements", array.len()),
        }
    }
}
