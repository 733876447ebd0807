//! Methods of Python's types that Jinja's sandbox allows.

use std::rc::Rc;

use crate::arguments::Arguments;
use crate::error::{Error, Result};
use crate::interpreter::Interpreter;
use crate::strings;
use crate::value::{Dict, Items, Object, Value};

/// Methods of dictionaries.
const DICT: [&str; 5] = ["get", "items", "keys", "values", "copy"];
/// Mutating methods of dictionaries, which the sandbox refuses.
const DICT_UNSAFE: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
/// Methods of lists and tuples.
const LIST: [&str; 3] = ["count", "index", "copy"];
/// Mutating methods of lists.
const LIST_UNSAFE: [&str; 8] = ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];

/// True if `value` has a method `name`.
pub(crate) fn exists(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => strings::METHODS.contains(&name),
        Value::Dict(_) => DICT.contains(&name),
        Value::List(_) => LIST.contains(&name),
        Value::Tuple(_) => LIST[..2].contains(&name),
        Value::Float(_) => matches!(name, "is_integer"),
        Value::Object(object) => match &**object {
            Object::Loop(_) => matches!(name, "cycle" | "changed"),
            Object::Cycler(..) => matches!(name, "next" | "reset"),
            _ => false,
        },
        _ => false,
    }
}

/// True if Jinja's sandbox refuses `name` of `value`.
pub(crate) fn is_unsafe(value: &Value, name: &str) -> bool {
    match value {
        Value::Dict(_) => DICT_UNSAFE.contains(&name),
        Value::List(_) => LIST_UNSAFE.contains(&name),
        _ => false,
    }
}

/// Calls the method `name` of `receiver`, which exists.
pub(crate) fn call(interpreter: &Interpreter<'_>, receiver: &Value, name: &str, args: Arguments) -> Result<Value> {
    match receiver {
        Value::Str(text) => strings::call(interpreter, text, name, args),
        Value::Dict(dict) => dict_method(interpreter, dict, name, args),
        Value::List(items) | Value::Tuple(items) => list_method(interpreter, items, name, args),
        Value::Float(number) => Ok(Value::Bool(number.fract() == 0.0)),
        Value::Object(object) => interpreter.call_object_method(object, name, args),
        _ => Err(Error::render(format!("no method '{name}'"))),
    }
}

fn dict_method(interpreter: &Interpreter<'_>, dict: &Rc<Dict>, name: &str, args: Arguments) -> Result<Value> {
    if name == "get" {
        let [key, default] = args.bind("get", ["key", "default"])?;
        let key = key.ok_or_else(|| Error::render("get expected at least 1 argument, got 0"))?;
        // An undefined key is hashable in Python and equals no key.
        let found = if matches!(key, Value::Undefined(_)) { None } else { dict.get(&key)? };
        return Ok(found.cloned().or(default).unwrap_or(Value::None));
    }
    let [] = args.bind(name, [])?;
    interpreter.budget.step(dict.len())?;
    let view = |name, items| Ok(Value::object(Object::View(name, Items::new(items)?)));
    match name {
        "items" => view("dict_items", pairs(dict)?),
        "keys" => view("dict_keys", dict.keys().cloned().collect()),
        "values" => view("dict_values", dict.values().cloned().collect()),
        _ => Ok(Value::Dict(Rc::clone(dict))),
    }
}

/// Returns the entries of `dict` as tuples.
pub(crate) fn pairs(dict: &Dict) -> Result<Vec<Value>> {
    dict.entries().iter().map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()])).collect()
}

fn list_method(interpreter: &Interpreter<'_>, items: &Rc<Items>, name: &str, args: Arguments) -> Result<Value> {
    interpreter.budget.step(items.len())?;
    match name {
        "count" => {
            let [wanted] = args.bind("count", ["value"])?;
            let wanted = wanted.unwrap_or(Value::None);
            Ok(Value::Int(items.iter().filter(|item| item.equals(&wanted)).count() as i128))
        }
        "index" => {
            let [wanted] = args.bind("index", ["value"])?;
            let wanted = wanted.unwrap_or(Value::None);
            let found = items.iter().position(|item| item.equals(&wanted));
            found.map(|index| Value::Int(index as i128)).ok_or_else(|| Error::render("the value is not in the list"))
        }
        _ => Ok(Value::List(Rc::clone(items))),
    }
}
