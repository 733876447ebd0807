//! Attributes, elements and slices.

use crate::budget::Builder;
use crate::error::{Error, Result};
use crate::interpreter::Interpreter;
use crate::methods;
use crate::value::{Object, Value};

impl Interpreter<'_> {
    /// Evaluates `value.name`: an attribute, or else an element of that name.
    pub(crate) fn attribute(&self, value: &Value, name: &str) -> Result<Value> {
        value.defined()?;
        if let Some(found) = own_attribute(value, name)? {
            return Ok(found);
        }
        if let Value::Dict(dict) = value
            && let Some(found) = dict.get_str(name)
        {
            return Ok(found.clone());
        }
        Ok(Value::undefined(format!("'{}' has no attribute '{name}'", object_type(value))))
    }

    /// Evaluates `value[key]`: an element, or else an attribute of that name.
    pub(crate) fn item(&self, value: &Value, key: &Value) -> Result<Value> {
        value.defined()?;
        let found = match value {
            // An unhashable key is not found.
            Value::Dict(dict) => dict.get(key).ok().flatten().cloned(),
            Value::List(items) | Value::Tuple(items) => {
                key.int().and_then(|index| index_of(index, items.len())).map(|index| items[index].clone())
            }
            Value::Str(text) => match key.int() {
                Some(index) => self.slice_one(text, index)?,
                None => None,
            },
            Value::Object(object) => match &**object {
                Object::Group(items) => key.int().and_then(|index| index_of(index, 2)).map(|index| items[index].clone()),
                _ => None,
            },
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        match key {
            Value::Str(name) => match own_attribute(value, name.as_str())? {
                Some(found) => Ok(found),
                None => Ok(Value::undefined(format!("'{}' has no attribute '{}'", object_type(value), name.as_str()))),
            },
            Value::Undefined(reason) if !matches!(value, Value::Dict(_)) => Err(Error::render(&**reason)),
            _ => {
                let shown = crate::value::repr(key, &self.budget)?;
                Ok(Value::undefined(format!("{} has no element {}", object_type(value), shown.as_str())))
            }
        }
    }

    fn slice_one(&self, text: &crate::text::Text, index: i128) -> Result<Option<Value>> {
        let string = text.as_str();
        self.budget.step(string.len() / 64)?;
        let at = match usize::try_from(index) {
            Ok(index) => string.char_indices().nth(index),
            Err(_) => usize::try_from(-(index + 1)).ok().and_then(|back| string.char_indices().nth_back(back)),
        };
        Ok(at.map(|(at, c)| Value::text(text.slice(at..at + c.len_utf8()))))
    }

    /// Evaluates `value[start:stop:step]`.
    pub(crate) fn slice(&self, value: &Value, [start, stop, step]: [Option<i128>; 3]) -> Result<Value> {
        value.defined()?;
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err(Error::render("slice step cannot be zero"));
        }
        let indices = |len: usize| slice_indices(start, stop, step, len);
        match value {
            Value::List(items) => {
                self.budget.step(items.len())?;
                Value::list(indices(items.len()).map(|index| items[index].clone()).collect())
            }
            Value::Tuple(items) => {
                self.budget.step(items.len())?;
                Value::tuple(indices(items.len()).map(|index| items[index].clone()).collect())
            }
            Value::Str(text) => {
                let string = text.as_str();
                self.budget.step(string.len() / 64)?;
                let mut starts: Vec<usize> = string.char_indices().map(|(at, _)| at).collect();
                let len = starts.len();
                starts.push(string.len());
                let mut out = Builder::new(&self.budget);
                if step == 1 {
                    let mut range = indices(len);
                    if let Some(first) = range.next() {
                        let last = range.last().unwrap_or(first);
                        out.push_range(text, starts[first]..starts[last + 1])?;
                    }
                } else {
                    for index in indices(len) {
                        out.push_range(text, starts[index]..starts[index + 1])?;
                    }
                }
                Ok(Value::text(out.finish()))
            }
            _ => Ok(Value::undefined(format!("'{}' has no slices", object_type(value)))),
        }
    }
}

/// Returns attributes of the value itself: methods, and those of the engine's own objects.
fn own_attribute(value: &Value, name: &str) -> Result<Option<Value>> {
    if methods::is_unsafe(value, name) {
        return Ok(Some(Value::undefined(format!("access to attribute '{name}' of '{}' object is unsafe.", value.type_name()))));
    }
    if methods::exists(value, name) {
        return Ok(Some(Value::object(Object::Method(value.clone(), name.into()))));
    }
    let Value::Object(object) = value else { return Ok(None) };
    Ok(match &**object {
        Object::Namespace(attributes) => attributes.borrow().get_str(name).cloned(),
        Object::Loop(state) => state.attribute(name),
        Object::Group(items) => match name {
            "grouper" => Some(items[0].clone()),
            "list" => Some(items[1].clone()),
            _ => None,
        },
        Object::Macro(definition, _) => match name {
            "name" => Some(Value::literal(&definition.name)),
            "arguments" => {
                let names = definition.parameters.iter().map(|(name, _)| Value::literal(name)).collect();
                Some(Value::tuple(names)?)
            }
            "catch_kwargs" => Some(Value::Bool(definition.reads_kwargs)),
            "catch_varargs" => Some(Value::Bool(definition.reads_varargs)),
            "caller" => Some(Value::Bool(definition.reads_caller)),
            _ => None,
        },
        Object::Cycler(items, at) if name == "current" => Some(items[at.get()].clone()),
        _ => None,
    })
}

/// Returns Jinja's name of a type for errors.
fn object_type(value: &Value) -> String {
    match value {
        Value::None => "None".to_owned(),
        other => format!("{} object", other.type_name()),
    }
}

/// Converts a Python index.
fn index_of(index: i128, len: usize) -> Option<usize> {
    let from_start = if index < 0 { index + len as i128 } else { index };
    usize::try_from(from_start).ok().filter(|&index| index < len)
}

/// Returns the indices of a slice (Python's `slice.indices`).
fn slice_indices(start: Option<i128>, stop: Option<i128>, step: i128, len: usize) -> impl Iterator<Item = usize> {
    let len = len as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i128| (if bound < 0 { bound.saturating_add(len) } else { bound }).clamp(low, high);
    let first = start.map_or(if step > 0 { low } else { high }, clamp);
    let end = stop.map_or(if step > 0 { high } else { low }, clamp);
    let next = move |at: &i128| at.checked_add(step);
    std::iter::successors(Some(first), next)
        .take_while(move |&at| if step > 0 { at < end } else { at > end })
        .map(|at| usize::try_from(at).expect("an index of a slice is within its list"))
}
