//! Python's operators.

use crate::ast::Operator;
use crate::budget::Builder;
use crate::error::{Error, Result};
use crate::format::percent;
use crate::interpreter::Interpreter;
use crate::value::{Items, Number, Value};

/// Evaluates `left operator right`.
pub(crate) fn binary(operator: Operator, left: &Value, right: &Value, interpreter: &Interpreter<'_>) -> Result<Value> {
    left.defined()?;
    right.defined()?;
    if let (Some(left), Some(right)) = (left.number(), right.number()) {
        return numbers(operator, left, right);
    }
    match (operator, left, right) {
        (Operator::Add, Value::Str(a), Value::Str(b)) => {
            let mut out = Builder::new(&interpreter.budget);
            out.push(a)?;
            out.push(b)?;
            Ok(Value::text(out.finish()))
        }
        (Operator::Add, Value::List(a), Value::List(b)) => Value::list(joined(a, b, interpreter)?),
        (Operator::Add, Value::Tuple(a), Value::Tuple(b)) => Value::tuple(joined(a, b, interpreter)?),
        (Operator::Mul, repeated, times) | (Operator::Mul, times, repeated)
            if times.int().is_some() && matches!(repeated, Value::Str(_) | Value::List(_) | Value::Tuple(_)) =>
        {
            let times = times.int().and_then(|times| usize::try_from(times.max(0)).ok()).unwrap_or(usize::MAX);
            repeat(repeated, times, interpreter)
        }
        (Operator::Mod, Value::Str(format), args) => percent(format, args, interpreter).map(Value::text),
        (Operator::Add, Value::Str(_), other) => {
            Err(Error::render(format!("can only concatenate str (not \"{}\") to str", other.type_name())))
        }
        (Operator::Add, Value::List(_), other) => {
            Err(Error::render(format!("can only concatenate list (not \"{}\") to list", other.type_name())))
        }
        _ => Err(Error::render(format!(
            "unsupported operand type(s) for {}: '{}' and '{}'",
            symbol(operator),
            left.type_name(),
            right.type_name()
        ))),
    }
}

fn symbol(operator: Operator) -> &'static str {
    match operator {
        Operator::Add => "+",
        Operator::Sub => "-",
        Operator::Mul => "*",
        Operator::Div => "/",
        Operator::FloorDiv => "//",
        Operator::Mod => "%",
        Operator::Pow => "** or pow()",
    }
}

fn joined(a: &Items, b: &Items, interpreter: &Interpreter<'_>) -> Result<Vec<Value>> {
    interpreter.budget.step(a.len() + b.len())?;
    Ok(a.iter().chain(b.iter()).cloned().collect())
}

fn repeat(value: &Value, times: usize, interpreter: &Interpreter<'_>) -> Result<Value> {
    match value {
        Value::Str(text) => {
            let mut out = Builder::new(&interpreter.budget);
            interpreter.budget.step(if text.len() == 0 { 0 } else { times.min(1 << 40) / 64 })?;
            out.repeat(text, if text.len() == 0 { 0 } else { times })?;
            Ok(Value::text(out.finish()))
        }
        Value::List(items) | Value::Tuple(items) => {
            interpreter.budget.step(items.len().saturating_mul(times))?;
            let times = if items.is_empty() { 0 } else { times };
            let repeated: Vec<Value> = (0..times).flat_map(|_| items.iter().cloned()).collect();
            if matches!(value, Value::List(_)) { Value::list(repeated) } else { Value::tuple(repeated) }
        }
        _ => Err(Error::render("only strings, lists and tuples repeat")),
    }
}

fn numbers(operator: Operator, left: Number, right: Number) -> Result<Value> {
    match (left, right) {
        (Number::Int(a), Number::Int(b)) => integers(operator, a, b),
        _ => floats(operator, left.float(), right.float()).map(Value::Float),
    }
}

fn integers(operator: Operator, a: i128, b: i128) -> Result<Value> {
    let is_division = matches!(operator, Operator::Div | Operator::FloorDiv | Operator::Mod);
    if is_division && b == 0 {
        return Err(Error::render(match operator {
            Operator::Div => "division by zero",
            _ => "integer division or modulo by zero",
        }));
    }
    let result = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Sub => a.checked_sub(b),
        Operator::Mul => a.checked_mul(b),
        Operator::Div => return Ok(Value::Float(a as f64 / b as f64)),
        Operator::FloorDiv => a.checked_div_euclid(b).map(|_| floor_div(a, b)),
        Operator::Mod => a.checked_rem(b).map(|_| a - floor_div(a, b) * b),
        Operator::Pow if b < 0 => return floats(operator, a as f64, b as f64).map(Value::Float),
        Operator::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    result.map(Value::Int).ok_or_else(|| Error::render("integer too large"))
}

/// Returns the quotient rounded down. The arguments are not `i128::MIN / -1`.
fn floor_div(a: i128, b: i128) -> i128 {
    let quotient = a / b;
    if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient }
}

fn floats(operator: Operator, a: f64, b: f64) -> Result<f64> {
    if b == 0.0 && matches!(operator, Operator::Div | Operator::FloorDiv | Operator::Mod) {
        return Err(Error::render("float division by zero"));
    }
    let modulo = || {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    };
    Ok(match operator {
        Operator::Add => a + b,
        Operator::Sub => a - b,
        Operator::Mul => a * b,
        Operator::Div => a / b,
        Operator::FloorDiv => ((a - modulo()) / b).round(),
        Operator::Mod => modulo(),
        Operator::Pow if a == 0.0 && b < 0.0 => return Err(Error::render("0.0 cannot be raised to a negative power")),
        Operator::Pow => a.powf(b),
    })
}

/// Evaluates `-value`.
pub(crate) fn negative(value: &Value) -> Result<Value> {
    match value.defined()?.number() {
        Some(Number::Int(number)) => number.checked_neg().map(Value::Int).ok_or_else(|| Error::render("integer too large")),
        Some(Number::Float(number)) => Ok(Value::Float(-number)),
        None => Err(Error::render(format!("bad operand type for unary -: '{}'", value.type_name()))),
    }
}

/// Evaluates `+value`.
pub(crate) fn positive(value: &Value) -> Result<Value> {
    match value.defined()?.number() {
        Some(Number::Int(number)) => Ok(Value::Int(number)),
        Some(Number::Float(number)) => Ok(Value::Float(number)),
        None => Err(Error::render(format!("bad operand type for unary +: '{}'", value.type_name()))),
    }
}
