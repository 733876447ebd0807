//! `map`, `select`, `reject` and attribute lookup.

use std::rc::Rc;

use crate::arguments::Arguments;
use crate::error::{Error, Result};
use crate::interpreter::Interpreter;
use crate::value::Value;

impl Interpreter<'_> {
    pub(super) fn pick(&self, name: &str, value: &Value, args: Arguments) -> Result<Value> {
        let items = value.elements(&self.budget)?;
        match name {
            "map" => self.map(items, args),
            _ => self.select(name, items, args),
        }
    }

    fn map(&self, items: Vec<Value>, mut args: Arguments) -> Result<Value> {
        let mut take = |name: &str| {
            let index = args.keyword.iter().position(|(known, _)| &**known == name)?;
            Some(args.keyword.remove(index).1)
        };
        if args.positional.is_empty()
            && let Some(attribute) = take("attribute")
        {
            let default = take("default");
            let attribute = |item: &Value| match (self.path(item, Some(&attribute))?, &default) {
                (Value::Undefined(_), Some(default)) => Ok(default.clone()),
                (found, _) => Ok(found),
            };
            return Value::generator(items.iter().map(attribute).collect::<Result<_>>()?);
        }
        if args.positional.is_empty() {
            return Err(Error::render("map requires a filter argument"));
        }
        let filter = self.soft_text(&args.positional.remove(0))?;
        let mapped = items.into_iter().map(|item| {
            let args = Arguments { positional: args.positional.clone(), keyword: args.keyword.clone() };
            self.filter(filter.as_str(), item, args)
        });
        Value::generator(mapped.collect::<Result<_>>()?)
    }

    fn select(&self, name: &str, items: Vec<Value>, mut args: Arguments) -> Result<Value> {
        let keeps = name.starts_with("select");
        let attribute = match name.ends_with("attr") {
            true if args.positional.is_empty() => return Err(Error::render("Missing parameter for attribute name")),
            true => Some(args.positional.remove(0)),
            false => None,
        };
        let test = if args.positional.is_empty() { None } else { Some(self.soft_text(&args.positional.remove(0))?) };
        let mut kept = Vec::new();
        for item in items {
            let looked_at = self.path(&item, attribute.as_ref())?;
            let passes = match &test {
                Some(test) => self.test(test.as_str(), &looked_at, &args)?,
                None => looked_at.is_true(),
            };
            if passes == keeps {
                kept.push(item);
            }
        }
        Value::generator(kept)
    }

    /// Returns the value that `attribute` of `item` names: `a.b.0`, a number, or the item itself.
    pub(super) fn path(&self, item: &Value, attribute: Option<&Value>) -> Result<Value> {
        match attribute {
            None | Some(Value::None) => Ok(item.clone()),
            Some(Value::Str(path)) => {
                let path = Rc::clone(path);
                path.as_str().split('.').try_fold(item.clone(), |value, part| {
                    let key = part.parse().map_or_else(|_| Value::literal(part), Value::Int);
                    self.item(&value, &key)
                })
            }
            Some(index) => self.item(item, index),
        }
    }
}
