//! Jinja's tests, which follow `is`.

use std::rc::Rc;

use crate::arguments::Arguments;
use crate::arithmetic;
use crate::ast::{Comparison, Operator};
use crate::error::{Error, Result};
use crate::interpreter::Interpreter;
use crate::value::{Object, Value};

impl Interpreter<'_> {
    /// True if `value is name(args)`.
    pub(crate) fn test(&self, name: &str, value: &Value, args: &Arguments) -> Result<bool> {
        let argument = || match &args.positional[..] {
            [argument] if args.keyword.is_empty() => Ok(argument),
            _ => Err(Error::render(format!("test '{name}' takes one argument"))),
        };
        let comparison = match name {
            "eq" | "equalto" | "==" => Comparison::Equal,
            "ne" | "!=" => Comparison::NotEqual,
            "lt" | "lessthan" | "<" => Comparison::Less,
            "le" | "<=" => Comparison::LessOrEqual,
            "gt" | "greaterthan" | ">" => Comparison::Greater,
            "ge" | ">=" => Comparison::GreaterOrEqual,
            "in" => Comparison::In,
            "sameas" => return Ok(is_same(value, argument()?)),
            "divisibleby" => return self.rest_is(value, argument()?, 0),
            _ if !args.positional.is_empty() || !args.keyword.is_empty() => {
                return Err(Error::render(format!("test '{name}' takes no argument")));
            }
            "even" => return self.rest_is(value, &Value::Int(2), 0),
            "odd" => return self.rest_is(value, &Value::Int(2), 1),
            _ => return self.kind_test(name, value),
        };
        self.compare(comparison, value, argument()?)
    }

    fn rest_is(&self, value: &Value, divisor: &Value, rest: i128) -> Result<bool> {
        Ok(arithmetic::binary(Operator::Mod, value, divisor, self)?.equals(&Value::Int(rest)))
    }

    fn kind_test(&self, name: &str, value: &Value) -> Result<bool> {
        Ok(match name {
            "defined" => !matches!(value, Value::Undefined(_)),
            "undefined" => matches!(value, Value::Undefined(_)),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.number().is_some(),
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "iterable" => value.is_iterable(),
            "sequence" => match value {
                Value::Undefined(_) | Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) => true,
                Value::Object(object) => matches!(&**object, Object::Group(_)),
                _ => false,
            },
            "callable" => match value {
                Value::Undefined(_) => true,
                Value::Object(object) => {
                    matches!(
                        &**object,
                        Object::Macro(..) | Object::Function(_) | Object::Method(..) | Object::Loop(_) | Object::Joiner(..)
                    )
                }
                _ => false,
            },
            "escaped" => false,
            "lower" | "upper" => {
                let text = self.soft_text(value)?;
                let has = |test: fn(char) -> bool| text.as_str().chars().any(test);
                let (lower, upper) = (has(char::is_lowercase), has(char::is_uppercase));
                if name == "lower" { lower && !upper } else { upper && !lower }
            }
            "filter" | "test" => return Err(Error::render(format!("test '{name}' is not supported"))),
            _ => return Err(Error::render(format!("No test named '{name}'."))),
        })
    }
}

/// Evaluates Python's `is`, as far as values here have an identity.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Bool(_), _) | (_, Value::Bool(_)) => false,
        (Value::Int(_), Value::Float(_)) | (Value::Float(_), Value::Int(_)) => false,
        _ => a.equals(b),
    }
}
