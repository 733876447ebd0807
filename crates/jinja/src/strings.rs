//! Methods of `str`.

mod change;
mod cut;
mod look;

use std::rc::Rc;

use crate::arguments::Arguments;
use crate::budget::Builder;
use crate::error::{Error, Result};
use crate::format::format_method;
use crate::interpreter::Interpreter;
use crate::text::Text;
use crate::value::Value;

pub(crate) use change::{capitalize, center, replace, title};
pub(crate) use cut::{Side, split_lines, strip};

/// Names of the methods that templates may call.
pub(crate) const METHODS: [&str; 45] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Calls the method `name` of `text`.
pub(crate) fn call(interpreter: &Interpreter<'_>, text: &Rc<Text>, name: &str, args: Arguments) -> Result<Value> {
    interpreter.budget.step(text.len() / 64)?;
    match name {
        "format" => format_method(text, &args, interpreter).map(Value::text),
        "format_map" => {
            let [mapping] = args.bind(name, ["mapping"])?;
            let Some(Value::Dict(dict)) = mapping else { return Err(Error::render("format_map() takes a mapping")) };
            let keyword = dict.entries().iter().filter_map(|(key, value)| match key {
                Value::Str(key) => Some((key.as_str().into(), value.clone())),
                _ => None,
            });
            let args = Arguments { positional: Vec::new(), keyword: keyword.collect() };
            format_method(text, &args, interpreter).map(Value::text)
        }
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" | "strip" | "lstrip" | "rstrip" | "removeprefix"
        | "removesuffix" => cut::call(text, name, args, &interpreter.budget),
        "count" | "find" | "rfind" | "index" | "rindex" | "startswith" | "endswith" => look::call(text, name, args),
        _ if name.starts_with("is") => {
            let [] = args.bind(name, [])?;
            Ok(Value::Bool(look::is(name, text.as_str())))
        }
        "join" => {
            let [iterable] = args.bind(name, ["iterable"])?;
            join(interpreter, text, &iterable.unwrap_or(Value::None))
        }
        _ => change::call(text, name, args, &interpreter.budget),
    }
}

fn join(interpreter: &Interpreter<'_>, separator: &Text, iterable: &Value) -> Result<Value> {
    let mut out = Builder::new(&interpreter.budget);
    for (index, item) in iterable.elements(&interpreter.budget)?.iter().enumerate() {
        let Value::Str(item) = item else {
            let reason = format!("sequence item {index}: expected str instance, {} found", item.type_name());
            return Err(Error::render(reason));
        };
        if index > 0 {
            out.push(separator)?;
        }
        out.push(item)?;
    }
    Ok(Value::text(out.finish()))
}
