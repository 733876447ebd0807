//! Filters of lists and dictionaries.

use std::collections::HashSet;
use std::rc::Rc;

use crate::arguments::Arguments;
use crate::arithmetic;
use crate::ast::Operator;
use crate::budget::Builder;
use crate::error::{Error, Result};
use crate::interpreter::Interpreter;
use crate::methods::pairs;
use crate::order::{less, sorted};
use crate::text::Text;
use crate::value::{Items, Key, Object, Value, write_str};

impl Interpreter<'_> {
    pub(super) fn collection_filter(&self, name: &str, value: &Value, args: Arguments) -> Result<Value> {
        match name {
            "length" | "count" => {
                let [] = args.bind(name, [])?;
                Ok(Value::Int(value.length()? as i128))
            }
            "first" => {
                let [] = args.bind(name, [])?;
                let first = value.elements(&self.budget)?.into_iter().next();
                Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
            }
            "last" => {
                let [] = args.bind(name, [])?;
                let last = value.elements(&self.budget)?.pop();
                Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
            }
            "list" => {
                let [] = args.bind(name, [])?;
                Value::list(value.elements(&self.budget)?)
            }
            "reverse" => self.reverse(value),
            "items" => match value {
                Value::Undefined(_) => Value::generator(Vec::new()),
                Value::Dict(dict) => {
                    self.budget.step(dict.len())?;
                    Value::generator(pairs(dict)?)
                }
                _ => Err(Error::render("Can only get item pairs from a mapping.")),
            },
            "join" => self.join(value, args),
            "sum" => {
                let [attribute, start] = args.bind(name, ["attribute", "start"])?;
                value.elements(&self.budget)?.iter().try_fold(start.unwrap_or(Value::Int(0)), |sum, item| {
                    arithmetic::binary(Operator::Add, &sum, &self.path(item, attribute.as_ref())?, self)
                })
            }
            "batch" | "slice" => self.pieces(name, value, args),
            "dictsort" => self.dictsort(value, args),
            "groupby" => self.groupby(value, args),
            "sort" => {
                let [reverse, case_sensitive, attribute] = args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
                let items = value.elements(&self.budget)?;
                let items = self.sorted_by(items, attribute.as_ref(), is_set(&case_sensitive), is_set(&reverse))?;
                Value::list(items)
            }
            "unique" => self.unique(value, args),
            _ => self.extreme(name, value, args),
        }
    }

    fn reverse(&self, value: &Value) -> Result<Value> {
        if let Value::Str(_) = value {
            return self.slice(value, [None, None, Some(-1)]);
        }
        let mut items = value.elements(&self.budget)?;
        items.reverse();
        Value::generator(items)
    }

    fn join(&self, value: &Value, args: Arguments) -> Result<Value> {
        let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
        let separator = separator.map_or_else(|| Ok(Rc::new(Text::default())), |separator| self.soft_text(&separator))?;
        let mut out = Builder::new(&self.budget);
        for (index, item) in value.elements(&self.budget)?.iter().enumerate() {
            if index > 0 {
                out.push(&separator)?;
            }
            write_str(&self.path(item, attribute.as_ref())?, &mut out, &self.budget)?;
        }
        Ok(Value::text(out.finish()))
    }

    /// Evaluates `batch`, which gives lists of that many items, and `slice`, which gives that many lists.
    fn pieces(&self, name: &str, value: &Value, args: Arguments) -> Result<Value> {
        let [count, fill] = args.bind(name, ["count", "fill_with"])?;
        let count = count.and_then(|count| count.int()).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        if count == 0 {
            return Err(Error::render(format!("{name} takes a positive number")));
        }
        let items = value.elements(&self.budget)?;
        let fill = fill.filter(|fill| !matches!(fill, Value::None));
        self.budget.step(count.min(1 << 40))?;
        let mut pieces = Vec::new();
        if name == "batch" {
            for chunk in items.chunks(count) {
                let missing = fill.iter().cycle().take(if fill.is_some() { count - chunk.len() } else { 0 });
                pieces.push(Value::list(chunk.iter().chain(missing).cloned().collect())?);
            }
            return Value::generator(pieces);
        }
        let (each, longer) = (items.len() / count, items.len() % count);
        let mut start = 0;
        for index in 0..count {
            let end = start + each + usize::from(index < longer);
            let missing = fill.iter().filter(|_| index >= longer && longer > 0);
            pieces.push(Value::list(items[start..end].iter().chain(missing).cloned().collect())?);
            start = end;
        }
        Value::generator(pieces)
    }

    fn dictsort(&self, value: &Value, args: Arguments) -> Result<Value> {
        let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
        let Value::Dict(dict) = value else { return Err(Error::render("dictsort takes a dictionary")) };
        let by_value = match by {
            None => false,
            Some(by) => match self.soft_text(&by)?.as_str() {
                "key" => false,
                "value" => true,
                _ => return Err(Error::render("You can only sort by either \"key\" or \"value\"")),
            },
        };
        self.budget.step(dict.len())?;
        let key = Value::Int(i128::from(by_value));
        Value::list(self.sorted_by(pairs(dict)?, Some(&key), is_set(&case_sensitive), is_set(&reverse))?)
    }

    fn groupby(&self, value: &Value, args: Arguments) -> Result<Value> {
        let [attribute, default, case_sensitive] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
        let attribute = attribute.ok_or_else(|| Error::render("groupby takes an attribute"))?;
        let mut keyed = Vec::new();
        for item in value.elements(&self.budget)? {
            let key = match (self.path(&item, Some(&attribute))?, &default) {
                (Value::Undefined(_), Some(default)) => default.clone(),
                (found, _) => found,
            };
            keyed.push((self.folded(&key, is_set(&case_sensitive)), key, item));
        }
        self.budget.step(keyed.len().saturating_mul(20))?;
        let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
        for (folded, key, item) in sorted(keyed, |a, b| less(&a.0, &b.0))? {
            match groups.last_mut() {
                Some((last, _, items)) if last.equals(&folded) => items.push(item),
                _ => groups.push((folded, key, vec![item])),
            }
        }
        let group = |(_, key, items): (Value, Value, Vec<Value>)| {
            Ok(Value::object(Object::Group(Items::new(vec![key, Value::list(items)?])?)))
        };
        Value::list(groups.into_iter().map(group).collect::<Result<_>>()?)
    }

    fn unique(&self, value: &Value, args: Arguments) -> Result<Value> {
        let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"])?;
        let mut seen = HashSet::new();
        let mut kept = Vec::new();
        for item in value.elements(&self.budget)? {
            let key = self.folded(&self.path(&item, attribute.as_ref())?, is_set(&case_sensitive));
            if seen.insert(Key::of(&key)?) {
                kept.push(item);
            }
        }
        Value::generator(kept)
    }

    fn extreme(&self, name: &str, value: &Value, args: Arguments) -> Result<Value> {
        let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
        let mut best: Option<(Value, Value)> = None;
        for item in value.elements(&self.budget)? {
            let key = self.folded(&self.path(&item, attribute.as_ref())?, is_set(&case_sensitive));
            let is_better = match &best {
                None => true,
                Some((best, _)) if name == "max" => less(best, &key)?,
                Some((best, _)) => less(&key, best)?,
            };
            if is_better {
                best = Some((key, item));
            }
        }
        Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
    }

    fn sorted_by(&self, items: Vec<Value>, attribute: Option<&Value>, case_sensitive: bool, reverse: bool) -> Result<Vec<Value>> {
        self.budget.step(items.len().saturating_mul(20))?;
        let mut keyed = Vec::with_capacity(items.len());
        for item in items {
            keyed.push((self.sort_key(&item, attribute, case_sensitive)?, item));
        }
        // Python sorts stably even in reverse.
        let sorted = sorted(keyed, |(a, _), (b, _)| if reverse { less(b, a) } else { less(a, b) })?;
        Ok(sorted.into_iter().map(|(_, item)| item).collect())
    }

    /// Returns the sort key: a list for several attributes (`a,b`).
    fn sort_key(&self, item: &Value, attribute: Option<&Value>, case_sensitive: bool) -> Result<Value> {
        if let Some(Value::Str(paths)) = attribute
            && paths.as_str().contains(',')
        {
            let parts = paths.as_str().split(',').map(|path| {
                let found = self.path(item, Some(&Value::literal(path)))?;
                Ok(self.folded(&found, case_sensitive))
            });
            return Value::list(parts.collect::<Result<_>>()?);
        }
        Ok(self.folded(&self.path(item, attribute)?, case_sensitive))
    }

    /// Lowers a string, unless the comparison is case-sensitive.
    fn folded(&self, value: &Value, case_sensitive: bool) -> Value {
        match value {
            Value::Str(text) if !case_sensitive => Value::literal(&text.as_str().to_lowercase()),
            other => other.clone(),
        }
    }
}

fn is_set(flag: &Option<Value>) -> bool {
    flag.as_ref().is_some_and(Value::is_true)
}
