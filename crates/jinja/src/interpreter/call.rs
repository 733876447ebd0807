//! Calls: macros, methods, and global functions.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::arguments::Arguments;
use crate::ast::MacroDef;
use crate::budget::Builder;
use crate::error::{Error, Result};
use crate::interpreter::Interpreter;
use crate::methods;
use crate::scope::Scope;
use crate::text::Text;
use crate::value::{Dict, Items, Object, Value, repr, to_text};

/// Names of the global functions.
pub(super) const FUNCTIONS: [&str; 7] = ["range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"];

/// Maximum length of a range, as in Jinja's sandbox.
const MAX_RANGE: i128 = 100_000;

impl Interpreter<'_> {
    pub(crate) fn call(&self, function: &Value, args: Arguments) -> Result<Value> {
        function.defined()?;
        let Value::Object(object) = function else {
            return Err(Error::render(format!("'{}' object is not callable", function.type_name())));
        };
        match &**object {
            Object::Macro(definition, scope) => self.deeper(|| self.call_macro(definition, scope, args)),
            Object::Method(receiver, name) => methods::call(self, receiver, name, args),
            Object::Function(name) => self.call_function(name, args),
            Object::Loop(state) => {
                let Some((definition, scope)) = &state.recursion else {
                    return Err(Error::render("The loop must have the 'recursive' marker to be called recursively."));
                };
                let [iterated] = args.bind("loop", ["iterable"])?;
                let mut out = Builder::new(&self.budget);
                self.loop_over(definition, &iterated.unwrap_or(Value::None), state.depth0() + 1, scope, &mut out)?;
                Ok(Value::text(out.finish()))
            }
            Object::Joiner(separator, used) => {
                Ok(if used.replace(true) { Value::Str(Rc::clone(separator)) } else { Value::literal("") })
            }
            _ => Err(Error::render(format!("'{}' object is not callable", function.type_name()))),
        }
    }

    fn call_function(&self, name: &str, args: Arguments) -> Result<Value> {
        match name {
            "range" => self.range(&args),
            "dict" => Ok(Value::Dict(Rc::new(self.dict_of(args)?))),
            "namespace" => {
                let attributes = self.dict_of(args)?;
                attributes.keys().try_for_each(check_attribute)?;
                let object = Rc::new(Object::Namespace(RefCell::new(attributes)));
                self.namespaces.borrow_mut().push(Rc::clone(&object));
                Ok(Value::Object(object))
            }
            "cycler" if args.positional.is_empty() => Err(Error::render("at least one item has to be provided")),
            "cycler" => Ok(Value::object(Object::Cycler(Items::new(args.positional)?, Cell::new(0)))),
            "joiner" => {
                let [separator] = args.bind("joiner", ["sep"])?;
                let separator = separator.map_or_else(|| Ok(Text::literal(", ")), |value| to_text(&value, &self.budget))?;
                Ok(Value::object(Object::Joiner(Rc::new(separator), Cell::new(false))))
            }
            "raise_exception" => {
                let [message] = args.bind("raise_exception", ["message"])?;
                let message = message.map_or_else(|| Ok(Text::default()), |message| to_text(&message, &self.budget))?;
                Err(Error::Raised { message: message.as_str().to_owned() })
            }
            _ => {
                let [format] = args.bind("strftime_now", ["format"])?;
                let format = to_text(&format.unwrap_or(Value::None), &self.budget)?;
                let time = (self.clock)(format.as_str()).map_err(Error::render)?;
                self.budget.write(time.len())?;
                Ok(Value::literal(&time))
            }
        }
    }

    fn range(&self, args: &Arguments) -> Result<Value> {
        let numbers: Option<Vec<i128>> = args.positional.iter().map(Value::int).collect();
        let numbers = numbers.ok_or_else(|| Error::render("range() takes integers"))?;
        let (start, stop, step) = match numbers[..] {
            [stop] => (0, stop, 1),
            [start, stop] => (start, stop, 1),
            [start, stop, step] => (start, stop, step),
            _ => return Err(Error::render(format!("range expected 1 to 3 arguments, got {}", numbers.len()))),
        };
        if step == 0 {
            return Err(Error::render("range() arg 3 must not be zero"));
        }
        let (span, step_len) =
            (if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) }, step.saturating_abs());
        let len = if span <= 0 { 0 } else { (span - 1) / step_len + 1 };
        if len > MAX_RANGE {
            return Err(Error::render(format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE}).")));
        }
        self.budget.step(usize::try_from(len).expect("a range of at most 100000"))?;
        Value::list((0..len).map(|index| Value::Int(start + index * step)).collect())
    }

    /// Builds the dictionary of `dict(...)` and `namespace(...)`.
    fn dict_of(&self, args: Arguments) -> Result<Dict> {
        let mut dict = Dict::default();
        for source in args.positional {
            if let Value::Dict(source) = &source {
                self.budget.step(source.len())?;
                for (key, value) in source.entries() {
                    dict.insert(key.clone(), value.clone())?;
                }
                continue;
            }
            for pair in source.elements(&self.budget)? {
                match &pair.elements(&self.budget)?[..] {
                    [key, value] => dict.insert(key.clone(), value.clone())?,
                    other => {
                        let reason = format!("dictionary update sequence element has length {}; 2 is required", other.len());
                        return Err(Error::render(reason));
                    }
                }
            }
        }
        for (name, value) in args.keyword {
            dict.insert(Value::literal(&name), value)?;
        }
        Ok(dict)
    }

    fn call_macro(&self, definition: &Arc<MacroDef>, home: &Rc<Scope>, args: Arguments) -> Result<Value> {
        let scope = Scope::inside(home);
        let (num_given, num_parameters) = (args.positional.len(), definition.parameters.len());
        let mut positional = args.positional.into_iter();
        let mut keyword = args.keyword;
        for (name, default) in &definition.parameters {
            let given = positional.next().or_else(|| {
                let index = keyword.iter().position(|(known, _)| known == name)?;
                Some(keyword.remove(index).1)
            });
            let value = match (given, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.evaluate(default, &scope)?,
                (None, None) => Value::undefined(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
        if definition.reads_caller {
            let given = keyword.iter().position(|(name, _)| &**name == "caller").map(|index| keyword.remove(index).1);
            scope.set(&"caller".into(), given.unwrap_or_else(|| Value::undefined("No caller defined")));
        }
        if definition.reads_kwargs {
            let mut dict = Dict::default();
            for (name, value) in keyword {
                dict.insert(Value::literal(&name), value)?;
            }
            scope.set(&"kwargs".into(), Value::Dict(Rc::new(dict)));
        } else if let Some((name, _)) = keyword.first() {
            return Err(Error::render(format!("macro '{}' takes no keyword argument '{name}'", definition.name)));
        }
        if definition.reads_varargs {
            scope.set(&"varargs".into(), Value::tuple(positional.collect())?);
        } else if num_given > num_parameters {
            let reason = format!("macro '{}' takes not more than {num_parameters} argument(s)", definition.name);
            return Err(Error::render(reason));
        }
        let mut out = Builder::new(&self.budget);
        self.run(&definition.body, &scope, &mut out)?;
        Ok(Value::text(out.finish()))
    }

    /// Calls a method of one of the engine's own objects.
    pub(crate) fn call_object_method(&self, object: &Object, name: &str, args: Arguments) -> Result<Value> {
        match (object, name) {
            (Object::Loop(state), "cycle") => {
                state.cycle(&args.positional).ok_or_else(|| Error::render("no items for cycling given"))
            }
            (Object::Loop(state), "changed") => {
                let printed = repr(&Value::tuple(args.positional)?, &self.budget)?;
                Ok(Value::Bool(state.changed(printed.as_str().to_owned())))
            }
            (Object::Cycler(items, at), "next") => {
                let value = items[at.get()].clone();
                at.set((at.get() + 1) % items.len());
                Ok(value)
            }
            (Object::Cycler(_, at), _) => {
                at.set(0);
                Ok(Value::None)
            }
            _ => Err(Error::render(format!("no method '{name}'"))),
        }
    }
}

/// Refuses attribute names that transformers disallows in namespaces.
pub(super) fn check_attribute(name: &Value) -> Result<()> {
    match name {
        Value::Str(name) if name.as_str().starts_with('_') => {
            Err(Error::render(format!("a namespace cannot have the attribute '{}'", name.as_str())))
        }
        _ => Ok(()),
    }
}
